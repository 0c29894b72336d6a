"""The Newton refit against autograd, and what it must do with problems whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flab.cuts import newton
from flab.cuts.newton import FfnProblem, Tokens, newton_refit

SHAPES = {"gated": (2, 0), "ungated": (1, 0), "biased": (1, 1), "gated-biased": (2, 1)}
D, F, N = 5, 7, 60


def make(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Random matrices of one FFN, and three micro-batches of tokens with random weights."""
    generator = torch.Generator().manual_seed(seed)
    matrices, bias = SHAPES[kind]
    sizes = [(F, D + bias)] * matrices + [(D, F + bias)]
    theta = [torch.randn(*size, generator=generator, dtype=dtype) / 2 for size in sizes]
    tokens = [
        Tokens(*(torch.randn(N, D, generator=generator, dtype=dtype) for _ in range(2)), weight)
        for weight in torch.rand(3, N, 1, generator=generator, dtype=dtype)
    ]
    return theta, tokens


def output(theta, inputs, act):
    """The FFN written out a second time, as its definition says."""
    ones = torch.ones(len(inputs), 1, dtype=inputs.dtype)
    x = inputs if theta[0].shape[1] == D else torch.cat([inputs, ones], 1)
    a = act(x @ theta[0].T) * (x @ theta[1].T if len(theta) == 3 else 1)
    return (a if theta[-1].shape[1] == F else torch.cat([a, ones], 1)) @ theta[-1].T


@pytest.mark.parametrize("act", [nn.functional.silu, nn.functional.gelu], ids=["silu", "gelu"])
@pytest.mark.parametrize("kind", SHAPES)
def test_descent_and_curvature_are_autograds(kind, act):
    theta, tokens = make(kind)
    problem = FfnProblem(act, tokens)

    def outputs(*matrices):
        return torch.cat([t.weight * output(matrices, t.inputs, act) for t in tokens])

    wanted = torch.cat([t.weight * t.targets for t in tokens])
    missing = wanted - outputs(*theta)
    assert problem.error(theta) == pytest.approx(float(missing.pow(2).sum()))
    _, pull_back = torch.func.vjp(outputs, *theta)
    linear = problem.linearise(theta)
    down, diagonal = problem.descent(theta, linear)
    for got, expected in zip(down, pull_back(missing), strict=True):
        torch.testing.assert_close(got, expected)
    direction = [torch.randn_like(w) for w in theta]
    _, moved = torch.func.jvp(outputs, tuple(theta), tuple(direction))
    for got, expected in zip(problem.curvature(theta, linear, direction), pull_back(moved), strict=True):
        torch.testing.assert_close(got, expected)
    assert all(bool((d > 0).all()) for d in diagonal)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_linearisation_that_is_not_kept_gives_the_same(kind, monkeypatch):
    theta, tokens = make(kind)
    problem = FfnProblem(nn.functional.silu, tokens)
    kept = problem.linearise(theta)
    monkeypatch.setattr(newton, "KEPT_ELEMENTS", 0)
    remade = problem.linearise(theta)
    assert isinstance(kept, list)
    assert not isinstance(remade, list)
    for a, b in zip(problem.curvature(theta, kept, theta), problem.curvature(theta, remade, theta), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", SHAPES)
def test_it_finds_its_way_back_to_weights_that_were_disturbed(kind):
    """The targets are what other weights put out, near the start: most of the error goes."""
    truth, tokens = make(kind, torch.float32)
    tokens = [Tokens(t.inputs, output(truth, t.inputs, nn.functional.silu), torch.ones(N, 1)) for t in tokens]
    start = [w + 0.05 * torch.randn_like(w) for w in truth]
    fit, held = FfnProblem(nn.functional.silu, tokens[:2]), FfnProblem(nn.functional.silu, tokens[2:])
    moved, taken = newton_refit(start, fit, held, None)
    assert taken == newton.MAX_STEPS
    assert fit.error(moved) < 0.1 * fit.error(start)
    assert held.error(moved) < 0.2 * held.error(start)


def test_a_replay_takes_the_same_steps_to_the_same_bits():
    start, tokens = make("gated", torch.float32)
    fit, held = FfnProblem(nn.functional.silu, tokens[:2]), FfnProblem(nn.functional.silu, tokens[2:])
    moved, taken = newton_refit(start, fit, held, None)
    again, replayed = newton_refit(start, fit, FfnProblem(nn.functional.silu, []), taken)
    assert replayed == taken
    assert all(torch.equal(a, b) for a, b in zip(moved, again, strict=True))


def test_held_out_tokens_end_it():
    """Held-out targets that are the start's own output can only get worse: no step is taken."""
    start, tokens = make("gated", torch.float32)
    held = [Tokens(t.inputs, output(start, t.inputs, nn.functional.silu), t.weight) for t in tokens]
    moved, taken = newton_refit(
        start, FfnProblem(nn.functional.silu, tokens), FfnProblem(nn.functional.silu, held), None
    )
    assert taken == 0
    assert all(torch.equal(a, b) for a, b in zip(moved, start, strict=True))


def test_nothing_to_gain_leaves_the_weights_alone():
    start, tokens = make("gated", torch.float32)
    tokens = [Tokens(t.inputs, output(start, t.inputs, nn.functional.silu), t.weight) for t in tokens]
    problem = FfnProblem(nn.functional.silu, tokens)
    moved, _ = newton_refit(start, problem, problem, None)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(moved, start, strict=True))
