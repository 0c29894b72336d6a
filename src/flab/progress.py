"""What flab prints: on stderr the progress and remarks of the work, on stdout the result that a command was asked for.

A long loop shows a bar, or a line every 30 seconds if stderr is not a terminal. The library itself only writes to stderr:
:func:`reply` and :func:`show` are for the commands, which print nothing but one object on stdout with ``--json``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from functools import cache
from typing import Self, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from flab.errors import plain

T = TypeVar("T")

REPORT_SECONDS = 30.0  # between the lines of a loop if stderr is not a terminal
PIPE_WIDTH = 140  # columns of what is not a terminal, so that tables do not break words


def _console(stderr: bool) -> Console:
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=PIPE_WIDTH)


console = _console(stderr=True)
results = _console(stderr=False)


class Meter:
    """Shows the progress of one long loop: a bar on a terminal, elsewhere a line every :data:`REPORT_SECONDS`.

    It is a context manager. A shorter loop leaves no line.
    """

    def __init__(
        self, description: str, total: int | None = None, unit: str = "", done: int = 0, shown: bool = True
    ) -> None:
        """Begin at ``done``. Of several processes, all but the first pass ``shown=False``."""
        self.description = description
        self.total = total
        self.unit = unit
        self.done = self.first = done
        self.start = time.monotonic()
        self._shown = shown
        self._ended = threading.Event()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        self.start = time.monotonic()
        if self._shown and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(self.unit))
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(escape(self.description), total=self.total, completed=self.done)
        elif self._shown:
            # The thread is a daemon, so it cannot keep the process alive after an exception in the loop.
            threading.Thread(target=self._report, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar, or write no more lines."""
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def set(self, done: int, description: str | None = None) -> None:
        """Set how much is done and, if given, another name."""
        self.done = done
        self.description = description or self.description
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=escape(self.description))

    def line(self, now: float) -> str:
        """Return the line for a time: how much is done, of how much, and the time left at this pace."""
        of = f"/{self.total}" if self.total is not None else ""
        unit = f" {self.unit}" if self.unit else ""
        spent = now - self.start
        made = self.done - self.first
        left = f"after {duration(spent)}"
        if self.total is not None and made:
            left = f"about {duration(spent / made * (self.total - self.done))} left"
        return f"  {self.description}: {self.done}{of}{unit}, {left}"

    def _report(self) -> None:
        while not self._ended.wait(REPORT_SECONDS):
            say(self.line(time.monotonic()))


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Yield ``items`` while a :class:`Meter` counts them in ``unit``."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Meter(description, total, unit) as meter:
        for number, item in enumerate(items, 1):
            yield item
            meter.set(number)


@dataclass
class StageTimes:
    """Seconds spent in each named stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        """Add the time since the last lap to ``name``."""
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self.start, 2)
        self.start = now


def duration(seconds: float) -> str:
    """Return seconds as text: seconds below two minutes, minutes below two hours, else hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def say_stage(number: int, count: int, name: str) -> None:
    """Print which stage begins, and how many there are."""
    say(f"stage {number} of {count}: {name}")


# How what is said names the settings: as fields in Python, which the command line turns into its options.
wording: Callable[[str], str] = str


def say(message: str) -> None:
    """Print one line about the work, on stderr."""
    console.print(plain(wording(message)), highlight=False, markup=False, soft_wrap=True)


def reply(message: str) -> None:
    """Print one line of a command's result, on stdout."""
    results.print(plain(wording(message)), highlight=False, markup=False, soft_wrap=True)


def show(table: Table) -> None:
    """Print one table of a command's result, on stdout."""
    results.print(table)


@cache
def say_once(message: str) -> None:
    """Print one line, unless this process has printed it before."""
    say(message)


def table_of(title: str, columns: Sequence[str]) -> Table:
    """Return an empty table whose first column is text and whose others are figures."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    return table


def add(table: Table, *cells: object) -> None:
    """Add a row of plain text. Names come from files and may hold text that rich would read as markup."""
    table.add_row(*(escape(plain(wording(str(cell)))) for cell in cells))
