"""Reconstruction: all weights of one kept layer together, its attention and norms too, towards the original's stream.

The Newton refit moves the FFN alone. This continues from there with the whole layer f, on all calibration tokens:

    minimise  sum_t w_t ||s_t - f(h)_t||^2

h is the input of the layer in the pruned model, and s the *original's* residual stream where it enters the next kept layer.
This is the layer-wise reconstruction of post-training compression (Li et al., BRECQ, 2021), by Adam with a cosine schedule.
There are no labels, no pass goes through more than one layer, and held-out rows decide whether the outcome is used.

Legend: B rows, T positions, D hidden size.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import get_cosine_schedule_with_warmup

from flab.pruning.refit.curvature import product_dtype

EPOCHS = 10
STEP_TOKENS = 1024  # one step of Adam sees about so many
# Adam's learning rates, relative to the root mean square of each tensor. They are tried in this order until one helps.
RATES = (0.02, 0.0025)
# A layer on hidden states (B, T, D), with its mask and positions.
Run = Callable[[nn.Module, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """One micro-batch of one layer: its inputs, its wanted outputs, and the weight of each token (B, T)."""

    inputs: torch.Tensor  # (B, T, D)
    targets: torch.Tensor  # (B, T, D)
    fitted: torch.Tensor  # 0 where nothing is fitted
    held_out: torch.Tensor  # 0 where nothing is judged

    def split(self, tokens: int) -> Iterator[Rows]:
        """Return the same rows in micro-batches of about ``tokens`` tokens, including padding."""
        parts = (
            torch.split(x, max(1, tokens // x.shape[1]))
            for x in (self.inputs, self.targets, self.fitted, self.held_out)
        )
        return (Rows(*part) for part in zip(*parts, strict=True))


def reconstruct(start: nn.Module, run: Run, rows: Sequence[Rows], rate: float | None) -> tuple[nn.Module, float]:
    """Fit a copy of the layer. Returns it and its learning rate, or ``start`` and 0 if held-out rows reject it.

    With ``rate`` (the replay of a plan) that rate is used without judging the outcome.
    """
    if rate is not None:
        return _fitted(start, run, rows, rate), rate
    if not any(bool(one.held_out.any()) for one in rows):
        return start, 0.0  # without held-out rows it is unknown whether a step helps
    # The larger rate comes first. If it diverges, held-out rows reject it, and the smaller one begins again from the start.
    before = _error(start, run, rows)
    for tried in RATES:
        moved = _fitted(start, run, rows, tried)
        if _error(moved, run, rows) < before:
            return moved, tried
        del moved
    return start, 0.0


@torch.no_grad()
def _error(layer: nn.Module, run: Run, rows: Sequence[Rows]) -> float:
    """Return sum_t w_t ||s_t - f(h)_t||^2 over the held-out tokens."""
    held = [one for one in rows if bool(one.held_out.any())]
    return sum(float(_squared(run(layer, one.inputs), one.targets, one.held_out).double()) for one in held)


def _squared(output: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # Tokens without weight are padding or belong to the other part; their rows are left out rather than multiplied by 0.
    chosen = weight > 0
    return (weight[chosen] * (targets[chosen].float() - output[chosen].float()).pow(2).sum(-1)).sum()


def _repeatable(device: str) -> contextlib.AbstractContextManager[Any]:
    """Use attention whose backward pass adds in a fixed order, which CUDA's fused kernels do not."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cuda" else contextlib.nullcontext()


@torch.enable_grad()
def _fitted(start: nn.Module, run: Run, rows: Sequence[Rows], rate: float) -> nn.Module:
    """Run Adam over the fitted tokens, in the same order of micro-batches every time."""
    layer = copy.deepcopy(start)
    # Every step has about the same number of tokens, regardless of the size of the calibration's batches, so one rate fits
    # all models.
    rows = [part for one in rows for part in one.split(STEP_TOKENS) if bool(part.fitted.any())]
    parameters = [p.requires_grad_() for p in layer.parameters()]
    # Adam moves every entry by about the rate, so each tensor gets a rate in proportion to the size of its entries; the
    # floor is for biases that are still zero.
    steps = [rate * max(float(p.detach().float().pow(2).mean().sqrt()), 1e-3) for p in parameters]
    groups = [{"params": [p], "lr": step} for p, step in zip(parameters, steps, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    total = EPOCHS * len(rows)
    schedule = get_cosine_schedule_with_warmup(optimizer, total // 20, total)
    # The loss is divided by the mean loss of the start, so that Adam's epsilon means the same in every layer.
    with torch.no_grad():
        scale = sum(float(_squared(run(layer, one.inputs), one.targets, one.fitted)) for one in rows) / len(rows)
    order = torch.Generator().manual_seed(0)
    device = parameters[0].device.type
    products = product_dtype(parameters[0])
    for _ in range(EPOCHS):
        for n in torch.randperm(len(rows), generator=order).tolist():
            one = rows[n]
            # Products are in bfloat16 if the device is fast at it; the loss and the weights stay in float32.
            with torch.autocast(device, products, enabled=products != parameters[0].dtype), _repeatable(device):
                output = run(layer, one.inputs)
            optimizer.zero_grad()
            (_squared(output, one.targets, one.fitted) / max(scale, torch.finfo(torch.float32).tiny)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    # The layer is used without gradients from here on.
    optimizer.zero_grad()
    for p in parameters:
        p.requires_grad_(False)
    return layer
