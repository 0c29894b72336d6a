"""Perturbations of partial code: half of the reference's lines move into the prompt, with dead code or another loop.

ReCode's natural code transformations are of this kind: the model continues code that it would not have written.
Only forms whose meaning is plain from the text are exchanged, see ``loops``.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from flab.evaluation.perturbations.loops import rewrites
from flab.evaluation.perturbations.programs import (
    Edit,
    Program,
    find_docstring,
    first_half_moved,
    fresh,
    read_program,
    words_of,
)
from flab.evaluation.tasks import Problem
from flab.sandbox.rewrite import bound_names

DEAD_CODE = (
    "{name} = 0",
    "{name} = []",
    "{name} = None",
    "for {name} in range(0):\n{step}pass",
    "if False:\n{step}{name} = 1",
    "while False:\n{step}{name} = 1",
)
DEAD_NAMES = ("unused", "temp_flag", "extra", "spare_value")


def dead_code(problem: Problem, rng: Random) -> Problem | None:
    """Open the body with statements that do nothing and move the reference's first half into the prompt."""
    program = read_program(problem)
    place = _body_start(program) if program is not None and problem.canonical_solution is not None else None
    if program is None or place is None:
        return None
    start, indent = place
    taken = words_of(problem.prompt, problem.canonical_solution, problem.test)
    usable = [one for one in DEAD_CODE if "range" not in one or "range" not in bound_names(program.tree)]
    chosen = rng.sample(usable, rng.choice((1, 2)))
    step = indent if "\t" in indent else "    "
    statements = [one.format(name=fresh(rng.choice(DEAD_NAMES), taken), step=step) for one in chosen]
    text = "".join(f"{indent}{line}\n" for one in statements for line in one.split("\n"))
    inserted = _inserted(program, start, text)
    return first_half_moved(inserted) if inserted is not None else None


def loop_form(problem: Problem, rng: Random) -> Problem | None:
    """Rewrite one loop in another form, and move the code up to it, at least half, into the prompt."""
    program = read_program(problem)
    if program is None or problem.canonical_solution is None:
        return None
    # The order is random, because the first loop that can be changed may leave too little of the reference.
    found = list(rewrites(program))
    for rewrite in rng.sample(found, len(found)):
        before = program.text[: rewrite.start]
        after = program.text[rewrite.end :]
        if rewrite.start < program.boundary:
            continue
        changed = replace(problem, canonical_solution=(before + rewrite.text + after)[program.boundary :])
        made = first_half_moved(changed, at_least=rewrite.start + rewrite.shown)
        if made is not None:
            return made
    return None


def _body_start(program: Program) -> tuple[int, str] | None:
    """Return the offset and indent of the first statement's line after the docstring; None for a one-line body."""
    docstring = find_docstring(program)
    after = docstring.end if docstring is not None else 0
    # A definition begins at the ``@`` of its first decorator.
    nodes = [(one, *getattr(one, "decorator_list", [])) for one in program.function.body]
    starts = [min(program.span(one)[0] - (one is not parts[0]) for one in parts) for parts in nodes]
    position = next((at for at in starts if at >= after), None)
    indent = program.indent_at(position) if position is not None else None
    return (position - len(indent), indent) if position is not None and indent else None


def _inserted(program: Program, start: int, text: str) -> Problem | None:
    """Insert lines. If the body begins in the reference, with nothing before it, the lines go to the prompt."""
    between = program.text[program.boundary : start]
    if start > program.boundary and not between.strip():
        start = program.boundary if program.text[: program.boundary].endswith("\n") else start
    return program.edited([Edit(start, start, text)])
