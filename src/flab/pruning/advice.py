"""Warnings about a plan that name what to change: too little text, ridges at an end of their grid, experts without
enough tokens, a deep cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from flab.models.shape import Shape
from flab.pruning.calibration import HELD_OUT_EVERY, CalibrationSet
from flab.pruning.recipe import Recipe
from flab.pruning.refit.gram import RIDGES
from flab.pruning.refit.new_layer import NewLayer
from flab.pruning.refits import REFITS
from flab.pruning.search import Candidate

DEEP_KL = 0.05  # nats per token: from here on answers change


def few_texts(recipe: Recipe, shape: Shape, data: CalibrationSet) -> list[str]:
    """Warn if there is too little text for least squares, or none to hold out."""
    found = []
    if (tokens := data.num_fit_tokens) < 4 * shape.fitted * shape.width // shape.passed:
        what = f"{shape.experts} experts" if shape.experts else f"a width of {shape.width}"
        found.append(
            f"{tokens} calibration tokens are few for {what}: least squares needs several times as "
            "many; raise `tokens` or give more text."
        )
    if REFITS[recipe.refit].iterative and not data.has_held_out:
        found.append(
            f"fewer than {HELD_OUT_EVERY} calibration windows can be fitted, so none is held out: `refit` {recipe.refit} "
            "does no more than `refit` residual; give more text."
        )
    return found


def ridges_at_the_end(decisions: Sequence[NewLayer]) -> list[str]:
    """Warn if held-out tokens chose the largest or the smallest ridge in some layers."""
    found = []
    for part, ridges in {
        "FFN": [d.ridge_ffn for d in decisions],
        "attention": [d.ridge_attention for d in decisions],
    }.items():
        fitted = [ridge for ridge in ridges if ridge > 0]
        if held_back := sum(ridge >= RIDGES[-1] for ridge in fitted):
            found.append(
                f"{part}: in {held_back} of {len(fitted)} layers the held-out tokens allowed hardly any correction; raise "
                "`tokens` to allow more."
            )
        if loose := sum(ridge <= RIDGES[0] for ridge in fitted):
            found.append(f"{part}: in {loose} of {len(fitted)} layers the smallest ridge was best.")
    return found


def experts_without_elimination(decisions: Sequence[NewLayer]) -> list[str]:
    """Warn if activation chose the neurons of some experts, because too few tokens pass through them for elimination."""
    if not (short := sum(one.num_short for one in decisions)):
        return []
    return [
        f"{short} of {sum(len(one.neurons) for one in decisions)} experts get fewer calibration tokens than they have neurons: "
        "activation instead of elimination chose their neurons; give more text or raise `tokens`."
    ]


def deep_cut_hint(recipe: Recipe, winner: Candidate) -> list[str]:
    """Recommend a more expensive refit if a default one leaves a large KL."""
    if recipe.refit not in ("newton", "descent") or winner.kl is None or winner.kl < DEEP_KL:
        return []
    return [
        f"KL {winner.kl:.3f} is a deep cut: `refit` reconstruction takes several times as long and keeps more here, "
        "most of all with more `tokens`."
    ]
