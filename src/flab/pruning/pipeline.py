"""The whole method: plan (decide), apply (cut), prune (both, then check).

Each function here is a straight line of calls in the paper's order; the work is in the modules that it calls.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from flab.errors import FlabError
from flab.evaluation.bits_per_byte import GENERAL_TEXT, general_size, generality_of
from flab.files import PathLike, as_path, check_folder, check_free, check_space, new_folder
from flab.files.temporary import sweep
from flab.models.checkpoint import Checkpoint, cast_parameters, free, open_to_cut, save, torch_dtypes
from flab.models.families import Family
from flab.models.folder import resolve
from flab.models.options import Options, settled
from flab.models.probes import ProbeWalk
from flab.models.scorer import scorer_of
from flab.models.shards import ShardWriter, layout
from flab.models.source import ModelFolder, ModelSource
from flab.models.tokenizer import end_of_text, new_tokenizer
from flab.progress import say
from flab.pruning.calibration import CalibrationSet, calibration_set, calibration_windows, read_texts, verify_sources
from flab.pruning.check import check, read_proof, write_proof
from flab.pruning.cuts.vocabulary import cut_vocabulary
from flab.pruning.journal import SAVED, Journal, is_uncleared, working_folder
from flab.pruning.plan import Plan, is_replayed
from flab.pruning.planner import Planner, identity_of
from flab.pruning.recipe import Recipe
from flab.pruning.refit.new_layer import Cut, Narrowing
from flab.pruning.refit.resume import keep_layers, kept_layers, whole_layers
from flab.pruning.sibling import adopted, check_sibling, check_sizes
from flab.pruning.surgeon import carve, layers_after, put_in, slice_layers


def plan(
    model: PathLike, recipe: Recipe | None = None, options: Options | None = None, out: PathLike | None = None
) -> Plan:
    """Decide what stays: vocabulary first, then depth and width together. Cuts nothing on disk.

    The plan is written to the file ``out`` if that is given; a stopped call then resumes.

    Raises:
        FlabError: one of its kinds for anything wrong with the model, the data or the budget.
    """
    options = settled(options or Options())
    file = as_path(out) if out is not None else None
    planner = Planner(model, recipe or Recipe(), options, work=working_folder(file) if file is not None else None)
    if file is not None:
        check_free(file, options.overwrite or planner.journal.is_saved)
    with planner.journal.cleared_by_failure():
        decided, built, _ = planner.plan()
        free(built)
        if file is not None:
            planner.journal.keep(SAVED, True)
            decided.write(file)
    if file is not None and planner.layers is not None and decided.refit.kind != "none":
        folder = keep_layers(planner.layers, file)
        if folder is not None:
            say(f"the refitted layers are in {folder}, where `flab apply` finds them; without them it fits again")
    planner.journal.clear()
    return decided


def apply(
    model: ModelSource,
    plan: Plan | PathLike,
    out: PathLike,
    options: Options | None = None,
    refit: bool = True,
    sibling: bool = False,
) -> Path:
    """Carry a plan out: cut, refit from the data that the plan names, and save a stock folder at ``out``.

    The layers that planning left in ``PLAN.layers`` are taken as they are; without them the refit is repeated.
    ``refit=False`` is the cut alone, which needs no data. The same plan gives byte-identical folders on one machine.
    ``sibling`` allows another model than the plan's, of the same architecture and tokens: choices are replayed, weights refitted.

    Raises:
        PlanError: the model or the calibration data is not what the plan was made for.
        CheckpointError, OptionError
    """
    given = plan
    plan = given if isinstance(given, Plan) else Plan.read(as_path(given))
    layers = None
    if refit and not isinstance(given, Plan):
        layers = kept_layers(as_path(given), plan.inner.kept)
    inputs = [] if isinstance(given, Plan) else [given]
    return _apply(model, plan, as_path(out), settled(options or Options()), refit, sibling, layers, inputs)


def _apply(
    model: ModelSource,
    plan: Plan,
    out: Path,
    options: Options,
    refit: bool = True,
    sibling: bool = False,
    layers: Sequence[Path] | None = None,
    inputs: Sequence[PathLike] = (),
) -> Path:
    """Carry a plan out. With the files of its refitted ``layers`` nothing is fitted again, and no text is read."""
    source = ModelFolder.open(model)
    check_folder(out, options.overwrite, [source.path, *inputs, *inputs_of_plan(plan)])
    check_space(out, plan.parameters_after * torch_dtypes[plan.model["stored_dtype"]].itemsize)
    replayed = is_replayed(plan, source, sibling)
    if replayed or plan.refit.kind == "none":
        layers = None
    kind = plan.refit.kind if refit else "none"
    stored = source.stored_dtype if replayed else plan.model["stored_dtype"]
    computing = None if replayed else plan.model["compute_dtype"]
    # A cut alone copies numbers and needs no other precision than theirs.
    computing = stored if kind == "none" else computing
    checkpoint, family = open_to_cut(source, options, computing, in_files=True)
    check_sizes(checkpoint, family, plan)
    warnings = check_sibling(checkpoint, plan) if replayed else []
    rows = checkpoint.model.get_input_embeddings().num_embeddings
    tokenizer, tokenizer_json = new_tokenizer(checkpoint.tokenizer, rows, plan.vocabulary.kept)
    fitting = kind != "none" and layers is None
    data = _replay_data(plan, tokenizer, checkpoint) if fitting else CalibrationSet([], [], [])
    cut_vocabulary(checkpoint.model, family, plan.vocabulary.kept)
    cut = replay_cut(plan, kind)
    shapes = layout(checkpoint.model, family, torch_dtypes[stored], layers_after(checkpoint.model, family, cut))
    if all(one.after == one.before for name, one in plan.cuts.items() if name != "vocabulary"):
        cut = replace(cut, kind="none")  # layers that stay as they are need no refit
    with new_folder(out, options.overwrite) as folder, ShardWriter(folder, shapes) as writer:
        # Without a refit the layers have their final precision, and the proof's texts pass through each before it is written.
        # That spares reading the output once more.
        probes = ProbeWalk(checkpoint.model) if kind == "none" else None
        kl = _cut_into(writer, checkpoint.model, family, cut, data, replayed, probes, layers)
        if replayed:
            plan = adopted(plan, source, family, options, kl, warnings)
            for warning in plan.warnings[-1 - len(warnings) :]:
                say(warning)
        _save(checkpoint, tokenizer_json, plan, kind, folder, writer, probes)
    return out


def _cut_into(
    writer: ShardWriter,
    model: Any,
    family: Family,
    cut: Cut,
    data: CalibrationSet,
    compared: bool,
    probes: ProbeWalk | None,
    refitted: Sequence[Path] | None,
) -> float | None:
    """Cut a model whose layers lie in files; each is probed and goes to ``writer``. Returns the KL if ``compared``.

    The files of ``refitted`` layers are put in as they are.
    """
    device = model.get_input_embeddings().weight.device

    def store(place: int, layer: nn.Module) -> None:
        if probes is not None:
            probes.through(cut.kept_layers[place], layer)
        writer.take(model, f"{family.layers}.{place}", layer, device)

    if cut.kind == "none":
        slice_layers(model, family, cut, store)
        return None
    if refitted is not None:
        put_in(model, family, cut, refitted, store)
        return None
    _, walk = carve(model, family, cut, data.fit, data.compare if compared else [], done=store)
    return walk.divergence(scorer_of(model))[0] if compared else None


def build(model: PathLike, out: PathLike, recipe: Recipe | None = None, options: Options | None = None) -> Plan:
    """Plan, and save the model that won: the folder that :func:`apply` would write, without cutting it a second time.

    A stopped call resumes.
    """
    decided, journal = _build(model, as_path(out), recipe or Recipe(), settled(options or Options()))
    journal.clear()
    return decided


def _build(model: PathLike, out: Path, recipe: Recipe, options: Options) -> tuple[Plan, Journal]:
    """Plan and save; the journal of the planning is left to be cleared once the output is checked."""
    source = ModelFolder.open(model)
    check_folder(out, options.overwrite or is_uncleared(out), [source.path, *recipe.inputs])
    check_space(out, int((1 - recipe.remove) * source.size_bytes))
    planner = Planner(source, recipe, options, work=working_folder(out))
    journal = planner.journal
    options = replace(options, overwrite=options.overwrite or journal.is_saved)
    check_free(out, options.overwrite)
    with journal.cleared_by_failure():
        decided, built, tokenizer_json = planner.plan()
        if planner.one_layer:
            free(built)
            made = whole_layers(planner.layers, decided.inner.kept) if planner.layers is not None else None
            _apply(model, decided, out, options, layers=made)
            journal.keep(SAVED, True)
            return decided, journal
        with new_folder(out, options.overwrite) as folder:
            _save(built, tokenizer_json, decided, decided.refit.kind, folder)
            journal.keep(SAVED, True)
    free(built)
    return decided, journal


def _save(
    checkpoint: Checkpoint,
    tokenizer_json: dict[str, Any] | None,
    plan: Plan,
    kind: str,
    folder: Path,
    writer: ShardWriter | None = None,
    probes: ProbeWalk | None = None,
) -> None:
    """Fill the folder: model, tokenizer, plan, kept tokens, and the proof that the check reads."""
    # Everything was computed in a wider precision; the folder has the original's.
    cast_parameters(checkpoint.model, plan.model["stored_dtype"])
    save(checkpoint, folder, tokenizer_json, writer)
    plan.write(folder / "plan.json")
    (folder / "kept_tokens.json").write_text(json.dumps(plan.vocabulary.kept) + "\n")
    write_proof(checkpoint.model, folder, refit=kind, walk=probes)


def prune(
    model: PathLike, out: PathLike, recipe: Recipe | None = None, options: Options | None = None
) -> dict[str, Any]:
    """Plan, apply and check in one; returns what ``flab prune --json`` prints. A stopped call resumes."""
    options = settled(options or Options())
    recipe = recipe or Recipe()
    start = time.perf_counter()
    folder = as_path(out)
    finished = _finished(model, folder, recipe, options)
    if finished is None:
        decided, journal = _build(model, folder, recipe, options)
        built = time.perf_counter()
        # The check runs in a process of its own, on what was written and not on what is in memory.
        verdict = check(folder, resolve(model))
    else:
        decided, verdict = finished
        journal = Journal(working_folder(folder))
        built = time.perf_counter()
    generality = compare_generality(os.fspath(model), folder, options)
    journal.clear()
    seconds = {"build": built - start, "check": time.perf_counter() - built}
    return decided.summary() | {
        "output": str(folder),
        "check": verdict,
        "generality": generality,
        "seconds": {"total": sum(seconds.values()), **seconds},
    }


def _finished(model: PathLike, folder: Path, recipe: Recipe, options: Options) -> tuple[Plan, dict[str, Any]] | None:
    """Return the plan and the check of a folder that this very command has written already, if it still passes its check.

    A run that was killed before it put its pruned model on record finds it here and does not plan again.
    """
    if not folder.is_dir() or not (options.overwrite or is_uncleared(folder)):
        return None
    try:
        decided = Plan.read(folder / "plan.json")
        source = ModelFolder.open(model)
        proof = read_proof(folder)
        # A folder that was trained, only cut, or made of a sibling has the same plan.
        made = (decided.model["sha256"], proof.get("refit"), proof.get("trained"))
        if made != (source.fingerprint, decided.refit.kind, False):
            return None
        if decided.model.get("identity") != identity_of(source.fingerprint, recipe, options, read_texts(recipe)):
            return None
        verdict = check(folder, source.path)
    except FlabError:  # what is there is missing or damaged, and is written again
        return None
    if not verdict["ok"]:
        return None
    sweep(folder)
    say(f"{folder} is the outcome of this very command and passes its check, so it is kept; remove it to plan again")
    return decided, verdict


def compare_generality(model: str, folder: Path, options: Options) -> dict[str, Any]:
    """Bits per byte on code that no calibration reads, before and after, on equally much text."""
    # The size of the original decides for both, so that they read the same text.
    size_bytes = general_size(resolve(model))
    before, after = (generality_of(source, options, size_bytes) for source in (model, folder))
    return {
        "text": GENERAL_TEXT,
        "text_bytes": size_bytes,
        "bits_per_byte_before": before,
        "bits_per_byte_after": after,
    }


def inputs_of_plan(plan: Plan) -> list[str]:
    """Return the files that a plan names: its model, and the data that it was made with."""
    corpus = plan.calibration.get("corpus")
    sources = [*plan.calibration["sources"], *(corpus if isinstance(corpus, list) else [])]
    return [plan.model["path"], *(str(source["path"]) for source in sources if isinstance(source, dict))]


def replay_cut(plan: Plan, kind: str) -> Cut:
    """Return the cut that a plan describes, with every choice already made."""
    refit = plan.refit
    narrower = plan.narrower
    return Cut(
        plan.layers.kept, plan.inner.after, kind, refit.output_projection, None,
        plan.inner.kept, refit.ridge_ffn, refit.ridge_attention, refit.newton_steps, refit.descended, refit.scaling,
        refit.reconstruction_rates, Narrowing(narrower.after, neurons=narrower.kept) if narrower is not None else None,
    )  # fmt: skip


def _replay_data(plan: Plan, tokenizer: Any, checkpoint: Checkpoint) -> CalibrationSet:
    """Return the calibration batches of the plan, from the data it names."""
    settings = plan.calibration
    path = settings["path"]
    names = ("general", "tokens", "max_length", "prompt_weight", "seed")
    recipe = Recipe(calibration=Path(path) if path else None, **{name: settings[name] for name in names})
    texts = read_texts(recipe)
    verify_sources(texts, settings["sources"])
    texts = texts.in_template(checkpoint, settings.get("template", "none"))
    eos = end_of_text(checkpoint.model, plan.vocabulary.kept)
    windows = calibration_windows(texts, tokenizer, eos, settings)
    return calibration_set(windows, settings["batch_tokens"], settings["prompt_weight"])
