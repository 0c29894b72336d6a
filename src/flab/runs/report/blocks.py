"""The blocks of a page: text, tables, charts and so on, as plain values that both HTML and Markdown render.

Text in a block may hold code between backticks; everything else is shown as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Block:
    """One piece of a section; its class decides how it is rendered."""

    @property
    def kind(self) -> str:
        """The name of the class in lower case, which is also the name of the template's macro."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; ``small`` for how something was measured."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Heading(Block):
    """The title of what follows, below the section's own."""

    text: str


@dataclass(frozen=True)
class Gap(Block):
    """A missing part, and the command that makes it."""

    text: str


@dataclass(frozen=True)
class Table(Block):
    """Rows of text under a caption; columns hold figures but for those in ``words``. ``marked`` rows stand out."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: Sequence[int] = (0,)
    marked: Sequence[int] = ()


@dataclass(frozen=True)
class Chart(Block):
    """A drawing: its kind, its numbers, a description in words, and the same numbers as a table."""

    name: str
    drawing: str
    title: str
    data: Mapping[str, Any]
    note: str
    table: Table | None = None


@dataclass(frozen=True)
class Charts(Block):
    """Charts that stand beside each other if there is room."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Shares(Block):
    """How much of several things was kept: name, before, after."""

    title: str
    rows: Sequence[tuple[str, int, int]]
    note: str


@dataclass(frozen=True)
class Strip(Block):
    """The original's layers in a row, with the removed ones marked."""

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
    """Lines to be copied."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Tile:
    """A key figure; ``state`` is kept, worse, plain or missing."""

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
