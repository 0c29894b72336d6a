"""``python -m flab`` is the command line."""

from flab.cli.app import main

if __name__ == "__main__":
    main()
