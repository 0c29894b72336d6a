"""Render ``report.html`` and ``report.md`` from the gathered report alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flab.runs.report import budget, cuts, examples, footprint, markup, provenance, recovery, scores, size, speed
from flab.runs.report.blocks import (
    Block,
    Chart,
    Charts,
    Code,
    Example,
    Gap,
    Heading,
    Section,
    Shares,
    Strip,
    Table,
    Text,
    Tile,
)
from flab.runs.report.drawings import drawing
from flab.runs.report.words import each_text, percent, visible

Json = Mapping[str, Any]

# The parts of the page in order: key, title, the field of the report that a part shows, and the function for its blocks.
SECTIONS: tuple[tuple[str, str, str, Callable[[Json], Iterator[Block]]], ...] = (
    ("size", "Before and after", "models", size.blocks),
    ("cuts", "The three cuts", "cuts", cuts.blocks),
    ("budget", "The budget curve", "budget", budget.blocks),
    ("recovery", "Recovery", "recovery", recovery.blocks),
    ("scores", "Scores", "tasks", scores.blocks),
    ("examples", "Side by side", "examples", examples.blocks),
    ("speed", "Speed, memory, energy", "measured", speed.blocks),
    ("footprint", "What it cost to make", "footprint", footprint.blocks),
    ("provenance", "Provenance", "provenance", provenance.blocks),
)


def sections(report: Json) -> list[Section]:
    """Return the parts of the page in order. Control characters in foreign text are made visible."""
    shown = each_text(report, visible)

    def made(field: str, blocks: Callable[[Json], Iterator[Block]]) -> list[Block]:
        return [Gap(shown["missing"][field])] if shown[field] is None else list(blocks(shown))

    return [Section(key, title, made(field, blocks)) for key, title, field, blocks in SECTIONS]


def title(report: Json) -> str:
    """Return the title of the page."""
    models = report["models"] or []
    model = report["provenance"]["model"]
    share = f", {percent(models[-1]['removed_fraction'])} smaller" if len(models) > 1 else ""
    return visible(f"{model}{share}")


def to_html(report: Json) -> str:
    """Return one page that needs no other file, no script and no network."""
    shown = each_text(report["verdict"], visible)
    page = _environment().get_template("report.html.j2")
    tiles = [Tile(**tile) for tile in shown["tiles"]]
    return page.render(
        title=title(report), report=report, verdict=shown, tiles=tiles, sections=sections(report), draw=_drawn
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("flab.runs.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(inline=markup.html, percent=percent, visible=visible)
    return environment


def _drawn(chart: Chart) -> Markup:
    """Return the chart as an element. Its texts were already escaped when it was drawn."""
    return Markup(drawing(chart.drawing, chart.name, f"{chart.title}. {chart.note}", chart.data))


def to_markdown(report: Json) -> str:
    """Return the same content in Markdown, with charts as tables of their numbers."""
    shown = each_text(report["verdict"], visible)
    tiles = [[tile["label"], tile["value"], tile["note"]] for tile in shown["tiles"]]
    lines = [
        f"# flab report: {markup.plain(title(report))}",
        f"**{markup.markdown(shown['headline'])}**",
        markup.markdown(shown["sentence"]),
    ]
    lines += ["\n".join(f"- {markup.markdown(remark)}" for remark in shown["remarks"])]
    lines += [markup.table(["figure", "value", ""], tiles, words=(0, 2))]
    for section in sections(report):
        lines += [f"## {section.title}", *(text for block in section.blocks for text in in_markdown(block))]
    return "\n\n".join(line for line in lines if line) + "\n"


def in_markdown(block: Block) -> list[str]:
    """Return one block as paragraphs of Markdown."""
    return MARKDOWN[type(block)](block)


def _table(table: Table) -> list[str]:
    note = [markup.markdown(table.note)] if table.note else []
    return [f"**{markup.plain(table.caption)}**", markup.table(table.columns, table.rows, table.words), *note]


def _chart(chart: Chart) -> list[str]:
    """Return a chart's table or, if it has none, the values of its bars."""
    if chart.table is not None:
        return _table(chart.table)
    rows = [[row["label"], row["text"]] for row in chart.data["rows"]]
    return _table(Table(chart.title, ["", "value"], rows, chart.note))


def _shares(shares: Shares) -> list[str]:
    rows = [[name, f"{before:,}", f"{after:,}", percent(after / before)] for name, before, after in shares.rows]
    return _table(Table(shares.title, ["", "before", "after", "kept"], rows, shares.note))


def _strip(strip: Strip) -> list[str]:
    kept = set(strip.kept)
    drawn = " ".join(str(number) if number in kept else "·" for number in range(strip.before))
    return [f"**{markup.plain(strip.title)}**", f"`{drawn}`", markup.markdown(strip.note)]


def _example(example: Example) -> list[str]:
    lines = [f"#### {markup.plain(example.title)}"]
    lines += ["Asked:", markup.fenced(example.prompt)] if example.prompt is not None else []
    for answer in example.answers:
        said = ", ".join(filter(None, (answer.model, answer.outcome, answer.detail)))
        lines += [f"{markup.markdown(said)}:", markup.fenced(answer.text)]
    return lines


MARKDOWN: dict[type[Block], Callable[[Any], list[str]]] = {
    Text: lambda block: [markup.markdown(block.text)],
    Heading: lambda block: [f"### {markup.plain(block.text)}"],
    Gap: lambda block: [f"> Not here: {markup.markdown(block.text)}"],
    Table: _table,
    Chart: _chart,
    Charts: lambda block: [text for chart in block.charts for text in _chart(chart)],
    Shares: _shares,
    Strip: _strip,
    Example: _example,
    Code: lambda block: [markup.fenced(block.text, block.language)],
}
