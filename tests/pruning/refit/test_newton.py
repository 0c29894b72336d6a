"""The Newton refit against autograd, and what it must do with problems whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flab.pruning.refit import newton
from flab.pruning.refit.curvature import product_dtype
from flab.pruning.refit.newton import FfnProblem, Linearised, Tokens, newton_refit

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
    linear = Linearised(problem, theta)
    for got, expected in zip(linear.down, pull_back(missing), strict=True):
        torch.testing.assert_close(got, expected)
    direction = [torch.randn_like(w) for w in theta]
    _, moved = torch.func.jvp(outputs, tuple(theta), tuple(direction))
    for got, expected in zip(linear.curvature(direction), pull_back(moved), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_output_projections_block_is_exact_and_solved(kind):
    """Its part of J^T J is the Gram matrix of the features, so the preconditioner undoes it."""
    theta, tokens = make(kind)
    linear = Linearised(FfnProblem(nn.functional.silu, tokens), theta)
    precondition = linear.blocks.damped(1e-2, theta[-1])
    moved = [torch.zeros_like(w) for w in theta[:-1]] + [torch.randn_like(theta[-1])]
    bent = linear.curvature(moved)[-1] + precondition.shifts[-1] * moved[-1]
    torch.testing.assert_close(precondition([*moved[:-1], bent])[-1], moved[-1])


def test_an_input_projections_block_is_solved_where_it_is_a_kronecker_product():
    """One weight and constant slopes: the block then is what the preconditioner takes it for."""
    theta, tokens = make("ungated")
    tokens = [Tokens(t.inputs, t.targets, torch.ones(N, 1, dtype=torch.float64)) for t in tokens]
    problem = FfnProblem(lambda x: 3 * x, tokens)
    theta[-1][:, 1:] = 0  # one neuron is seen, so that no block couples two
    linear = Linearised(problem, theta)
    precondition = linear.blocks.damped(1e-2, theta[-1])
    moved = [torch.zeros_like(w) for w in theta]
    moved[0][0] = torch.randn(D, dtype=torch.float64)
    bent = linear.curvature(moved)[0] + precondition.shifts[0] * moved[0]
    torch.testing.assert_close(precondition([bent, moved[1]])[0], moved[0])


@pytest.mark.parametrize("kind", SHAPES)
def test_a_linearisation_that_is_not_kept_gives_the_same(kind, monkeypatch):
    theta, tokens = make(kind)
    problem = FfnProblem(nn.functional.silu, tokens)
    kept = Linearised(problem, theta)
    monkeypatch.setattr(newton, "KEPT_BYTES", 0)
    remade = Linearised(problem, theta)
    assert kept._kept
    assert remade._kept is None
    for a, b in zip(kept.curvature(theta), remade.curvature(theta), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_in_either_precision_go_most_of_the_way(dtype, monkeypatch):
    """What a step is worth is measured in full; bfloat16 only leads."""
    start, tokens = make("gated", torch.float32)
    fit = FfnProblem(nn.functional.silu, tokens)
    monkeypatch.setattr(newton, "product_dtype", lambda _: dtype)
    moved, taken = newton_refit(start, fit, fit, None)
    monkeypatch.setattr(newton, "product_dtype", lambda w: w.dtype)
    exact, _ = newton_refit([w.double() for w in start], doubled(fit), doubled(fit), None)
    assert taken == newton.MAX_STEPS
    assert all(w.dtype == torch.float32 for w in moved)
    before = fit.error(start)
    assert before - fit.error(moved) > 0.9 * (before - doubled(fit).error(exact)) > 0


def doubled(problem):
    tokens = [Tokens(t.inputs.double(), t.targets.double(), t.weight.double()) for t in problem.tokens]
    return FfnProblem(problem.act, tokens)


def test_bfloat16_is_for_float32_and_for_machines_that_multiply_it(monkeypatch):
    like = torch.zeros(1)
    for name, has, expected in [
        ("avx512_bf16", True, torch.bfloat16),
        ("amx_bf16", True, torch.bfloat16),
        ("avx2", True, torch.float32),
        ("avx512_bf16", False, torch.float32),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda n=name, h=has: {n: h}, raising=False)
        assert product_dtype(like) == expected
        assert product_dtype(like.double()) == torch.float64
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert product_dtype(like) == torch.float32


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
