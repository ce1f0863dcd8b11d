# What needs only Python 3 and make: `make demo`, `make test`, and `make test-all` for all tests.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all docs bench bench-quick soak plot kill-points clean

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[tls,metrics]" --group dev
	touch $@ .venv/demo

demo: .venv/demo
	$(BIN)/python demo.py

test: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto --dist worksteal -m "not machine and not evidence"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-all: test
	$(BIN)/pytest -n auto --dist worksteal -m "evidence and not machine"
	$(BIN)/pytest -m machine

.venv/docs: .venv/dev
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

docs: .venv/docs
	$(BIN)/python docs/manual.py
	$(BIN)/pydoctor

.venv/bench: .venv/dev
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

bench: .venv/bench
	$(BIN)/python -m benchmarks

bench-quick: .venv/dev
	$(BIN)/python -m benchmarks.quick

soak: .venv/dev
	$(BIN)/python -m benchmarks.soak

plot: .venv/bench
	$(BIN)/python -m benchmarks.plot

kill-points: .venv/dev
	$(BIN)/pytest -q -m machine tests/faults/test_kill_points.py; code=$$?; cat build/kill-points.md; exit $$code

clean:
	rm -rf .venv
