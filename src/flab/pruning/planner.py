"""Planning: from a model, texts and a budget to a plan. Decides everything, writes nothing.

The vocabulary is chosen and cut (in memory) first; then depth and width are searched together; then the finalists are
built as the plan would build them and decided by their tests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flab.errors import OptionError
from flab.evaluation.tasks import Problem
from flab.models.checkpoint import Checkpoint, fingerprint, free
from flab.models.families import Family, head_of, shape_of
from flab.models.folder import resolve, stored_dtype
from flab.models.options import Options
from flab.models.shape import Shape
from flab.progress import say
from flab.pruning.budget import Pins, Split, feasible_splits
from flab.pruning.calibration import HELD_OUT_EVERY, CalibrationSet
from flab.pruning.finalists import judge_batch, judge_problems, judge_sandbox, run_problems, sound_problems
from flab.pruning.material import Material, prepare_material
from flab.pruning.plan import Kept, Plan, Refit
from flab.pruning.prepare import (
    Texts,
    announce,
    cut_to_vocabulary,
    cutting_dtype,
    first_tokens,
    open_to_cut,
    read_texts,
)
from flab.pruning.recipe import Recipe
from flab.pruning.refit.gram import RIDGES
from flab.pruning.refit.new_layer import NewLayer
from flab.pruning.refit.streams import Streams
from flab.pruning.refits import REFITS
from flab.pruning.search import Candidate, Known, Search, decide, deep_cut_hint, search_splits
from flab.pruning.surgeon import carve
from flab.pruning.vocabulary import Counts, plan_vocabulary
from flab.sandbox import Sandbox
from flab.version import __version__


@dataclass
class Clock:
    """Seconds spent in each named stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        """Book the time since the last lap under ``name``."""
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self.start, 2)
        self.start = now


@dataclass
class Shared:
    """What does not depend on the budget, and what one leaves for the next, deeper one."""

    texts: Texts
    counts: Counts
    known: Known
    material: Material | None = None  # of the budget before, which may keep the same tokens


@dataclass
class Bench:
    """What planning works on: the source folder, its texts, the chosen vocabulary, the data and the feasible splits."""

    source: Path
    recipe: Recipe
    options: Options
    texts: Texts
    family: Family
    shape: Shape
    material: Material
    splits: list[Split]
    search: Search
    sandbox: Sandbox | None = None
    problems: list[Problem] = field(default_factory=list)
    decisions: list[NewLayer] = field(default_factory=list)  # of the candidate built last

    def build(
        self, candidate: Candidate, data: CalibrationSet, compared: bool = False, streams: Streams | None = None
    ) -> Checkpoint:
        """Cut and refit a fresh copy of the model on this data; keeps the decisions and the KL."""
        built, _ = open_to_cut(self.source, self.options)
        cut_to_vocabulary(built, self.family, self.material.kept)
        cut = self.search.cut_for(candidate.split, candidate.removed, compared)
        self.decisions, walk = carve(built.model, self.family, cut, data.fit, data.compare, streams)
        candidate.kl, kl_answer = walk.divergence(head_of(built.model, self.family))
        candidate.kl_answer = None if math.isnan(kl_answer) else kl_answer
        if math.isnan(candidate.kl_search):
            candidate.kl_search = candidate.kl
        built.tokenizer = self.material.tokenizer
        return built

    def judge(self, candidate: Candidate) -> None:
        """Build a finalist and try it on the tests, where there are any."""
        recipe = self.recipe
        data = first_tokens(self.material.windows, recipe.finalist_tokens, self.options, recipe.prompt_weight)
        built = self.build(candidate, data, compared=True)
        self.try_tests(candidate, built)
        free(built)

    def try_tests(self, candidate: Candidate, built: Checkpoint) -> None:
        """How many of the calibration problems that no fit has seen the built candidate solves."""
        if self.sandbox is not None:
            batch = judge_batch(built, self.problems, self.shape.layers)
            result = run_problems(built, self.problems, self.sandbox, batch_size=batch)
            candidate.task_passed, candidate.task_total = sum(result.passed), len(result.rows)
            candidate.task_success = candidate.task_passed / candidate.task_total


def make_plan(
    model: str | Path, recipe: Recipe, options: Options, shared: Shared | None = None
) -> tuple[Plan, Checkpoint, dict[str, Any] | None]:
    """Decide what stays; returns the decisions, the model that they make as ``apply`` would cut it, and its tokenizer.json.

    ``shared`` is what the budgets of a sweep have in common: with it KL decides alone, and the winner is tried on the tests.
    """
    clock = Clock()
    bench, checkpoint = prepare_bench(model, recipe, options, shared)
    recipe = bench.recipe
    clock.lap("vocabulary")
    candidates = search_splits(bench.search, bench.splits)
    bench.search.model = None
    if shared is None:
        bench.material.free_streams()
    free(checkpoint)
    clock.lap("search")
    bench.problems = judge_problems(bench.texts, bench.material.data, recipe)
    finalists = 1 if shared is not None else recipe.finalists
    if bench.problems and (min(len(candidates), finalists) > 1 or shared is not None):
        bench.sandbox = judge_sandbox(options, bench.search.warnings)
    if bench.sandbox is not None:
        bench.problems = sound_problems(bench.problems, bench.sandbox, bench.search.warnings)
        bench.sandbox = bench.sandbox if bench.problems else None
    winner = decide(candidates, finalists, bench.judge)
    clock.lap("finalists")
    built = bench.build(winner, bench.material.data, streams=bench.material.streams if shared is not None else None)
    bench.search.warnings += deep_cut_hint(recipe, winner) + ridges_at_the_end(bench.decisions)
    clock.lap("winner")
    if shared is not None:
        bench.try_tests(winner, built)
        clock.lap("tests")
    return record(bench, candidates, winner, clock), built, bench.material.tokenizer_json


def prepare_bench(
    model: str | Path, recipe: Recipe, options: Options, shared: Shared | None = None
) -> tuple[Bench, Checkpoint]:
    """Read everything, choose the vocabulary and cut it in memory."""
    texts = shared.texts if shared is not None else read_texts(recipe)
    checkpoint, family = open_to_cut(model, options)
    shape = shape_of(checkpoint.model, family)
    recipe = recipe.resolved(shape.total, shape.width)
    pins = pins_of(recipe, shape)
    counts = (
        shared.counts
        if shared is not None
        else Counts.of(checkpoint.tokenizer, texts.task_texts(), texts.general_texts())
    )
    kept = plan_vocabulary(checkpoint, family, recipe, pins, counts)
    splits = feasible_splits(shape, recipe.remove, len(kept), pins)
    material = shared.material if shared is not None else None
    if material is None or material.kept != kept:
        if shared is not None:
            shared.material = None
        material = prepare_material(checkpoint, family, kept, texts, recipe, options)
    if shared is not None:
        shared.material = material
    cut_to_vocabulary(checkpoint, family, kept)
    announce(recipe)
    if shared is not None:
        say(f"budget {100 * recipe.remove:g} %")
    known = shared.known if shared is not None else Known()
    search = Search(
        checkpoint.model, family, shape, recipe, material.small, known, list(checkpoint.warnings), streams=material.small_streams,
        winner_tokens=material.data.num_fit_tokens,
    )  # fmt: skip
    search.warnings += few_texts(recipe, shape, material.data)
    bench = Bench(resolve(model), recipe, options, texts, family, shape, material, splits, search)
    return bench, checkpoint


def few_texts(recipe: Recipe, shape: Shape, data: CalibrationSet) -> list[str]:
    """What the refit cannot do with so little text."""
    found = []
    if (tokens := data.num_fit_tokens) < 4 * shape.width:
        found.append(
            f"{tokens} calibration tokens for a width of {shape.width}: least squares wants several times as "
            "many; raise --tokens or give more text."
        )
    if REFITS[recipe.refit].iterative and not data.has_held_out:
        found.append(
            f"fewer than {HELD_OUT_EVERY} calibration windows to fit on, so none is held out: --refit {recipe.refit} "
            "does no more than --refit residual; give more text."
        )
    return found


def ridges_at_the_end(decisions: Sequence[NewLayer]) -> list[str]:
    """What a ridge at an end of the grid says about the calibration text."""
    found = []
    for part, ridges in {
        "FFN": [d.ridge_ffn for d in decisions],
        "attention": [d.ridge_attention for d in decisions],
    }.items():
        fitted = [ridge for ridge in ridges if ridge > 0]
        if held_back := sum(ridge >= RIDGES[-1] for ridge in fitted):
            found.append(
                f"{part}: in {held_back} of {len(fitted)} layers held-out tokens allowed hardly any correction; more --tokens "
                "would allow more."
            )
        if loose := sum(ridge <= RIDGES[0] for ridge in fitted):
            found.append(f"{part}: in {loose} of {len(fitted)} layers the smallest ridge was best.")
    return found


def record(bench: Bench, candidates: list[Candidate], winner: Candidate, clock: Clock) -> Plan:
    """The decisions as a plan."""
    shape, split, recipe = bench.shape, winner.split, bench.recipe
    decisions = bench.decisions
    kind = bench.search.cut_for(split, winner.removed).kind
    return Plan(
        remove=recipe.remove,
        model=model_facts(bench.source, bench.family, bench.options),
        calibration=calibration_facts(bench),
        vocabulary=Kept(shape.vocabulary, len(bench.material.kept), bench.material.kept),
        layers=Kept(shape.layers, split.layers, winner.kept_layers),
        width=Kept(shape.width, split.width, [d.neurons for d in decisions]),
        refit=Refit(
            kind=kind,
            output_projection=recipe.output_projection,
            ridge_ffn=[d.ridge_ffn for d in decisions],
            ridge_attention=[d.ridge_attention for d in decisions],
            newton_steps=[d.newton_steps for d in decisions],
            reconstruction_rates=[d.reconstruction_rate for d in decisions],
            descended=[d.descended for d in decisions],
            scaling="feature",
        ),
        parameters_before=shape.total,
        parameters_after=split.parameters,
        body_before=shape.body(shape.layers, shape.width),
        body_after=shape.body(split.layers, split.width),
        kl_vocabulary=bench.material.kl_vocabulary,
        kl_nats_per_token=winner.kl if winner.kl is not None else winner.kl_search,
        criteria={"layers": recipe.layer_criterion, "neurons": recipe.neuron_criterion},
        candidates=[c.to_json() for c in candidates],
        layer_path=bench.search.layer_path,
        warnings=bench.search.warnings,
        seconds=clock.seconds,
        flab_version=__version__,
    )


def model_facts(source: Path, family: Family, options: Options) -> dict[str, Any]:
    """Which model the plan is for, and the precision it was made in."""
    return {
        "path": str(source.resolve()),
        "sha256": fingerprint(source),
        "model_type": family.model_type,
        "stored_dtype": stored_dtype(source),
        "compute_dtype": cutting_dtype(source, options),
    }


def calibration_facts(bench: Bench) -> dict[str, Any]:
    """Which data was read, and what decides the windows that come out of it."""
    path = bench.recipe.calibration
    return {
        "sources": [s.to_json() for s in bench.texts.sources],
        "corpus": [s.to_json() for s in bench.texts.corpus_sources],
        "path": str(path.resolve()) if path else None,
        "fit_tokens": bench.material.data.num_fit_tokens,
        "compare_tokens": bench.material.data.num_compare_tokens,
        "judge_problems": len(bench.problems) if bench.sandbox is not None else 0,
        "sandbox": bench.sandbox.level if bench.sandbox is not None else None,
        "batch_tokens": bench.options.batch_tokens,
    } | bench.material.settings


def pins_of(recipe: Recipe, shape: Shape) -> Pins:
    """The user's pins, checked; a list of layers to drop pins their number."""
    pins = recipe.pins
    if recipe.drop_layers is not None:
        dropped = set(recipe.drop_layers)
        if not dropped <= set(range(shape.layers)) or len(dropped) == shape.layers:
            raise OptionError(
                f"--drop-layers: got {sorted(dropped)}, allowed some but not all of 0 to {shape.layers - 1}."
            )
        pins = replace(pins, layers=shape.layers - len(dropped))
    pins.check(shape)
    return pins
