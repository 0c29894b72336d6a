"""The grammar of small tasks: compositions of one or two primitives, their split, and their instances."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from reference.lists import DICT, LIST_TO_LIST, LIST_TO_OTHER
from reference.operations import Operation, fill
from reference.texts import NUMBER, STRING, WORDS

OPERATIONS = {op.name: op for op in (*LIST_TO_LIST, *LIST_TO_OTHER, *DICT, *STRING, *WORDS, *NUMBER)}
SPLIT_PERCENT = (("train", 70), ("calibration", 8), ("recovery", 8), ("test", 14))
ARGUMENTS = {
    "L": ("numbers", "values", "nums", "items"),
    "W": ("words", "names", "parts"),
    "S": ("text", "word", "s"),
    "I": ("n", "number", "x"),
    "D": ("counts", "table", "d"),
}
MIDDLES = ("step", "part", "middle")
RESULTS = ("result", "out", "answer")
NAMES = ("solve", "process", "transform", "compute", "task_{i}", "solve_{i}", "f_{i}", "make_result", "run_steps")
# fmt: off
LEXICON = (
    "sun", "moon", "star", "tree", "leaf", "rose", "fish", "bird", "cat", "dog", "cow", "owl", "ant",
    "bee", "fox", "pig", "hen", "duck", "frog", "lamp", "door", "key", "cup", "pen", "book", "map",
    "ship", "car", "lake", "sea", "ice", "fire", "rain", "snow", "gold", "milk", "egg", "up", "at",
    "we",
)
# fmt: on


@dataclass(frozen=True)
class Task:
    """One composition with its parameters fixed."""

    operations: tuple[Operation, ...]
    ks: tuple[int, ...]

    @property
    def composition(self) -> str:
        """The identity that the splits keep apart: operation names in order, without parameters."""
        return ">".join(op.name for op in self.operations)

    @property
    def takes(self) -> str:
        """The type letter of the argument."""
        return self.operations[0].takes

    def evaluate(self, value: Any) -> Any:
        """The right answer; IndexError or ValueError where the task is not defined for `value`."""
        for op, k in zip(self.operations, self.ks, strict=True):
            value = op.evaluate(value, k)
        return value

    def thoughts(self) -> str:
        """The canonical chain of thought."""
        steps = zip(self.operations, self.ks, strict=True)
        return "".join(f"Step {i}. {op.step.replace('{k}', str(k))}\n" for i, (op, k) in enumerate(steps, 1))


@cache
def compositions(split: str) -> tuple[tuple[str, ...], ...]:
    """The compositions of one split. Single operations all belong to train: only pairs are held out."""
    singles = [(name,) for name in OPERATIONS]
    pairs = [
        (a.name, b.name) for a in OPERATIONS.values() for b in OPERATIONS.values() if a.gives == b.takes and a is not b
    ]
    return tuple(names for names in (*singles, *pairs) if split_of(names) == split)


def split_of(names: tuple[str, ...]) -> str:
    """The split a composition belongs to, by a hash that is the same on every machine."""
    if len(names) == 1:
        return "train"
    bucket = int.from_bytes(hashlib.sha256(">".join(names).encode()).digest()[:4], "big") % 100
    for split, percent in SPLIT_PERCENT:
        if bucket < percent:
            return split
        bucket -= percent
    raise AssertionError("the shares add up to 100")


def draw_task(names: tuple[str, ...], rng: random.Random) -> Task:
    """A composition with random parameters."""
    operations = tuple(OPERATIONS[name] for name in names)
    return Task(operations, tuple(rng.choice(op.ks) for op in operations))


def describe(task: Task, rng: random.Random) -> str:
    """The docstring sentence: one phrasing for every step, joined in order."""
    parts = [rng.choice(op.phrases).replace("{k}", str(k)) for op, k in zip(task.operations, task.ks, strict=True)]
    if len(parts) == 1:
        return f"{_capital(parts[0])}."
    first, second = parts
    return rng.choice(
        (
            f"{_capital(first)}, then {second}.",
            f"{_capital(first)} and then {second}.",
            f"First {first}. Then {second}.",
            f"{_capital(first)}. After that, {second}.",
        )
    )


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def body(task: Task, argument: str, rng: random.Random, blocks: float = 0.3) -> str:
    """One right function body: steps in sequence or nested, each an expression or (at rate `blocks`) a block."""
    lines: list[str] = []
    value, names = argument, [rng.choice(MIDDLES), rng.choice(RESULTS)][-len(task.operations) :]
    nested = rng.random() < 0.3
    for op, k, name in zip(task.operations, task.ks, names, strict=True):
        template = _template(op, rng, blocks)
        last = op is task.operations[-1]
        if "\n" in template:
            lines += fill(template, value, name, k).split("\n")
            value = name
        elif last or (nested and not lines and _uses_once(task.operations[-1])):
            value = fill(template, value, name, k)
        else:
            lines.append(f"{name} = {fill(template, value, name, k)}")
            value = name
    return "".join(f"    {line}\n" for line in (*lines, f"return {value}"))


def _template(op: Operation, rng: random.Random, blocks: float) -> str:
    wanted = [template for template in op.code if "\n" in template] if rng.random() < blocks else []
    return rng.choice(wanted or op.expressions)


def _uses_once(op: Operation) -> bool:
    """True where an expression can be written in place of the operation's input without being run twice."""
    return all(template.count("{x}") == 1 for template in op.code)


def function_name(rng: random.Random) -> str:
    """A name that does not give the task away."""
    return rng.choice(NAMES).replace("{i}", str(rng.randrange(10)))


def draw_input(kind: str, rng: random.Random) -> Any:
    """A small random input of a type."""
    if kind == "L":
        pool = range(1, 10) if rng.random() < 0.5 else rng.sample(range(1, 10), 4)
        return [rng.choice(pool) for _ in range(rng.choice((2, 2, 3, 3, 3, 4)))]
    if kind == "W":
        return [rng.choice(LEXICON) for _ in range(rng.choice((2, 2, 3)))]
    if kind == "S":
        return rng.choice(LEXICON)
    if kind == "I":
        return rng.randrange(1, 10)
    return {key: rng.randrange(1, 6) for key in rng.sample(range(1, 10), rng.choice((1, 2, 3)))}


EDGES: dict[str, tuple[Any, ...]] = {
    "L": ([], [4], [3, 3, 3], [9, 8, 7, 6, 5, 4, 3, 2, 1]),
    "W": ([], ["sun"], ["egg", "egg", "at"]),
    "S": ("", "a", "queue"),
    "I": (0, 1, 12),
    "D": ({}, {2: 2}),
}


def example_inputs(task: Task, rng: random.Random, count: int = 6) -> list[Any]:
    """Edge cases where the task is defined on them, then random inputs, all different."""
    chosen: list[Any] = []
    draws = (draw_input(task.takes, rng) for _ in range(200))
    for value in (*EDGES[task.takes], *draws):
        if len(chosen) == count:
            break
        if value not in chosen and _defined(task, value):
            chosen.append(value)
    return chosen


def _defined(task: Task, value: Any) -> bool:
    try:
        task.evaluate(value)
    except (IndexError, ValueError):
        return False
    return True


def defined_input(task: Task, rng: random.Random) -> Any:
    """A random input on which the task has an answer."""
    while not _defined(task, value := draw_input(task.takes, rng)):
        pass
    return value
