"""twistd's options, and the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.plugin import IPlugin, getPlugins
from twisted.python.usage import UsageError as OptionError

from poetry.daemon.tap import Options, makeService
from poetry.server import PoetryService
from tests.daemon.test_build import factories


def parsed(*words: str) -> Options:
    """The options of `twistd poetry`."""
    options = Options()
    options.parseOptions(list(words))
    return options


def test_twistd_options_make_the_same_service(tmp_path: Path) -> None:
    """The options of twistd make the same service as those of `poetry serve`."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"a poem")
    words = ["--max-connections", "9", "--idle-timeout", "2.5", "--grace", "3", "-l", "1"]
    service = makeService(parsed(*words, "--listen", "unix:/run/poem", str(path)))
    assert isinstance(service, PoetryService)
    assert [factory.address for factory in factories(service)] == ["1", "unix:/run/poem"]
    assert [factory.poem for factory in factories(service)] == [b"a poem"] * 2
    assert (service.max_connections, service.idle_timeout, service.grace) == (9, 2.5, 3.0)


def test_bad_options_end_twistd(capsys: pytest.CaptureFixture[str]) -> None:
    """Nonsense ends twistd with one line and 2."""
    with pytest.raises(OptionError):
        parsed("--grace", "soon")
    for words, message in [
        (["none.txt"], "none.txt: No such file or directory"),
        (["no\nfile"], r"no\nfile: No such file or directory"),
        (["--grace", "nan"], "grace has to be at least 0 s, not nan"),
        (["--num-bytes", "-1"], "num_bytes has to be at least 1, not -1"),
        (["--delay", "0"], "delay has to be more than 0 s, not 0"),
    ]:
        with pytest.raises(SystemExit) as caught:
            makeService(parsed(*words))
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"Error: {message}\n"


def test_plugin_is_found() -> None:
    """Twisted finds the plugin, which loads this module only when it is asked for."""
    plugins: list[Any] = list(getPlugins(IPlugin))
    [maker] = [each for each in plugins if getattr(each, "tapname", "") == "poetry"]
    assert (maker.makeService, maker.options) == (makeService, Options)
