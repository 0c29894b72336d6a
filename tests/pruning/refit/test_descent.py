"""The descent refit: it lowers the held-out error, moves only when that is so, and repeats itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flab.pruning.refit import descent
from flab.pruning.refit.descent import Examples, descend

D, F, N = 6, 16, 4096
SHAPES = {"gated": (2, 0), "ungated": (1, 0), "biased": (1, 1), "gated-biased": (2, 1)}


def ffn(theta, inputs):
    """The FFN as its definition says."""
    ones = torch.ones(len(inputs), 1)
    x = inputs if theta[0].shape[1] == D else torch.cat([inputs, ones], 1)
    a = nn.functional.silu(x @ theta[0].T) * (x @ theta[1].T if len(theta) == 3 else 1)
    return (a if theta[-1].shape[1] == a.shape[1] else torch.cat([a, ones], 1)) @ theta[-1].T


def problem(kind, held_out=True, noise=0.0):
    """An FFN of 16 neurons, of which the last four were cut, on random inputs."""
    generator = torch.Generator().manual_seed(0)
    matrices, bias = SHAPES[kind]
    whole = [torch.randn(F, D + bias, generator=generator) for _ in range(matrices)]
    whole.append(torch.randn(D, F + bias, generator=generator))
    columns = [*range(F - 4), *range(F, F + bias)]
    start = [*(w[: F - 4] for w in whole[:-1]), whole[-1][:, columns]]
    inputs = torch.randn(N, D, generator=generator)
    own = ffn(whole, inputs)
    wanted = own + noise * torch.randn(N, D, generator=generator)
    held = torch.arange(N) % 8 == 7 if held_out else torch.zeros(N, dtype=torch.bool)
    nothing = [*start[:-1], torch.zeros_like(start[-1])]
    return start, Examples(inputs, own, wanted, torch.ones(N, 1), held), nothing


def error(theta, examples):
    return float((examples.wanted - ffn(theta, examples.inputs))[examples.held_out].pow(2).sum())


@pytest.mark.parametrize("kind", SHAPES)
def test_the_held_out_error_falls_and_the_same_is_found_again(kind, monkeypatch):
    monkeypatch.setattr(descent, "STEP_TOKENS", 64)
    start, examples, nothing = problem(kind)
    moved, taken = descend(start, nn.functional.silu, examples, nothing)
    assert taken
    assert [m.shape for m in moved] == [s.shape for s in start]
    assert error(moved, examples) < 0.9 * error(start, examples)
    again, _ = descend(start, nn.functional.silu, examples, nothing, replay=True)
    assert all(torch.equal(a, b) for a, b in zip(moved, again, strict=True))


def test_nothing_moves_where_held_out_tokens_get_worse_or_are_missing(monkeypatch):
    monkeypatch.setattr(descent, "STEP_TOKENS", 64)
    monkeypatch.setattr(descent, "RATE", 10.0)  # steps far too long
    start, examples, nothing = problem("gated")
    assert descend(start, nn.functional.silu, examples, nothing) == (start, False)
    monkeypatch.undo()
    start, examples, nothing = problem("gated", held_out=False)
    assert descend(start, nn.functional.silu, examples, nothing) == (start, False)
    assert descend(start, nn.functional.silu, examples, nothing, replay=False) == (start, False)


def test_the_correction_of_the_closed_form_stays_in_the_target(monkeypatch):
    """Where the start already is its own target, nothing is left to learn but the correction, which the start holds too."""
    monkeypatch.setattr(descent, "STEP_TOKENS", 64)
    start, examples, _ = problem("gated")
    correction = [*start[:-1], torch.ones_like(start[-1])]
    own = ffn(start, examples.inputs)
    shifted = own + ffn(correction, examples.inputs)
    examples = Examples(examples.inputs, own, shifted, examples.scale, examples.held_out)
    begin = [*start[:-1], start[-1] + 1]
    moved = descent.Descent(nn.functional.silu, examples, correction).fit(begin)
    size = float(shifted[examples.held_out].pow(2).sum())
    assert error(moved, examples) < 1e-4 * size


def test_no_matrix_keeps_a_gradient():
    start, examples, nothing = problem("gated")
    moved, _ = descend(start, nn.functional.silu, examples, nothing)
    assert not any(m.requires_grad for m in (*moved, *start))
