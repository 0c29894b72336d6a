"""Planning: from a model, texts and a budget to a plan. Decides everything, writes nothing.

First the vocabulary is chosen and cut in memory. Then depth and width are searched together. Last, the finalists are
built as the plan would build them, and their tests decide. A :class:`Planner` plans one budget or, for a sweep, many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flab.evaluation.tasks import Problem
from flab.models.checkpoint import Checkpoint, cutting_dtype, fingerprint, free, one_layer_at_a_time, open_to_cut
from flab.models.engines.store import fingerprint as digest
from flab.models.families import Family, shape_of
from flab.models.gguf.pretokenizers import name_in
from flab.models.options import Options
from flab.models.scorer import scorer_of
from flab.models.shape import Shape
from flab.models.source import ModelFolder, ModelSource
from flab.progress import StageTimes, say
from flab.pruning.advice import deep_cut_hint, experts_without_elimination, few_texts, ridges_at_the_end
from flab.pruning.budget import Pins, Split, feasible_splits
from flab.pruning.calibration import (
    CalibrationSet,
    Texts,
    announce,
    first_tokens,
    read_texts,
)
from flab.pruning.cuts.vocabulary import cut_vocabulary
from flab.pruning.finalists import judge_batch, judge_problems, judge_sandbox, run_problems, sound_problems
from flab.pruning.journal import Journal
from flab.pruning.material import Material, prepare_material
from flab.pruning.plan import Kept, Plan, Refit, mixture_facts
from flab.pruning.recipe import Recipe
from flab.pruning.refit.new_layer import NewLayer
from flab.pruning.refit.streams import SWEEP_BYTES, Streams
from flab.pruning.search import Candidate, Known, Search, decide, search_splits
from flab.pruning.surgeon import carve, keep, let_go
from flab.pruning.vocabulary import Counts, Needs, model_counts, plan_vocabulary
from flab.sandbox import Sandbox
from flab.version import __version__

WHOLE_BODY_TOKENS = 1024  # read by a plan that cuts nothing but tokens
MEASURED = ("kl", "kl_answer", "kl_search", "task_passed", "task_total", "task_success")  # of a finalist


class Planner:
    """Plans one model. Owns the texts, the token counts, the material, and what one budget leaves for the next.

    With ``many`` budgets KL alone decides and only the winners run the tests; streams stay in memory between budgets.
    With one budget the tests decide between its finalists.
    """

    def __init__(
        self,
        model: ModelSource,
        recipe: Recipe,
        options: Options,
        known: Known | None = None,
        many: bool = False,
        work: Path | None = None,
    ) -> None:
        """Read the texts, and the steps that a stopped run of the same planning left in the folder ``work``.

        Raises:
            CheckpointError: there is no model.
            DataError: the texts are missing, empty or malformed.
        """
        self.source = ModelFolder.open(model)
        self.recipe = recipe
        self.options = options
        self.known = known or Known()
        self.many = many
        self.texts = read_texts(recipe)
        self.one_layer = one_layer_at_a_time(self.source, options)
        # A sweep plans many budgets, so its identity is none of a single plan.
        self.identity = "" if many else identity_of(fingerprint(self.source), recipe, options, self.texts)
        self.journal = Journal(work, self.identity)
        self.layers: Path | None = None  # the winner's refitted layers, if the journal keeps them
        # Each of these is made for the first budget and reused for the others.
        self._in_template = False
        self._counts: Counts | None = None
        self._expected: dict[int, float] | None = None
        self._material: Material | None = None

    def check_budgets(self, budgets: Iterable[float]) -> None:
        """Raise :class:`BudgetError` if one of the budgets cannot be met, before any of them is planned."""
        checkpoint, family = self._open()
        needs = self._needs(checkpoint)
        shape = shape_of(checkpoint.model, family)
        for remove in budgets:
            _pins_within(needs, shape, replace(self.recipe, remove=remove))
        free(checkpoint)

    def plan(self, remove: float | None = None) -> tuple[Plan, Checkpoint, dict[str, Any] | None]:
        """Decide what stays for one budget, by default the recipe's.

        Returns:
            The plan; the model as ``apply`` would cut it, without its layers if only one layer is in memory at a time; and its
            ``tokenizer.json`` (None if unchanged).
        """
        times = StageTimes()
        bench, checkpoint = self.open_bench(remove)
        search = bench.search
        times.lap("vocabulary")
        candidates = search_splits(search, bench.splits)
        # The search's model, its streams and its small batches are freed before the winner is built from a
        # fresh copy, so two models are never in memory at once.
        search.model = None
        if not self.many:
            bench.material.free_streams()
        free(checkpoint)
        times.lap("search")
        # A sweep decides by KL and runs the tests on its winners only. Judging finalists for each budget would take
        # longer than everything else.
        finalists = 1 if self.many else bench.recipe.finalists
        if self.many or min(len(candidates), finalists) > 1:
            bench.find_tests()
        winner = decide(candidates, finalists, bench.judge)
        times.lap("finalists")
        # The winner is fitted on all tokens. Candidates and finalists saw fewer.
        built = bench.build(winner, bench.material.data, streams=bench.material.streams)
        self.layers = bench.layers
        search.warnings += deep_cut_hint(bench.recipe, winner) + ridges_at_the_end(bench.decisions)
        search.warnings += experts_without_elimination(bench.decisions)
        times.lap("winner")
        if self.many:
            bench.try_tests(winner, built)
            times.lap("tests")
        return bench.record(candidates, winner, times), built, bench.material.tokenizer_json

    def open_bench(self, remove: float | None = None) -> tuple[Bench, Checkpoint]:
        """Choose the vocabulary of a budget and cut it in memory. Returns the bench for the search, and the model."""
        checkpoint, family = self._open()
        recipe = replace(self.recipe, remove=self.recipe.remove if remove is None else remove)
        shape = shape_of(checkpoint.model, family)
        recipe = recipe.resolved(shape)
        # Tokens are cut first, as in the paper, because all further measurements need the cut vocabulary.
        kept, splits = self._splits(checkpoint, family, recipe)
        material = self._material_for(checkpoint, family, kept, recipe)
        cut_vocabulary(checkpoint.model, family, kept)
        announce(recipe)
        if self.many:
            say(f"budget {100 * recipe.remove:g} %")
        search = Search(
            model=checkpoint.model,
            family=family,
            shape=shape,
            recipe=recipe,
            data=material.small,
            known=self.known,
            warnings=[*checkpoint.warnings, *few_texts(recipe, shape, material.data)],
            streams=material.small_streams,
            winner_tokens=material.data.num_fit_tokens,
            journal=self.journal,
        )
        bench = Bench(self.source, recipe, self.options, self.texts, family, shape, material, splits, search)
        bench.one_layer = self.one_layer
        bench.identity = self.identity
        return bench, checkpoint

    def free_streams(self) -> None:
        """Free the memory that is kept from one budget to the next."""
        if self._material is not None:
            self._material.free_streams()

    def _open(self) -> tuple[Checkpoint, Family]:
        """Load the model. The first time, also put the chats of the texts into its template."""
        checkpoint, family = open_to_cut(self.source, self.options, in_files=self.one_layer)
        if not self._in_template:
            self.texts = self.texts.in_template(checkpoint, self.recipe.template)
            self._in_template = True
        return checkpoint, family

    def _splits(self, checkpoint: Checkpoint, family: Family, recipe: Recipe) -> tuple[list[int], list[Split]]:
        """Return the tokens to keep (new id -> old id), and the splits that meet the budget with them."""
        needs = self._needs(checkpoint)
        shape = shape_of(checkpoint.model, family)
        pins = _pins_within(needs, shape, recipe)

        def expected() -> dict[int, float]:
            if self._expected is None:
                found = self.journal.recall(
                    "expected tokens",
                    lambda: list(
                        model_counts(checkpoint, family, self.texts, recipe, self.options.batch_tokens).items()
                    ),
                )
                self._expected = dict(found)
            return self._expected

        kept = plan_vocabulary(needs, shape, recipe.remove, pins, expected)
        return kept, feasible_splits(shape, recipe.remove, len(kept), pins)

    def _needs(self, checkpoint: Checkpoint) -> Needs:
        """Return the tokens that the texts need. They are counted once."""
        if self._counts is None:
            self._counts = Counts.of(checkpoint.tokenizer, self.texts.task_texts(), self.texts.general_texts())
        return Needs(checkpoint, self.recipe, self._counts)

    def _material_for(self, checkpoint: Checkpoint, family: Family, kept: list[int], recipe: Recipe) -> Material:
        """Return the material of these tokens. It is reused if the previous budget kept the same ones."""
        if self._material is None or self._material.kept != kept:
            self._material = None  # its memory is free before the next is made
            streams = Streams(SWEEP_BYTES if self.many else 0)
            self._material = prepare_material(
                checkpoint, family, kept, self.texts, recipe, self.options, streams, self.journal
            )
        return self._material


def _pins_within(needs: Needs, shape: Shape, recipe: Recipe) -> Pins:
    """Return the recipe's pins. Raises BudgetError if no split can meet the budget, before the model runs."""
    pins = recipe.pins(shape)
    feasible_splits(shape, recipe.remove, needs.size(shape, recipe.remove, pins), pins)
    return pins


@dataclass
class Bench:
    """The input for planning one budget: the model's folder, the chosen vocabulary, the data and the feasible splits."""

    source: ModelFolder
    recipe: Recipe  # resolved
    options: Options
    texts: Texts
    family: Family
    shape: Shape
    material: Material
    splits: list[Split]
    search: Search
    one_layer: bool = False  # in memory at a time
    identity: str = ""  # of everything that decides the plan
    sandbox: Sandbox | None = None  # set if there are tests, and isolation to run them in
    problems: list[Problem] = field(default_factory=list)
    decisions: list[NewLayer] = field(default_factory=list)  # of the candidate built last
    layers: Path | None = None  # the folder with its refitted layers, if they are kept

    def build(
        self, candidate: Candidate, data: CalibrationSet, compared: bool = False, streams: Streams | None = None
    ) -> Checkpoint:
        """Cut and refit a fresh copy of the model on this data. Keeps the decisions and the KL."""
        built, _ = open_to_cut(self.source, self.options, in_files=self.one_layer)
        cut_vocabulary(built.model, self.family, self.material.kept)
        cut = self.search.cut_for(candidate.split, candidate.removed, compared)
        whole_body = candidate.split.layers == self.shape.layers and candidate.split.width == self.shape.width
        if whole_body:
            # Only tokens are cut and no layer changes, so a few tokens suffice to show a divergence of zero.
            data, streams = self._tokens(WHOLE_BODY_TOKENS), None
        done = let_go if self.one_layer else keep
        unkept = compared or whole_body or self.family.experts
        self.layers = None if unkept else self.search.journal.files(candidate.name)
        self.decisions, walk = carve(built.model, self.family, cut, data.fit, data.compare, streams, done, self.layers)
        candidate.kl, kl_answer = walk.divergence(scorer_of(built.model))
        candidate.kl_answer = None if math.isnan(kl_answer) else kl_answer
        if math.isnan(candidate.kl_search):
            candidate.kl_search = candidate.kl
        built.tokenizer = self.material.tokenizer
        return built

    def judge(self, candidate: Candidate) -> None:
        """Build a finalist and run the tests on it, if there are any."""
        # A resumed run recalls the tests of a finalist, which cost as much as its refit.
        # Only the whole model can answer tests, so a run that goes on with the other choice judges anew.
        alone = ", by KL alone" if self.one_layer else ""
        found = self.search.journal.recall(f"finalist {candidate.name}{alone}", lambda: self._judged(candidate))
        for name, value in found.items():
            setattr(candidate, name, value)

    def _judged(self, candidate: Candidate) -> dict[str, Any]:
        built = self.build(candidate, self._tokens(self.recipe.finalist_tokens), compared=True)
        self.try_tests(candidate, built)
        free(built)
        return {name: getattr(candidate, name) for name in MEASURED}

    def _tokens(self, number: int) -> CalibrationSet:
        """Return the first windows, about ``number`` tokens in all."""
        return first_tokens(self.material.windows, number, self.options.batch_tokens, self.recipe.prompt_weight)

    def find_tests(self) -> None:
        """Choose a sandbox, and the calibration problems that no fit has seen and whose tests are sound."""
        if self.one_layer:
            return  # there is no whole model in memory to answer them
        self.problems = judge_problems(self.texts, self.material.data, self.recipe)
        if self.problems:
            self.sandbox = judge_sandbox(self.options, self.search.warnings)
        if self.sandbox is not None:
            self.problems = sound_problems(self.problems, self.sandbox, self.search.warnings)
            self.sandbox = self.sandbox if self.problems else None

    def try_tests(self, candidate: Candidate, built: Checkpoint) -> None:
        """Count the problems that the built candidate solves; without a sandbox the count is left blank."""
        if self.sandbox is not None:
            batch = judge_batch(built, self.problems, self.shape.layers)
            result = run_problems(built, self.problems, self.sandbox, batch_size=batch)
            candidate.task_passed = sum(result.passed)
            candidate.task_total = len(result.rows)
            candidate.task_success = candidate.task_passed / candidate.task_total

    def record(self, candidates: list[Candidate], winner: Candidate, times: StageTimes) -> Plan:
        """Return the decisions as a plan."""
        shape = self.shape
        split = winner.split
        recipe = self.recipe
        decisions = self.decisions
        kind = self.search.cut_for(split, winner.removed).kind
        return Plan(
            remove=recipe.remove,
            model={
                **model_facts(self.source, self.family, self.options),
                **mixture_facts(shape),
                "identity": self.identity,
            },
            calibration=calibration_facts(self),
            cuts={
                "vocabulary": Kept(shape.vocabulary, len(self.material.kept), self.material.kept),
                "layers": Kept(shape.layers, split.layers, winner.kept_layers),
                **inner_cuts(shape, split, decisions),
            },
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
            body_after=shape.narrowed(split.inside).body(split.layers, split.width),
            kl_vocabulary=self.material.kl_vocabulary,
            kl_nats_per_token=winner.kl if winner.kl is not None else winner.kl_search,
            criteria={"layers": recipe.layer_criterion} | self.search.inner_criterion,
            candidates=[c.to_json() for c in candidates],
            layer_path=self.search.layer_path,
            warnings=self.search.warnings,
            seconds=times.seconds,
            flab_version=__version__,
        )


def inner_cuts(shape: Shape, split: Split, decisions: Sequence[NewLayer]) -> dict[str, Kept]:
    """Return the cuts inside the layers: neurons; in a mixture experts, and the neurons of each if they become fewer."""
    before, after = shape.units[shape.inner].count, split.sizes[shape.inner]
    cuts = {shape.inner: Kept(before, after, [one.neurons for one in decisions])}
    if shape.experts and split.inside < shape.block:
        cuts["width"] = Kept(shape.block, split.inside, [one.inside for one in decisions])
    return cuts


def model_facts(source: ModelFolder, family: Family, options: Options) -> dict[str, Any]:
    """Return which model the plan is for, the precision it was made in, and what llama.cpp calls its pre-tokenizer."""
    return {
        "path": str(source.path.resolve()),
        "sha256": fingerprint(source),
        "model_type": family.model_type,
        "stored_dtype": source.stored_dtype,
        "compute_dtype": cutting_dtype(source, options),
        "pre_tokenizer": name_in(source.path),
    }


def calibration_facts(bench: Bench) -> dict[str, Any]:
    """Return which data was read, and the settings that determine its windows."""
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


def identity_of(model: str, recipe: Recipe, options: Options, texts: Texts, apart: Iterable[str] = ()) -> str:
    """Return a digest of everything that decides a plan except the fields ``apart``.

    ``model`` is the fingerprint of the source.
    """
    sources = [one.sha256 for one in (*texts.sources, *texts.corpus_sources)]
    plain = recipe.to_json() | dict.fromkeys(("calibration", "corpus", *apart))
    where = {"dtype": options.dtype, "device": options.device.partition(":")[0], "batch": options.batch_tokens}
    return digest({"flab": __version__, "model": model, "recipe": plain, "options": where, "data": sources})
