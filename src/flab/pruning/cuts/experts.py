"""Experts of a mixture: criteria that score every expert of every layer, and criteria that score the neurons of one expert.

The best of each layer are kept. All layers keep the same number, because a stock config has one number for all. The kept
experts keep their router rows, so a token whose expert is gone goes to the next best one that is left.

Neurons are scored where an expert is refitted, on the tokens that pass through it. ``elimination`` is not here: it needs the
refit's statistics (:mod:`flab.pruning.refit.experts`).

Legend: L layers, E experts, N real tokens, F neurons of one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flab.models.layers import LayerRunner
from flab.models.mixture import Mixture, mixture_of
from flab.progress import track
from flab.pruning.cuts import CriterionInput

OUTPUT_ELEMENTS = 2**26  # of all experts' outputs held at once: 256 MiB in float32


class ExpertSearch(CriterionInput):
    """The input of an expert criterion."""

    @property
    def mixtures(self) -> list[Mixture]:
        """The mixture of every layer."""
        return [mixture_of(layer, self.runner.family) for layer in self.runner.layers]


def score_reap(search: ExpertSearch) -> torch.Tensor:
    """(L, E): mean of ``weight * ||output||`` over the tokens that pass through the expert (REAP, arXiv 2510.13999).

    An expert that no token passes through scores 0.
    """
    total, tokens = _over_tokens(search, outputs=True)
    return total / tokens.clamp_min(1)


def score_frequency(search: ExpertSearch) -> torch.Tensor:
    """(L, E): how many tokens pass through the expert."""
    return _over_tokens(search, outputs=False)[1]


def _over_tokens(search: ExpertSearch, outputs: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of ``weight * ||output||`` and the number of tokens of each expert, (L, E) both."""
    runner = search.runner
    shape = (len(search.mixtures), search.mixtures[0].count)
    total, tokens = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    states = [runner.embed(batch) for batch in search.batches]
    # One walk through the uncut model: each mixture scores its experts on the stream that really enters it.
    for index, mixture in enumerate(track(search.mixtures, "Experts", unit="layers")):
        with runner.at_work(index), torch.no_grad():
            for place, batch in enumerate(search.batches):
                mid = runner.mid(index, states[place])
                entering, routing = runner.routed(index, mid[batch.valid.to(mid.device)], mixture)
                for expert in range(mixture.count):
                    places, weight = routing.tokens_of(expert)
                    tokens[index, expert] += len(places)
                    if outputs and len(places):
                        with runner.products():
                            made = mixture.output(expert, entering[places])
                        total[index, expert] += float((made.float().norm(dim=1) * weight[:, 0].float()).sum())
                states[place] = runner.after_ffn(index, mid)
    return total, tokens


def score_error(search: ExpertSearch) -> torch.Tensor:
    """(L, E): the step at which greedy elimination removes the expert, by the effect on the output of its mixture.

    Each step removes the expert whose loss changes the mixture's output least, when its tokens go to the experts that are
    left. Only the first tokens are judged, because the outputs of all experts for all of them are held at once.
    """
    runner = search.runner
    hidden = [runner.embed(batch) for batch in search.batches]
    scores = []
    for index, mixture in enumerate(track(search.mixtures, "Eliminating experts", unit="layers")):
        mids = [runner.mid(index, one) for one in hidden]
        most = max(1, OUTPUT_ELEMENTS // (mixture.count * hidden[0].shape[-1]))
        stream = torch.cat([mid[b.valid.to(mid.device)] for mid, b in zip(mids, search.batches, strict=True)])
        # Batches are sorted by length: every n-th token is of all lengths.
        some = stream[:: -(-len(stream) // most)]
        with runner.at_work(index), torch.no_grad():
            scores.append(_eliminated(runner, index, some, mixture))
        hidden = [runner.after_ffn(index, mid) for mid in mids]
    return torch.stack(scores)


def _eliminated(runner: LayerRunner, index: int, mid_ND: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """(E,): the step at which each expert of one layer is removed; those that are never removed come last."""
    entering, _ = runner.routed(index, mid_ND, mixture)
    # Every expert's output on every token is made once; each trial below only routes anew and adds up.
    with runner.products():
        outputs_END = torch.stack([mixture.output(e, entering).float() for e in range(mixture.count)])
    tokens = torch.arange(len(entering), device=entering.device)[:, None]

    def output(kept: Sequence[int]) -> torch.Tensor:
        with runner.products():
            experts, weights = mixture.route_among(kept, entering)
        return (outputs_END[experts, tokens] * weights[..., None].float()).sum(1)

    kept = list(range(mixture.count))
    whole = output(kept)
    # Experts that stay get the last step, so that a sort by step puts them behind all that go.
    taken = torch.full((mixture.count,), float(mixture.count), dtype=torch.float64)
    active = mixture.route_among(kept, entering[:1])[0].shape[1]
    for step in range(mixture.count - active):
        # Squared error of the mixture's output without each of the experts left; the cheapest one goes next.
        errors = {e: float((output([k for k in kept if k != e]) - whole).pow(2).sum()) for e in kept}
        gone = min(kept, key=lambda e: (errors[e], e))
        taken[gone] = step
        kept.remove(gone)
    return taken


def score_random(search: ExpertSearch) -> torch.Tensor:
    """(L, E): seeded noise, the baseline that any criterion must beat."""
    generator = torch.Generator().manual_seed(search.seed)
    return torch.rand(len(search.mixtures), search.mixtures[0].count, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class ExpertNeurons:
    """The input of a criterion for the neurons of one expert."""

    mixture: Mixture
    expert: int
    features: torch.Tensor  # (N, F), times the router's weight and the root of the token's own, of its tokens alone
    seed: int = 0


def score_inner_activation(search: ExpertNeurons) -> torch.Tensor:
    """(F,): the energy that the neuron adds to the stream, as in a dense FFN. Without tokens, output columns alone decide."""
    energy = search.features.double().pow(2).sum(0)
    energy = energy if len(search.features) else torch.ones_like(energy)
    return energy * search.mixture.experts.down_proj[search.expert].double().pow(2).sum(0)  # type: ignore[no-any-return]


def score_inner_magnitude(search: ExpertNeurons) -> torch.Tensor:
    """(F,): product of the norms of the neuron's column and rows. Reads no text."""
    experts = search.mixture.experts
    gate, up = experts.gate_up_proj[search.expert].double().norm(dim=1).chunk(2)
    return gate * up * experts.down_proj[search.expert].double().norm(dim=0)  # type: ignore[no-any-return]


def score_inner_random(search: ExpertNeurons) -> torch.Tensor:
    """(F,): seeded noise, of its own for each expert of a layer."""
    generator = torch.Generator().manual_seed(search.seed * search.mixture.count + search.expert)
    return torch.rand(search.mixture.width, generator=generator, dtype=torch.float64)


def score_inner_first(search: ExpertNeurons) -> torch.Tensor:
    """(F,): the neurons with the lowest indices win."""
    return -torch.arange(search.mixture.width, dtype=torch.float64)


# The names are those of the criteria for dense FFNs, without the ones that need gradients.
EXPERT_NEURON_CRITERIA: dict[str, Callable[[ExpertNeurons], torch.Tensor]] = {
    "activation": score_inner_activation,
    "magnitude": score_inner_magnitude,
    "random": score_inner_random,
    "first": score_inner_first,
}
EXPERT_CRITERIA: dict[str, Callable[[ExpertSearch], torch.Tensor]] = {
    "reap": score_reap,
    "frequency": score_frequency,
    "error": score_error,
    "random": score_random,
}
