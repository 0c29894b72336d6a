"""Progress and tables on stderr: one bar for each long loop, none when the output is not a terminal or is silenced.

Standard output is never touched: it belongs to ``--json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import cache
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from flab.errors import plain

T = TypeVar("T")

PIPE_WIDTH = 140  # columns where stderr is no terminal, so that tables do not break words

console = Console(stderr=True)
if not console.is_terminal:
    console = Console(stderr=True, width=PIPE_WIDTH)


def new_bar(shown: bool = True) -> Progress:
    """A bar with count, time spent and time left, on stderr; none where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not (shown and console.is_terminal)
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` while a bar with count, time spent and time left is shown on stderr."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with new_bar() as bar:
        yield from bar.track(items, total=total, description=description)


def say(message: str) -> None:
    """Print one line for the human, on stderr."""
    console.print(plain(message), highlight=False, markup=False, soft_wrap=True)


@cache
def say_once(message: str) -> None:
    """The same, unless this process has said it before."""
    say(message)


def table_of(title: str, columns: Sequence[str]) -> Table:
    """An empty table whose first column is text and whose others are figures."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    return table


def add(table: Table, *cells: object) -> None:
    """A row of plain text: names come from files and may hold what rich reads as markup."""
    table.add_row(*(escape(plain(str(cell))) for cell in cells))
