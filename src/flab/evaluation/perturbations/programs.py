"""A problem's prompt and reference as one Python program: where things are, and edits that keep the two apart.

Perturbations are built on it. It never reformats code: text that no edit touches stays as it was.
"""

from __future__ import annotations

import ast
import builtins
import io
import keyword
import re
import tokenize
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property

from flab.evaluation.tasks import Problem

NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
STANDINS = ("    pass\n", "\tpass\n", "  pass\n")  # bodies for a problem without a reference
TRIPLE = re.compile(r"([rRuU]?)(\"\"\"|''')")


@dataclass(frozen=True)
class Edit:
    """Replace ``text[start:end]``; an insertion where the prompt ends belongs to the prompt."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Docstring:
    """The function's docstring in the prompt: its place in the program, its quotes, its content and its indent."""

    start: int
    end: int
    prefix: str
    quote: str
    indent: str
    content: str

    @property
    def content_start(self) -> int:
        """Where the text between the quotes begins."""
        return self.start + len(self.prefix) + len(self.quote)


@dataclass(frozen=True)
class Program:
    """Prompt and reference (or a body that does nothing), the tree, and the function to complete."""

    problem: Problem
    text: str
    tree: ast.Module
    function: ast.FunctionDef

    @property
    def boundary(self) -> int:
        """Where the prompt ends."""
        return len(self.problem.prompt)

    @cached_property
    def line_starts(self) -> list[int]:
        """The offset of each line, and of the end."""
        starts = [0]
        for line in self.text.split("\n"):
            starts.append(starts[-1] + len(line) + 1)
        return starts

    def offset(self, line: int, column: int) -> int:
        """Return the offset in the text of a tree's position, whose column counts UTF-8 bytes."""
        start = self.line_starts[line - 1]
        # ``ast`` counts columns in bytes of UTF-8 and Python's strings count characters, so they differ after the
        # first character outside ASCII.
        whole = self.text[start : self.line_starts[line] - 1]
        return start + len(whole.encode()[:column].decode())

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return offsets of a node's beginning and end."""
        place = [getattr(node, name) for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")]
        return self.offset(place[0], place[1]), self.offset(place[2], place[3])

    def source(self, node: ast.AST) -> str:
        """Return a node's text."""
        start, end = self.span(node)
        return self.text[start:end]

    def indent_at(self, offset: int) -> str | None:
        """Return the white space before ``offset`` on its line, None if there is anything else."""
        before = self.text[self.text.rfind("\n", 0, offset) + 1 : offset]
        return before if not before.strip() else None

    def tokens(self) -> list[tokenize.TokenInfo]:
        """Return Python's own tokens of the text."""
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    def token_span(self, token: tokenize.TokenInfo) -> tuple[int, int]:
        """Return offsets of a token, whose column counts characters."""
        return (
            self.line_starts[token.start[0] - 1] + token.start[1],
            self.line_starts[token.end[0] - 1] + token.end[1],
        )

    def edited(self, edits: Iterable[Edit]) -> Problem | None:
        """Apply edits that do not overlap. Return None if one of them crosses the end of the prompt."""
        prompt = self.text[: self.boundary]
        solution = self.text[self.boundary :]
        # Edits are applied from the end to the beginning, so that none moves the place of a later one.
        for edit in sorted(edits, key=lambda one: (one.start, one.end), reverse=True):
            if edit.end <= self.boundary:
                prompt = prompt[: edit.start] + edit.text + prompt[edit.end :]
            elif edit.start >= self.boundary:
                start = edit.start - self.boundary
                end = edit.end - self.boundary
                solution = solution[:start] + edit.text + solution[end:]
            else:
                return None
        has_reference = self.problem.canonical_solution is not None
        return replace(self.problem, prompt=prompt, canonical_solution=solution if has_reference else None)


def read_program(problem: Problem) -> Program | None:
    """Parse prompt and reference. Return None if they are not Python with the function at the top level."""
    bodies = [problem.canonical_solution] if problem.canonical_solution is not None else STANDINS
    for body in bodies:
        text = problem.prompt + body
        # Some of Python's readers take these for line ends and others do not, so offsets would be wrong.
        if "\r" in text or "\f" in text:
            return None
        try:
            tree = ast.parse(text)
        except NOT_PYTHON:
            continue
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == problem.entry_point]
        if found:
            return Program(problem, text, tree, found[-1])
    return None


def find_docstring(program: Program) -> Docstring | None:
    """Return the function's first triple-quoted string statement that lies entirely in the prompt, on separate lines."""
    for node in program.function.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            start, end = program.span(node)
            opening = TRIPLE.match(program.text, start)
            indent = program.indent_at(start)
            rest = program.text[end:].partition("\n")[0]
            if opening and end <= program.boundary and indent is not None and not rest.strip():
                quote = opening[2]
                content = program.text[opening.end() : end - len(quote)]
                return Docstring(start, end, opening[1], quote, indent, content)
    return None


def same_code(first: ast.AST, second: ast.AST) -> bool:
    """Return whether two trees are equal apart from string statements."""
    return ast.dump(_Bare().visit(deepcopy(first))) == ast.dump(_Bare().visit(deepcopy(second)))


class _Bare(ast.NodeTransformer):
    """Drops string statements."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)


def words_of(*texts: str | None) -> set[str]:
    """Return every word of the texts that could be a name, with Python's keywords and builtins: names to avoid."""
    found = {word for text in texts for word in re.findall(r"[^\W\d]\w*", text or "")}
    return found | set(keyword.kwlist) | set(dir(builtins))


def fresh(name: str, taken: set[str]) -> str:
    """Return the name, with a number if it is taken; the result is taken from then on."""
    candidates = [name, *(f"{name}_{number}" for number in range(2, 10_000))]
    chosen = next(one for one in candidates if one not in taken)
    taken.add(chosen)
    return chosen


def logical_line_ends(program: Program) -> list[int]:
    """Return offsets after each statement line of the function that lies in the reference, in order."""
    last = program.function.end_lineno or 0
    ends = [
        program.line_starts[token.end[0]]
        for token in program.tokens()
        if token.type == tokenize.NEWLINE and token.start[0] <= last
    ]
    return sorted({end for end in ends if end > program.boundary})


def first_half_moved(problem: Problem, at_least: int = 0) -> Problem | None:
    """Move half of the reference's lines into the prompt, as ReCode's partial-code files do.

    ``at_least`` is an offset in prompt and reference that the new prompt must reach. At least one line stays in
    the reference; None if that cannot be.
    """
    program = read_program(problem)
    if program is None or problem.canonical_solution is None:
        return None
    ends = logical_line_ends(program)
    half = ends[: len(ends) // 2]
    cuts = [program.boundary, *ends[:-1]]
    reach = max([at_least, *half[-1:]])
    cut = next((one for one in cuts if one >= reach), None)
    if cut is None or not program.text[cut:].strip():
        return None
    return replace(problem, prompt=program.text[:cut], canonical_solution=program.text[cut:])
