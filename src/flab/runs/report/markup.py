"""Text as inert HTML or Markdown: it cannot create tags, links, fences or cells.

Text between backticks becomes code; an unpaired backtick does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

MARKDOWN = re.compile(r"([\\`*_\[\]#|~$])|^([-+=]|\d+(?=[.)](?:\s|$)))")
NO_BREAK = "&#8203;"  # a zero-width space; text that contains it is not an address


def parts_of(text: str) -> list[tuple[bool, str]]:
    """Return pieces of a text, each with whether it is code."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return [(False, text)]
    return [(bool(number % 2), piece) for number, piece in enumerate(pieces) if piece]


def html(text: str) -> Markup:
    """Return text for a page, code between backticks marked as such; a number and its percent sign stay on one line."""
    text = re.sub(r"(?<=\d) %", "\u00a0%", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if is_code else escape(piece) for is_code, piece in parts_of(text)
    )


def markdown(text: str) -> str:
    """Return text for a paragraph or a cell of a Markdown table, on one line."""
    flat = " ".join(text.split())
    return "".join(code_span(piece) if is_code else plain(piece) for is_code, piece in parts_of(flat))


def plain(text: str) -> str:
    """Return text on one line in which every sign that Markdown or HTML would read is taken literally."""
    text = re.sub(r"\s+", " ", text)  # a line break would begin a heading, a list or code
    # ``&`` first, or the replacements of the others would be escaped again.
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = MARKDOWN.sub(lambda found: f"\\{found[0]}" if not found[0].isdigit() else f"{found[0]}{NO_BREAK}", text)
    # GitHub turns addresses and names in plain text into links and mentions. A zero-width space inside them prevents that.
    text = re.sub(r"\b(www|mailto|xmpp)(?=[.:])", lambda found: f"{found[1]}{NO_BREAK}", text, flags=re.IGNORECASE)
    text = re.sub(r"@(?=[\w-]+\.\w)|(?<!\w)@(?=\w)", f"@{NO_BREAK}", text)
    return text.replace("://", "&#58;//")


def code_span(text: str) -> str:
    """Code inside a line; a pipe in it would end a table's cell."""
    text = text.replace("|", "\\|")
    return f"`{text}`" if text.strip() else ""


def fenced(text: str, language: str = "") -> str:
    """Return a block of code whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    body = text if text.endswith("\n") else text + "\n"
    return f"{fence}{language}\n{body}{fence}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """Return a Markdown table; columns of figures are set to the right."""
    rules = [":--" if number in words else "--:" for number in range(len(columns))]
    lines = [columns, rules, *rows]
    cells = [[one if line is rules else markdown(one) for one in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
