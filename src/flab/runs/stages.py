"""Carry out a recipe (``flab run``): prune, make data, recover, evaluate, compare and measure.

``RUN/run.json`` records for each stage the fingerprint of its inputs, its times and its cost. A stage is skipped while its
inputs have not changed. A stopped run continues within its stage, as the stage's own command would.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flab.data.samples import sha256_of
from flab.errors import CheckpointError
from flab.evaluation.bits_per_byte import GENERAL_TEXT, general_size, generality_of
from flab.evaluation.compare import compare_runs
from flab.evaluation.evaluate import evaluate
from flab.evaluation.record import RESULTS
from flab.evaluation.tasks import parse_task_argument
from flab.files import PathLike, as_path, check_place, read_json, write_json
from flab.footprint.measure import measure
from flab.footprint.payback import payback, solving
from flab.footprint.settings import Measuring, check_context
from flab.models.checkpoint import fingerprint as model_fingerprint
from flab.models.checkpoint import read_config, same_precision
from flab.models.folder import resolve
from flab.models.options import settled
from flab.pruning.pipeline import prune
from flab.recovery.data import make_data
from flab.recovery.train import recover
from flab.runs.folder import Run, known_stages
from flab.runs.recipe_file import RecipeFile, check_inputs, read_recipe
from flab.runs.report import make_report

SUMMARY = "summary.json"
MEASURE = "measure.json"


def run(recipe: PathLike | RecipeFile, out: PathLike) -> dict[str, Any]:
    """Carry out a recipe, or the recipe in a file, in the folder ``out``. Return the summary.

    Raises:
        FlabError: the recipe is invalid, or a stage fails.
    """
    return run_recipe(recipe if isinstance(recipe, RecipeFile) else read_recipe(as_path(recipe)), as_path(out))


def run_recipe(recipe: RecipeFile, folder: Path) -> dict[str, Any]:
    """Carry out a recipe in ``folder``. Return the summary, which is also written to ``folder/summary.json``.

    Raises:
        OptionError: the folder contains something else.
        FlabError: a stage fails.
    """
    started = time.perf_counter()
    recipe = replace(recipe, options=settled(recipe.options))
    run = Run(recipe, folder, *known_stages(folder))
    # The inputs of all stages are checked before the first one starts, because the stages may take hours.
    check_inputs(recipe)
    model = resolve(recipe.model)
    check_place(folder, [model, *recipe.inputs])
    if recipe.measure is not None:
        config = read_config(model, recipe.options.trust_remote_code)
        check_context(config, recipe.measure.prompt_tokens + recipe.measure.new_tokens)
    run.save()
    models = {"original": model, "pruned": folder / "pruned"}
    run_prune(run, model)
    if recipe.data is not None and recipe.recover is not None:
        run_data(run, model)
        run_recover(run, model)
        models["recovered"] = folder / "recovered"
    for name, path in models.items():
        run_evaluate(run, name, path, model)
    if recipe.measure is not None:
        run_measure(run, models, recipe.measure)
    run.save()  # records the stages of this recipe even if none of them was done now
    done = {name: run.stages[name] for name in run.met}
    summary = {
        "recipe": str(recipe.path),
        "model": recipe.model,
        "output": str(folder),
        "models": [summary_of(folder, name, path) for name, path in models.items()],
        "stages": done,
        "seconds": {
            "now": round(time.perf_counter() - started, 2),
            **{name: stage["seconds"] for name, stage in done.items()},
        },
    }
    write_json(folder / SUMMARY, summary)
    make_report(folder)
    return summary


def run_prune(run: Run, model: Path) -> None:
    """Plan, cut, refit and check."""
    recipe = run.recipe.prune
    out = run.folder / "pruned"
    data = [recipe.calibration] if recipe.calibration is not None else []
    # The inputs of a stage decide whether it is done again. They are settings and digests of files, never times or
    # paths.
    reads = {
        "recipe": recipe.to_json(),
        "model": model_fingerprint(model),
        "files": _hashes([*data, *recipe.corpus]),
    }

    def work() -> dict[str, Any]:
        report = prune(model, out, recipe, replace(run.recipe.options, overwrite=True))
        names = "removed_fraction body_removed_fraction kl_nats_per_token vocabulary layers width generality warnings"
        return _checked(report, names, out, model)

    run.stage("prune", reads, out, work)


def _checked(report: Mapping[str, Any], names: str, out: Path, model: Path) -> dict[str, Any]:
    """Return some fields of the report on a new model, and its digest. Raise CheckpointError if its check failed."""
    if not report["check"]["ok"]:
        raise CheckpointError(f"{out} failed its check: see flab check {out} --against {model}.")
    found = {"loads_in": report["check"]["loads_in"], "sha256": model_fingerprint(out)}
    return {name: report[name] for name in names.split()} | found


def run_data(run: Run, model: Path) -> None:
    """Make the training file."""
    data = run.recipe.data
    out = run.folder / "data.jsonl"
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
    training = run.recipe.recover
    out = run.folder / "recovered"
    assert training is not None
    reads = {
        "training": training.to_json(),
        "student": model_fingerprint(run.folder / "pruned"),
        "data": sha256_of([run.folder / "data.jsonl"]),
    }

    def work() -> dict[str, Any]:
        options = replace(run.recipe.options, overwrite=True)
        report = recover(run.folder / "pruned", model, run.folder / "data.jsonl", out, training, options)
        names = "method learning_rate steps tokens held_out peak_memory stopped_early chosen_step devices device"
        return _checked(report, names, out, model)

    run.stage("recover", reads, out, work)
    # By now the training is on record. If the run is stopped from here on, it will not train again.
    if "generality" not in run.stages["recover"]:
        bits = generality_of(out, run.recipe.options, general_size(model))
        run.stages["recover"]["generality"] = {"text": GENERAL_TEXT, "bits_per_byte_after": bits}
        run.save()


def run_evaluate(run: Run, name: str, model: Path, original: Path) -> None:
    """Evaluate one model on all tasks in the original's precision. A stopped evaluation resumes in its own folder."""
    chosen = run.recipe.evaluate
    out = run.folder / "eval" / name
    reads = {"evaluate": asdict(chosen), "model": model_fingerprint(model), "files": _hashes(chosen.tasks)}

    def work() -> dict[str, Any]:
        report = evaluate(
            model,
            list(chosen.tasks),
            out,
            chosen.settings,
            same_precision(original, run.recipe.options),
            chosen.limit,
            chosen.perturb,
            gold=name == "original",
        )
        return {"passed": {task["name"]: task["summary"]["passed"] for task in report["tasks"]}}

    run.stage(f"evaluate {name}", reads, out / RESULTS, work)


def run_measure(run: Run, models: Mapping[str, Path], settings: Measuring) -> None:
    """Measure what the last model costs to run beside the original, then add the cost of making it."""
    original = models["original"]
    (name, smaller) = list(models.items())[-1]
    out = run.folder / MEASURE
    reads = {
        "measure": asdict(settings),
        "models": [model_fingerprint(path) for path in (original, smaller)],
        "text": _hashes([settings.text] if settings.text is not None else []),
        "answers": [sha256_of([run.folder / "eval" / one / RESULTS]) for one in ("original", name)],
    }
    runs = [run.folder / "eval" / one for one in (name, "original")]

    solvable = any(task["kind"] == "code" for task in read_json(runs[0] / RESULTS)["tasks"])

    def work() -> dict[str, Any]:
        report = measure(smaller, original, settings, run.recipe.options, *(runs if solvable else ()))
        write_json(out, report)
        return {"gains": report["gains"]}

    run.stage("measure", reads, out, work)
    # The cost of all stages is known only now. The payback is therefore added here, even if the measurement itself was
    # kept from an earlier run.
    made = {stage: run.stages[stage] for stage in run.met}
    report = read_json(out)
    write_json(out, report | {"payback": payback(made, report, solving(runs[0]) if solvable else None)})


def summary_of(folder: Path, name: str, model: Path) -> dict[str, Any]:
    """Describe one model of a finished run: its size, its scores and, for a smaller model, what it kept.

    Writes ``compare-NAME.json`` for a smaller model.
    """
    figures = ("pass@1", "passed", "total", "interval_95", "bleu_paper")
    results = read_json(folder / "eval" / name / RESULTS)
    tasks = {
        task["name"]: {figure: task["summary"][figure] for figure in figures if figure in task["summary"]}
        for task in results["tasks"]
    }
    if name != "original":
        # Both models answered the same problems, so what was kept is counted problem by problem.
        paired = compare_runs(folder / "eval" / "original", folder / "eval" / name)
        write_json(folder / f"compare-{name}.json", paired)
        for task in paired["tasks"]:
            tasks[task["name"]] |= {n: task[n] for n in ("retention", "only_a", "only_b", "mcnemar_p")}
    plan = read_json(folder / "pruned" / "plan.json")
    return {
        "name": name,
        "path": str(model),
        "bytes": sum(file.stat().st_size for file in model.glob("*.safetensors")),
        "parameters": int(plan["parameters_before" if name == "original" else "parameters_after"]),
        "tasks": tasks,
    }


def _hashes(paths: Iterable[str | Path]) -> list[str]:
    """Return the digests of files and folders, with or without ``KIND:``. A name that is neither (a hub id) stays a name."""
    found = []
    for path in map(str, paths):
        local = Path(path) if Path(path).exists() else Path(parse_task_argument(path)[1])
        files = [local] if local.is_file() else sorted(file for file in local.rglob("*") if file.is_file())
        found.append(sha256_of(files) if local.exists() else path)
    return found
