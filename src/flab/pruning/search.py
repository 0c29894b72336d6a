"""Search for depth and width together: build feasible splits with the refit, measure each, and let the tests decide.

The KL of a candidate is measured on the complete cut model. Effects of single cuts are never added up. No file is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from flab.errors import BudgetError
from flab.models.families import Family
from flab.models.layers import LayerRunner
from flab.models.scorer import scorer_of
from flab.models.shape import Shape
from flab.progress import say, track
from flab.pruning.budget import Split
from flab.pruning.calibration import CalibrationSet, thinned
from flab.pruning.cuts.experts import EXPERT_CRITERIA, ExpertSearch
from flab.pruning.cuts.layers import LAYER_CRITERIA, LayerSearch, by_kl
from flab.pruning.cuts.neurons import NEURON_CRITERIA, NeuronSearch
from flab.pruning.journal import Journal
from flab.pruning.recipe import Recipe
from flab.pruning.refit.new_layer import Cut, Narrowing
from flab.pruning.refit.streams import Streams
from flab.pruning.refit.walk import Walk
from flab.pruning.refits import REFITS

# From deep to shallow the KL falls and then rises again, with some noise. Three candidates in a row that are worse than
# the best count as the rising side. Each further one would cost a whole walk with refit.
PATIENCE = 3  # candidates in a row that are worse than the best, after which shallower ones are not built
# From this size on, depth is probed on few tokens before any split is built.
PROBED_PARAMETERS = 100_000_000
PROBE_TOKENS = 1024


@dataclass
class Candidate:
    """One split, built and measured."""

    split: Split
    kept_layers: list[int]
    removed_fraction: float
    flops_per_token: int
    kl_search: float  # nan until the winner is built, if it had no rival
    kl: float | None = None
    kl_answer: float | None = None
    task_success: float | None = None
    task_passed: int | None = None
    task_total: int | None = None
    chosen: bool = False

    removed: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The split and the removed layers, as text."""
        return f"{self.split} without {list(self.removed)}"

    def to_json(self) -> dict[str, Any]:
        """Return all fields, including the split's sizes."""
        values = asdict(self)
        del values["split"]
        return {**self.split.to_json(), **values, "removed": list(self.removed)}


@dataclass
class Known:
    """The findings of the searches of smaller budgets, for the search of a larger one.

    It holds the order of the layers, the sets that swapping found, the depth, and the KL of each depth. A narrower model of
    a depth is assumed not to beat that KL. All of this was found with other vocabularies. That it also holds here is
    assumed, not measured.
    """

    layer_path: list[dict[str, Any]] = field(default_factory=list)
    swapped: dict[int, tuple[int, ...]] = field(default_factory=dict)  # by the number of removed layers
    most_layers: int | None = None  # a larger budget is assumed to keep no more layers
    kl_by_layers: dict[int, float] = field(default_factory=dict)
    patience: int = PATIENCE


@dataclass
class Search:
    """The model (its vocabulary already cut), the data, and what the search has found so far."""

    model: Any
    family: Family
    shape: Shape
    recipe: Recipe
    data: CalibrationSet
    known: Known = field(default_factory=Known)
    warnings: list[str] = field(default_factory=list)
    scores: torch.Tensor | None = None
    streams: Streams = field(default_factory=Streams)
    winner_tokens: int | None = None  # the tokens that the winner is fitted on; None means those of the candidates
    journal: Journal = field(default_factory=Journal)

    @property
    def layer_path(self) -> list[dict[str, Any]]:
        """The removed layers in order, with their scores."""
        return self.known.layer_path

    @property
    def inner_criterion(self) -> dict[str, str]:
        """The units that are cut inside the layers (neurons, experts or both), and their criteria."""
        neurons = {"neurons": self.recipe.neuron_criterion}
        if not self.shape.experts:
            return neurons
        return {"experts": self.recipe.expert_criterion} | (neurons if self.recipe.width is not None else {})

    @property
    def winner_needs_scores(self) -> bool:
        """Whether the winner's neurons are chosen by scores. Elimination needs none, but at least as many tokens as neurons."""
        if self.shape.experts:
            return True
        enough = self.winner_tokens is None or self.winner_tokens >= self.shape.width
        return self.recipe.neuron_criterion != "elimination" or not enough

    def score_neurons(self) -> None:
        """Score neurons, or experts, by the recipe's criterion. There are no scores if elimination chooses during the walk.

        Candidates are compared on few tokens. If there are fewer tokens than neurons in a layer, elimination cannot tell the
        neurons apart, and activation chooses them instead. The winner is fitted on more tokens.
        """
        runner = LayerRunner(self.model, self.family)
        if self.shape.experts:
            search = ExpertSearch(runner, self.data.fit, self.recipe.seed)
            self.scores = EXPERT_CRITERIA[self.recipe.expert_criterion](search)
            return
        # Backward elimination inverts the features' Gram matrix, which is singular with fewer tokens than neurons.
        criterion = self.recipe.neuron_criterion
        if criterion == "elimination" and self.data.num_fit_tokens < self.shape.width:
            criterion = "activation"
        if criterion != "elimination":
            self.scores = NEURON_CRITERIA[criterion](NeuronSearch(runner, self.data.fit, self.recipe.seed))
        if self.winner_tokens is not None and self.winner_tokens < self.shape.width and self.scores is not None:
            self.warnings.append(
                f"{self.winner_tokens} calibration tokens are fewer than the {self.shape.width} neurons of a layer: "
                "neurons are chosen by activation instead of elimination; give more text or raise `tokens`."
            )

    def removals(self) -> Iterator[tuple[int, ...]]:
        """Yield the removed set for 0, 1, 2, ... layers."""
        yield ()
        path = self.known.layer_path
        if self.recipe.layer_criterion != "kl":
            path.clear()  # the others score all layers at once
        elif not path:
            path += self.journal.get("layer path") or []
        search = LayerSearch(LayerRunner(self.model, self.family), self.data.fit, self.recipe.seed, path=path)
        for removed in LAYER_CRITERIA[self.recipe.layer_criterion](search):
            if self.recipe.layer_criterion == "kl" and len(path) > len(self.journal.get("layer path") or []):
                self.journal.keep("layer path", list(path))
            yield self.known.swapped.get(len(removed), removed)

    def cut_for(self, split: Split, removed: Sequence[int], compared: bool = False) -> Cut:
        """Return the instructions that build a split. If it is only ``compared``, they leave out the expensive refits."""
        # The expensive refits all begin with the residual one. Candidates are compared after that, because the rest costs
        # many times as much and the search only has to get the order right.
        refit = "residual" if compared and REFITS[self.recipe.refit].iterative else self.recipe.refit
        kept = [i for i in range(self.shape.layers) if i not in set(removed)]
        nothing = not removed and split.width == self.shape.width
        narrowing = None
        if self.shape.experts and split.inside < self.shape.block:
            narrowing = Narrowing(split.inside, self.recipe.neuron_criterion, self.recipe.seed)
        return Cut(
            kept,
            split.sizes.get("experts", split.width),
            "none" if nothing else refit,
            self.recipe.output_projection,
            self.scores if compared or self.winner_needs_scores else None,
            narrowing=narrowing,
        )

    def measure(self, split: Split, removed: Sequence[int]) -> Candidate:
        """Build a split without touching the model, and measure it."""
        candidate = self.candidate(split, removed)
        # Two floats in the journal, because JSON holds neither a Candidate nor a tensor.
        candidate.kl_search, kl_answer = self.journal.recall(candidate.name, lambda: self._divergence(split, removed))
        candidate.kl_answer = _number(kl_answer)
        return candidate

    def _divergence(self, split: Split, removed: Sequence[int]) -> tuple[float, float]:
        """Return the KL of a split over all tokens and over answers."""
        cut = self.cut_for(split, removed, compared=True)
        # The walk keeps the pruned stream beside the original's and does not change the layers, so all candidates share one
        # model in memory.
        walk = Walk(LayerRunner(self.model, self.family), cut, self.data.fit, self.data.compare, self.streams)
        for _ in track(walk, f"Candidate {split}", total=split.layers, unit="layers"):
            pass
        return walk.divergence(scorer_of(self.model))

    def candidate(self, split: Split, removed: Sequence[int]) -> Candidate:
        """Return a split with its sizes, not yet measured."""
        narrower = split.inside if self.shape.experts else None
        return Candidate(
            split=split,
            kept_layers=[i for i in range(self.shape.layers) if i not in set(removed)],
            removed_fraction=1 - split.parameters / self.shape.total,
            flops_per_token=self.shape.narrowed(narrower).flops_per_token(split.vocabulary, split.layers, split.width),
            kl_search=math.nan,
            removed=tuple(removed),
        )


def without_hopeless_depths(search: Search, splits: Sequence[Split]) -> Sequence[Split]:
    """Leave out all splits of fewer layers if losing a single layer costs more than the whole cut of the widths.

    Scoring every layer and building a split of each depth would take hours on a model of a billion parameters. Before the
    refit, no split of fewer layers can be better than the best removal of one layer alone. The KL of that removal is compared
    with that of the deepest split, also before the refit and on the same few tokens.
    """
    deepest, *shallower = splits
    if (
        deepest.layers < search.shape.layers
        or search.recipe.drop_layers is not None
        or search.recipe.layer_criterion != "kl"
    ):
        return splits
    narrow, gone, shorter = search.journal.recall("probe", lambda: _probed(search, deepest))
    say(f"  before any refit: {deepest} KL {narrow:.3f}; without layer {gone} alone {shorter:.3f}")
    if shorter <= narrow:
        return splits
    search.warnings.append(
        f"{len(shallower)} splits of fewer layers were not built. Without its cheapest layer the model has KL {shorter:.3f}, "
        f"and cut to {deepest} {narrow:.3f}, both before the refit."
    )
    return [deepest]


def _probed(search: Search, deepest: Split) -> tuple[float, int, float]:
    """Return the KL of the deepest split before the refit, the layer that costs least alone, and the KL without it."""
    few = thinned(search.data, PROBE_TOKENS)
    runner = LayerRunner(search.model, search.family)
    # The deepest split, cut without a refit.
    cut = replace(search.cut_for(deepest, (), compared=True), kind="none", scores=search.scores)
    if cut.scores is None:
        cut = replace(cut, scores=NEURON_CRITERIA["activation"](NeuronSearch(runner, few.fit, search.recipe.seed)))
    walk = Walk(runner, cut, few.fit, few.fit)
    # The walk measures as it goes, so the layers that it yields are not used.
    for _ in track(walk, f"Probe of {deepest}", total=deepest.layers, unit="layers"):
        pass
    narrow, _ = walk.divergence(scorer_of(search.model))
    # The cheapest single removal from the same model on the same tokens.
    layers = LayerSearch(runner, few.fit, search.recipe.seed)
    removed = next(by_kl(layers))
    return narrow, removed[0], layers.path[0]["kl"]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def search_splits(search: Search, splits: Sequence[Split]) -> list[Candidate]:
    """Measure the feasible splits, deepest first, until too many in a row are worse than the best.

    A split without a rival is not measured here; its KL is known once it is built as the winner.
    """
    known = search.known
    alone = lone_candidate(search, splits)
    if alone is None or (search.winner_needs_scores and alone.split.width < search.shape.width):
        search.score_neurons()
    if alone is None and search.shape.total >= PROBED_PARAMETERS and len(splits) > 1:
        splits = without_hopeless_depths(search, splits)
        alone = lone_candidate(search, splits)
    if alone is not None:
        return [alone]
    by_layers = _by_layers(search, splits)
    candidates: list[Candidate] = []
    # Removed sets grow by one layer, so this goes from deep to shallow. A depth without a feasible split is skipped, but its
    # removed set is still needed for the next one.
    for removed in search.removals():
        split = by_layers.pop(search.shape.layers - len(removed), None)
        if split is not None:
            # A smaller budget has measured a wider model of this depth. A narrower one is assumed not to be better.
            least = known.kl_by_layers.get(split.layers, 0.0)
            if candidates and least > min(c.kl_search for c in candidates):
                say(f"  {split.layers} layers: not built, a wider one of a smaller budget has KL {least:.4f}")
                break
            candidates.append(search.measure(split, removed))
            say(f"  {split}: KL {candidates[-1].kl_search:.4f}")
        if not by_layers or _worsening(candidates, known.patience):
            break
    if by_layers:
        search.warnings.append(
            f"{len(by_layers)} feasible splits of fewer layers were not built: {known.patience} in a row were worse than "
            "the best."
        )
    # Finally, swaps improve the removed set of the best candidate, once for each number of removed layers.
    best = min(candidates, key=lambda c: c.kl_search)
    if search.recipe.layer_criterion == "kl" and len(best.removed) not in known.swapped:
        candidates += swap_layers(search, candidates)
        best = min(candidates, key=lambda c: c.kl_search)
        known.swapped[len(best.removed)] = best.removed
    known.most_layers = best.split.layers
    return candidates


def swap_layers(search: Search, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Hill-climb from the best candidate by swapping a removed layer for a kept neighbour. Builds and measures each set.

    The greedy search scores layers without the refit, and the refit can make up for some layers better than for others.
    """
    best = min(candidates, key=lambda c: c.kl_search)
    found: list[Candidate] = []
    seen = {frozenset(best.removed)}
    while True:
        # Neighbours of the set: one removed layer comes back, and the layer before or after it goes.
        sets = [frozenset({*best.removed} - {gone} | {gone + step}) for gone in best.removed for step in (-1, 1)]
        allowed = set(range(search.shape.layers))
        fresh = [s for s in dict.fromkeys(sets) if s not in seen and len(s) == len(best.removed) and s <= allowed]
        measured = [search.measure(best.split, sorted(s)) for s in fresh]
        seen |= set(fresh)
        found += measured
        better = min(measured, key=lambda c: c.kl_search, default=best)
        if better.kl_search >= best.kl_search:
            return found
        best = better
        say(f"  without layers {', '.join(map(str, best.removed))} instead: KL {best.kl_search:.4f}")


def _by_layers(search: Search, splits: Sequence[Split]) -> dict[int, Split]:
    """Return the splits by their number of layers. Those deeper than a smaller budget's winner in this sweep are left out."""
    most = max(min(search.known.most_layers or search.shape.layers, splits[0].layers), splits[-1].layers)
    return {split.layers: split for split in splits if split.layers <= most}


def lone_candidate(search: Search, splits: Sequence[Split]) -> Candidate | None:
    """Return the only candidate if the user chose the layers to drop, or if only one split keeps all layers; else None."""
    if search.recipe.drop_layers is not None:
        return search.candidate(_dropped_split(search, splits), search.recipe.drop_layers)
    by_layers = _by_layers(search, splits)
    if len(by_layers) == 1 and search.shape.layers in by_layers:
        return search.candidate(by_layers[search.shape.layers], ())
    return None


def _dropped_split(search: Search, splits: Sequence[Split]) -> Split:
    layers = search.shape.layers - len(set(search.recipe.drop_layers or ()))
    found = next((s for s in splits if s.layers == layers), None)
    if found is None:
        raise BudgetError(
            f"`drop_layers` leaves {layers} layers, with which the budget cannot be met; drop more or remove less."
        )
    return found


def _worsening(candidates: Sequence[Candidate], patience: int) -> bool:
    """Return whether each of the last ``patience`` candidates is worse than the best before them."""
    if len(candidates) <= patience:
        return False
    best = min(c.kl_search for c in candidates[:-patience])
    return all(c.kl_search > best for c in candidates[-patience:])


def decide(candidates: list[Candidate], finalists: int, judge: Callable[[Candidate], None]) -> Candidate:
    """Let ``judge`` measure the best few on more tokens, and choose by solved tests, else by KL on answers, then KL."""
    best = choose_finalists(candidates, finalists)
    if len(best) == 1:
        best[0].chosen = True
        return best[0]
    for candidate in best:
        judge(candidate)
    winner = min(best, key=_rank)
    winner.chosen = True
    return winner


def choose_finalists(candidates: Sequence[Candidate], number: int) -> list[Candidate]:
    """Return the best by KL. The last place goes to the best of the others by KL on answers, which ranks some differently."""
    ranked = sorted(candidates, key=lambda c: c.kl_search)
    if number == 1 or len(ranked) <= number:
        return ranked[:number]
    others = ranked[number - 1 :]
    last = min(others, key=lambda c: c.kl_answer if c.kl_answer is not None else c.kl_search)
    return [*ranked[: number - 1], last]


def _rank(candidate: Candidate) -> tuple[float, float]:
    """Return the sort key: tests passed, then KL. Without tests it is the KL on answers, the text that a user asks for."""
    kl = candidate.kl if candidate.kl is not None else candidate.kl_search
    if candidate.task_success is not None:
        return (-candidate.task_success, kl)
    return (candidate.kl_answer if candidate.kl_answer is not None else kl, kl)
