"""A run's folder built by hand: small numbers that the tests know, and no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flab.evaluation.tasks import read_task

NO_SENSOR = "no power sensor here"
PROBLEMS = [
    {"task_id": f"t/{number}", "prompt": f"def f{number}():\n", "entry_point": f"f{number}", "test": "pass"}
    for number in range(4)
]
# passed by the original and by the smaller models, problem by problem: lost t/0, won t/1, both t/2, neither t/3
PASSED = {"original": (1, 0, 1, 0), "pruned": (0, 0, 1, 0), "recovered": (0, 1, 1, 0)}


def figure(value: float | None, unit: str, spread: float = 0.0, **more: Any) -> dict[str, Any]:
    """A figure of measure.json."""
    low, high = (None, None) if not spread or value is None else (value - spread, value + spread)
    method = None if value is None else "measured: by hand"
    made = {"value": value, "unit": unit, "low": low, "high": high, "rounds": 5, "method": method, "reason": None}
    return made | more


def results(name: str, source: Path) -> dict[str, Any]:
    """What flab eval leaves of one model."""
    task = read_task(source, "code")
    rows = [
        {"task_id": f"t/{n}", "sample": 0, "passed": bool(ok), "outcome": "passed" if ok else "assertion",
         "text": f"    return '{name} {n}'\n", "detail": "" if ok else "AssertionError: at: assert f() == 1"}
        for n, ok in enumerate(PASSED[name])
    ]  # fmt: skip
    passed = sum(PASSED[name])
    summary = {"pass@1": passed / 4, "passed": passed, "total": 4, "num_items": 4, "num_samples": 1,
               "interval_95": [0.1, 0.9], "failures": {"assertion": 4 - passed}, "num_truncated": 0}  # fmt: skip
    return {
        "format": 1, "fingerprint": name, "generator": "transformers", "settings": {"preset": "completion", "seed": 7},
        "identity": {"path": f"/somewhere/{name}", "sha256": name * 4, "dtype": "float32", "device": "cpu"},
        "versions": {"flab": "0.1.0", "python": "3.11.7"}, "robustness": [], "contamination": [],
        "tasks": [{"name": "problems", "kind": "code", "source": str(source), "sha256": task.sha256, "count": 4,
                   "perturbation": None, "summary": summary, "rows": rows}],
    }  # fmt: skip


def compared(ratio: float, low: float, high: float, lost: int, won: int, p: float) -> dict[str, Any]:
    """What flab compare prints."""
    kept = {"ratio": ratio, "low": low, "high": high}
    task = {"name": "problems", "kind": "code", "both": 1, "only_a": lost, "only_b": won, "neither": 1, "mcnemar_p": p,
            "retention": kept, "difference": {"value": 0.0, "low": -0.1, "high": 0.1}, "same_prompts": True}  # fmt: skip
    return {"tasks": [task], "differences": [], "robustness": []}


def plan(source: str) -> dict[str, Any]:
    """A plan: 60 of 100 tokens, layers 0 and 2 of three, 8 of 16 neurons."""
    common = {"vocabulary": 60, "parameters": 600, "removed_fraction": 0.4, "flops_per_token": 1200, "kl_answer": None}
    return {
        "format": 1, "remove": 0.4, "model": {"path": source, "sha256": "abc123"},
        "calibration": {"sources": [{"path": "bundled instruction samples", "sha256": "def456"}], "seed": 0},
        "vocabulary": {"before": 100, "after": 60, "kept": []}, "layers": {"before": 3, "after": 2, "kept": [0, 2]},
        "width": {"before": 16, "after": 8, "kept": []}, "refit": {"kind": "newton"}, "criteria": {"layers": "kl"},
        "parameters_before": 1000, "parameters_after": 600, "body_before": 700, "body_after": 420,
        "kl_vocabulary": 0.001, "kl_nats_per_token": 0.0212, "warnings": [],
        "candidates": [
            {**common, "layers": 2, "width": 8, "kl_search": 0.05, "kl": 0.0212, "task_passed": 9, "task_total": 10,
             "kept_layers": [0, 2], "chosen": True},
            {**common, "layers": 3, "width": 4, "kl_search": 0.15, "kl": None, "task_passed": None, "task_total": None,
             "kept_layers": [0, 1, 2], "chosen": False},
        ],
        "layer_path": [{"removed": 1, "kl": 0.06, "scores": {"1": 0.06}}, {"removed": 0, "kl": 0.31, "scores": {}}],
    }  # fmt: skip


def recovery() -> dict[str, Any]:
    """A recovery of 20 steps."""
    curve = [
        {"step": n, "eval_loss": 0.08 / (n + 1), "eval_kl": 0.08 / (n + 1), "eval_cross_entropy": 0.6}
        for n in (0, 10, 20)
    ]
    curve.append({"step": 5, "loss": 0.05, "kl": 0.05, "cross_entropy": 0.5})
    terms = {"loss": 0.08, "kl": 0.08, "cross_entropy": 0.6}
    return {
        "method": "full", "learning_rate": 0.001, "steps": 20, "planned_steps": 20, "chosen_step": 20, "tokens": 5000,
        "stopped_early": False, "seconds": 131.0, "devices": 1, "device": "cpu", "curve": curve,
        "examples": {"train": 90, "held_out": 10},
        "held_out": {"before": {"step": 0, **terms}, "after": {"step": 20, **terms, "loss": 0.02, "kl": 0.02}},
        "peak_memory": {"predicted_bytes": 1e9, "measured_bytes": 2e9, "method": "measured: resident set"},
        "identity": {"data": "fed321", "training": {"alpha": 1.0, "seed": 3}},
    }  # fmt: skip


def measured(with_energy: bool = False) -> dict[str, Any]:
    """What flab measure leaves; CO2 is always in the file, so that the tests see whether it comes through."""
    models = []
    for name, factor in (("original", 1.0), ("recovered", 0.5)):
        joules = figure(8.0 * factor, "J", 0.5) if with_energy else figure(None, "J", reason=NO_SENSOR)
        figures = {
            "storage_bytes": figure(2e6 * factor, "B"), "time_per_output_token": figure(0.004 * factor, "s", 0.0005),
            "peak_memory_decode": figure(3e8 * factor, "B", 1e6), "energy_per_1000_tokens": joules,
            "co2_per_1000_tokens": figure(0.000124 * factor, "g"), "made_up_figure": figure(7.0, "widgets"),
        }  # fmt: skip
        speed = [{"batch": b, "tokens_per_second": figure(250 * b / factor, "tokens/s", 9)} for b in (1, 4)]
        models.append({"name": name, "path": "x", "sha256": "y", "figures": figures, "throughput": speed})
    gain = {
        "value": 2.0,
        "low": 1.8,
        "high": 2.2,
        "unit": "x",
        "predicted": 2.5,
        "of_predicted": 0.8,
        "prediction": "bytes read",
    }
    tokens = figure(291300.0, "tokens")
    return {
        "format": 1, "flab": "0.1.0", "device": "cpu", "dtype": "float32", "models": models,
        "machine": {"processor": "a processor", "cpus": 2, "memory_bytes": 25e9, "gpu": None},
        "settings": {"prompt_tokens": 128, "new_tokens": 64, "grid_grams_per_kwh": 56.0},
        "grid": {"grams_per_kwh": 56.0, "source": "carbon intensity by hand"}, "gains": {"time_per_output_token": gain},
        "payback": {"seconds": {"cost": 320.0, "saved_per_token": 0.002, "tokens": tokens},
                    "energy": {"tokens": figure(None, "tokens", reason=NO_SENSOR)}, "solved_problems": figure(910.0, "problems")},
    }  # fmt: skip


def sweep() -> dict[str, Any]:
    """Two budgets."""
    sizes = {
        "vocabulary": {"before": 100, "after": 80},
        "layers": {"before": 3, "after": 3},
        "width": {"before": 16, "after": 12},
    }
    rows = [{"remove": share, "removed_fraction": share + 0.003, "parameters": 800, **sizes, "kl_nats_per_token": share / 10,
             "task_passed": None, "task_total": None, "retention": 1 - share / 2, "plan": "plan.json", "pareto": True}
            for share in (0.2, 0.1)]  # fmt: skip
    return {"format": 1, "model": "original", "budgets": rows, "seconds": {}}


def write(path: Path, value: Any) -> None:
    """JSON in a folder that is made where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def build(home: Path) -> Path:
    """A finished run with measurements and a sweep in ``home/RUN``."""
    source, run = home / "problems.jsonl", home / "RUN"
    source.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS), encoding="utf-8")
    names = ("prune", "data", "recover", "evaluate original", "evaluate pruned", "evaluate recovered")
    stages = {name: {"fingerprint": f"print of {name}", "finished": "2026-01-01T00:00:00Z", "seconds": 20.0,
                     "peak_resident_bytes": 1.5e9, "output": name, "energy": figure(None, "J", reason=NO_SENSOR)}
              for name in names}  # fmt: skip
    stages["prune"]["generality"] = {"text": "other", "bits_per_byte_before": 1.885, "bits_per_byte_after": 1.91}
    write(run / "run.json", {"format": 1, "flab": "0.1.0", "stages": stages})
    models = [{"name": name, "path": name, "bytes": 2000, "parameters": 1000, "tasks": {}} for name in PASSED]
    write(run / "summary.json", {"recipe": "recipes/mine.yml", "model": "org/base", "models": models})
    write(run / "pruned/plan.json", plan("/somewhere/base"))
    write(run / "recovered/recovery.json", recovery())
    write(run / "data.meta.json", {"steps": [{"step": "read", "left": 100}], "rows": 100, "kinds": {}, "sources": {}})
    for name in PASSED:
        write(run / "eval" / name / "results.json", results(name, source))
    write(run / "eval/original/run.json", {"hardware": {"machine": "x86_64", "cpus": 2}})
    write(run / "compare-pruned.json", compared(0.5, 0.0, 0.9, 1, 0, 1.0))
    write(run / "compare-recovered.json", compared(1.005, 0.99, 1.026, 1, 2, 0.75))
    write(run / "measure.json", measured())
    write(run / "sweep/sweep.json", sweep())
    return run
