"""``flab run``: prune, make data, recover, evaluate and compare, each stage skipped while nothing that it reads has changed.

``RUN/run.json`` records for each stage the fingerprint of all it read, when it ran and what it took. A stopped run
goes on within its stage, as the stage's own command would.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flab import __version__
from flab.checkpoint import fingerprint as model_fingerprint
from flab.checkpoint import resolve
from flab.errors import CheckpointError, OptionError
from flab.evaluation.compare import compare_runs
from flab.evaluation.record import read_json, write_json
from flab.evaluation.runs import Settings
from flab.evaluation.store import fingerprint
from flab.pipeline import evaluate, prune
from flab.progress import say
from flab.recipe_file import RecipeFile
from flab.recovery.data import make_data
from flab.recovery.train import recover
from flab.samples import files_under, sha256_of

RUN, SUMMARY = "run.json", "summary.json"


@dataclass
class Run:
    """One run's folder: what is in it, and which stages are done."""

    recipe: RecipeFile
    folder: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def stage(self, name: str, reads: Mapping[str, Any], output: Path, work: Callable[[], Mapping[str, Any]]) -> bool:
        """Do the work unless it was done on the same; returns whether it was done now."""
        digest = fingerprint({"flab": __version__, "stage": name, "reads": _plain(reads)})
        before = self.stages.get(name)
        if before is not None and before["fingerprint"] == digest and output.exists():
            say(f"{name}: unchanged since {before['finished']}, {output} stays")
            return False
        say(f"{name}: {output}")
        start = time.perf_counter()
        report = work()
        self.stages[name] = {
            "fingerprint": digest,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.perf_counter() - start, 2),
            "peak_resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "output": str(output.relative_to(self.folder)),
            **report,
        }
        self.save()
        return True

    def save(self) -> None:
        """Write ``run.json`` whole."""
        write_json(self.folder / RUN, {"format": 1, "flab": __version__, "stages": self.stages})


def run_recipe(recipe: RecipeFile, folder: Path) -> dict[str, Any]:
    """Carry a recipe out in ``folder``; returns the summary, which is also ``folder/summary.json``.

    Raises:
        OptionError: the folder holds something else.
        FlabError: what a stage raises.
    """
    started = time.perf_counter()
    run = Run(recipe, folder, open_folder(folder))
    model = resolve(recipe.model)
    models = {"original": model, "pruned": folder / "pruned"}
    run_prune(run, model)
    if recipe.data is not None and recipe.recover is not None:
        run_data(run, model)
        run_recover(run, model)
        models["recovered"] = folder / "recovered"
    for name, path in models.items():
        run_evaluate(run, name, path)
    summary = summarise(run, models)
    summary["seconds"] = {
        "now": round(time.perf_counter() - started, 2),
        **{n: s["seconds"] for n, s in run.stages.items()},
    }
    write_json(folder / SUMMARY, summary)
    return summary


def open_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """The stages that a run's folder knows; made where it is new."""
    if folder.is_file():
        raise OptionError(f"-o {folder} is a file: give a folder for the run.")
    if (folder / RUN).is_file():
        stages: dict[str, dict[str, Any]] = read_json(folder / RUN).get("stages", {})
        return stages
    if folder.is_dir() and any(folder.iterdir()):
        raise OptionError(f"-o {folder} is a folder but holds no run: give a new one.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, {"format": 1, "flab": __version__, "stages": {}})
    return {}


def run_prune(run: Run, model: Path) -> None:
    """Plan, cut, refit and check."""
    recipe, out = run.recipe.prune, run.folder / "pruned"
    data = [recipe.calibration] if recipe.calibration is not None else []
    reads = {
        "recipe": recipe.to_json(),
        "dtype": (run.recipe.options.dtype, run.recipe.options.device),
        "model": model_fingerprint(model),
        "files": _hashes([*data, *recipe.corpus]),
    }

    def work() -> dict[str, Any]:
        report = prune(model, out, recipe, replace(run.recipe.options, overwrite=True))
        if not report["check"]["ok"]:
            raise CheckpointError(f"{out} failed its check: see flab check {out} --against {model}.")
        names = "removed_fraction body_removed_fraction kl_nats_per_token vocabulary layers width generality warnings"
        return {name: report[name] for name in names.split()}

    run.stage("prune", reads, out, work)


def run_data(run: Run, model: Path) -> None:
    """Make the training file."""
    data, out = run.recipe.data, run.folder / "data.jsonl"
    assert data is not None
    reads = {
        "making": asdict(data.making),
        "model": model_fingerprint(model),
        "limit": data.limit,
        "files": {name: _hashes(getattr(data, name)) for name in ("instructions", "against", "text")},
    }

    def work() -> dict[str, Any]:
        options = replace(run.recipe.options, overwrite=True)
        made = make_data(model, data.instructions, out, data.making, options, data.against, data.text, data.limit)
        return {name: made[name] for name in ("rows", "kinds", "sources", "steps")}

    run.stage("data", reads, out, work)


def run_recover(run: Run, model: Path) -> None:
    """Train the pruned model on the data."""
    training, out = run.recipe.recover, run.folder / "recovered"
    assert training is not None
    reads = {
        "training": training.to_json(),
        "student": model_fingerprint(run.folder / "pruned"),
        "data": sha256_of([run.folder / "data.jsonl"]),
    }

    def work() -> dict[str, Any]:
        options = replace(run.recipe.options, overwrite=True)
        report = recover(run.folder / "pruned", model, run.folder / "data.jsonl", out, training, options)
        if not report["check"]["ok"]:
            raise CheckpointError(f"{out} failed its check: see flab check {out} --against {model}.")
        names = "method learning_rate steps tokens held_out peak_memory stopped_early chosen_step devices device"
        return {name: report[name] for name in names.split()}

    run.stage("recover", reads, out, work)


def run_evaluate(run: Run, name: str, model: Path) -> None:
    """Measure one model on all tasks; the run's folder resumes by itself."""
    chosen, out = run.recipe.evaluate, run.folder / "eval" / name
    reads = {"evaluate": asdict(chosen), "model": model_fingerprint(model), "files": _hashes(chosen.tasks)}
    settings = Settings(
        chosen.preset, chosen.samples, chosen.temperature,
        max_new_tokens=chosen.max_new_tokens, batch_size=chosen.batch_size,
    )  # fmt: skip

    def work() -> dict[str, Any]:
        report = evaluate(
            model,
            list(chosen.tasks),
            out,
            settings,
            run.recipe.options,
            chosen.limit,
            chosen.perturb,
            gold=name == "original",
        )
        return {"passed": {task["name"]: task["summary"]["passed"] for task in report["tasks"]}}

    run.stage(f"evaluate {name}", reads, out, work)


def summarise(run: Run, models: Mapping[str, Path]) -> dict[str, Any]:
    """One row for each model, and each smaller one paired with the original, task by task."""
    rows = []
    for name, path in models.items():
        results = read_json(run.folder / "eval" / name / "results.json")
        row: dict[str, Any] = {
            "name": name,
            "path": str(path),
            "bytes": sum(file.stat().st_size for file in path.glob("*.safetensors")),
            "parameters": _parameters(run, name),
            "tasks": {task["name"]: _figures(task["summary"]) for task in results["tasks"]},
        }
        if name != "original":
            paired = compare_runs(run.folder / "eval" / "original", run.folder / "eval" / name)
            write_json(run.folder / f"compare-{name}.json", paired)
            for task in paired["tasks"]:
                row["tasks"][task["name"]] |= {n: task[n] for n in ("retention", "only_a", "only_b", "mcnemar_p")}
        rows.append(row)
    return {"recipe": str(run.recipe.path), "model": run.recipe.model, "output": str(run.folder), "models": rows,
            "stages": run.stages}  # fmt: skip


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    names = ("pass@1", "passed", "total", "interval_95", "bleu_paper")
    return {name: summary[name] for name in names if name in summary}


def _parameters(run: Run, name: str) -> int:
    plan = read_json(run.folder / "pruned" / "plan.json")
    return int(plan["parameters_before" if name == "original" else "parameters_after"])


def _hashes(paths: Any) -> list[str]:
    """The content of files and folders that are here, the name of what is not (a hub id)."""
    found = []
    for path in paths:
        local = Path(str(path).partition(":")[2] if not Path(path).exists() and ":" in str(path) else path)
        found.append(
            sha256_of(files_under(local)) if local.is_dir() else sha256_of([local]) if local.is_file() else str(path)
        )
    return found


def _plain(value: Any) -> Any:
    """The same as JSON gives it back, so that it can be digested."""
    return json.loads(json.dumps(value, default=str))
