"""The first table of the README: the bundled model at several budgets, only cut and recovered, on its three tasks.

    python benchmarks/budgets.py -o OUT

Makes the training rows once, then for each budget prunes (from 60 % removed on whole layers are reconstructed), recovers and
measures. The rows, the cut models and the answers that are in OUT are not made again, the recoveries are. Writes
OUT/budgets.json and prints Markdown. About 40 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flab import Making, Options, Recipe, Training, assets, evaluate, make_data, prune, recover
from flab.evaluation.compare import compare_runs
from flab.progress import say
from flab.runs.recipe_file import BUNDLED_TASKS as TASKS

MINUTES_AND_RATE = {0.22: (2, 2e-4), 0.4: (3, 1e-3), 0.6: (5, 2e-3), 0.7: (5, 2e-3), 0.8: (5, 2e-3)}
COLUMNS = (
    "removed", "pass@1, only cut", "kept", "recovered", "kept (95 %)", "lost/won", "chain of thought", "output prediction",
    "training",
)  # fmt: skip
DEEP = 0.6  # from here on the dearer refit


def recipe_for(remove: float) -> Recipe:
    """How flab would be asked to cut so much."""
    return Recipe(remove=remove, refit="reconstruction", tokens=200_000) if remove >= DEEP else Recipe(remove=remove)


def training_for(remove: float) -> Training:
    """Distillation alone; the less was cut, the smaller the steps that still help."""
    minutes, rate = MINUTES_AND_RATE[remove]
    return Training(minutes=minutes, learning_rate=rate, length=256, batch=16, micro_batch=16, patience=99)


def run(remove: float, data: Path, out: Path) -> dict[str, Any]:
    """One budget: its two models, measured."""
    original, percent = assets.model_path(), f"{100 * remove:g}"
    cut, whole = out / f"cut-{percent}", out / f"recovered-{percent}"
    if not cut.exists():
        prune(original, cut, recipe_for(remove))
    say(f"{percent} % removed; recovering")
    report = recover(cut, original, data, whole, training_for(remove), Options(overwrite=True))
    plan = json.loads((cut / "plan.json").read_text())
    row: dict[str, Any] = {"remove": remove, "kl": plan["kl_nats_per_token"], "plan_seconds": plan["seconds"]}
    row |= {name: report[name] for name in ("held_out", "steps", "seconds")}
    for name, model in (("cut", cut), ("recovered", whole)):
        evaluate(model, TASKS, out / "eval" / f"{name}-{percent}", gold=False)
        row[name] = compare_runs(out / "eval" / "original", out / "eval" / f"{name}-{percent}")["tasks"]
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    before, (code, *others) = row["cut"][0], row["recovered"]
    kept = code["retention"]
    return [
        f"{100 * row['remove']:g} %",
        f"{before['pass@1_b']:.3f}",
        f"{before['retention']['ratio']:.3f}",
        with_interval(code["pass@1_b"], code["interval_95_b"]),
        with_interval(kept["ratio"], (kept["low"], kept["high"])),
        f"{code['only_a']}/{code['only_b']}",
        *(with_interval(task["pass@1_b"], task["interval_95_b"]) for task in others),
        f"{row['seconds']:.0f} s",
    ]


def with_interval(value: float, interval: Sequence[float]) -> str:
    """The value and its bounds."""
    return f"{value:.3f} ({interval[0]:.2f}–{interval[1]:.2f})"


def main() -> None:
    """All budgets, smallest first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--remove", type=float, nargs="+", default=list(MINUTES_AND_RATE), choices=list(MINUTES_AND_RATE)
    )
    parser.add_argument("--own-texts", type=int, default=12_000)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    out, began = given.output, time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    evaluate(assets.model_path(), TASKS, out / "eval" / "original", gold=False)
    if not (data := out / "data.jsonl").exists():
        making = Making(own_texts=given.own_texts, max_new_tokens=200, batch_size=128)
        make_data(assets.model_path(), [assets.recovery_path()], data, making, None, TASKS)
    rows = []
    for remove in given.remove:
        rows.append(run(remove, data, out))
        (out / "budgets.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(cells(row)) + " |")
    say(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
