"""The whole method: plan (decide), apply (cut), check (verify), prune (all three), evaluate (run the tests).

Each function here is a straight line of calls in the paper's order; the work is in the modules that it calls.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flab import __version__
from flab.budget import Pins, feasible_splits, vocabulary_for
from flab.calibrate import CalibrationSet, LayerRunner
from flab.check import check as check
from flab.check import write_proof
from flab.checkpoint import Checkpoint, check_output, fingerprint, new_folder, resolve, save, torch_dtypes
from flab.errors import OptionError, PlanError, SandboxError
from flab.evaluate.code import CodeResult, Problem, evaluate_code, read_problems
from flab.evaluate.generate import TransformersGenerator
from flab.evaluate.sandbox import Sandbox
from flab.families import Family, head_of, shape_of
from flab.objective import cut_mass_kl
from flab.plan import Kept, Plan, Refit
from flab.prepare import (
    Texts,
    build_set,
    calibration_windows,
    compute_dtype,
    cut_to_vocabulary,
    end_of_text,
    free,
    new_tokenizer,
    open_model,
    read_texts,
    search_set,
    stored_dtype,
    verify_sources,
)
from flab.progress import say, track
from flab.prune.apply import carve
from flab.prune.refit import Cut, NewLayer
from flab.prune.vocabulary import TokenizerModel, choose_vocabulary, count_tokens, covered_tokens, required_tokens
from flab.recipe import Options, Recipe, as_path
from flab.search import Candidate, Search, decide, search_splits

PathLike = str | os.PathLike[str]


class Clock:
    """Seconds spent in each named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under ``name``."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._start
        self._start = now


def plan(model: PathLike, recipe: Recipe | None = None, options: Options | None = None) -> Plan:
    """Decide what stays: vocabulary first, then depth and width together. Cuts nothing on disk.

    Raises:
        FlabError: one of its kinds for anything wrong with the model, the data or the budget.
    """
    recipe, options, clock = recipe or Recipe(), options or Options(), Clock()
    texts = read_texts(recipe)
    checkpoint, family = open_model(model, options)
    shape, source = shape_of(checkpoint.model, family), resolve(model)
    pins = _pins(recipe, shape.layers)
    pins.check(shape)
    kept = plan_vocabulary(checkpoint, family, recipe, pins, texts)
    splits = feasible_splits(shape, recipe.remove, len(kept), pins)
    tokenizer, _ = new_tokenizer(checkpoint, kept)
    settings = _settings(recipe, checkpoint.model)
    windows = calibration_windows(texts, tokenizer, end_of_text(checkpoint.model, kept), settings)
    data, small = build_set(windows, options), search_set(windows, recipe.search_tokens, options)
    kl_vocabulary = vocabulary_kl(checkpoint, family, kept, data)
    cut_to_vocabulary(checkpoint, family, kept)
    clock.lap("vocabulary")

    search = Search(checkpoint.model, family, shape, recipe, small, warnings=list(checkpoint.warnings))
    candidates = search_splits(search, splits)
    scores = search.scores
    clock.lap("search")
    search.model = None
    free(checkpoint)

    outcome: dict[int, tuple[list[NewLayer], float]] = {}
    problems = _judge_problems(texts, data, recipe)
    sandbox = _judge_sandbox(problems, options, search.warnings) if len(candidates) > 1 else None

    def judge(candidate: Candidate) -> None:
        """Build a finalist as the plan would, on all tokens, and measure it."""
        built, _ = open_model(source, options)
        cut_to_vocabulary(built, family, kept)
        cut = replace(search.cut_for(candidate.split, _removed(candidate, shape.layers)), scores=scores)
        decisions, walk = carve(built.model, family, cut, data.fit, data.compare)
        kl, kl_answer = walk.divergence(head_of(built.model, family))
        candidate.kl, candidate.kl_answer = kl, None if kl_answer != kl_answer else kl_answer
        if sandbox is not None:
            built.tokenizer = tokenizer
            result = _run_problems(built, problems, sandbox, max_new_tokens=256)
            candidate.task_passed, candidate.task_total = sum(result.passed), len(result.rows)
            candidate.task_success = candidate.task_passed / candidate.task_total
        outcome[id(candidate)] = decisions, kl
        free(built)

    winner = decide(candidates, recipe.finalists, judge)
    decisions, kl = outcome[id(winner)]
    clock.lap("finalists")
    if data.num_fit_tokens < 4 * winner.split.width:
        search.warnings.append(
            f"{data.num_fit_tokens} calibration tokens for a width of {winner.split.width}: least squares wants several times "
            "as many; raise --tokens or give more text."
        )
    return Plan(
        remove=recipe.remove,
        model={
            "path": str(source.resolve()),
            "sha256": fingerprint(source),
            "model_type": family.model_type,
            "stored_dtype": stored_dtype(source),
            "compute_dtype": compute_dtype(source, options),
        },
        calibration={
            "sources": [s.to_json() for s in texts.sources],
            "corpus": [s.to_json() for s in texts.corpus_sources],
            "path": str(recipe.calibration.resolve()) if recipe.calibration else None,
            "fit_tokens": data.num_fit_tokens,
            "compare_tokens": data.num_compare_tokens,
            "judge_problems": len(problems) if sandbox is not None else 0,
            "sandbox": sandbox.level if sandbox is not None else None,
            "batch_tokens": options.batch_tokens,
        }
        | settings,
        vocabulary=Kept(shape.vocabulary, len(kept), kept),
        layers=Kept(shape.layers, winner.split.layers, winner.kept_layers),
        width=Kept(shape.width, winner.split.width, [d.neurons for d in decisions]),
        refit=Refit(
            search.cut_for(winner.split, _removed(winner, shape.layers)).kind,
            recipe.output_projection,
            [d.ridge_ffn for d in decisions],
            [d.ridge_attention for d in decisions],
        ),
        parameters_before=shape.total,
        parameters_after=winner.split.parameters,
        body_before=shape.body(shape.layers, shape.width),
        body_after=shape.body(winner.split.layers, winner.split.width),
        kl_vocabulary=kl_vocabulary,
        kl_nats_per_token=kl,
        criteria={"layers": recipe.layer_criterion, "neurons": recipe.neuron_criterion},
        candidates=[c.to_json() for c in candidates],
        layer_path=search.layer_path,
        warnings=search.warnings,
        seconds={k: round(v, 2) for k, v in clock.seconds.items()},
        flab_version=__version__,
    )


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
    check_output(out, options.overwrite)
    source = resolve(model)
    if fingerprint(source) != plan.model["sha256"]:
        raise PlanError(f"the plan was made for another model ({plan.model['path']}): {source} has other files. Plan again.")
    checkpoint, family = open_model(source, options, plan.model["compute_dtype"])
    tokenizer, tokenizer_json = new_tokenizer(checkpoint, plan.vocabulary.kept)
    kind = plan.refit.kind if refit else "none"
    data = _replay_data(plan, tokenizer, checkpoint) if kind != "none" else CalibrationSet([], [], [])
    cut_to_vocabulary(checkpoint, family, plan.vocabulary.kept)
    if plan.layers.after < plan.layers.before or plan.width.after < plan.width.before:
        carve(checkpoint.model, family, replay_cut(plan, kind), data.fit, [])
    checkpoint.model.to(torch_dtypes[plan.model["stored_dtype"]])
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
    check_output(as_path(out), options.overwrite)
    decided = plan(model, recipe, options)
    planned = time.perf_counter()
    folder = apply(model, decided, out, options)
    applied = time.perf_counter()
    verdict = check(folder, resolve(model))
    seconds = {"plan": planned - start, "apply": applied - planned, "check": time.perf_counter() - applied}
    return decided.summary() | {
        "output": str(folder),
        "check": verdict,
        "seconds": {"total": sum(seconds.values()), **seconds},
    }


def evaluate(
    model: PathLike,
    problems: PathLike,
    limit: int | None = None,
    options: Options | None = None,
    max_new_tokens: int = 256,
    batch_size: int = 32,
) -> CodeResult:
    """Greedy pass@1 on a file of problems, the tests run in the sandbox.

    Raises:
        SandboxError: no isolation here and ``options.unsandboxed`` is off.
        DataError, CheckpointError
    """
    options = options or Options()
    rows, sandbox = read_problems(as_path(problems), limit), Sandbox.detect(options.unsandboxed)
    checkpoint, _ = open_model(model, options)
    return _run_problems(checkpoint, rows, sandbox, max_new_tokens, batch_size)


def _run_problems(
    checkpoint: Checkpoint, problems: list[Problem], sandbox: Sandbox, max_new_tokens: int, batch_size: int = 32
) -> CodeResult:
    generator = TransformersGenerator(checkpoint.model, checkpoint.tokenizer, batch_size=batch_size)
    return evaluate_code(generator, problems, sandbox, max_new_tokens)


def plan_vocabulary(
    checkpoint: Checkpoint, family: Family, recipe: Recipe, pins: Pins, texts: Texts
) -> list[int]:
    """New id -> old id of the tokens to keep under the budget: all covered ones, and more where they are affordable."""
    shape = shape_of(checkpoint.model, family)
    everything = list(range(shape.vocabulary))
    most = vocabulary_for(shape, recipe.remove, 0, pins)
    if most >= shape.vocabulary:
        return everything
    model = TokenizerModel(checkpoint.tokenizer)
    counts = count_tokens(checkpoint.tokenizer, texts.counted())
    counts = Counter({i: n for i, n in counts.items() if n >= recipe.min_count})
    required = required_tokens(checkpoint.path, checkpoint.tokenizer, checkpoint.named_ids)
    if not recipe.closure:
        return model.order({i for i in counts if i in model.text_of} | set(model.added.values()) | checkpoint.named_ids)
    floor = min(_round_up(len(covered_tokens(model, counts, required)), 64), len(model.text_of))
    size = min(vocabulary_for(shape, recipe.remove, floor, pins), len(model.text_of))
    return choose_vocabulary(model, counts, required, size)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def vocabulary_kl(checkpoint: Checkpoint, family: Family, kept: list[int], data: CalibrationSet) -> float:
    """Mean over the comparison tokens of ``-log`` of the probability mass that stays; 0 where all tokens stay."""
    head = head_of(checkpoint.model, family)
    if len(kept) == head.out_features:
        return 0.0
    runner, old_of, total, count = LayerRunner(checkpoint.model, family), torch.tensor(kept), 0.0, 0
    for batch in track(data.compare, "Mass of the cut tokens"):
        last = None
        for hidden in runner.forward(replace(batch, ids=old_of[batch.ids]), range(len(runner.layers))):
            last = hidden
        assert last is not None
        kl = cut_mass_kl(head, runner.finish(last)[batch.valid], kept)
        total, count = total + float(kl.double().sum()), count + len(kl)
    return max(0.0, total / count)


def replay_cut(plan: Plan, kind: str) -> Cut:
    """The cut that a plan describes, with every choice already made."""
    refit = plan.refit
    return Cut(
        plan.layers.kept, plan.width.after, kind, refit.output_projection, None,
        plan.width.kept, refit.ridge_ffn, refit.ridge_attention,
    )  # fmt: skip


def _replay_data(plan: Plan, tokenizer: Any, checkpoint: Checkpoint) -> CalibrationSet:
    """The calibration batches of the plan, from the data it names."""
    settings = plan.calibration
    path = settings["path"]
    recipe = Recipe(calibration=Path(path) if path else None, general=settings["general"])
    texts = read_texts(recipe)
    verify_sources(texts, settings["sources"])
    eos = end_of_text(checkpoint.model, plan.vocabulary.kept)
    windows = calibration_windows(texts, tokenizer, eos, settings)
    return build_set(windows, Options(batch_tokens=settings["batch_tokens"]))


def _settings(recipe: Recipe, model: Any) -> dict[str, Any]:
    """What decides which calibration windows come out."""
    longest = getattr(model.config, "max_position_embeddings", None) or recipe.max_length
    length = min(recipe.max_length, longest)
    return {"tokens": recipe.tokens, "max_length": length, "general": recipe.general, "seed": recipe.seed}


def _pins(recipe: Recipe, layers: int) -> Pins:
    """The user's pins; a list of layers to drop pins their number."""
    if recipe.drop_layers is None:
        return recipe.pins
    dropped = set(recipe.drop_layers)
    if not dropped <= set(range(layers)) or len(dropped) == layers:
        raise OptionError(f"--drop-layers: got {sorted(dropped)}, allowed some but not all of 0 to {layers - 1}.")
    return replace(recipe.pins, layers=layers - len(dropped))


def _removed(candidate: Candidate, layers: int) -> list[int]:
    return sorted(set(range(layers)) - set(candidate.kept_layers))


def _judge_problems(texts: Texts, data: CalibrationSet, recipe: Recipe) -> list[Problem]:
    """Calibration problems with tests that no fit has seen."""
    samples = [texts.task[i] for i in data.compare_samples]
    with_tests = [s for s in samples if s.test and s.entry_point][: recipe.judge_problems]
    return [Problem(f"{n}", s.prompt, s.entry_point or "", s.test or "", s.completion) for n, s in enumerate(with_tests)]


def _judge_sandbox(problems: Iterable[Problem], options: Options, warnings: list[str]) -> Sandbox | None:
    """The sandbox for the finalists, or None (with a warning) where there is nothing to run or no isolation."""
    if not list(problems):
        return None
    try:
        return Sandbox.detect(options.unsandboxed)
    except SandboxError as error:
        warnings.append(f"finalists were decided by KL, not by their tests: {error}")
        say(warnings[-1])
        return None
