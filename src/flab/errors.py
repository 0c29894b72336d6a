"""The exception tree: users' mistakes raise one of these, programmers' mistakes assert.

The command line prints the message as one line and exits with code 2 (``--debug`` shows the trace).
Write messages as *what, got, allowed, next step*.
"""


class FlabError(Exception):
    """Any mistake in what the user gave; the message is one line that says what to do next."""


class OptionError(FlabError):
    """An option is outside what is allowed (a fraction, a size, a path that exists already)."""


class UnsupportedModelError(FlabError):
    """The model's architecture is not one that flab can cut, or needs code that is not stock."""


class CheckpointError(FlabError):
    """A model folder is missing, truncated, not safetensors, or does not reload as it was saved."""


class DataError(FlabError):
    """A data file (calibration, problems, corpus) is missing, empty, malformed or not the one named."""


class BudgetError(FlabError):
    """The parameter budget cannot be met; the message names the floor and what is reachable."""


class PlanError(FlabError):
    """A plan file is malformed or was made for another model or other data."""


class SandboxError(FlabError):
    """Model-written code cannot be run in isolation here, and the user did not allow less."""


class TrainingError(FlabError):
    """Training cannot go on: its loss is no number, or a stopped run cannot be continued as asked."""
