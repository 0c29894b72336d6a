"""The primitive: one small typed step that can be said in English, written in Python, and evaluated."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Type letters: L list of ints, W list of words, S string, I int, D dict of int to int, B bool.


@dataclass(frozen=True)
class Operation:
    """One primitive. `code` holds every right way to write it over {x} (input), {k} and, in blocks, {y}.

    A code template without a newline is an expression; one with a newline is a block that assigns {y}.
    """

    name: str
    takes: str
    gives: str
    evaluate: Callable[[Any, int], Any]
    step: str
    phrases: tuple[str, ...]
    code: tuple[str, ...]
    ks: tuple[int, ...] = (0,)

    @property
    def expressions(self) -> list[str]:
        """The code templates that are one expression."""
        return [template for template in self.code if "\n" not in template]


def is_atom(expression: str) -> bool:
    """True where `expression` can stand inside any other expression without parentheses."""
    node = ast.parse(expression, mode="eval").body
    return not isinstance(node, ast.BinOp | ast.UnaryOp | ast.BoolOp | ast.Compare | ast.IfExp | ast.Lambda)


def fill(template: str, x: str, y: str, k: int) -> str:
    """Puts an input expression, a result name and a parameter into a code template."""
    wrapped = x if is_atom(x) else f"({x})"
    return template.replace("{x}", wrapped).replace("{y}", y).replace("{k}", str(k))
