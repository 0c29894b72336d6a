"""The descent refit: all projections of one cut FFN together, by mini-batches of Adam on its own output.

It starts where the Newton refit (:mod:`flab.pruning.refit.newton`) starts, and each token costs far less: one forward and
one backward pass through one FFN. It can therefore afford the many tokens that a real model needs. At a width of 1,536 the
held-out error of the closed form falls by a third between 12,000 and 70,000 tokens, and descent removes another sixth.

    minimise  sum_t w_t ||target_t - W_out a_t||^2,   a_t = act(W_gate x_t) * (W_up x_t)

The target is the uncut FFN's output here plus the correction for earlier cuts that the closed form found. The original's
stream, which is the target of the closed form, would be wrong here: most of its difference from the pruned stream cannot be
predicted from this layer's input, and many small steps would fit that noise. (On a model of 135 M parameters the held-out
tokens rejected 15 of 30 layers with that target, and none with this one.)

There are no labels, no pass goes through more than one FFN, and held-out rows decide whether the outcome is used.

Legend: N tokens, D hidden size, F kept neurons; matrices hold their bias, if there is one, as one more column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional
from transformers import get_cosine_schedule_with_warmup

from flab.models.families import extended
from flab.pruning.refit.curvature import Theta, product_dtype

EPOCHS = 2
# Tokens in one step of Adam.
STEP_TOKENS = 1024
# Tokens in one chunk if no gradient is needed.
JUDGE_TOKENS = 4096
# Adam's learning rate, relative to the root mean square of each matrix.
RATE = 0.01
WARMUP = 0.05  # of all steps
BETAS = (0.9, 0.95)
TINY = 1e-12


class Example(NamedTuple):
    """One part of a batch: the fields of :class:`Examples` for tokens that are all held out, or all fitted."""

    inputs: torch.Tensor
    own: torch.Tensor
    wanted: torch.Tensor
    scale: torch.Tensor
    held_out: bool

    def unscaled(self, size_N1: torch.Tensor) -> Example:
        """Return the same tokens with the FFN's outputs in their own units; they were divided by a size of each token."""
        # A norm behind the projection put the problem in units of each token's size. Mini-batches run through the real FFN,
        # so the targets return to its own units. Dividing the weight by the size keeps the weighted error the same.
        size = size_N1.to(self.own.dtype)
        return self._replace(own=self.own * size, wanted=self.wanted * size, scale=self.scale / size_N1)


@dataclass(frozen=True)
class Examples:
    """All tokens of one layer: the FFN's inputs (after its norm), its wanted outputs, and the weight of each token."""

    inputs: torch.Tensor  # (N, D)
    own: torch.Tensor  # (N, D), the uncut FFN's output
    wanted: torch.Tensor  # (N, D), what the stream lacks of the original's; judges the held-out tokens
    scale: torch.Tensor  # (N, 1), root of the token's weight, float32
    held_out: torch.Tensor  # (N,), kept from the fit

    @classmethod
    def of(cls, parts: Sequence[Example]) -> Examples:
        """Join parts that were collected batch by batch."""
        inputs, own, wanted, scale, held_out = zip(*parts, strict=True)
        flags = [
            scale.new_full((len(scale),), held, dtype=torch.bool) for scale, held in zip(scale, held_out, strict=True)
        ]
        return cls(torch.cat(inputs), torch.cat(own), torch.cat(wanted), torch.cat(scale), torch.cat(flags))


@dataclass
class Descent:
    """One FFN that starts from the closed form and is fitted to a smaller error."""

    act: Callable[[torch.Tensor], torch.Tensor]
    examples: Examples
    correction: Theta

    def output(self, theta: Theta, inputs_ND: torch.Tensor) -> torch.Tensor:
        """Return what the FFN adds to the stream, (N, D)."""
        # Mixed precision as in training: products in bfloat16 where the device is fast at it, weights and loss
        # in float32.
        device = theta[0].device.type
        products = product_dtype(theta[0])
        with torch.autocast(device, products, enabled=products != theta[0].dtype):
            inputs = extended(inputs_ND, theta[0].shape[1])
            features = self.act(functional.linear(inputs, theta[0]))
            for up in theta[1:-1]:
                features = features * functional.linear(inputs, up)
            return functional.linear(extended(features, theta[-1].shape[1]), theta[-1])

    @torch.no_grad()
    def error(self, theta: Theta) -> float:
        """Return the weighted squared error of the held-out tokens."""
        total = 0.0
        held = self.examples.held_out.nonzero().squeeze(1)
        for rows in torch.split(held, JUDGE_TOKENS):
            # The judge is the difference from the original's stream, which the cut must make up for, and not the smoother
            # target of the fit.
            missing = self.examples.wanted[rows].float() - self.output(theta, self.examples.inputs[rows])
            total += float((missing * self.examples.scale[rows]).pow(2).sum().double())
        return total

    @torch.no_grad()
    def target(self) -> torch.Tensor:
        """Return the wanted output of the cut FFN, (N, D) in float32: the uncut FFN's plus the correction for earlier cuts."""
        target = self.examples.own.float()
        # ``float()`` returns the same tensor if it is float32 already, and the sum below is made in place.
        if target is self.examples.own:
            target = target.clone()
        for some, inputs in zip(
            torch.split(target, JUDGE_TOKENS), torch.split(self.examples.inputs, JUDGE_TOKENS), strict=True
        ):
            some += self.output(self.correction, inputs)
        return target

    def own_size(self, rows: torch.Tensor) -> float:
        """Return the mean squared size of the uncut FFN's weighted output over these tokens."""
        squares = [
            (self.examples.own[some].float() * self.examples.scale[some]).pow(2).sum(1)
            for some in torch.split(rows, JUDGE_TOKENS)
        ]
        return float(torch.cat(squares).mean())

    @torch.enable_grad()
    def fit(self, start: Theta) -> Theta:
        """Run Adam over the fitted tokens, in the same order every time."""
        theta = [matrix.clone().requires_grad_() for matrix in start]
        # Adam's steps have the size of the learning rate, so each matrix gets a rate in proportion to its entries.
        sizes = [float(matrix.pow(2).mean().sqrt()) for matrix in start]
        groups = [{"params": [matrix], "lr": RATE * size} for matrix, size in zip(theta, sizes, strict=True)]
        optimizer = torch.optim.Adam(groups, betas=BETAS, fused=True)
        fitted = (~self.examples.held_out).nonzero().squeeze(1)
        total = EPOCHS * math.ceil(len(fitted) / STEP_TOKENS)
        schedule = get_cosine_schedule_with_warmup(optimizer, int(total * WARMUP), total)
        # The loss is divided by the targets' own size, so that Adam's epsilon means the same in every layer.
        size = self.own_size(fitted)
        target = self.target()
        order = torch.Generator().manual_seed(0)
        for _ in range(EPOCHS):
            shuffled = fitted[torch.randperm(len(fitted), generator=order).to(fitted.device)]
            for rows in torch.split(shuffled, STEP_TOKENS):
                missing = (target[rows] - self.output(theta, self.examples.inputs[rows])) * self.examples.scale[rows]
                optimizer.zero_grad()
                (missing.pow(2).sum(1).mean() / max(size, TINY)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return [matrix.detach() for matrix in theta]


def descend(
    start: Theta,
    act: Callable[[torch.Tensor], torch.Tensor],
    examples: Examples,
    correction: Theta,
    replay: bool | None = None,
) -> tuple[Theta, bool]:
    """Fit all matrices of one FFN. Returns them and whether they changed.

    Args:
        start: the input projections and last the output projection, float32.
        correction: matrices like ``start``, whose output plus the uncut FFN's own is the target.
        replay: the decision of a plan. Without it the held-out tokens decide; if there are none, nothing changes.
    """
    if replay is False or (replay is None and not bool(examples.held_out.any())):
        return start, False
    descent = Descent(act, examples, correction)
    moved = descent.fit(start)
    # Held-out tokens compare the start and the end, and the better one is kept. On them, the refit never leaves a layer
    # worse than the closed form.
    if replay or descent.error(moved) < descent.error(start):
        return moved, True
    return start, False
