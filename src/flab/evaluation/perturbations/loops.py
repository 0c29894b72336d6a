"""Rewrite loops in another form with the same meaning: ``for`` and ``while``, comprehension and loop.

Each rewrite is a replacement of text. Some loops are left alone: those on one line, ``while ... else``, loops over
something that their body changes or that may not end, and comprehensions whose variable the function also uses.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flab.evaluation.perturbations.programs import Program, fresh, words_of
from flab.sandbox.rewrite import bound_names

ENDLESS = {"count", "cycle", "repeat", "iter", "open"}
CHANGES = {"append", "extend", "insert", "remove", "pop", "popleft", "clear", "add", "discard", "update", "sort"}
# These read a generator to its end, so a list in its place changes nothing.
GATHERING = {"sum", "max", "min", "sorted", "len", "list", "set", "tuple"}
USED = {"list", "len", "iter", "int", "range"}
Body = Sequence[ast.stmt]


@dataclass(frozen=True)
class Rewrite:
    """Replace ``text[start:end]``. The first ``shown`` characters of the new text show the new form to a reader."""

    start: int
    end: int
    text: str
    shown: int


def rewrites(program: Program) -> Iterator[Rewrite]:
    """Yield all rewrites of the function's loops, in source order; none if the program redefines a builtin they use."""
    if bound_names(program.tree) & (USED | GATHERING):
        return
    for body in _bodies(program.function):
        for place, statement in enumerate(body):
            for make in FORMS:
                edit = make(program, body, place, statement)
                if edit is not None:
                    yield edit


def _bodies(function: ast.AST) -> Iterator[Body]:
    """Yield the lists of statements, in source order, without those of inner functions and classes."""
    for field in ("body", "orelse", "finalbody"):
        body = getattr(function, field, None)
        if isinstance(body, list):
            yield body
            for statement in body:
                if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield from _bodies(statement)


def _header(program: Program, node: ast.For | ast.While, last: ast.expr) -> tuple[int, int, str, str] | None:
    """Return the start and end of the lines of ``for ...:``, the indent, and the body's indent; None for a one-line loop."""
    start = program.span(node)[0]
    end = program.span(last)[1]
    line_end = program.text.find("\n", end) + 1
    first = program.span(node.body[0])[0]
    indent = program.indent_at(start)
    inner = program.indent_at(first)
    plain = re.fullmatch(r"[\s)]*:[ \t]*(#.*)?\n", program.text[end:line_end])
    if not plain or indent is None or not inner or first < line_end:
        return None
    return start - len(indent), line_end, indent, inner


def _names(*nodes: ast.AST) -> set[str]:
    return {one.id for node in nodes for one in ast.walk(node) if isinstance(one, ast.Name)}


def _taken(program: Program) -> set[str]:
    return words_of(program.text, program.problem.test)


def _for_to_while(program: Program, body: Body, place: int, node: ast.stmt) -> Rewrite | None:
    """Rewrite ``for`` as ``while`` with a counter that advances before the body, so that ``continue`` works."""
    header = _header(program, node, node.iter) if isinstance(node, ast.For) else None
    if header is None or not isinstance(node, ast.For) or _may_change(node):
        return None
    start, end, indent, inner = header
    taken = _taken(program)
    target = program.source(node.target)
    over = program.source(node.iter)
    # A range becomes a plain counter. Anything else is put into a list first, because it may have no length and
    # no index.
    counted = _range_parts(program, node.iter)
    if counted is None:
        items = fresh("items", taken)
        index = fresh("index", taken)
        setup = [f"{items} = list({over})", f"{index} = 0"]
        test = f"{index} < len({items})"
        first = f"{target} = {items}[{index}]"
        step = f"{index} += 1"
    else:
        begin, limit, size = counted
        index = fresh("index", taken)
        stop = fresh("limit", taken)
        setup = [f"{index}, {stop} = {begin}, {limit}"]
        test = f"{index} {'>' if size < 0 else '<'} {stop}"
        first = f"{target} = {index}"
        step = f"{index} += {size}"
    # The counter advances before the body; otherwise a ``continue`` would skip the step, and the loop never end.
    lines = [*(indent + one for one in [*setup, f"while {test}:"]), inner + first, inner + step]
    text = "".join(line + "\n" for line in lines)
    return Rewrite(start, end, text, len(text))


def _range_parts(program: Program, node: ast.expr) -> tuple[str, str, int] | None:
    """Return start, stop and step of a ``range`` whose step is written as a number; None for anything else."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "range":
        return None
    parts = [program.source(one) for one in node.args]
    if node.keywords or not 1 <= len(parts) <= 3 or any(isinstance(one, ast.Starred) for one in node.args):
        return None
    if len(parts) == 3 and not re.fullmatch(r"-?[1-9]\d*", parts[2]):
        return None
    begin, limit = ("0", parts[0]) if len(parts) == 1 else (parts[0], parts[1])
    return begin, limit, int(parts[2]) if len(parts) == 3 else 1


def _may_change(node: ast.For) -> bool:
    """Return whether the iterable may be endless, or be changed by the body or the target."""
    called = {
        one.func.id for one in ast.walk(node.iter) if isinstance(one, ast.Call) and isinstance(one.func, ast.Name)
    }
    called |= {
        one.func.attr
        for one in ast.walk(node.iter)
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute)
    }
    # Only some calls are known to end and to give the same items each time. Any other call may do anything.
    known = {"range", "enumerate", "zip", "sorted", "reversed", "list", "set", "len", "str", "map", "filter", "dict"}
    known |= {"items", "keys", "values", "split", "tuple", "min", "max", "int", "abs", "strip", "lower", "sqrt", "join"}
    if called & ENDLESS or called - known:
        return True
    over = _names(node.iter)
    for one in (inner for statement in node.body for inner in ast.walk(statement)):
        if isinstance(one, ast.Attribute) and one.attr in CHANGES and _names(one.value) & over:
            return True
        if isinstance(one, ast.Subscript) and not isinstance(one.ctx, ast.Load) and _names(one.value) & over:
            return True
        if isinstance(one, ast.AugAssign) and _names(one.target) & over:
            return True
    return isinstance(node.iter, ast.GeneratorExp)


def _while_to_for(program: Program, body: Body, place: int, node: ast.stmt) -> Rewrite | None:
    """Rewrite ``while`` as an endless ``for`` that breaks when the condition fails."""
    header = _header(program, node, node.test) if isinstance(node, ast.While) else None
    if header is None or not isinstance(node, ast.While) or node.orelse:
        return None
    start, end, indent, inner = header
    # ``iter(int, 1)`` calls int() until it returns 1, which never happens, so the for loop is endless.
    lines = [f"{indent}for {fresh('_', _taken(program))} in iter(int, 1):"]
    if not (isinstance(node.test, ast.Constant) and node.test.value):
        step = inner[len(indent) :] if inner.startswith(indent) else "    "
        lines += [f"{inner}if not ({program.source(node.test)}):", f"{inner}{step}break"]
    text = "".join(line + "\n" for line in lines)
    return Rewrite(start, end, text, len(text))


def _comprehension_to_loop(program: Program, body: Body, place: int, node: ast.stmt) -> Rewrite | None:
    """Build the list of a statement's comprehension by a loop before the statement."""
    found = _gathered(node)
    indent = program.indent_at(program.span(node)[0])
    if found is None or indent is None or not _is_local(program, found):
        return None
    result = fresh("collected", _taken(program))
    step = indent if "\t" in indent else "    "
    lines = [f"{indent}{result} = []"]
    depth = indent
    for one in found.generators:
        lines.append(f"{depth}for {program.source(one.target)} in {_whole(program, one.iter)}:")
        depth += step
        for test in one.ifs:
            lines.append(f"{depth}if {_whole(program, test)}:")
            depth += step
    lines.append(f"{depth}{result}.append({_whole(program, found.elt)})")
    start, end = program.span(node)
    inner_start, inner_end = program.span(found)
    rest = program.text[start:inner_start] + (result if isinstance(found, ast.ListComp) else f"({result})")
    rest += program.text[inner_end:end]
    loop = "\n".join(lines) + "\n"
    return Rewrite(start - len(indent), end, loop + indent + rest, len(loop))


def _whole(program: Program, node: ast.expr) -> str:
    """Return a node's text, in brackets if it spans lines or is a tuple without any."""
    text = program.source(node)
    bare = isinstance(node, ast.Tuple) and not text.startswith("(")
    return f"({text})" if "\n" in text or bare else text


def _gathered(node: ast.stmt) -> ast.ListComp | ast.GeneratorExp | None:
    """Return the comprehension in ``name = [...]``, ``return [...]``, or as only argument of ``sum`` and its like."""
    if not isinstance(node, ast.Assign | ast.Return):
        return None
    value = node.value
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in GATHERING:
        value = value.args[0] if len(value.args) == 1 and not value.keywords else None
    return value if isinstance(value, ast.ListComp | ast.GeneratorExp) else None


def _is_local(program: Program, found: ast.ListComp | ast.GeneratorExp) -> bool:
    """Return whether the comprehension's variables are used nowhere else and in no ``lambda``, and nothing is awaited."""
    # A comprehension has its own scope, but a loop's variable would overwrite one of the same name.
    targets = _names(*(one.target for one in found.generators))
    own = [one.id for one in ast.walk(found) if isinstance(one, ast.Name)]
    everywhere = [one.id for one in ast.walk(program.function) if isinstance(one, ast.Name)]
    everywhere += [one.arg for one in ast.walk(program.function) if isinstance(one, ast.arg)]
    late = any(isinstance(one, ast.Lambda | ast.NamedExpr | ast.Await) for one in ast.walk(found))
    plain = not any(one.is_async for one in found.generators)
    return plain and not late and all(own.count(name) == everywhere.count(name) for name in targets)


def _loop_to_comprehension(program: Program, body: Body, place: int, node: ast.stmt) -> Rewrite | None:
    """Rewrite ``r = []`` and a loop that only appends to it as one comprehension."""
    loop = body[place + 1] if place + 1 < len(body) else None
    empty = re.fullmatch(r"(\w+) = \[\]", ast.unparse(node)) if isinstance(node, ast.Assign) else None
    if empty is None or not isinstance(loop, ast.For) or loop.orelse or len(loop.body) != 1:
        return None
    name = empty[1]
    inner = loop.body[0]
    condition = None
    if isinstance(inner, ast.If) and len(inner.body) == 1 and not inner.orelse:
        condition = inner.test
        inner = inner.body[0]
    element = _appended(inner, name)
    parts = [one for one in (element, loop.target, loop.iter, condition) if one is not None]
    indent = program.indent_at(program.span(node)[0])
    if element is None or indent is None or name in _names(*parts) or not _used_in_loop_only(program, loop):
        return None
    text = f"{name} = [{_whole(program, element)} for {program.source(loop.target)} in {_whole(program, loop.iter)}"
    text += f" if {_whole(program, condition)}]" if condition is not None else "]"
    return Rewrite(program.span(node)[0], program.span(loop)[1], text, len(text))


def _appended(node: ast.stmt, name: str) -> ast.expr | None:
    """Return the value in ``name.append(value)``."""
    call = node.value if isinstance(node, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != "append":
        return None
    owner = call.func.value
    plain = isinstance(owner, ast.Name) and owner.id == name and len(call.args) == 1 and not call.keywords
    return call.args[0] if plain and not isinstance(call.args[0], ast.Starred) else None


def _used_in_loop_only(program: Program, loop: ast.For) -> bool:
    """Return whether the loop's variables occur nowhere else: a comprehension would not leave them behind."""
    targets = _names(loop.target)
    inside = [one.id for one in ast.walk(loop) if isinstance(one, ast.Name)]
    everywhere = [one.id for one in ast.walk(program.function) if isinstance(one, ast.Name)]
    return all(inside.count(name) == everywhere.count(name) for name in targets)


Form = Callable[[Program, Body, int, ast.stmt], Rewrite | None]
FORMS: tuple[Form, ...] = (_for_to_while, _while_to_for, _comprehension_to_loop, _loop_to_comprehension)
