"""MBPP's rows (Austin et al. 2021) and MBPP+'s (Liu et al. 2023) as function problems.

A row has a task in words (``text``, or ``prompt`` in the sanitized set), the reference as a whole program
(``code``) and asserts (``test_list``). The problem's prompt is the tested function's ``def`` line with the words
as its docstring, after the reference's imports, constants and classes; the reference's other functions come after
the body, so that the prompt does not give them away. The asserts stay as they are. If a row also has
its own ``test``, as in MBPP+, it runs after them.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from textwrap import indent
from typing import Any

from flab.errors import DataError

MBPP_FIELDS = "text or prompt, code, test_list"


def is_mbpp(row: Mapping[str, Any]) -> bool:
    """Return whether the row has MBPP's fields."""
    words = row.get("text") if row.get("text") is not None else row.get("prompt")
    return words is not None and all(row.get(name) is not None for name in ("code", "test_list"))


def problem_fields(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the row with ``prompt``, ``entry_point``, ``canonical_solution`` and ``test`` made from it."""
    words = row.get("text") or row.get("prompt")
    code = row["code"]
    tests = _strings(row["test_list"])
    imports = _strings(row.get("test_imports") or [])
    setup = row.get("test_setup_code") or ""
    if not all(isinstance(one, str) for one in (words, code, setup)) or not tests or imports is None:
        raise DataError(f"{where}: MBPP rows have text, code and test_list, a list of asserts; got other types")
    code = code.replace("\r\n", "\n")
    more = row.get("test") or ""  # MBPP+ has many more cases there than in test_list
    if not isinstance(more, str):
        raise DataError(f"{where}: test is {type(more).__name__}; allowed is text")
    lines = setup.replace("\r\n", "\n").split("\n") if setup else []
    test = "\n".join([*imports, *lines, *tests, *([more.replace("\r\n", "\n")] if more.strip() else [])]) + "\n"
    # The reference must be a body under a prompt, as in HumanEval, so the program is taken apart and reassembled.
    function, others = _split(code, test, where)
    prompt, body = _prompt_and_body(code, function, others, str(words))
    return row | {"prompt": prompt, "entry_point": function.name, "canonical_solution": body, "test": test}


def _strings(value: Any) -> list[str] | None:
    """Return the value if it is a list of text."""
    return list(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else None


def _split(code: str, test: str, where: str) -> tuple[ast.FunctionDef, list[ast.stmt]]:
    """Find the function that the tests call (the last defined of several) and all other statements."""
    try:
        statements = ast.parse(code).body
        asserts = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: code or test_list is not Python ({error}); repair the row") from error
    called = {
        node.func.id for node in ast.walk(asserts) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    found = [node for node in statements if isinstance(node, ast.FunctionDef) and node.name in called]
    if not found:
        raise DataError(f"{where}: test_list calls no function that code defines; repair the row")
    return found[-1], [node for node in statements if node is not found[-1]]


def _prompt_and_body(code: str, function: ast.FunctionDef, others: list[ast.stmt], words: str) -> tuple[str, str]:
    """Split the program into the prompt and the body that a model has to write."""
    lines = code.split("\n")
    helpers = [_source(lines, node) for node in others if isinstance(node, ast.FunctionDef)]
    rest = [_source(lines, node) for node in others if not isinstance(node, ast.FunctionDef)]
    first = function.body[0]
    head = "\n".join(lines[_first_line(function) - 1 : first.lineno - 1])
    body = "\n".join(lines[first.lineno - 1 : function.end_lineno])
    if first.lineno == function.lineno:  # def f(x): return x
        head = lines[function.lineno - 1][: first.col_offset].rstrip()
        body = indent("\n".join(map(ast.unparse, function.body)), "    ")
    space = body[: len(body) - len(body.lstrip())]
    # The words become a docstring, so characters that would end it or escape are made harmless.
    quoted = " ".join(words.split()).replace("\\", "\\\\").replace('"""', "'''")
    prompt = "\n".join(rest) + "\n\n\n" * bool(rest) + f'{head}\n{space}"""{quoted}\n{space}"""\n'
    return prompt, "\n\n\n".join([body, *helpers]) + "\n"


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _source(lines: list[str], node: ast.stmt) -> str:
    return "\n".join(lines[_first_line(node) - 1 : node.end_lineno])
