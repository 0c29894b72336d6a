"""The program in a chat reply: the final answer's code, with the imports and helpers that came before it.

A reply may think first, show drafts, usage and shell commands, fence its code in several ways, or not fence it at all.
Only the text after the thinking counts. Of several fences, the last one that defines the function is the answer; from
the others only imports, definitions and constants are kept. Python is parsed here and never run.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
THINKING = re.compile(r"\s*<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
FENCE = re.compile(
    r"(?P<indent>[ \t>]*(?:[-*+]|\d+[.)])?[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*\{?\.?(?P<language>[\w+#.-]*)[^`\n]*$"
)
PYTHON = {"", "python", "python3", "py", "py3", "python2", "ipython", "sage"}
BEGINS = re.compile(r"(?:def|class|async def|import|from|@)\b|@\w|[A-Za-z_]\w* *(?::[^=]+)?= *\S")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
KEPT = (*DEFINITIONS, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language in small letters, its text without the fence's own indentation."""

    language: str
    text: str


def final_code(reply: str, entry_point: str) -> str:
    """Return the program that a reply gives as its answer, or nothing if the reply ends inside its thinking."""
    text = reply.replace("\r\n", "\n").replace("\r", "\n")
    # What follows the last end of thinking, also if the chat template opened the thinking.
    parts = THOUGHT.split(text)
    text = "" if len(parts) == 1 and THINKING.match(text) else parts[-1]
    blocks = [block for block in fenced(text) if block.language in PYTHON]
    name = re.split(r"[.(]", entry_point.strip(), maxsplit=1)[0]
    if not blocks:
        return in_prose(text)
    parsed = [(block, tree) for block in blocks if (tree := _parse(block.text)) is not None and tree.body]
    answers = [at for at, (_, tree) in enumerate(parsed) if defines(tree, name)]
    if not answers:
        # No block defines the function. The answer may be spread over several blocks, so all that is Python is kept.
        named = [block for block in blocks if block.language] or blocks
        return "\n\n".join(block.text for block in ([block for block, _ in parsed] or named)) + "\n"
    # A reply may hold drafts. The last block that defines the function is the answer; imports and helpers of
    # other blocks are kept, because the answer may use them.
    last = answers[-1]
    known = set(vars(builtins)).union(*(_bound(tree) for _, tree in parsed))
    before = [_kept(block.text, tree, name, known) for block, tree in parsed[:last]]
    after = [_kept(block.text, tree, name, known) for block, tree in parsed[last + 1 :]]
    return "\n\n".join(one for one in (*before, parsed[last][0].text, *after) if one.strip()) + "\n"


def fenced(text: str) -> Iterator[Block]:
    """Yield the fenced blocks in order. A block without a closing fence reaches to the end."""
    opening: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        if opening is None:
            opening = FENCE.match(line)
            lines = []
        elif len(bare := line.strip(" \t>")) >= len(opening["mark"]) and set(bare) == {opening["mark"][0]}:
            yield Block(opening["language"].lower(), _unindented(lines, opening["indent"]))
            opening = None
        else:
            lines.append(line)
    if opening is not None:
        yield Block(opening["language"].lower(), _unindented(lines, opening["indent"]))


def _unindented(lines: list[str], indent: str) -> str:
    """Remove a fence's quotation marks and indentation from its lines."""
    if ">" in indent:
        lines = [re.sub(r"^[ \t]*>[ \t]?", "", line) for line in lines]
    return textwrap.dedent("\n".join(line.rstrip() if not line.strip() else line for line in lines))


def _parse(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except NOT_PYTHON:
        return None


def defines(tree: ast.Module, name: str) -> bool:
    """Return whether the top level of a program defines a name."""
    for node in tree.body:
        if isinstance(node, DEFINITIONS) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            return True
    return False


def _bound(tree: ast.Module) -> set[str]:
    """Name what a program's top level defines or imports."""
    found = {node.name for node in tree.body if isinstance(node, DEFINITIONS)}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return found | {one.id for one in ast.walk(tree) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def _kept(text: str, tree: ast.Module, name: str, known: set[str]) -> str:
    """Return the imports, helpers and constants of a block that is not the answer. Drafts, usage and prose are left out."""
    lines = text.split("\n")
    chosen = []
    for node in tree.body:
        used = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}
        draft = isinstance(node, DEFINITIONS) and node.name == name
        usage = not isinstance(node, DEFINITIONS) and (name in used or not used <= known)
        if not isinstance(node, KEPT) or draft or usage:
            continue
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        chosen.append("\n".join(lines[first - 1 : node.end_lineno]))
    return "\n".join(chosen)


def in_prose(text: str) -> str:
    """Return the Python in a reply without fences: for each line that begins code, the longest valid stretch from there.

    If no line begins code, return the whole text.
    """
    if (tree := _parse(text)) is not None and any(not isinstance(node, ast.Expr) for node in tree.body):
        return text
    lines = textwrap.dedent(text).split("\n")
    if not any(BEGINS.match(line) for line in lines):
        lines = _code_lines_only(lines)
    found = []
    at = 0
    while at < len(lines):
        end = _longest(lines, at) if BEGINS.match(lines[at]) else at
        found += [*lines[at:end], ""] if end > at else []
        at = max(end, at + 1)
    return "\n".join(found) if found else text


def _code_lines_only(lines: list[str]) -> list[str]:
    """Return the lines that are indented like the first indented line of code, without that indentation."""
    first = next((line for line in lines if line[:1].isspace() and BEGINS.match(line.lstrip())), "")
    indent = first[: len(first) - len(first.lstrip())]
    return (
        [line.removeprefix(indent) for line in lines if line.startswith(indent) or not line.strip()] if first else lines
    )


def _longest(lines: list[str], start: int) -> int:
    """Return where the longest stretch of Python from ``start`` ends, or ``start`` if there is none."""
    end = start + 1  # a statement ends before the next line in column 0
    best = start
    while end <= len(lines):
        if end == len(lines) or (lines[end].strip() and not lines[end][0].isspace()):
            if _parse("\n".join(lines[start:end])) is not None:
                best = end
            elif best > start:
                break
        end += 1
    return best
