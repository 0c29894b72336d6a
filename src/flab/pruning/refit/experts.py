"""The refit of a mixture of experts: output projections in closed form, and the router by a few passes over the tokens.

With the routing as it is, a mixture is linear in the output projections of its experts:

    y_t = sum over the token's experts e of g_te W_e a_te,   a_te = act(W_gate,e x_t) * (W_up,e x_t)

Each W_e is fitted on the tokens that pass through its expert, to what the other experts leave of the target. The ridge
regression towards the original weights is that of a dense FFN. Experts share their tokens, so the round is repeated. Then the
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
from flab.models.mixture import Mixture, mixture_of
from flab.pruning.refit.gram import Gram
from flab.pruning.refit.reconstruction import STEP_TOKENS, Rows, reconstruct
from flab.pruning.refit.weights import TokenWeights

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
            # The tokens of this expert and the weight that the router gives it there. An expert without any
            # keeps its weights.
            places, gate = routing.tokens_of(expert)
            if not len(places):
                continue
            features = mixture.features(expert, tokens.inputs[places]) * gate
            # The expert's own contribution is added back to the residual, so it is fitted to everything that the other
            # experts do not contribute.
            wanted = missing[places] + features @ down[expert].T
            root = tokens.weight[places]
            gram = Gram(original_EDF[expert])
            for held_out in (False, True):
                rows = tokens.held_out[places] == held_out
                gram.add(features[rows] * root[rows], wanted[rows] * root[rows], held_out)
            weights, ridges[expert] = gram.solve(range(features.shape[1]), None)
            down.data[expert] = weights
            # What this expert leaves is the target of those after it, as in block coordinate descent.
            missing[places] = wanted - features @ down[expert].T
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
