"""The bundled model at several budgets, by flab and by the selection of the paper's public scripts.

    python benchmarks/authors.py -o table
    python benchmarks/authors.py -o table-60 --remove 0.6 --refit reconstruction --tokens 200000

Nothing is trained. Both recipes read the same calibration text and cut to the same depth. The authors' vocabulary is not
closed under derivation, their layers go by the last token's similarity, and the first N neurons stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flab import assets
from flab.errors import CheckpointError, FlabError, OptionError
from flab.evaluation.bits_per_byte import GENERAL_TEXT, general_bits_per_byte
from flab.evaluation.metrics import mcnemar_exact, paired_counts
from flab.evaluation.score import Score
from flab.evaluation.tasks import Problem, read_task
from flab.files import check_place, write_text
from flab.models.checkpoint import open_model
from flab.models.families import shape_of
from flab.models.options import Options
from flab.progress import console, say, table_of
from flab.pruning.finalists import run_problems
from flab.pruning.pipeline import build
from flab.pruning.plan import Plan
from flab.pruning.recipe import Recipe
from flab.sandbox import Sandbox


def authors_recipe(recipe: Recipe, ours: Plan) -> Recipe:
    """What the paper's public scripts do, on the same text and at the depth of our plan: only the selection differs."""
    return replace(
        recipe,
        layers=ours.layers.after,
        closure=False,
        layer_criterion="last-token",
        neuron_criterion="first",
        refit="none",
        output_projection=False,
    )


@dataclass
class Bench:
    """The problems and the original's outcome, against which every other model is paired."""

    problems: Sequence[Problem]
    sandbox: Sandbox
    original: Score | None = None

    def row(self, name: str, folder: Path, kl: float | None) -> dict[str, Any]:
        """Measure one saved model."""
        say(f"measuring {name}")
        checkpoint, family = open_model(folder, Options())
        result = run_problems(checkpoint, self.problems, self.sandbox)
        self.original = self.original or result
        summary, shape = result.summary, shape_of(checkpoint.model, family)
        pairs = paired_counts(self.original.passed, result.passed)
        first = result is self.original
        return {
            "name": name,
            "parameters": shape.total,
            "bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
            "vocabulary": shape.vocabulary,
            "layers": shape.layers,
            "width": shape.width,
            "kl_nats_per_token": kl,
            "pass@1": summary["pass@1"],
            "passed": summary["passed"],
            "interval_95": summary["interval_95"],
            "failures": summary["failures"],
            "retention": None if first else summary["passed"] / max(1, sum(self.original.passed)),
            "both": None if first else pairs.both,
            "only_original": None if first else pairs.only_a,
            "only_pruned": None if first else pairs.only_b,
            "neither": None if first else pairs.neither,
            "mcnemar_p": None if first else mcnemar_exact(pairs.only_a, pairs.only_b),
            "bits_per_byte": general_bits_per_byte(checkpoint),
        }


def compare(output: Path, recipes: Sequence[Recipe], limit: int | None = None) -> dict[str, Any]:
    """Prune, save and measure by every recipe, one for each budget; the report is also written to ``output/authors.json``.

    Raises:
        CheckpointError: the bundled model is not there.
    """
    start, model = time.perf_counter(), assets.model_path()
    if not (model / "config.json").is_file():
        raise CheckpointError(f"the bundled model is missing at {model}: run python scripts/train_reference.py.")
    known = {"authors.json", *(f"{name}-{100 * one.remove:g}" for name in ("flab", "authors") for one in recipes)}
    check_place(output, [model])
    if output.exists() and not output.is_dir():
        raise OptionError(f"-o {output} is a file: give a folder for the comparison.")
    if output.exists() and not (output / "authors.json").is_file() and {path.name for path in output.iterdir()} - known:
        raise OptionError(f"-o {output} is a folder but does not hold this comparison: give a new one.")
    output.mkdir(parents=True, exist_ok=True)
    bench = Bench(read_task(assets.problems_path(), "code", limit).problems, Sandbox.detect())
    rows = [bench.row("original", model, None)]

    def add(name: str, recipe: Recipe) -> Plan:
        percent = f"{100 * recipe.remove:g}"
        folder = output / f"{name}-{percent}"
        decided = build(model, folder, recipe, Options(overwrite=True))
        row = bench.row(f"{name} -{percent} %", folder, decided.kl_nats_per_token)
        rows.append(row | {"removed_fraction": decided.removed_fraction})
        return decided

    for recipe in recipes:
        ours = add("flab", recipe)
        add("authors", authors_recipe(recipe, ours))
    report = {
        "rows": rows,
        "problems": len(bench.problems),
        "sandbox": bench.sandbox.level,
        "text": GENERAL_TEXT,
        "seconds": time.perf_counter() - start,
        "output": str(output),
    }
    write_text(output / "authors.json", json.dumps(report, indent=1) + "\n")
    return report


def show(report: Mapping[str, Any]) -> None:
    """Print one row for each model: size, KL, pass@1, paired counts, bits per byte."""
    columns = [
        "model",
        "parameters",
        "MB",
        "layers x width",
        "tokens",
        "KL",
        "pass@1 (95 %)",
        "kept",
        "lost/won",
        "bits/byte",
    ]
    table = table_of("Bundled model, cut and refitted, not recovered", columns)
    for row in report["rows"]:
        low, high = row["interval_95"]
        table.add_row(
            row["name"],
            f"{row['parameters']:,}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['layers']} x {row['width']}",
            f"{row['vocabulary']:,}",
            "-" if row["kl_nats_per_token"] is None else f"{row['kl_nats_per_token']:.4f}",
            f"{row['pass@1']:.3f} ({low:.2f}-{high:.2f})",
            "-" if row["retention"] is None else f"{row['retention']:.3f}",
            "-" if row["only_original"] is None else f"{row['only_original']}/{row['only_pruned']}",
            f"{row['bits_per_byte']:.3f}",
        )
    console.print(table)
    say("kept: pass@1 over the original's. lost/won: problems that only the original / only the pruned model solves.")
    say(
        f"bits/byte: of {report['text']}, which was not in any calibration. authors: the selection of the paper's scripts."
    )
    say(
        f"{report['problems']} problems, sandbox {report['sandbox']}; {report['seconds']:.0f} s; models in {report['output']}"
    )


def main() -> int:
    """Compare at every budget, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("table"), help="folder of the models and the table")
    parser.add_argument("--remove", type=float, action="append", help="fraction of parameters to remove; repeatable")
    parser.add_argument("--limit", type=int, help="only the first N problems")
    parser.add_argument("--refit", default=Recipe.refit)
    parser.add_argument("--tokens", type=int, help="calibration tokens")
    asked = parser.parse_args()
    try:
        budgets = asked.remove or (0.22, 0.40, 0.60)
        recipes = [Recipe(remove=budget, refit=asked.refit, tokens=asked.tokens) for budget in budgets]
        show(compare(asked.output, recipes, asked.limit))
    except FlabError as error:
        sys.exit(f"authors: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
