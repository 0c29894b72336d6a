"""Perturbations that rename the function or its arguments wherever they are meant.

Code is renamed by the syntax tree and not by search: attributes, strings, other functions' names and other scopes stay.
The result counts only if its tree is the old one with the names exchanged. If the tree cannot settle a name (``locals``,
``eval``, a name in ``global`` or ``except``), the perturbation does not apply.

In docstring and comments a name that can be an English word is renamed only where it is written as code: in quotes,
as ``name(``, ``name[``, ``name=`` or ``name.x``. Other names (``two_words``, ``camelCase``, ``lst1``, a single
letter but ``a``) are renamed wherever they stand.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from random import Random

from flab.evaluation.perturbations.programs import (
    NOT_PYTHON,
    Edit,
    Program,
    find_docstring,
    fresh,
    read_program,
    same_code,
    words_of,
)
from flab.evaluation.tasks import Problem

NEUTRAL_NAMES = ("solution", "run_task", "process_input", "compute_value", "main_function")
ARGUMENT_SCHEMES: tuple[Callable[[str, int], str], ...] = (
    lambda name, number: f"arg{number}",
    lambda name, number: f"param_{number}",
    lambda name, number: f"{name}_value",
)
REFLECTION = {"locals", "vars", "globals", "eval", "exec", "dir"}
Names = dict[str, str]
NO_FUNCTION = ast.FunctionDef("", ast.arguments([], [], None, [], [], None, []), [], [])


def rename_function(problem: Problem, rng: Random) -> Problem | None:
    """Give the function another name in prompt, reference and tests: the other case style, or a neutral name."""
    program = read_program(problem)
    old = problem.entry_point
    taken = words_of(problem.prompt, problem.canonical_solution, problem.test)
    new = fresh(_other_style(old) or rng.choice(NEUTRAL_NAMES), taken)
    test = _renamed_text(problem.test, {old: new})
    if program is None or test is None or old in _keywords(program.tree):
        return None
    made = _renamed(program, program.tree, {old: new}, keywords_of=())
    return replace(made, entry_point=new, test=test) if made is not None else None


def rename_arguments(problem: Problem, rng: Random) -> Problem | None:
    """Give all arguments of the function other names, in its scope, its docstring and calls by keyword."""
    program = read_program(problem)
    if program is None:
        return None
    old = [one.arg for one in _arguments(program.function)]
    taken = words_of(problem.prompt, problem.canonical_solution, problem.test)
    scheme = rng.choice(ARGUMENT_SCHEMES)
    names = {name: fresh(scheme(name, number), taken) for number, name in enumerate(old, start=1)}
    used = {node.id for node in ast.walk(program.function) if isinstance(node, ast.Name)}
    # A function that looks at its own names, such as by locals(), would notice the renaming.
    if not names or used & REFLECTION:
        return None
    test = _with_keywords_renamed(problem.test, names, problem.entry_point)
    made = _renamed(program, program.function, names, keywords_of=(problem.entry_point, *_inner(program.function)))
    return replace(made, test=test) if made is not None and test is not None else None


def _other_style(name: str) -> str | None:
    """Return snake_case as camelCase or the reverse; None for one word."""
    parts = [part for part in name.split("_") if part]
    if len(parts) > 1:
        return parts[0].lower() + "".join(part[:1].upper() + part[1:] for part in parts[1:])
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return snake if snake != name and "_" in snake else None


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[ast.arg]:
    own = function.args
    several = [*own.posonlyargs, *own.args, *own.kwonlyargs]
    return several + [one for one in (own.vararg, own.kwarg) if one is not None]


def _inner(function: ast.FunctionDef) -> Iterator[str]:
    """Yield names of functions defined inside: calls to them by keyword follow their arguments."""
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef) and node is not function:
            yield node.name


def _scope(root: ast.AST) -> Iterator[ast.AST]:
    """Yield nodes in whose scope a rename happens: all of a module, or a function's arguments and body."""
    if not isinstance(root, ast.FunctionDef):
        yield from ast.walk(root)
        return
    yield from _arguments(root)
    for statement in root.body:
        yield from ast.walk(statement)


def _renamed(program: Program, root: ast.AST, names: Names, keywords_of: Iterable[str]) -> Problem | None:
    """Rename in code, comments and docstring. Return None if the result is not the old tree with other names."""
    callees = set(keywords_of)
    wanted = deepcopy(program.tree)
    twin = root if root is program.tree else wanted.body[program.tree.body.index(program.function)]
    if not _rename_tree(wanted if twin is root else twin, names):
        return None
    for node in _calls(wanted, callees):
        node.arg = names.get(node.arg or "", node.arg)
    edits = [*_code_edits(program, root, names), *_keyword_edits(program, names, callees)]
    # The text is edited and the tree is renamed separately. The result is used only if the edited text parses to
    # the renamed tree, so a name that one of the two missed is noticed.
    made = program.edited([*edits, *_prose_edits(program, names)])
    if made is None or made == program.problem:
        return None
    try:
        text = made.prompt + (made.canonical_solution or program.text[program.boundary :])
        return made if same_code(ast.parse(text), wanted) else None
    except NOT_PYTHON:
        return None


def _rename_tree(root: ast.AST, names: Names) -> bool:
    """Rename in the tree. Return False if a name is in a place where renaming is not safe."""
    for node in _scope(root):
        if isinstance(node, ast.Name) and node.id in names:
            node.id = names[node.id]
        elif isinstance(node, ast.arg) and node.arg in names:
            node.arg = names[node.arg]
        elif isinstance(node, ast.FunctionDef) and node.name in names:
            node.name = names[node.name]
        elif _is_unsafe(node, names, isinstance(root, ast.FunctionDef)):
            return False
    return True


def _is_unsafe(node: ast.AST, names: Names, in_function: bool) -> bool:
    if isinstance(node, ast.Global | ast.Nonlocal):
        return any(name in names for name in node.names)
    if isinstance(node, ast.ClassDef) and in_function:
        return True
    bound = [getattr(node, field, None) for field in ("asname", "name", "rest")]
    if isinstance(node, ast.alias) and node.asname is None:
        bound = [node.name.partition(".")[0]]
    return any(isinstance(one, str) and one in names for one in bound)


def _calls(tree: ast.AST, callees: set[str]) -> Iterator[ast.keyword]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in callees:
            yield from node.keywords


def _keywords(tree: ast.AST) -> set[str]:
    """Return names that any call passes by keyword."""
    return {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg is not None}


def _keyword_edits(program: Program, names: Names, callees: set[str]) -> Iterator[Edit]:
    for node in _calls(program.tree, callees):
        if node.arg in names:
            start = program.span(node)[0]
            yield Edit(start, start + len(node.arg), names[node.arg])


def _code_edits(program: Program, root: ast.AST, names: Names) -> Iterator[Edit]:
    """Yield edits of names in code. Inside f-strings the braces are searched, because the tree has no positions there."""
    in_strings: set[int] = set()
    for node in _scope(root):
        if isinstance(node, ast.JoinedStr) and id(node) not in in_strings:
            in_strings |= {id(one) for one in ast.walk(node)}
            yield from _f_string_edits(program, node, names)
        elif id(node) in in_strings:
            continue
        elif isinstance(node, ast.Name) and node.id in names:
            start = program.span(node)[0]
            yield Edit(start, start + len(node.id), names[node.id])
        elif isinstance(node, ast.arg) and node.arg in names:
            start = program.span(node)[0]
            yield Edit(start, start + len(node.arg), names[node.arg])
        elif isinstance(node, ast.FunctionDef) and node.name in names:
            start = program.text.index(node.name, program.span(node)[0] + len("def "))
            yield Edit(start, start + len(node.name), names[node.name])


def _f_string_edits(program: Program, node: ast.JoinedStr, names: Names) -> Iterator[Edit]:
    """Yield edits of names between braces. The later comparison of the syntax trees rejects edits of anything else."""
    start, end = program.span(node)
    depth = 0
    for part in re.finditer(r"\{\{|\}\}|[{}]|(?<![\w.'\"])[^\W\d]\w*", program.text[start:end]):
        depth = max(0, depth + {"{": 1, "}": -1, "}}": -2}.get(part[0], 0))
        if depth > 0 and part[0] in names:
            at = start + part.start()
            yield Edit(at, at + len(part[0]), names[part[0]])


def _prose_edits(program: Program, names: Names) -> Iterator[Edit]:
    """Yield edits of the docstring and of the comments from the function's first line on."""
    docstring = find_docstring(program)
    first = program.span(program.function)[0]
    places = [(docstring.content_start, docstring.content)] if docstring is not None else []
    for token in program.tokens():
        start = program.token_span(token)[0]
        if token.type == tokenize.COMMENT and start > first:
            places.append((start, token.string))
    for offset, text in places:
        for name, new in names.items():
            for match in _mention(name).finditer(text):
                yield Edit(offset + match.start(), offset + match.end(), new)


def _mention(name: str) -> re.Pattern[str]:
    """Return the pattern that finds the name in text. A lower-case word counts only if it is written as code."""
    word = rf"(?<![\w.]){re.escape(name)}(?!\w)"
    # A parameter may be called ``list`` or ``a``. In prose that is an ordinary word, unless it is marked as code.
    is_word = name.isalpha() and name.islower() and (len(name) > 1 or name == "a")
    if not is_word:
        return re.compile(word)
    return re.compile(rf"(?<=[`'\"]){re.escape(name)}(?=[`'\"])|{word}(?=\(|\[|\.\w|\s?=(?!=))")


def _parsed(text: str) -> Program | None:
    """Return a text without a function of interest, as a program to edit."""
    try:
        tree = ast.parse(text)
    except NOT_PYTHON:
        return None
    whole = Problem("", text, "", text, "")
    return None if "\r" in text else Program(whole, text, tree, NO_FUNCTION)


def _renamed_text(text: str, names: Names) -> str | None:
    """Rename in tests, throughout."""
    program = _parsed(text)
    if program is None:
        return None
    wanted = deepcopy(program.tree)
    made = program.edited(_code_edits(program, program.tree, names))
    if _keywords(wanted) & set(names) or not _rename_tree(wanted, names) or made is None:
        return None
    return made.prompt if same_code(ast.parse(made.prompt), wanted) else None


def _with_keywords_renamed(text: str, names: Names, entry_point: str) -> str | None:
    """Rename keywords in the tests' calls of the function, by its name or as ``check``'s argument."""
    program = _parsed(text)
    if program is None:
        return None
    checks = [node for node in program.tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    callees = {entry_point, *(one.arg for check in checks for one in _arguments(check)[:1])}
    made = program.edited(_keyword_edits(program, names, callees))
    return made.prompt if made is not None else None
