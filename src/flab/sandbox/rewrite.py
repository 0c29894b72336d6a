"""Compile the source of tests for the harness, so that their comparisons can be checked.

This module runs in flab's own process. It reads the tests but never the program. The compiled code does what the source
says, with three differences, which are made in the syntax tree:

- Comparisons, ``assert`` statements and calls of ``assert...`` methods go through a helper of ``honest``. The helper
  carries them out unchanged and then asks whether an object of the program lied.
- A builtin that the tests use without binding it is the real builtin, whatever the program calls by that name.
- ``map`` and ``filter`` do not end early when the program raises ``StopIteration``.

Helpers and builtins are constants of the code, so no name leads to them. Line numbers do not change.
"""

from __future__ import annotations

import ast
import builtins
import sys
import threading
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from flab.sandbox.packages import NOT_PYTHON, imported_modules, packages_needed
from flab.sandbox.recognize import Form, form_of, last_name

MARK = "\0flab:"  # begins the constants that the harness replaces by helpers and builtins
TEST_FILE = "<test>"
COMPARE = {ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge"}
COMPARE |= {ast.In: "contains", ast.NotIn: "lacks"}
ANYWHERE = ("eq", "ne")  # checked outside of asserts too, as in ``same = out == expected``
COPIES = ("copy", "deepcopy")
# Calls of these names, and of all that begin with assert, compare their arguments. ``abs`` compares a difference.
COMPARERS = ("isclose", "allclose", "array_equal", "array_equiv", "approx", "index", "count", "remove")
# These end early and without an error when the function that they call raises StopIteration.
ENDLESS = ("map", "filter", "starmap")
CHECKS = ("isinstance", "issubclass")
# Builtins that tests may patch, that depend on their caller, or that the compiler treats by name.
OWN_BUSINESS = set("input print open exec eval compile globals locals vars dir super breakpoint exit quit".split())
REAL = {name for name in vars(builtins) if not name.startswith("_")} - OWN_BUSINESS
# Modules whose import has an effect, such as printing a poem or opening a browser.
PLAYFUL = {"this", "antigravity", "test", "idlelib", "turtledemo"}
CATCHING = {"AssertionError", "Exception", "BaseException"}


# Python 3.11 counts the depth of all syntax trees in one place, so parsing in two threads at once can raise SystemError.
_PARSING = threading.Lock()


@dataclass(frozen=True)
class Tests:
    """Holds compiled tests: their code or the reason why they have none, their form, and their imports."""

    source: str
    entry_point: str
    code: Any
    problem: str = ""
    form: Form = field(default_factory=Form)
    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # top-level modules outside of the standard library
    patched: tuple[str, ...] = ()  # attributes that the tests themselves set or patch


def prepare(source: str, entry_point: str) -> Tests:
    """Compile tests. If they are not valid Python, ``code`` is None and ``problem`` gives the reason."""
    with _PARSING:
        return _prepare(source, entry_point)


@lru_cache(maxsize=4096)
def _prepare(source: str, entry_point: str) -> Tests:
    try:
        tree = ast.parse(source)
        tree.body = [node for node in tree.body if not starts_all_tests(node)]
        bound = bound_names(tree) | {entry_point}
        borrowed = borrowed_modules(tree) - bound
        modules = tuple(sorted(imported_modules(tree) | borrowed | runners(tree)))
        patched = tuple(sorted(patched_names(tree)))
        form = form_of(tree, entry_point)
        changed = _Rewriter(bound, borrowed, names_of_data(tree)).visit(tree)
        with warnings.catch_warnings():
            # The compiler warns about calls of constants, and the helpers are constants.
            warnings.simplefilter("ignore", SyntaxWarning)
            code = compile(ast.fix_missing_locations(changed), TEST_FILE, "exec", dont_inherit=True, optimize=0)
    except NOT_PYTHON as error:
        return Tests(source, entry_point, None, f"{type(error).__name__}: {error}")
    return Tests(source, entry_point, code, "", form, modules, tuple(packages_needed(source)), patched)


def starts_all_tests(node: ast.stmt) -> bool:
    """Return whether a statement starts unittest or pytest. It is left out, because the harness itself runs the tests."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) in ("unittest.main", "pytest.main")


def borrowed_modules(tree: ast.AST) -> set[str]:
    """Return the standard modules whose attributes the source reads, including those that it imports itself."""
    bases = [node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    found = {base.id for base in bases if isinstance(base, ast.Name)}
    return (found & sys.stdlib_module_names) - PLAYFUL


def runners(tree: ast.AST) -> set[str]:
    """Return the modules that the harness needs to run this source."""
    is_async = any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(tree))
    is_unittest = any(isinstance(node, ast.ClassDef) for node in ast.walk(tree)) and "unittest" in ast.dump(tree)
    return ({"asyncio"} if is_async else set()) | ({"unittest"} if is_unittest else set())


def patched_names(tree: ast.AST) -> set[str]:
    """Return the attributes that the source sets, and the last parts of dotted names in its strings (for ``patch``)."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 100:
            found.add(node.value.rpartition(".")[2])
    return {name for name in found if name.isidentifier()}


def bound_names(tree: ast.AST) -> set[str]:
    """Return all names that the source binds in any scope."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            found.update(node.names)
    return found


def names_of_data(tree: ast.AST) -> set[str]:
    """Return the variables of which the source reads only parts, as in ``made.text`` or ``rows[0]``.

    If such a variable holds the result of a comparison, that result is an object and not a truth value. Query languages
    work this way.
    """
    loads = {
        id(node): node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    parts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Subscript)}
    return {name for at, name in loads.items() if at in parts} - {name for at, name in loads.items() if at not in parts}


class _Rewriter(ast.NodeTransformer):
    """Replaces comparisons, asserts and builtins by the constants that stand for helpers."""

    def __init__(self, bound: set[str], modules: set[str], data: set[str]) -> None:
        self.data = data
        self.real = REAL - bound
        self.modules = modules  # standard modules that the tests use without an import
        # These count how many enclosing nodes are of one kind.
        self.in_assert = 0
        self.caught = 0  # statements that are meant to catch a failed assert
        self.within = 0  # with statements
        # Maps the id of a comparison to how its result is used, if it is not used as a truth value.
        self.uses: dict[int, str] = {}

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        base = node.value
        if isinstance(base, ast.Name) and base.id in self.modules and isinstance(base.ctx, ast.Load):
            node.value = _call("module", [ast.Constant(base.id)], base)
            return node
        node.value = self._data(base)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        node.value = self._data(node.value)
        node.slice = self._data(node.slice)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        only = node.targets[0] if len(node.targets) == 1 else None
        is_data = isinstance(only, ast.Name) and only.id in self.data
        node.targets = [self.visit(one) for one in node.targets]
        node.value = self._data(node.value) if is_data else self.visit(node.value)
        return node

    def _data(self, node: ast.expr) -> Any:
        """Visit an expression of whose value only parts are read. A comparison there may return more than a truth value."""
        if isinstance(node, ast.Compare):
            self.uses[id(node)] = "data_"
        return self.visit(node)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if isinstance(node.ctx, ast.Load) and node.id in self.real:
            return _constant(node.id, node)
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        self.in_assert += 1
        test = self.visit(node.test)
        self.in_assert -= 1
        message = self.visit(node.msg) if node.msg is not None else None
        meant = self.caught or (self.within and isinstance(node.test, ast.Constant))
        helper = "holds" if meant else "must"
        return ast.copy_location(ast.Assert(_call(helper, [test], node), message), node)

    def visit_Try(self, node: Any) -> Any:
        catches = any(one.type is None or _names(one.type) & CATCHING for one in node.handlers)
        self.caught += catches
        node.body = [self.visit(one) for one in node.body]
        self.caught -= catches
        for name in ("handlers", "orelse", "finalbody"):
            setattr(node, name, [self.visit(one) for one in getattr(node, name)])
        return node

    visit_TryStar = visit_Try  # noqa: N815  ast's name

    def visit_With(self, node: Any) -> Any:
        catches = any(_names(one.context_expr) & CATCHING for one in node.items)
        self.caught += catches
        self.within += 1
        self.generic_visit(node)
        self.within -= 1
        self.caught -= catches
        return node

    visit_AsyncWith = visit_With  # noqa: N815  ast's name

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        names = [COMPARE.get(type(one)) for one in node.ops]
        if len(names) == 1 and names[0] and (self.in_assert or names[0] in ANYWHERE):
            return _call(f"{self.uses.get(id(node), '')}{names[0]}", [node.left, node.comparators[0]], node)
        if self.in_assert and len(names) > 1:
            node.left = _call("seen", [node.left], node)
            node.comparators = [_call("seen", [one], node) for one in node.comparators]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if self.in_assert and isinstance(node.op, ast.Sub):
            return _call("minus", [node.left, node.right], node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = last_name(node.func)
        compares = name.startswith("assert") or name in COMPARERS
        if name == "all" and len(node.args) == 1:
            self.uses[id(node.args[0])] = "each_"
        self.in_assert += compares or name == "abs"
        self.generic_visit(node)
        self.in_assert -= compares or name == "abs"
        if compares:
            node.func, node.args = _constant("compared", node), [node.func, *node.args]
        elif name in COPIES and len(node.args) == 1:
            node.func, node.args = _constant("copied", node), [node.func, *node.args]
        elif name in ENDLESS and not node.keywords:
            node.func, node.args = _constant("steps", node), [node.func, *node.args]
        elif name in CHECKS and isinstance(node.func, ast.Constant):
            node.func = _constant(f"checked_{name}", node)
        return node

    def visit_Match(self, node: ast.Match) -> ast.stmt:
        # A match statement compares with its patterns inside the interpreter, where no helper can intervene. Its
        # subject is examined instead.
        node.subject = _call("seen", [self.visit(node.subject)], node)
        for case in node.cases:
            case.guard = self.visit(case.guard) if case.guard is not None else None
            case.body = [self.visit(one) for one in case.body]
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        node.defaults = [self.visit(one) for one in node.defaults]
        node.kw_defaults = [self.visit(one) if one is not None else None for one in node.kw_defaults]
        return node

    def visit_FunctionDef(self, node: Any) -> Any:
        # A function that is defined inside an assert or a try runs elsewhere, so for its body the counters start from
        # zero.
        outside = self.in_assert, self.caught, self.within
        self.in_assert = self.caught = self.within = 0
        node.args = self.visit(node.args)
        node.decorator_list = [self.visit(one) for one in node.decorator_list]
        node.body = [self.visit(one) for one in node.body]
        self.in_assert, self.caught, self.within = outside
        return node

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  ast's name

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        node.value = self.visit(node.value) if node.value is not None else None
        node.target = self.visit(node.target)
        return node


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _constant(name: str, node: ast.expr | ast.stmt) -> ast.expr:
    return ast.copy_location(ast.Constant(MARK + name), node)


def _call(name: str, arguments: list[ast.expr], node: ast.expr | ast.stmt) -> ast.expr:
    return ast.copy_location(ast.Call(_constant(name, node), arguments, []), node)
