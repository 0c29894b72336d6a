"""Check that a plan is consistent. Each function raises ValueError, TypeError or KeyError and names the problem.

Somebody may have edited the file, and ``apply`` cuts what it says.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from flab.models.options import STORED_DTYPES
from flab.pruning.refits import REFITS

if TYPE_CHECKING:
    from flab.pruning.plan import Kept, Plan, Refit

NUMBER: tuple[type, ...] = (int, float)
SOUND = {  # types of the fields that a report repeats; ``apply`` reads the others and checks them for itself
    **dict.fromkeys(("remove", "kl_vocabulary", "kl_nats_per_token"), NUMBER),
    **dict.fromkeys(("parameters_before", "parameters_after", "body_before", "body_after"), (int,)),
    **dict.fromkeys(("criteria", "seconds"), (dict,)),
    **dict.fromkeys(("candidates", "layer_path", "warnings"), (list,)),
    "flab_version": (str,),
}
SCALINGS = ("feature", "mean")
FACTS: dict[str, dict[str, tuple[type, ...]]] = {  # what ``apply`` reads of the model and of the calibration
    "model": dict.fromkeys(("path", "sha256", "stored_dtype", "compute_dtype"), (str,)),
    "calibration": {"path": (str, type(None)), "general": NUMBER, "prompt_weight": NUMBER, "sources": (list,)}
    | dict.fromkeys(("tokens", "max_length", "batch_tokens", "seed"), (int,)),
}


def check_indices(plan: Plan, in_layers: Collection[str]) -> None:
    """Check that every list of kept indices is ascending, in range and as long as stated."""
    groups: list[tuple[str, list[Any], Kept]] = []
    for name, cut in plan.cuts.items():
        if name in in_layers:
            inside_of = zip(plan.layers.kept, cut.kept, strict=True)
            for layer, kept in inside_of:
                # The width of a mixture has one list for each expert of the layer.
                nested = cut is plan.narrower
                groups += [(f"{name} of layer {layer}", one, cut) for one in (kept if nested else [kept])]
                if nested and len(kept) != plan.inner.after:
                    raise ValueError(f"the width of layer {layer} has {len(kept)} lists for {plan.inner.after} experts")
        else:
            groups.append((name, cut.kept, cut))
    for name, kept, sizes in groups:
        inside = all(isinstance(k, int) and 0 <= k < sizes.before for k in kept)
        if (
            len(kept) != sizes.after
            or not kept
            or not inside
            or any(b <= a for a, b in zip(kept, kept[1:], strict=False))
        ):
            raise ValueError(
                f"the kept indices of the {name} are not {sizes.after} ascending numbers below {sizes.before}"
            )


def check_refit(refit: Refit, layers: int) -> None:
    """Check that the refit is known and holds one number for each kept layer."""
    if refit.kind not in REFITS:
        raise ValueError(f"unknown refit {refit.kind!r}, allowed: {', '.join(REFITS)}")
    if refit.scaling not in SCALINGS:
        raise ValueError(f"unknown scaling {refit.scaling!r}, allowed: {', '.join(SCALINGS)}")
    kinds: dict[str, Any] = {"newton_steps": int, "descended": bool}
    for name in ("ridge_ffn", "ridge_attention", "newton_steps", "reconstruction_rates", "descended"):
        chosen = getattr(refit, name)
        kind = kinds.get(name, NUMBER)
        right = all(isinstance(value, kind) and 0 <= value < math.inf for value in chosen)
        if len(chosen) not in (0, layers) or not right:
            raise ValueError(f"{name} of the refit are not {layers} numbers from 0 on")


def check_facts(plan: Plan) -> None:
    """Check that the facts about model and calibration that ``apply`` reads are there, and the types of all other fields."""
    for name, kinds in SOUND.items():
        value = getattr(plan, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{name} is of a wrong type")
    for part, wanted in FACTS.items():
        got = getattr(plan, part)
        wrong = [
            name
            for name, kinds in wanted.items()
            if not isinstance(got, dict) or not isinstance(got.get(name, ...), kinds)
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} of the {part} is missing or of a wrong type")
    if plan.model["stored_dtype"] not in STORED_DTYPES:
        raise ValueError(f"stored_dtype {plan.model['stored_dtype']!r}, allowed: {', '.join(STORED_DTYPES)}")
    for source in plan.calibration["sources"]:
        if not isinstance(source, dict) or not all(isinstance(source.get(name), str) for name in ("path", "sha256")):
            raise ValueError("a source of the calibration has no path and sha256")
