"""The bundled data files: three tests from the test split, and the calibration and recovery rows."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from reference import grammar, samples
from reference.samples import Row

SEED = 7
CALIBRATION = {"code": 1500, "thought": 450, "output": 750}
RECOVERY = {"code": 800, "thought": 250, "output": 450}


def write_all(folder: Path) -> None:
    """Writes every data file; the same code gives the same bytes."""
    write_tests(folder, "test")
    write_pairs(folder / "calibration.jsonl", "calibration", CALIBRATION)
    write_pairs(folder / "recovery.jsonl", "recovery", RECOVERY)


def write_tests(folder: Path, split: str) -> None:
    """Writes the code-generation, chain-of-thought and output-prediction problems of one split."""
    label = "reference" if split == "test" else split
    write_rows(folder / "problems.jsonl", draw(split, f"{label}/", 200, samples.code_row))
    write_rows(folder / "cot_test.jsonl", draw(split, f"{label}/cot/", 100, samples.cot_row))
    write_rows(folder / "output_test.jsonl", draw(split, f"{label}/output/", 200, samples.output_row))


def draw(split: str, prefix: str, count: int, make: Callable[[grammar.Task, str, random.Random], Row]) -> list[Row]:
    """`count` different rows; the compositions of the split take turns in random order."""
    rng = random.Random(f"{SEED} {split} {prefix}")
    order = list(grammar.compositions(split))
    rng.shuffle(order)
    rows: dict[str, Row] = {}
    while len(rows) < count:
        task = grammar.draw_task(order[len(rows) % len(order)], rng)
        row = make(task, f"{prefix}{len(rows)}", rng)
        rows.setdefault(row.get("prompt") or row["code"] + row["input"], row)
    return list(rows.values())


def write_pairs(path: Path, split: str, counts: dict[str, int]) -> None:
    """Writes prompt and completion rows of the three kinds, mixed."""
    rows = [code_pair(row) for row in draw(split, f"{split}/code/", counts["code"], samples.code_row)]
    rows += [thought_pair(row) for row in draw(split, f"{split}/cot/", counts["thought"], samples.cot_row)]
    rows += [output_pair(row) for row in draw(split, f"{split}/output/", counts["output"], samples.output_row)]
    random.Random(f"{SEED} {split}").shuffle(rows)
    write_rows(path, rows)


def code_pair(row: Row) -> Row:
    """A code-generation row as prompt and completion, with its test."""
    kept = {name: row[name] for name in ("task_id", "composition", "prompt", "entry_point", "test")}
    return {**kept, "kind": "code", "completion": row["canonical_solution"]}


def thought_pair(row: Row) -> Row:
    """A chain-of-thought row as prompt and completion."""
    return {"composition": row["composition"], "kind": "cot", "prompt": row["prompt"], "completion": row["cot"]}


def output_pair(row: Row) -> Row:
    """An output-prediction row as prompt and completion."""
    prompt, completion = f"{row['code']}\n\nassert f({row['input']}) ==", f" {row['output']}\n"
    return {"composition": row["composition"], "kind": "output", "prompt": prompt, "completion": completion}


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
