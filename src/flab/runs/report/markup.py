"""Escape text for HTML and Markdown, so that it cannot create tags, links, fences or cells.

Text between backticks becomes code. An unpaired backtick has no effect.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

MARKDOWN = re.compile(r"([\\`*_\[\]#|~$])|^([-+=]|\d+(?=[.)](?:\s|$)))")
NO_BREAK = "&#8203;"  # a zero-width space, which keeps text from being read as an address


def parts_of(text: str) -> list[tuple[bool, str]]:
    """Split a text into pieces, each with whether it is code."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return [(False, text)]
    return [(bool(number % 2), piece) for number, piece in enumerate(pieces) if piece]


def html(text: str) -> Markup:
    """Return text for the HTML page. Mark code between backticks, and keep numbers and their percent signs together."""
    text = re.sub(r"(?<=\d) %", "\u00a0%", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if is_code else escape(piece) for is_code, piece in parts_of(text)
    )


def markdown(text: str) -> str:
    """Return text on one line, for a paragraph or a cell of a Markdown table."""
    flat = " ".join(text.split())
    return "".join(code_span(piece) if is_code else plain(piece) for is_code, piece in parts_of(flat))


def plain(text: str) -> str:
    """Return text on one line with every character escaped that Markdown or HTML would interpret."""
    text = re.sub(r"\s+", " ", text)  # after a line break, text could begin a heading, a list or code
    # ``&`` comes first, or the replacements of the others would be escaped again.
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = MARKDOWN.sub(lambda found: f"\\{found[0]}" if not found[0].isdigit() else f"{found[0]}{NO_BREAK}", text)
    # GitHub turns addresses and names in plain text into links and mentions. A zero-width space inside them prevents that.
    text = re.sub(r"\b(www|mailto|xmpp)(?=[.:])", lambda found: f"{found[1]}{NO_BREAK}", text, flags=re.IGNORECASE)
    text = re.sub(r"@(?=[\w-]+\.\w)|(?<!\w)@(?=\w)", f"@{NO_BREAK}", text)
    return text.replace("://", "&#58;//")


def code_span(text: str) -> str:
    """Return code inside a line. Pipes are escaped, because they would end the cell of a table."""
    text = text.replace("|", "\\|")
    return f"`{text}`" if text.strip() else ""


def fenced(text: str, language: str = "") -> str:
    """Return a block of code with a fence that is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    body = text if text.endswith("\n") else text + "\n"
    return f"{fence}{language}\n{body}{fence}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """Return a Markdown table. Columns of figures are aligned to the right."""
    rules = [":--" if number in words else "--:" for number in range(len(columns))]
    lines = [columns, rules, *rows]
    cells = [[one if line is rules else markdown(one) for one in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
