"""Define the blocks of a page (text, tables, charts and so on) as plain values, for HTML and Markdown alike.

In the text of a block, backticks mark code. All other characters are shown literally.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Block:
    """One piece of a section. Its class decides how it is rendered."""

    @property
    def kind(self) -> str:
        """The name of the class in lower case, which is also the name of its macro in the template."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Text(Block):
    """A paragraph. ``small`` is for notes on how something was measured."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Heading(Block):
    """A title of the level below the section's title."""

    text: str


@dataclass(frozen=True)
class Gap(Block):
    """Tells that a part is missing, and which command makes it."""

    text: str


@dataclass(frozen=True)
class Table(Block):
    """A table with a caption. Columns contain figures except those in ``words``. ``marked`` rows are highlighted."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: Sequence[int] = (0,)
    marked: Sequence[int] = ()


@dataclass(frozen=True)
class Chart(Block):
    """A drawing: its kind, its numbers, a description, and the same numbers as a table."""

    name: str
    drawing: str
    title: str
    data: Mapping[str, Any]
    note: str
    table: Table | None = None


@dataclass(frozen=True)
class Charts(Block):
    """Charts that are placed side by side if the page is wide enough."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Shares(Block):
    """How much of several sizes was kept, each with its name and its values before and after."""

    title: str
    rows: Sequence[tuple[str, int, int]]
    note: str


@dataclass(frozen=True)
class Strip(Block):
    """The original's layers in a row. The removed layers are marked."""

    title: str
    before: int
    kept: Sequence[int]
    note: str


@dataclass(frozen=True)
class Answer:
    """The answer of one model, and its outcome."""

    model: str
    passed: bool
    outcome: str
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Example(Block):
    """One problem with the answers of two models."""

    title: str
    prompt: str | None
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Code(Block):
    """Lines of code for the reader to copy."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Tile:
    """A key figure. ``state`` is kept, worse, plain or missing."""

    label: str
    value: str
    note: str
    state: str = "plain"


@dataclass
class Section:
    """A part of the page under a heading."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)
