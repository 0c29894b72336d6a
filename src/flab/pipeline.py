"""The whole method: plan (decide), apply (cut), prune (both, then check), evaluate (run the tests).

Each function here is a straight line of calls in the paper's order; the work is in the modules that it calls.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flab.calibrate import CalibrationSet
from flab.checking import check, write_proof
from flab.checkpoint import Checkpoint, cast_parameters, fingerprint, resolve, save
from flab.cuts.apply import carve
from flab.cuts.refit import Cut
from flab.errors import OptionError, PlanError
from flab.evaluation.code import gold_ceiling
from flab.evaluation.record import check_run_folder, write_json
from flab.evaluation.runs import Settings, run_tasks
from flab.evaluation.store import Shard
from flab.evaluation.tasks import TaskFile
from flab.folders import check_output, new_folder
from flab.generality import GENERAL_BYTES, GENERAL_TEXT, general_bits_per_byte, general_size
from flab.measuring import export_run, find_overlaps, open_subject, read_tasks, sandbox_for
from flab.planning import make_plan
from flab.plans import Plan
from flab.prepare import (
    build_set,
    calibration_windows,
    cut_to_vocabulary,
    end_of_text,
    free,
    new_tokenizer,
    open_model,
    open_to_cut,
    read_texts,
    verify_sources,
)
from flab.recipe import Options, Recipe, as_path

PathLike = str | os.PathLike[str]


def plan(model: PathLike, recipe: Recipe | None = None, options: Options | None = None) -> Plan:
    """Decide what stays: vocabulary first, then depth and width together. Cuts nothing on disk.

    Raises:
        FlabError: one of its kinds for anything wrong with the model, the data or the budget.
    """
    decided, built, _ = make_plan(os.fspath(model), recipe or Recipe(), options or Options())
    free(built)
    return decided


def apply(
    model: PathLike, plan: Plan | PathLike, out: PathLike, options: Options | None = None, refit: bool = True
) -> Path:
    """Carry a plan out: cut, refit from the data that the plan names, and save a stock folder at ``out``.

    ``refit=False`` is the cut alone, which needs no data. The same plan gives byte-identical folders on one machine.

    Raises:
        PlanError: the model or the calibration data is not what the plan was made for.
        CheckpointError, OptionError
    """
    options, out = options or Options(), as_path(out)
    plan = plan if isinstance(plan, Plan) else Plan.read(as_path(plan))
    source = resolve(model)
    check_output(out, options.overwrite, source)
    if fingerprint(source) != plan.model["sha256"]:
        raise PlanError(
            f"the plan was made for another model ({plan.model['path']}): {source} has other files. Plan again."
        )
    checkpoint, family = open_to_cut(source, options, plan.model["compute_dtype"])
    tokenizer, tokenizer_json = new_tokenizer(checkpoint, plan.vocabulary.kept)
    kind = plan.refit.kind if refit else "none"
    data = _replay_data(plan, tokenizer, checkpoint) if kind != "none" else CalibrationSet([], [], [])
    cut_to_vocabulary(checkpoint, family, plan.vocabulary.kept)
    if plan.layers.after < plan.layers.before or plan.width.after < plan.width.before:
        carve(checkpoint.model, family, replay_cut(plan, kind), data.fit, [])
    return _save(checkpoint, tokenizer_json, plan, kind, out, options)


def build(model: PathLike, out: PathLike, recipe: Recipe | None = None, options: Options | None = None) -> Plan:
    """Plan, and save the model that won: the folder that :func:`apply` would write, without cutting it a second time."""
    options, out = options or Options(), as_path(out)
    check_output(out, options.overwrite, resolve(model))
    decided, built, tokenizer_json = make_plan(os.fspath(model), recipe or Recipe(), options)
    _save(built, tokenizer_json, decided, decided.refit.kind, out, options)
    free(built)
    return decided


def _save(
    checkpoint: Checkpoint, tokenizer_json: dict[str, Any] | None, plan: Plan, kind: str, out: Path, options: Options
) -> Path:
    """Write the folder: model, tokenizer, plan, kept tokens, and the proof that the check reads."""
    cast_parameters(checkpoint.model, plan.model["stored_dtype"])
    with new_folder(out, options.overwrite) as folder:
        save(checkpoint, folder, tokenizer_json)
        plan.write(folder / "plan.json")
        (folder / "kept_tokens.json").write_text(json.dumps(plan.vocabulary.kept) + "\n")
        write_proof(checkpoint.model, folder, refit=kind)
    return out


def prune(
    model: PathLike, out: PathLike, recipe: Recipe | None = None, options: Options | None = None
) -> dict[str, Any]:
    """Plan, apply and check in one; returns what ``flab prune --json`` prints."""
    options, start = options or Options(), time.perf_counter()
    folder = as_path(out)
    decided = build(model, folder, recipe, options)
    built = time.perf_counter()
    verdict = check(folder, resolve(model))
    generality = compare_generality(os.fspath(model), folder, options)
    seconds = {"build": built - start, "check": time.perf_counter() - built}
    return decided.summary() | {
        "output": str(folder),
        "check": verdict,
        "generality": generality,
        "seconds": {"total": sum(seconds.values()), **seconds},
    }


def compare_generality(model: str, folder: Path, options: Options) -> dict[str, Any]:
    """Bits per byte on code that no calibration reads, before and after, on equally much text."""
    size_bytes = general_size(resolve(model))
    before, after = (generality_of(source, options, size_bytes) for source in (model, folder))
    return {
        "text": GENERAL_TEXT,
        "text_bytes": size_bytes,
        "bits_per_byte_before": before,
        "bits_per_byte_after": after,
    }


def generality_of(model: str | Path, options: Options, size_bytes: int = GENERAL_BYTES) -> float:
    """Bits per byte of one model on so many bytes of that code."""
    checkpoint, _ = open_model(model, options)
    value = general_bits_per_byte(checkpoint, size_bytes)
    free(checkpoint)
    return value


def evaluate(
    model: PathLike,
    tasks: PathLike | TaskFile | Sequence[PathLike | TaskFile],
    out: PathLike | None = None,
    settings: Settings | None = None,
    options: Options | None = None,
    limit: int | None = None,
    perturbations: Sequence[str] = (),
    backend: str = "transformers",
    against_data: Sequence[PathLike] = (),
    gold: bool = True,
    export: bool = False,
    shard: str | None = None,
) -> dict[str, Any]:
    """Measure a model on task files; returns what ``results.json`` holds.

    ``out`` is a run's folder, where a stopped run goes on, or a file that ends in ``.json``. ``shard`` (``2/4``) makes
    only that part of the answers; the same call without it, in the same folder, merges and scores.

    Raises:
        SandboxError: no isolation here and ``options.unsandboxed`` is off.
        DataError, CheckpointError, OptionError
    """
    settings, options = settings or Settings(), options or Options()
    files = read_tasks(tasks, limit, perturbations, settings.seed)
    sandbox = sandbox_for(files, options)
    target, part = as_path(out) if out is not None else None, Shard.parse(shard) if shard is not None else None
    folder = target if target is not None and target.suffix != ".json" else None
    if folder is not None:
        check_run_folder(folder)
    elif export or part is not None:
        raise OptionError(
            f"--{'export' if export else 'shard'}: needs a folder; give -o RUN, a name that does not end in .json"
        )
    overlap = find_overlaps(model, files, against_data) if part is None else []
    subject = open_subject(model, options, backend)
    report = run_tasks(
        subject.generator,
        files,
        settings,
        folder,
        subject.identity,
        sandbox,
        subject.render,
        gold,
        {"contamination": overlap},
        part,
    )
    if part is not None:
        return report
    if export and folder is not None:
        export_run(folder, files, report, settings.max_new_tokens)
    if target is not None and folder is None:
        write_json(target, report)
    return report


def evaluate_references(
    tasks: PathLike | TaskFile | Sequence[PathLike | TaskFile],
    options: Options | None = None,
    limit: int | None = None,
    perturbations: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """The gold ceiling alone: run the references of code tasks, without a model.

    Raises:
        OptionError: a task of another kind.
        SandboxError, DataError
    """
    files, options = read_tasks(tasks, limit, perturbations, seed), options or Options()
    if wrong := [task.name for task in files if task.kind != "code"]:
        raise OptionError(f"--gold runs the references of code tasks; {', '.join(wrong)} has none: leave it out")
    sandbox = sandbox_for(files, options)
    assert sandbox is not None
    rows = [{"name": task.name, "sha256": task.sha256} | gold_ceiling(task, sandbox).summary for task in files]
    failures = {(i if len(rows) == 1 else f"{row['name']}:{i}"): c for row in rows for i, c in row["failed"].items()}
    passed, total = sum(row["passed"] for row in rows), sum(row["total"] for row in rows)
    return {"passed": passed, "total": total, "failures": failures, "sandbox_level": sandbox.level, "tasks": rows}


def replay_cut(plan: Plan, kind: str) -> Cut:
    """The cut that a plan describes, with every choice already made."""
    refit = plan.refit
    return Cut(
        plan.layers.kept, plan.width.after, kind, refit.output_projection, None,
        plan.width.kept, refit.ridge_ffn, refit.ridge_attention, refit.newton_steps, refit.descended, refit.scaling,
        refit.reconstruction_rates,
    )  # fmt: skip


def _replay_data(plan: Plan, tokenizer: Any, checkpoint: Checkpoint) -> CalibrationSet:
    """The calibration batches of the plan, from the data it names."""
    settings = plan.calibration
    path = settings["path"]
    names = ("general", "tokens", "max_length", "prompt_weight", "seed")
    recipe = Recipe(calibration=Path(path) if path else None, **{name: settings[name] for name in names})
    texts = read_texts(recipe)
    verify_sources(texts, settings["sources"])
    eos = end_of_text(checkpoint.model, plan.vocabulary.kept)
    windows = calibration_windows(texts, tokenizer, eos, settings)
    return build_set(windows, Options(batch_tokens=settings["batch_tokens"]), settings["prompt_weight"])
