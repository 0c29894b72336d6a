"""The command line."""

from flab.cli.app import main

__all__ = ["main"]
