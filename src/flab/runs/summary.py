"""The summary of a run: one row for each model, the smaller ones paired with the original. It measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flab.evaluation.compare import compare_runs
from flab.evaluation.record import RESULTS
from flab.files import read_json, write_json
from flab.runs.recipe_file import RecipeFile


def summarise(
    recipe: RecipeFile, folder: Path, models: Mapping[str, Path], stages: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return one row for each model, and each smaller one paired with the original, task by task."""
    rows = []
    for name, path in models.items():
        results = read_json(folder / "eval" / name / RESULTS)
        row: dict[str, Any] = {
            "name": name,
            "path": str(path),
            "bytes": sum(file.stat().st_size for file in path.glob("*.safetensors")),
            "parameters": _parameters(folder, name),
            "tasks": {task["name"]: _figures(task["summary"]) for task in results["tasks"]},
        }
        if name != "original":
            paired = compare_runs(folder / "eval" / "original", folder / "eval" / name)
            write_json(folder / f"compare-{name}.json", paired)
            for task in paired["tasks"]:
                row["tasks"][task["name"]] |= {n: task[n] for n in ("retention", "only_a", "only_b", "mcnemar_p")}
        rows.append(row)
    return {"recipe": str(recipe.path), "model": recipe.model, "output": str(folder), "models": rows,
            "stages": dict(stages)}  # fmt: skip


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    names = ("pass@1", "passed", "total", "interval_95", "bleu_paper")
    return {name: summary[name] for name in names if name in summary}


def _parameters(folder: Path, name: str) -> int:
    plan = read_json(folder / "pruned" / "plan.json")
    return int(plan["parameters_before" if name == "original" else "parameters_after"])
