"""The exception tree. A user's mistake raises one of these; a programmer's mistake fails an assertion.

The command line prints the message as one line and exits with code 2 (``--debug`` shows the traceback).
Write messages as *what, got, allowed, next step*, and quote a field as ```name```: the command line prints ``--name``.

Names of files, tensors and tasks come from others and may hold anything: :func:`plain` makes a message safe to print.
"""

from __future__ import annotations

import re
import unicodedata

# In characters.
LONGEST_WORD = 300
LONGEST_MESSAGE = 2000
# Unicode's categories of controls, formats (such as the writing direction), halves of surrogate pairs, and line
# ends.
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
BREAKS = re.compile(r" *[\n\r\t][ \n\r\t]*")
LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


def plain(text: str) -> str:
    """Return one line that is safe on any terminal: control characters escaped, very long words and texts shortened."""
    # Names come from files and may hold terminal escapes, right-to-left marks or megabytes of text, which must not reach
    # the screen.
    line = BREAKS.sub(" ", text.strip("\n\r\t")).rstrip()
    if not line.isprintable():
        safe = (unicodedata.category(char) not in UNSAFE for char in line)
        line = "".join(c if s else c.encode("unicode_escape").decode("ascii") for c, s in zip(line, safe, strict=True))
    line = LONG_WORD.sub(lambda found: shortened(found[0], LONGEST_WORD), line)
    return shortened(line, LONGEST_MESSAGE)


def shortened(text: str, most: int) -> str:
    """Return the text, or its beginning and end if it is longer than ``most`` characters."""
    half = most // 2 - 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


class FlabError(Exception):
    """Invalid input. The message is one line that ends with the next step. The other errors here derive from this one."""

    def __init__(self, message: str = "") -> None:
        super().__init__(plain(str(message)))


class OptionError(FlabError):
    """An option has a value that is not allowed (a fraction, a size, a path that exists already)."""


class UnsupportedModelError(FlabError):
    """The model's architecture is not one that flab can cut, or needs code that is not stock."""


class CheckpointError(FlabError):
    """A model folder is missing, truncated, not safetensors, or does not reload as it was saved."""


class OutputError(FlabError):
    """An output cannot be written: the disk is full or too small, or writing failed."""


class DataError(FlabError):
    """A data file (calibration, problems, corpus) is missing, empty, malformed or not the one named."""


class BudgetError(FlabError):
    """The parameter budget cannot be met. The message names the floor and the largest reachable budget."""


class PlanError(FlabError):
    """A plan file is malformed or was made for another model or other data."""


class SandboxError(FlabError):
    """Model-written code cannot be run in isolation here, and the user did not allow running it without."""


class TrainingError(FlabError):
    """Training cannot continue: the loss is NaN or infinite, or a stopped run cannot be resumed as asked."""
