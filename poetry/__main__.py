"""`python -m poetry`."""

from poetry.cli import main

if __name__ == "__main__":
    main()
