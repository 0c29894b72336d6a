"""Recognize the form of tests by their top level: a check, test functions, test classes, or plain statements.

This module reads only the source of the tests, in flab's own process. ``forms`` calls the tests inside the sandbox.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

LOOKING = "callable isinstance issubclass signature getdoc getattr hasattr type getfullargspec".split()


@dataclass(frozen=True)
class Form:
    """Names what to call after the top level of the tests has run."""

    check: str | None = None  # a function that takes the candidate
    functions: tuple[str, ...] = ()  # pytest's test functions: without arguments, or with marks
    classes: tuple[str, ...] = ()  # all classes; which of them contain tests is decided once they exist
    guarded: bool = False  # only the body of ``if __name__ == "__main__"`` calls anything
    looks: bool = False  # the tests inspect the candidate itself and may not need to call it
    bound: tuple[str, ...] = ()  # names that one def, class or import binds at the top level and nothing else binds


def form_of(tree: ast.Module, entry_point: str) -> Form:
    """Find out from their top level which form the tests have."""
    statements = list(_top_level(tree.body))
    functions = {node.name: node for node in statements if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    classes = tuple(node.name for node in statements if isinstance(node, ast.ClassDef))
    names = _bound_once(statements)
    if "check" in functions or any(_binds(node, "check") for node in statements):
        return Form(check="check", looks=looks_at(functions.get("check"), entry_point), bound=names)
    # pytest could call a test function if all its arguments have defaults or come from marks.
    tests = tuple(
        name
        for name, node in functions.items()
        if name.startswith("test")
        and (_num_required(node) == 0 or any("parametrize" in ast.dump(one) for one in node.decorator_list))
    )
    if tests or any(_looks_like_tests(node) for node in statements):
        return Form(functions=tests, classes=classes, bound=names)
    runs = [node for node in statements if _calls(node, {entry_point.partition("(")[0]} | set(functions))]
    plain = [node for node in runs if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    if [node for node in plain if not _is_guard(node)]:
        return Form(classes=classes, bound=names)
    # Nothing is called at the top level. A function with one required argument is then the check, and the candidate is
    # its argument.
    takers = [name for name, node in functions.items() if _num_required(node) == 1 and name != entry_point]
    named = [name for name in takers if name.startswith(("check", "test", "run", "verify", "assert", "validate"))]
    if takers and not any(_is_guard(node) for node in plain):
        return Form(check=(named or takers)[-1], classes=classes, bound=names)
    return Form(classes=classes, guarded=any(_is_guard(node) for node in statements), bound=names)


def looks_at(check: ast.AST | None, entry_point: str) -> bool:
    """Return whether a check reads attributes of the candidate or inspects it with the standard library."""
    names = {entry_point, *(one.arg for one in ast.walk(check or ast.Module([], [])) if isinstance(one, ast.arg))}
    for node in ast.walk(check) if check is not None else ():
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            return True
        if isinstance(node, ast.Call) and last_name(node.func) in LOOKING:
            return True
    return False


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run at the top level, including those inside ``if`` and ``try``."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and not _is_guard(node):
            yield from _top_level([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _top_level([*node.body, *node.orelse, *node.finalbody])


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "'__name__'" in ast.dump(node.test) and "'__main__'" in ast.dump(node.test)


def _binds(node: ast.stmt, name: str) -> bool:
    """Return whether an import or an assignment binds a name."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return any((alias.asname or alias.name) == name for alias in node.names)
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(one, ast.Name) and one.id == name for one in targets)


def _bound_once(statements: list[ast.stmt]) -> tuple[str, ...]:
    """Return the names that one definition or import at the top level binds and nothing else binds."""
    names: list[str] = []
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [(alias.asname or alias.name).partition(".")[0] for alias in node.names if alias.name != "*"]
    stored = {
        name
        for node in statements
        for one in ast.walk(node)
        if isinstance(one, ast.Name | ast.Global)
        for name in ([one.id] if isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load) else [])
        + (one.names if isinstance(one, ast.Global) else [])
    }
    return tuple(name for name in names if names.count(name) == 1 and name not in stored)


def _num_required(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the arguments without defaults."""
    given = [*node.args.posonlyargs, *node.args.args]
    return len(given) - len(node.args.defaults) + sum(one is None for one in node.args.kw_defaults)


def _looks_like_tests(node: ast.stmt) -> bool:
    """Return whether a class has test methods and either is named ``Test...`` or derives from a ``TestCase``."""
    if not isinstance(node, ast.ClassDef):
        return False
    methods = any(
        isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name.startswith("test") for one in node.body
    )
    return methods and (node.name.startswith("Test") or any("TestCase" in ast.dump(base) for base in node.bases))


def _calls(node: ast.stmt, names: set[str]) -> bool:
    """Return whether a statement asserts or raises something, or uses one of the names."""
    return any(
        isinstance(one, ast.Assert | ast.Raise) or (isinstance(one, ast.Name) and one.id in names)
        for one in ast.walk(node)
    )


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
