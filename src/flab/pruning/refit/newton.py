"""The Newton refit: all projections of one cut FFN together, by damped Gauss-Newton steps on its own output.

The residual refit (:mod:`flab.pruning.refit.walk`) solves for the output projection alone and leaves the kept neurons as
they were. This continues from there and changes the neurons too, towards the same target:

    minimise  sum_t w_t ||target_t - W_out a_t||^2 + shift ||theta - theta_0||^2,   a_t = act(W_gate x_t) * (W_up x_t)

over theta = (W_gate, W_up, W_out). Each step linearises a_t and solves the normal equations by preconditioned conjugate
gradients, matrix-free (Nocedal & Wright, Numerical Optimization, 2006, 7.1 and 10.3). Held-out rows decide when to stop.
There are no labels, no backward pass through the model and no learning rate. One layer is refitted at a time.

Legend: N tokens, D hidden size, F kept neurons; matrices hold their bias, if there is one, as one more column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from flab.models.families import extended
from flab.models.memory import trim
from flab.pruning.refit.curvature import KroneckerBlocks, Theta, product_dtype

# A second step costs as much as the first and lowers the KL at most budgets (docs/log.md, one step against two).
MAX_STEPS = 2
CG_ITERATIONS = 10
# A token costs about a hundred times as much as in the residual refit, so only this many are fitted on.
MOST_TOKENS = 32_768
# Relative to the mean of the curvature's diagonal, for each matrix.
DAMPING = 1e-2
SHORTEST_STEP = 1 / 16
# The largest size at which the inputs, features and slopes of one linearisation are kept.
KEPT_BYTES = 2**27


@dataclass(frozen=True)
class Tokens:
    """One micro-batch of one layer: the FFN's inputs (after its norm), its wanted outputs, and the tokens' weights."""

    inputs: torch.Tensor  # (N, D)
    targets: torch.Tensor  # (N, D)
    weight: torch.Tensor  # (N, 1), square root of the token's weight


@dataclass(frozen=True)
class Slopes:
    """One micro-batch of one linearisation, in the precision of its products."""

    inputs: torch.Tensor  # (N, D) or (N, D + 1)
    weight: torch.Tensor  # (N, 1), the token's weight
    features: torch.Tensor  # (N, F) or (N, F + 1), the neurons' activations
    slopes: list[torch.Tensor]  # of the activations by each input projection's output, (N, F) each


@dataclass
class FfnProblem:
    """The least-squares problem of one FFN over some micro-batches, in float32."""

    act: Callable[[torch.Tensor], torch.Tensor]
    tokens: Sequence[Tokens]

    def slopes(self, theta: Theta, tokens: Tokens) -> Slopes:
        """Return the neurons' activations and their slopes by each input projection's output."""
        # With z = W_gate x and u = W_up x the features are a = act(z) u, so da/dz = act'(z) u and da/du = act(z). Without
        # an up projection a = act(z). The derivative act' is one forward-mode product with ones.
        inputs = extended(tokens.inputs, theta[0].shape[1])
        before = [inputs @ w.T for w in theta[:-1]]
        value, slope = torch.func.jvp(self.act, (before[0],), (torch.ones_like(before[0]),))  # type: ignore[misc]
        slopes = [slope * before[1], value] if len(before) == 2 else [slope]
        features = value * before[1] if len(before) == 2 else value
        return Slopes(inputs, tokens.weight.pow(2), extended(features, theta[-1].shape[1]), slopes)

    def error(self, theta: Theta) -> float:
        """Return sum_t w_t ||target_t - W_out a_t||^2."""
        total = 0.0
        for tokens in self.tokens:
            inputs = extended(tokens.inputs, theta[0].shape[1])
            # This is the forward pass of ``slopes`` without the derivative: backtracking needs the error many times.
            features = self.act(inputs @ theta[0].T)
            for w in theta[1:-1]:
                features = features * (inputs @ w.T)
            missing = tokens.targets - extended(features, theta[-1].shape[1]) @ theta[-1].T
            total += float((tokens.weight * missing).pow(2).sum().double())
        return total


class Linearised:
    """A problem linearised at ``theta``: its error and J^T (target - output) in full precision, and products with J^T J.

    The products only guide the conjugate gradients, so they are in bfloat16 if the machine multiplies it natively; the error
    after a step is measured in full precision. N x F tensors are kept if they are small, and else computed for each product.
    """

    def __init__(self, problem: FfnProblem, theta: Theta) -> None:
        self.problem = problem
        self.theta = theta
        self.dtype = product_dtype(theta[-1])
        self.error = 0.0
        self.down = [torch.zeros_like(w) for w in theta]
        self.blocks = KroneckerBlocks.zeros(theta)
        # For each token: the features, one slope for each input projection (F values each), and the inputs.
        columns = theta[0].shape[0] * len(theta) + theta[0].shape[1]
        elements = sum(len(t.inputs) for t in problem.tokens) * columns
        self._kept: list[Slopes] | None = [] if elements * self.dtype.itemsize <= KEPT_BYTES else None
        # One pass over the tokens gathers everything that a step needs: the error, its negative gradient, and the
        # preconditioner.
        for tokens in problem.tokens:
            part = problem.slopes(theta, tokens)
            missing = tokens.targets - part.features @ theta[-1].T
            self.error += float((tokens.weight * missing).pow(2).sum().double())
            _add(self.down, _pull_back(part, theta[-1], part.weight * missing))
            self.blocks.add(part.inputs, part.weight, part.features, part.slopes)
            if self._kept is not None:
                self._kept.append(self._rounded(part))

    def _rounded(self, part: Slopes) -> Slopes:
        inputs, features, *slopes = (x.to(self.dtype) for x in (part.inputs, part.features, *part.slopes))
        return Slopes(inputs, part.weight.to(self.dtype), features, slopes)

    def _parts(self) -> Iterable[Slopes]:
        if self._kept is not None:
            yield from self._kept
            return
        for tokens in self.problem.tokens:
            yield self._rounded(self.problem.slopes(self.theta, tokens))

    def curvature(self, direction: Theta) -> Theta:
        """Return J^T J times the direction."""
        product = [torch.zeros_like(w) for w in self.theta]
        out = self.theta[-1].to(self.dtype)
        rounded = [v.to(self.dtype) for v in direction]
        # J d of one token: the features change by sum_i slope_i (V_i x), the output by W_out times that plus V_out a.
        # J^T then maps this change of the output back to the matrices.
        for part in self._parts():
            moved = torch.zeros_like(part.slopes[0])
            for slope, v in zip(part.slopes, rounded[:-1], strict=True):
                moved.addcmul_(slope, part.inputs @ v.T)
            change = moved @ out[:, : moved.shape[1]].T + part.features @ rounded[-1].T
            _add(product, _pull_back(part, out, part.weight * change))
        return product


def _pull_back(part: Slopes, out: torch.Tensor, error: torch.Tensor) -> Theta:
    """Return J^T times the error, for every matrix."""
    # The error at the output enters each feature by its column of W_out, and each input projection by its slope.
    back = error @ out[:, : part.slopes[0].shape[1]]
    return [*((slope * back).T @ part.inputs for slope in part.slopes), error.T @ part.features]


@torch.no_grad()
def newton_refit(start: Theta, fit: FfnProblem, held_out: FfnProblem, steps: int | None) -> tuple[Theta, int]:
    """Fit all matrices of one FFN. Returns them and how many steps were taken.

    With ``steps`` (the replay of a plan) exactly as many are taken. Otherwise there are up to :data:`MAX_STEPS`, as long as
    the error on the held-out tokens falls.
    """
    if steps is None and not held_out.tokens:
        return start, 0  # without held-out tokens it is unknown whether a step helps
    # A replay repeats the decision of the plan without judging it again.
    theta = start
    taken = 0
    path = _path(start, fit)
    if steps is not None:
        for moved in islice(path, steps):
            theta = moved
            taken += 1
        return theta, taken
    # The error on the fitted tokens falls at every step by construction. Only held-out tokens can tell whether a step
    # generalises.
    best = held_out.error(start)
    for moved in islice(path, MAX_STEPS):
        error = held_out.error(moved)
        if not error < best:
            break
        theta = moved
        taken += 1
        best = error
    return theta, taken


def _path(start: Theta, problem: FfnProblem) -> Iterator[Theta]:
    """Yield the iterates of the damped Gauss-Newton method, as long as the error on the fitted tokens falls."""
    theta = start
    # Backtracking: the step is halved until the error itself falls, not only its linearisation.
    while True:
        step, error = _solve(problem, theta, start)
        length = 1.0
        while length >= SHORTEST_STEP:
            moved = [w + length * s for w, s in zip(theta, step, strict=True)]
            if problem.error(moved) < error:
                break
            length /= 2
        else:
            return
        theta = moved
        yield theta


def _solve(problem: FfnProblem, theta: Theta, start: Theta) -> tuple[Theta, float]:
    """Return one damped Gauss-Newton step by preconditioned conjugate gradients from zero, and the error before it."""
    linear = Linearised(problem, theta)
    trim()
    # Solve (J^T J + D) step = J^T (target - output) - D (theta - theta_0), with D the damping, one number for each matrix.
    # It pulls towards the start, so several steps together cannot drift away from the original neurons.
    precondition = linear.blocks.damped(DAMPING, theta[-1])
    shifts = precondition.shifts
    rest = linear.down
    _add(rest, (-shift * (w - w0) for shift, w, w0 in zip(shifts, theta, start, strict=True)))
    # Preconditioned conjugate gradients from zero: ``rest`` is the residual r, the first direction is M r with the
    # preconditioner M, and ``size`` is r^T M r.
    step = [torch.zeros_like(w) for w in theta]
    direction = precondition(rest)
    size = _dot(rest, direction)
    for _ in range(CG_ITERATIONS):
        if size <= 0:
            break
        # The exact minimiser along the direction.
        bent = linear.curvature(direction)
        _add(bent, (shift * d for shift, d in zip(shifts, direction, strict=True)))
        length = size / _dot(direction, bent)
        _add(step, (length * d for d in direction))
        _add(rest, (-length * b for b in bent))
        # These are as large as the FFN's matrices, so they are freed before the preconditioner makes another set.
        del bent
        scaled = precondition(rest)
        # The next direction is conjugate to all before it (Fletcher-Reeves).
        before = size
        size = _dot(rest, scaled)
        _add(scaled, (size / before * d for d in direction))
        direction = scaled
        trim()
    return step, linear.error


def _dot(a: Theta, b: Theta) -> float:
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)))


def _add(totals: Theta, parts: Iterable[torch.Tensor]) -> None:
    for total, part in zip(totals, parts, strict=True):
        total += part
