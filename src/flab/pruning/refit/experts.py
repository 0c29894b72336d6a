"""The refit of a mixture of experts: output projections in closed form, and the router by a few passes over the tokens.

With the routing as it is, a mixture is linear in the output projections of its experts:

    y_t = sum over the token's experts e of g_te W_e a_te,   a_te = act(W_gate,e x_t) * (W_up,e x_t)

Each W_e is fitted on the tokens that pass through its expert, to what the other experts leave of the target. The ridge
regression towards the original weights is that of a dense FFN. If experts become narrower, the neurons of each are chosen
first, on the same tokens. Experts share their tokens, so the round is repeated. Then the
router's rows are trained, and if held-out tokens accept them, the projections are fitted to the new routing. The descent
refit instead trains all weights of the experts together with the router.

Legend: N tokens, D hidden size, E experts, F neurons of one expert.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from flab.models.layers import Batch, LayerRunner
from flab.models.mixture import Mixture, Routing, mixture_of
from flab.pruning.cuts.experts import EXPERT_NEURON_CRITERIA, ExpertNeurons
from flab.pruning.cuts.neurons import choose_neurons
from flab.pruning.refit.gram import Gram
from flab.pruning.refit.new_layer import Narrowing
from flab.pruning.refit.reconstruction import STEP_TOKENS, Rows, reconstruct
from flab.pruning.refit.weights import TokenWeights
from flab.pruning.refits import Steps

ROUNDS = 2


@dataclass(frozen=True)
class MixtureTokens:
    """Tokens of one layer."""

    inputs: torch.Tensor  # (N, D), after the norm
    targets: torch.Tensor  # (N, D), what the FFN should add to the stream
    weight: torch.Tensor  # (N, 1), square root of the token's weight
    held_out: torch.Tensor  # (N,)


def mixture_tokens(
    runner: LayerRunner,
    index: int,
    batches: Sequence[Batch],
    weights: TokenWeights,
    entering: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    own: bool,
) -> MixtureTokens:
    """Return the tokens to fit the mixture of layer ``index`` to.

    Args:
        entering: the stream before the mixture, (B, T, D) for each batch.
        wanted: the stream after it, likewise.
        own: the target is the mixture's own output before it is cut, not what is missing from the wanted stream.
    """
    whole = mixture_of(runner.layers[index], runner.family)
    typical = weights.typical(wanted)
    parts = []
    for batch, before, after in zip(batches, entering, wanted, strict=False):
        for held_out, rows, weight in weights.parts(batch, after.to(before.device), typical):
            inputs, routing = runner.routed(index, before[rows], whole)
            # What the mixture has to add: its own output before the cut, or all that the pruned stream lacks here.
            target = routing.output if own else after.to(before.device)[rows] - before[rows]
            parts.append((inputs.float(), target.float(), weight, torch.full((len(inputs),), held_out)))
    return MixtureTokens(*(torch.cat(column) for column in zip(*parts, strict=True)))


def new_mixture(
    mixture: Mixture, tokens: MixtureTokens | None, steps: Steps, narrowing: Narrowing | None, place: int
) -> tuple[Mixture, Sequence[Sequence[int]] | None, float, int]:
    """Narrow and refit a mixture of the kept experts.

    Args:
        mixture: the kept experts with their original weights.
        tokens: what to choose and to fit on; None if the steps fit nothing and a plan has chosen.
        steps: the steps of the refit.
        narrowing: how many neurons each expert keeps; None keeps all.
        place: of the layer among those that are kept.

    Returns:
        The mixture, the neurons of each expert if they become fewer, the median ridge, and the number of experts with too few
        tokens for elimination.
    """
    inside: Sequence[Sequence[int]] | None = None
    short = 0
    if narrowing is not None:
        if narrowing.neurons is not None:
            inside = narrowing.neurons[place]
        else:
            assert tokens is not None
            inside, short = choose_inside(mixture, tokens, narrowing)
        mixture = mixture.narrowed(inside)
    if steps.target is None:
        return mixture, inside, 0.0, short
    assert tokens is not None
    # Only a fit to the stream moves the router. A fit to the mixture's own output solves for the projections alone.
    moved = [mixture.family.router] if steps.target == "stream" else []
    moved += [mixture.family.experts] if steps.ffn == "descent" else []
    return mixture, inside, refit_experts(mixture, tokens, moved), short


def choose_inside(mixture: Mixture, tokens: MixtureTokens, narrowing: Narrowing) -> tuple[list[list[int]], int]:
    """Choose the neurons that each expert keeps, on the tokens that pass through it. The mixture is in float32 afterwards.

    Elimination cannot tell neurons apart on fewer tokens than there are neurons: activation chooses for such an expert.

    Returns:
        The neurons of each expert, and the number of experts for which activation chose instead of elimination.
    """
    mixture.ffn.float()
    routing = mixture.route(tokens.inputs)
    missing = tokens.targets - routing.output
    kept = []
    short = 0
    for expert in range(mixture.count):
        part = _ExpertTokens.of(mixture, expert, tokens, routing, missing)
        criterion = narrowing.criterion
        if criterion == "elimination" and len(part.places) >= mixture.width:
            kept.append(part.gram(mixture.experts.down_proj[expert]).eliminate(narrowing.width))
            continue
        if criterion == "elimination":
            criterion = "activation"
            short += 1
        search = ExpertNeurons(mixture, expert, part.features * part.root, narrowing.seed)
        kept.append(choose_neurons(EXPERT_NEURON_CRITERIA[criterion](search), narrowing.width))
    return kept, short


@dataclass(frozen=True)
class _ExpertTokens:
    """The tokens that pass through one expert."""

    places: torch.Tensor  # (n,), among all tokens
    features: torch.Tensor  # (n, F), times the router's weight
    wanted: torch.Tensor  # (n, D), everything that the other experts do not contribute
    root: torch.Tensor  # (n, 1), square root of the token's weight
    held_out: torch.Tensor  # (n,)

    @classmethod
    def of(
        cls, mixture: Mixture, expert: int, tokens: MixtureTokens, routing: Routing, missing_ND: torch.Tensor
    ) -> _ExpertTokens:
        places, gate = routing.tokens_of(expert)
        features = mixture.features(expert, tokens.inputs[places]) * gate
        # The expert's own contribution is added back to the residual.
        wanted = missing_ND[places] + features @ mixture.experts.down_proj[expert].T
        return cls(places, features, wanted, tokens.weight[places], tokens.held_out[places])

    def gram(self, original_DF: torch.Tensor) -> Gram:
        """Return the least-squares problem of the output projection, and a ridge towards the original one."""
        gram = Gram(original_DF)
        for held_out in (False, True):
            rows = self.held_out == held_out
            gram.add(self.features[rows] * self.root[rows], self.wanted[rows] * self.root[rows], held_out)
        return gram


def refit_experts(mixture: Mixture, tokens: MixtureTokens, moved: Sequence[str]) -> float:
    """Fit a mixture of the kept experts with their original weights to the tokens, in place. It is in float32 afterwards.

    Args:
        moved: parts of the FFN that Adam also trains: the router, or router and experts.

    Returns:
        The median over the experts of the ridge that held-out tokens chose.
    """
    mixture.ffn.float()
    family = mixture.family
    # Adam trains experts from their original weights. After the closed form, their output projections would be fitted to
    # gates that then change.
    if family.experts in moved:
        _move(mixture, tokens, moved)
    start = mixture.experts.down_proj.detach().clone()
    ridges = _fit_outputs(mixture, tokens, start)
    # A moved router sends tokens to other experts, so their projections no longer fit and are solved once more.
    if list(moved) == [family.router] and _move(mixture, tokens, moved):
        ridges = _fit_outputs(mixture, tokens, start)
    return float(torch.tensor(ridges).median())


def _fit_outputs(mixture: Mixture, tokens: MixtureTokens, original_EDF: torch.Tensor) -> list[float]:
    """Solve for the output projections, one expert after the other; returns the ridges of the last round."""
    down = mixture.experts.down_proj
    routing = mixture.route(tokens.inputs)
    missing = tokens.targets - routing.output
    ridges: dict[int, float] = {}
    for _ in range(ROUNDS):
        for expert in range(mixture.count):
            # An expert without tokens keeps its weights.
            part = _ExpertTokens.of(mixture, expert, tokens, routing, missing)
            if not len(part.places):
                continue
            weights, ridges[expert] = part.gram(original_EDF[expert]).solve(range(mixture.width), None)
            down.data[expert] = weights
            # What this expert leaves is the target of those after it, as in block coordinate descent.
            missing[part.places] = part.wanted - part.features @ down[expert].T
    return list(ridges.values())


def _move(mixture: Mixture, tokens: MixtureTokens, names: Sequence[str]) -> bool:
    """Move these parts of the FFN towards the target by Adam, if held-out tokens agree; returns whether they moved."""
    ffn = copy.copy(mixture.ffn)  # it shares all other parts
    # A shallow copy with a separate dict of modules: setting a part of the copy leaves the mixture itself untouched
    # until held-out tokens have agreed.
    ffn._modules = dict(ffn._modules)

    def run(parts: nn.Module, inputs_BTD: torch.Tensor) -> torch.Tensor:
        for name, part in parts.named_children():
            setattr(ffn, name, part)
        output = ffn(inputs_BTD)
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]

    weight = tokens.weight[:, 0].pow(2)
    columns = (tokens.inputs, tokens.targets, weight * ~tokens.held_out, weight * tokens.held_out)
    split = [torch.split(column, STEP_TOKENS) for column in columns]
    rows = [Rows(*(part[None] for part in parts)) for parts in zip(*split, strict=True)]
    start = nn.ModuleDict({name: mixture.ffn.get_submodule(name) for name in names})
    parts, rate = reconstruct(start, run, rows, None)
    for name, part in parts.named_children():
        setattr(mixture.ffn, name, part)
    return rate > 0
