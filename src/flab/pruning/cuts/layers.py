"""Layer removal: criteria that each yield the removed set for one, two, three, ... layers, and the cut.

The default, ``kl``, is greedy with re-scoring: the next layer to go is the one whose removal from the *current* model costs
the least KL. The others are here for comparison. The search decides how many layers go.

Legend: B rows, T positions, D hidden size, N real tokens.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from flab.models.families import Family, layers_of
from flab.models.layers import Batch, LayerRunner
from flab.models.memory import trim
from flab.models.scorer import scorer_of
from flab.progress import track
from flab.pruning.cuts import CriterionInput
from flab.pruning.objective import kl_divergence

# Candidates that can no longer win leave the race early. The bound of five standard errors is far beyond chance, because it
# is applied to every candidate after every batch, and a candidate that was dropped by mistake does not come back.
RACE_Z = 5.0  # standard errors by which a candidate must trail before it is dropped
RACE_WARM_UP = 4  # micro-batches before anything is dropped


@dataclass(frozen=True)
class LayerSearch(CriterionInput):
    """The input of a layer criterion, and the path of its removals so far."""

    race: bool = True
    path: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_layers(self) -> int:
        return len(self.runner.layers)


def score_removals(search: LayerSearch, kept: Sequence[int], reference: Sequence[torch.Tensor]) -> dict[int, float]:
    """Return the KL of the model without each kept layer, against ``reference``: final hidden states per batch, (N, D).

    Removing layer i changes nothing before it, so candidate i starts at the hidden states that enter the next layer.
    Candidates that trail by :data:`RACE_Z` standard errors of the paired difference per token are dropped; they get no score.
    """
    head = scorer_of(search.runner.model)
    racing = list(range(len(kept)))
    batches_kl: list[list[torch.Tensor]] = [[] for _ in kept]  # of each place, one (N,) for each batch so far
    for done, number in enumerate(track(spread(len(search.batches)), f"Scoring {len(kept)} layers", unit="batches"), 1):
        batch = search.batches[number]
        for place, final in _without_each(search.runner, batch, kept, racing):
            batches_kl[place].append(kl_divergence(head, reference[number], final[batch.valid]).double().cpu())
        trim()
        # All places have seen the same batches, so their differences can be compared token by token.
        if search.race and done >= RACE_WARM_UP:
            racing = _still_racing(racing, batches_kl)
    return {kept[place]: float(torch.cat(batches_kl[place]).mean()) for place in racing}


def _without_each(
    runner: LayerRunner, batch: Batch, kept: Sequence[int], places: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each place with the final hidden states, (B, T, D), of the kept layers without the one there.

    The streams of all places are held at once, so that each layer is read once if its weights lie in files.
    """
    # Without the layer at a place, the stream that enters it enters the next layer directly, so only the layers after it are
    # computed again: half of them on average.
    whole = runner.embed(batch)
    without: dict[int, torch.Tensor] = {}
    for place, index in enumerate(kept):
        with runner.at_work(index):
            for earlier in without:
                without[earlier] = runner.layer(index, without[earlier])
            if place in places:
                without[place] = whole
            whole = runner.layer(index, whole)
    for place in list(without):
        yield place, runner.finish(without.pop(place))


def spread(count: int) -> list[int]:
    """Order 0 to ``count`` - 1 so that every beginning is spread over the whole range.

    Micro-batches are sorted by length, so without this the first ones would cover short windows only.
    """
    # Sorted by their reversed binary digits, the numbers form the van der Corput sequence: 0, 4, 2, 6, 1, 5, 3, 7.
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda number: f"{number:0{bits}b}"[::-1])


def _still_racing(racing: list[int], batches_kl: list[list[torch.Tensor]]) -> list[int]:
    """Return the places that do not trail the current best by more than the confidence bound."""
    values = {place: torch.cat(batches_kl[place]) for place in racing}
    best = min(racing, key=lambda place: float(values[place].mean()))
    survivors = []
    for place in racing:
        # The test is paired: the same tokens are hard for every candidate, so the difference per token varies much less
        # than the KL itself. Its standard error is std / sqrt(N).
        difference = values[place] - values[best]
        bound = RACE_Z * float(difference.std()) / math.sqrt(len(difference))
        if place == best or float(difference.mean()) <= bound:
            survivors.append(place)
    return survivors


def by_kl(search: LayerSearch) -> Iterator[tuple[int, ...]]:
    """Yield the removed sets of a greedy search, which scores all remaining layers again after each removal.

    A path that is known from a smaller budget is continued.
    """
    kept = list(range(search.num_layers))
    for step in list(search.path):
        kept.remove(step["removed"])
        yield tuple(sorted(set(range(search.num_layers)) - set(kept)))
    # Every step is compared with the uncut model, so errors cannot hide behind those of earlier steps.
    reference = search.runner.finals(search.batches, "Reference distribution") if len(kept) > 1 else []
    while len(kept) > 1:
        scores = score_removals(search, kept, reference)
        # Equal scores go to the lower index, so that the path does not depend on the order of a dict.
        gone = min(scores, key=lambda i: (scores[i], i))
        kept.remove(gone)
        search.path.append({"removed": gone, "kl": scores[gone], "scores": {str(i): s for i, s in scores.items()}})
        yield tuple(sorted(set(range(search.num_layers)) - set(kept)))


def _one_shot(search: LayerSearch, scores: Sequence[float]) -> Iterator[tuple[int, ...]]:
    """Yield the removed sets by ascending score, without scoring again."""
    order = sorted(range(search.num_layers), key=lambda i: (scores[i], i))
    for count in range(1, search.num_layers):
        search.path.append({"removed": order[count - 1], "score": float(scores[order[count - 1]])})
        yield tuple(sorted(order[:count]))


def by_perplexity(search: LayerSearch) -> Iterator[tuple[int, ...]]:
    """Score once, by the cross entropy of the calibration text with only that layer removed (Shortened-LLaMA)."""
    runner = search.runner
    head = scorer_of(runner.model)
    total = [0.0] * search.num_layers
    kept = range(search.num_layers)
    for batch in track(search.batches, "Perplexity without each layer", unit="batches"):
        # The state at position t predicts token t + 1, so states lose the last position and labels the first.
        target = batch.valid[:, 1:]
        for place, final in _without_each(runner, batch, kept, kept):
            logits = head(final[:, :-1][target].to(head.weight)).float()
            labels = batch.ids[:, 1:][target].to(logits.device)
            total[place] += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    yield from _one_shot(search, total)


def _block_cosines(search: LayerSearch, last_token: bool, distance: int = 1) -> list[float]:
    """Return the mean cosine of the hidden states entering layer l and those entering layer l + distance, for each l."""
    ends = search.num_layers - distance + 1
    total = [0.0] * ends
    count = 0
    for batch in track(search.batches, "Comparing hidden states", unit="batches"):
        chosen = batch.valid
        if last_token:
            # The last token of a row: its right neighbour is padding or the end of the row.
            chosen = batch.valid & ~torch.nn.functional.pad(batch.valid[:, 1:], (0, 1))
        # A window of distance + 1 streams. The streams at its ends enter layer l and layer l + distance.
        states = deque[torch.Tensor](maxlen=distance + 1)
        for place, hidden in enumerate(search.runner.forward(batch, range(search.num_layers)), -distance):
            states.append(hidden[chosen].float())
            if place >= 0:
                cosine = nn.functional.cosine_similarity(states[0], states[-1].to(states[0].device), dim=-1)
                total[place] += float(cosine.double().sum())
        count += int(chosen.sum())
    return [t / count for t in total]


def by_block_influence(search: LayerSearch) -> Iterator[tuple[int, ...]]:
    """Score once, by 1 - mean cosine of a layer's input and output over all real tokens (ShortGPT)."""
    yield from _one_shot(search, [1 - c for c in _block_cosines(search, last_token=False)])


def by_last_token(search: LayerSearch) -> Iterator[tuple[int, ...]]:
    """Score once, by block influence at the last token only, as the paper's public scripts do."""
    yield from _one_shot(search, [1 - c for c in _block_cosines(search, last_token=True)])


def by_angular(search: LayerSearch) -> Iterator[tuple[int, ...]]:
    """Yield the contiguous block with the smallest angular distance of the last token (Gromov et al.); not nested."""
    for count in range(1, search.num_layers):
        cosines = _block_cosines(search, last_token=True, distance=count)
        # The angle between the streams at both ends of a block, as a fraction of a half turn.
        distances = [math.acos(max(-1.0, min(1.0, c))) / math.pi for c in cosines]
        start = min(range(len(distances)), key=lambda i: (distances[i], i))
        search.path.append({"removed": list(range(start, start + count)), "score": distances[start]})
        yield tuple(range(start, start + count))


def by_random(search: LayerSearch) -> Iterator[tuple[int, ...]]:
    """Yield a seeded shuffle: the baseline that any criterion must beat."""
    order = list(range(search.num_layers))
    random.Random(search.seed).shuffle(order)
    yield from _one_shot(search, [float(order.index(i)) for i in range(search.num_layers)])


LAYER_CRITERIA: dict[str, Callable[[LayerSearch], Iterator[tuple[int, ...]]]] = {
    "kl": by_kl,
    "block-influence": by_block_influence,
    "perplexity": by_perplexity,
    "angular": by_angular,
    "last-token": by_last_token,
    "random": by_random,
}


def cut_layers(model: Any, family: Family, kept: Sequence[int]) -> None:
    """Keep only these layers, in place, and the same entries of every per-layer list of the config."""
    layers = layers_of(model, family)
    config = model.config
    before = len(layers)
    for name in family.layer_lists:
        values = getattr(config, name, None)
        if values is not None:
            assert len(values) == before, f"{name} has {len(values)} entries for {before} layers"
            setattr(config, name, [values[i] for i in kept])
    remaining = nn.ModuleList(layers[i] for i in kept)
    owner, _, name = family.layers.rpartition(".")
    setattr(model.get_submodule(owner), name, remaining)
    config.num_hidden_layers = len(kept)
    # A limit such as "the first k layers attend to everything" counts the kept ones among the first k.
    for name in family.depth_limits:
        if (limit := getattr(config, name, None)) is not None:
            setattr(config, name, min(sum(i < limit for i in kept), len(kept)) if limit < before else len(kept))
    # The key-value cache is addressed by the layer's index, so the indices must have no gaps.
    for new_index, layer in enumerate(remaining):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = new_index  # type: ignore[assignment]
