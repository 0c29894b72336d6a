"""The Newton refit: all projections of one cut FFN together, by damped Gauss-Newton steps on its own output.

The residual refit (:mod:`flab.cuts.refit`) solves for the output projection alone, with the kept neurons as they were. From
there, this moves the neurons too, towards the same target:

    minimise  sum_t w_t ||target_t - W_out a_t||^2 + shift ||theta - theta_0||^2,   a_t = act(W_gate x_t) * (W_up x_t)

over theta = (W_gate, W_up, W_out). Each step linearises a_t and solves the normal equations by conjugate gradients with a
diagonal preconditioner, matrix-free (Nocedal & Wright, Numerical Optimization, 2006, 7.1 and 10.3). Held-out rows end it. There
are no labels, no backward pass through the model and no learning rate; one layer at a time, shapes stay standard.

Legend: N tokens, D hidden size, F kept neurons; matrices hold their bias, where there is one, as one more column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from flab.families import extended

MAX_STEPS = 2
CG_ITERATIONS = 12
DAMPING = 1e-3  # relative to the mean of the curvature's diagonal, for each matrix
SHORTEST_STEP = 1 / 16
KEPT_ELEMENTS = 2**27  # of the features and slopes of one linearisation: 512 MiB

Theta = list[torch.Tensor]  # the input projections (F, D or D + 1), last the output projection (D, F or F + 1)


@dataclass(frozen=True)
class Tokens:
    """One micro-batch of one layer: what enters the FFN (after its norm), what should leave it, and the weight."""

    inputs: torch.Tensor  # (N, D)
    targets: torch.Tensor  # (N, D)
    weight: torch.Tensor  # (N, 1), square root of the token's weight


Linear = tuple[Tokens, torch.Tensor, Theta]  # a micro-batch, its features (N, F or F + 1) and slopes (N, F)


class FfnProblem:
    """The least-squares problem of one FFN over some micro-batches, in float32.

    What is N x F large is made anew for every micro-batch, or kept for one linearisation where it is small.
    """

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor], tokens: Sequence[Tokens]) -> None:
        self.act, self.tokens = act, tokens

    def linearise(self, theta: Theta) -> Iterable[Linear]:
        """The micro-batches with features and slopes at ``theta``, to be gone through many times."""
        elements = sum(len(t.inputs) for t in self.tokens) * theta[0].shape[0] * len(theta)
        remade = _Remade(self, theta)
        return list(remade) if elements <= KEPT_ELEMENTS else remade

    def features(self, theta: Theta, tokens: Tokens) -> tuple[torch.Tensor, Theta]:
        """The neurons' activations (N, F or F + 1), and their slopes by each input projection's output (N, F)."""
        before = [extended(tokens.inputs, w.shape[1]) @ w.T for w in theta[:-1]]
        value, slope = torch.func.jvp(self.act, (before[0],), (torch.ones_like(before[0]),))  # type: ignore[misc]
        slopes = [slope * before[1], value] if len(before) == 2 else [slope]
        features = value * before[1] if len(before) == 2 else value
        return extended(features, theta[-1].shape[1]), slopes

    def _pull_back(
        self, theta: Theta, tokens: Tokens, features: torch.Tensor, slopes: Theta, error: torch.Tensor
    ) -> Theta:
        """J^T error for every matrix."""
        error = tokens.weight * error
        back = error @ theta[-1][:, : slopes[0].shape[1]]
        inputs = [(s * back).T @ extended(tokens.inputs, w.shape[1]) for s, w in zip(slopes, theta[:-1], strict=True)]
        return [*inputs, error.T @ features]

    def error(self, theta: Theta) -> float:
        """sum_t w_t ||target_t - W_out a_t||^2."""
        total = 0.0
        for tokens in self.tokens:
            missing = tokens.targets - self.features(theta, tokens)[0] @ theta[-1].T
            total += float((tokens.weight * missing).pow(2).sum().double())
        return total

    def descent(self, theta: Theta, linear: Iterable[Linear]) -> tuple[Theta, Theta]:
        """J^T (target - output), and the diagonal of J^T J (columns of the input projections taken as of mean size)."""
        down, diagonal = [torch.zeros_like(w) for w in theta], [torch.zeros_like(w) for w in theta]
        norms = theta[-1].pow(2).sum(0)
        for tokens, features, slopes in linear:
            missing = tokens.weight * (tokens.targets - features @ theta[-1].T)
            _add(down, self._pull_back(theta, tokens, features, slopes, missing))
            size = (tokens.weight.pow(2) * tokens.inputs.pow(2)).mean(1, keepdim=True)
            for total, slope in zip(diagonal[:-1], slopes, strict=True):
                total += ((slope.pow(2) * size).sum(0) * norms[: slope.shape[1]])[:, None]
            diagonal[-1] += (tokens.weight * features).pow(2).sum(0)
        return down, diagonal

    def curvature(self, theta: Theta, linear: Iterable[Linear], direction: Theta) -> Theta:
        """J^T J direction."""
        product = [torch.zeros_like(w) for w in theta]
        for tokens, features, slopes in linear:
            moved = torch.zeros_like(slopes[0])
            for slope, v in zip(slopes, direction[:-1], strict=True):
                moved.addcmul_(slope, extended(tokens.inputs, v.shape[1]) @ v.T)
            change = moved @ theta[-1][:, : slopes[0].shape[1]].T + features @ direction[-1].T
            _add(product, self._pull_back(theta, tokens, features, slopes, tokens.weight * change))
        return product


@dataclass(frozen=True)
class _Remade:
    """A linearisation that keeps nothing: each pass computes it anew."""

    problem: FfnProblem
    theta: Theta

    def __iter__(self) -> Iterator[Linear]:
        for tokens in self.problem.tokens:
            yield (tokens, *self.problem.features(self.theta, tokens))


@torch.no_grad()
def newton_refit(start: Theta, fit: FfnProblem, held_out: FfnProblem, steps: int | None) -> tuple[Theta, int]:
    """Move all matrices of one FFN; returns them and how many steps were taken.

    Without ``steps``, up to :data:`MAX_STEPS`, as long as the error on the held-out tokens falls; with it (a plan's
    replay) exactly so many.
    """
    theta, taken, best, path = start, 0, held_out.error(start), _path(start, fit)
    for _ in range(MAX_STEPS if steps is None else steps):
        moved = next(path, None)
        if moved is None or (steps is None and not (error := held_out.error(moved)) < best):
            break
        theta, taken = moved, taken + 1
        best = error if steps is None else best
    return theta, taken


def _path(start: Theta, problem: FfnProblem) -> Iterator[Theta]:
    """The iterates of the damped Gauss-Newton method, each with a smaller error on the fitted tokens; ends when none is."""
    theta, error = start, problem.error(start)
    while True:
        step = _solve(problem, theta, start)
        length = 1.0
        while length >= SHORTEST_STEP:
            moved = [w + length * s for w, s in zip(theta, step, strict=True)]
            if (smaller := problem.error(moved)) < error:
                break
            length /= 2
        else:
            return
        theta, error = moved, smaller
        yield theta


def _solve(problem: FfnProblem, theta: Theta, start: Theta) -> Theta:
    """One damped Gauss-Newton step by preconditioned conjugate gradients from zero."""
    linear = problem.linearise(theta)
    down, diagonal = problem.descent(theta, linear)
    shifts = [DAMPING * d.mean() + torch.finfo(torch.float32).tiny for d in diagonal]
    scale = [d + shift for d, shift in zip(diagonal, shifts, strict=True)]
    rest = [g - shift * (w - w0) for g, shift, w, w0 in zip(down, shifts, theta, start, strict=True)]
    step, direction = [torch.zeros_like(w) for w in theta], [r / m for r, m in zip(rest, scale, strict=True)]
    size = _dot(rest, direction)
    for _ in range(CG_ITERATIONS):
        if size <= 0:
            break
        bent = problem.curvature(theta, linear, direction)
        _add(bent, [shift * d for shift, d in zip(shifts, direction, strict=True)])
        length = size / _dot(direction, bent)
        _add(step, [length * d for d in direction])
        _add(rest, [-length * b for b in bent])
        scaled = [r / m for r, m in zip(rest, scale, strict=True)]
        size, before = _dot(rest, scaled), size
        direction = [s + size / before * d for s, d in zip(scaled, direction, strict=True)]
    return step


def _dot(a: Theta, b: Theta) -> float:
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)))


def _add(totals: Theta, parts: Sequence[torch.Tensor]) -> None:
    for total, part in zip(totals, parts, strict=True):
        total += part
