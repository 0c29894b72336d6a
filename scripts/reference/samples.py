"""The three kinds of text a task gives: code generation, chain of thought, output prediction."""

from __future__ import annotations

import random
from typing import Any

from reference import grammar
from reference.grammar import Task

COT_CUE = "How to solve:\n"
Row = dict[str, Any]


def draw_prompt(task: Task, rng: random.Random) -> tuple[str, str, str]:
    """A function header with its docstring; returns (prompt, function name, argument name)."""
    name, argument = grammar.function_name(rng), rng.choice(grammar.ARGUMENTS[task.takes])
    example = ""
    if rng.random() < 0.25:
        value = grammar.defined_input(task, rng)
        example = f"    >>> {name}({value!r})\n    {task.evaluate(value)!r}\n"
    text = f'def {name}({argument}):\n    """{grammar.describe(task, rng)}\n{example}    """\n'
    return text, name, argument


def code_row(task: Task, task_id: str, rng: random.Random) -> Row:
    """A code-generation problem in the HumanEval format."""
    prompt, name, argument = draw_prompt(task, rng)
    inputs = grammar.example_inputs(task, rng)
    asserts = "".join(f"    assert candidate({v!r}) == {task.evaluate(v)!r}\n" for v in inputs)
    return {
        "task_id": task_id,
        "composition": task.composition,
        "prompt": prompt,
        "entry_point": name,
        "canonical_solution": grammar.body(task, argument, rng),
        "test": f"def check(candidate):\n{asserts}",
    }


def code_text(task: Task, rng: random.Random) -> tuple[str, str]:
    """(prompt, completion) of a code-generation training sample."""
    prompt, _, argument = draw_prompt(task, rng)
    return prompt, grammar.body(task, argument, rng)


def cot_row(task: Task, task_id: str, rng: random.Random) -> Row:
    """A chain-of-thought problem: a function header and the canonical steps."""
    prompt, _, _ = draw_prompt(task, rng)
    return {
        "task_id": task_id,
        "composition": task.composition,
        "prompt": prompt + COT_CUE,
        "cot": task.thoughts(),
    }


def output_code(task: Task, rng: random.Random) -> str:
    """The function `f` of an output-prediction sample: mostly short expressions."""
    argument = rng.choice(grammar.ARGUMENTS[task.takes])
    return f"def f({argument}):\n{grammar.body(task, argument, rng, blocks=0.15)}".rstrip()


def output_row(task: Task, row_id: str, rng: random.Random) -> Row:
    """An output-prediction problem in the CRUXEval format."""
    value = grammar.defined_input(task, rng)
    return {
        "id": row_id,
        "composition": task.composition,
        "code": output_code(task, rng),
        "input": repr(value),
        "output": repr(task.evaluate(value)),
    }


def output_text(task: Task, rng: random.Random, asserts: int) -> list[tuple[str, str]]:
    """(prompt, completion) pairs of one function: the code comes once, before the first assert."""
    lead, pairs = f"{output_code(task, rng)}\n\n", []
    for _ in range(asserts):
        value = grammar.defined_input(task, rng)
        pairs.append((f"{lead}assert f({value!r}) ==", f" {task.evaluate(value)!r}\n"))
        lead = ""
    return pairs
