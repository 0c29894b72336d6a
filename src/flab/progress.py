"""Progress on stderr: one bar for each long loop, nothing when the output is not a terminal or is silenced.

Standard output is never touched: it belongs to ``--json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

PIPE_WIDTH = 140  # columns where stderr is no terminal, so that tables do not break words

console = Console(stderr=True)
if not console.is_terminal:
    console = Console(stderr=True, width=PIPE_WIDTH)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` while a bar with count, time spent and time left is shown on stderr."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield from bar.track(items, total=total, description=description)


def say(message: str) -> None:
    """Print one line for the human, on stderr."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)
