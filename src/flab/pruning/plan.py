"""The decisions as one value that is written as JSON: what stays, how it was judged, from which model and which data.

``apply`` reads only a plan and the data that the plan names. This module makes no choices and does not import torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flab.errors import PlanError
from flab.files import PathLike, as_path, read_regular, write_text
from flab.models.options import STORED_DTYPES
from flab.models.shape import Shape
from flab.models.source import ModelFolder
from flab.pruning.refits import REFITS

FORMAT = 2
OLD_FORMAT = 1  # of flab 0.1: each cut is a field of its own


@dataclass(frozen=True)
class CutKind:
    """One kind of cut: the name of its units, and whether each kept layer has a separate list of them."""

    units: str
    in_layers: bool = False


CUTS = {
    "vocabulary": CutKind("tokens"),
    "layers": CutKind("layers"),
    "width": CutKind("neurons", in_layers=True),
    "experts": CutKind("experts", in_layers=True),
}
DENSE = ("vocabulary", "layers", "width")  # the cuts of a dense model
MIXTURE = ("vocabulary", "layers", "experts", "width")  # the last only if the experts become narrower
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


@dataclass(frozen=True)
class Kept:
    """One cut: its sizes before and after, and the indices that stay (original numbering, ascending).

    For a cut inside the layers, ``kept`` holds one list for each kept layer; for the width of experts that is a list for each
    kept expert.
    """

    before: int
    after: int
    kept: list[Any]

    def sizes(self) -> dict[str, int]:
        """``{before, after}``."""
        return {"before": self.before, "after": self.after}


@dataclass(frozen=True)
class Refit:
    """How the remaining weights are corrected: the kind, and the ridge chosen for every layer.

    The lists hold one value per kept layer: ``ridge_ffn`` and ``ridge_attention`` the ridges, ``newton_steps`` the number of
    Gauss-Newton steps, ``reconstruction_rates`` the rate of the reconstruction (0 for none), and ``descended`` whether the
    descent refit changed the layer. With ``scaling`` "feature" a ridge is relative to each feature's own size and a token's
    error to its stream. "mean" is the scaling of flab 0.1, and of plans without this field.
    """

    kind: str = "newton"
    output_projection: bool = True
    ridge_ffn: list[float] = field(default_factory=list)
    ridge_attention: list[float] = field(default_factory=list)
    newton_steps: list[int] = field(default_factory=list)
    reconstruction_rates: list[float] = field(default_factory=list)
    descended: list[bool] = field(default_factory=list)
    scaling: str = "mean"


@dataclass(frozen=True)
class Plan:
    """Everything that ``apply`` needs, and how it came about."""

    remove: float
    model: dict[str, Any]  # path, sha256, model_type, dtype
    calibration: dict[str, Any]  # sources with path and sha256, tokens, max_length, seed, ...
    cuts: dict[str, Kept]  # by the names of CUTS
    refit: Refit
    parameters_before: int
    parameters_after: int
    body_before: int
    body_after: int
    kl_vocabulary: float
    kl_nats_per_token: float
    criteria: dict[str, str]
    candidates: list[dict[str, Any]]
    layer_path: list[dict[str, Any]]
    warnings: list[str]
    seconds: dict[str, float]
    flab_version: str
    format: int = FORMAT

    @property
    def vocabulary(self) -> Kept:
        """The tokens: ``kept[new id]`` is the old id."""
        return self.cuts["vocabulary"]

    @property
    def layers(self) -> Kept:
        """The layers."""
        return self.cuts["layers"]

    @property
    def width(self) -> Kept:
        """The FFN neurons of a dense model: ``kept`` holds one list for each kept layer."""
        return self.cuts["width"]

    @property
    def narrower(self) -> Kept | None:
        """The neurons of a mixture's experts: ``kept`` holds, for each kept layer, one list for each expert; None if all stay."""
        return self.cuts.get("width") if "experts" in self.cuts else None

    @property
    def inner(self) -> Kept:
        """The FFN neurons, or the experts of a mixture: ``kept`` holds one list for each kept layer."""
        return self.cuts["experts" if "experts" in self.cuts else "width"]

    @property
    def removed_fraction(self) -> float:
        """Fraction of all parameters that is removed."""
        return 1 - self.parameters_after / self.parameters_before

    @property
    def body_removed_fraction(self) -> float:
        """Fraction of the parameters outside embeddings and head that is removed."""
        return 1 - self.body_after / self.body_before

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``flab prune --json`` that the plan knows, without the long lists."""
        return {
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "removed_fraction": self.removed_fraction,
            "body_removed_fraction": self.body_removed_fraction,
            **self.sizes(),
            "kl_nats_per_token": self.kl_nats_per_token,
            "kl_vocabulary": self.kl_vocabulary,
            "refit": {"kind": self.refit.kind, "output_projection": self.refit.output_projection},
            "criteria": self.criteria,
            "candidates": self.candidates,
            "calibration": self.calibration,
            "warnings": self.warnings,
            "plan_seconds": self.seconds,
        }

    def sizes(self) -> dict[str, dict[str, Any]]:
        """Return the sizes before and after each cut, and which layers stay."""
        found: dict[str, dict[str, Any]] = {name: dict(kept.sizes()) for name, kept in self.cuts.items()}
        found |= neurons_of(found, self.model)
        found["layers"]["kept"] = self.layers.kept
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, in the layout of its format: a plan of format 1 is written as it was read."""
        # Not ``asdict``, which copies every number of the long lists.
        data: dict[str, Any] = dict(vars(self))
        # Shallow copies: dataclasses.asdict would copy each of the hundred thousand kept ids.
        data["refit"] = dict(vars(self.refit))
        cuts = {name: dict(vars(kept)) for name, kept in self.cuts.items()}
        ordered: dict[str, Any] = {}
        for name, value in (data | {"cuts": cuts}).items():
            ordered |= value if name == "cuts" and self.format == OLD_FORMAT else {name: value}
        return ordered

    def write(self, path: PathLike) -> None:
        """Write as JSON; the file appears whole or not at all."""
        write_text(as_path(path), json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def read(cls, path: PathLike) -> Plan:
        """Read a plan.

        Raises:
            PlanError: the file is missing, not a plan, of another format, or inconsistent.
        """
        path = as_path(path)
        try:
            data = json.loads(read_regular(path), parse_constant=_no_number)
        except OSError as error:
            raise PlanError(f"cannot read the plan {path}: {error.strerror}. Make one with `flab plan`.") from None
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{path} is not JSON ({error}): expected a file written by `flab plan`.") from None
        return _from_json(data, path)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def is_replayed(plan: Plan, folder: ModelFolder, sibling: bool) -> bool:
    """Return whether a plan meets another model than its own; PlanError if ``sibling`` does not allow that."""
    replayed: bool = folder.fingerprint != plan.model["sha256"]
    if replayed and not sibling:
        raise PlanError(
            f"the plan was made for another model ({plan.model['path']}): {folder.path} has other files. Plan again, or pass "
            "`sibling` for the same architecture with other weights."
        )
    return replayed


def mixture_facts(shape: Shape) -> dict[str, int]:
    """Return what a plan records about the model's experts; nothing for a dense model."""
    return {"expert_width": shape.block} if shape.experts else {}


def neurons_of(cuts: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return the FFN width that the experts of a mixture add up to, under ``width``; nothing for a dense model.

    If the experts become narrower, ``expert_width`` is that of one of them.
    """
    if "experts" not in cuts:
        return {}
    whole = model.get("expert_width", 1)
    each = {when: cuts.get("width", {}).get(when, whole) for when in ("before", "after")}
    width = {when: cuts["experts"][when] * each[when] for when in each}
    return {"width": width} | ({"expert_width": each} if "width" in cuts else {})


def _from_json(data: Any, path: Path) -> Plan:
    if not isinstance(data, Mapping) or data.get("format") not in (OLD_FORMAT, FORMAT):
        got = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        raise PlanError(
            f"{path}: plan format {got!r}, this flab reads {OLD_FORMAT} and {FORMAT}. Make the plan again with `flab plan`."
        )
    # A missing or unknown field means another version of flab. Guessing its meaning would cut the wrong thing.
    names = {f.name for f in fields(Plan)}
    if data["format"] == OLD_FORMAT:
        names = names - {"cuts"} | set(DENSE)
    if wrong := sorted(names ^ set(data)):
        raise PlanError(
            f"{path}: missing or unknown plan fields: {', '.join(wrong)}. Make the plan again with `flab plan`."
        )
    data = with_cuts(data)
    try:
        if set(data["cuts"]) not in (set(DENSE), set(MIXTURE), set(MIXTURE[:-1])):
            raise ValueError(f"its cuts are {', '.join(data['cuts'])}, expected {', '.join(CUTS)}")
        cuts = {name: Kept(**data["cuts"][name]) for name in CUTS if name in data["cuts"]}
        # Any damage raises a TypeError, ValueError or KeyError here, and becomes one message about the file.
        plan = Plan(**{**data, "cuts": cuts, "refit": Refit(**data["refit"])})
        _check_indices(plan, [name for name, kind in CUTS.items() if kind.in_layers])
        _check_refit(plan.refit, plan.layers.after)
        _check_facts(plan)
    except (TypeError, ValueError, KeyError) as error:
        raise PlanError(f"{path} is damaged ({error}). Make the plan again with `flab plan`.") from None
    return plan


def with_cuts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Move the cuts of a plan of format 1 under ``cuts``; in that format they are separate fields."""
    if data["format"] != OLD_FORMAT:
        return dict(data)
    others = {name: value for name, value in data.items() if name not in DENSE}
    return others | {"cuts": {name: data[name] for name in DENSE}}


# Somebody may have edited the file, and ``apply`` cuts what it says: each check raises ValueError, TypeError or KeyError.


def _check_indices(plan: Plan, in_layers: Collection[str]) -> None:
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


def _check_refit(refit: Refit, layers: int) -> None:
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


def _check_facts(plan: Plan) -> None:
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
