"""Read the files of a run's folder and check their layout. Their content is interpreted elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flab.errors import DataError
from flab.evaluation.record import RESULTS
from flab.files import read_json
from flab.pruning.plan import neurons_of

Json = Mapping[str, Any]

ORIGINAL = "original"
MODELS = (ORIGINAL, "pruned", "recovered")
SUMMARY = "summary.json"
PLAN = "pruned/plan.json"
RECOVERY = "recovered/recovery.json"
DATA = "data.meta.json"
MEASURE = "measure.json"
FORMATS = {"run.json": 1, "measure.json": 1, "sweep.json": 1}
NEEDED: dict[str, tuple[str, ...]] = {
    "run.json": ("stages",),
    "summary.json": ("model", "models", "recipe"),
    "plan.json": ("model", "vocabulary", "layers", "width", "candidates", "layer_path", "parameters_before"),
    "recovery.json": ("curve", "held_out", "chosen_step", "identity"),
    RESULTS: ("settings", "identity", "tasks", "robustness"),
    "compare.json": ("tasks",),
    "data.meta.json": ("steps",),
    "measure.json": ("models",),
    "sweep.json": ("budgets",),
}


def results_of(name: str) -> str:
    """Return the file of a model's scores, relative to the run's folder."""
    return f"eval/{name}/{RESULTS}"


def pair_of(name: str) -> str:
    """Return the file that compares a smaller model with the original, relative to the run's folder."""
    return f"compare-{name}.json"


class AbsentError(Exception):
    """Raised if a part of the report cannot be made. The message gives the reason and the command that makes the part."""


@dataclass(frozen=True)
class Inputs:
    """The content of a run's folder. Files that are missing or belong to another run are None or have no key.

    Attributes:
        left: files of an earlier run, each with the section of the recipe that makes it, if that may be missing.
        other_sweep: the model of a sweep that belongs to another model.
    """

    folder: Path
    run: Json
    summary: Json | None = None
    plan: Json | None = None
    recovery: Json | None = None
    data: Json | None = None
    measure: Json | None = None
    sweep: Json | None = None
    results: Mapping[str, Json] = field(default_factory=dict)
    pairs: Mapping[str, Json] = field(default_factory=dict)
    hardware: Json | None = None
    left: Mapping[str, str] = field(default_factory=dict)
    other_sweep: str | None = None

    @property
    def names(self) -> list[str]:
        """The models of this run, from the original to the final one."""
        there = {ORIGINAL, *self.results}
        there |= {"pruned"} if self.plan is not None else set()
        there |= {"recovered"} if self.recovery is not None else set()
        return [name for name in MODELS if name in there]

    @property
    def smaller(self) -> str:
        """The final model of the run."""
        return self.names[-1] if len(self.names) > 1 else "pruned"

    def earlier(self, *files: str) -> str | None:
        """Return which of the files were left out and how to make them again, or None if all are used."""
        found = [name for name in files if name in self.left]
        if not found:
            return None
        sections = " and ".join(dict.fromkeys(f"`{self.left[name]}:`" for name in found if self.left[name]))
        be, them = ("is", "it") if len(found) == 1 else ("are", "them")
        where = f" if the recipe has {sections}" if sections else ""
        return f"{' and '.join(found)} {be} from an earlier run; `flab run RECIPE -o RUN` makes {them} again{where}"


def read_inputs(folder: Path, sweep: Path | None = None) -> Inputs:
    """Read all files. ``taken`` decides which of them belong to this run.

    Raises:
        DataError: there is no run, or a file is damaged or has another layout.
    """
    if not (folder / "run.json").is_file():
        raise DataError(f"{folder}: holds no run.json, so it is not a run; give the folder that flab run wrote")
    if sweep is not None and not (sweep / "sweep.json").is_file():
        raise DataError(f"{sweep}: holds no sweep.json; give the folder that flab sweep wrote, or leave `sweep` out")
    results = {name: _read(folder / results_of(name)) for name in MODELS}
    pairs = {name: _read(folder / pair_of(name), "compare.json") for name in MODELS[1:]}
    return Inputs(
        folder=folder,
        run=_read(folder / "run.json") or {},
        summary=_read(folder / SUMMARY),
        plan=_read(folder / PLAN),
        recovery=_read(folder / RECOVERY),
        data=_read(folder / DATA),
        measure=_without_unfounded(_read(folder / MEASURE)),
        sweep=_read((sweep or folder / "sweep") / "sweep.json"),
        results={name: one for name, one in results.items() if one is not None},
        pairs={name: one for name, one in pairs.items() if one is not None},
        hardware=_hardware(folder / "eval" / ORIGINAL / "run.json"),
    )


def _read(path: Path, layout: str | None = None) -> dict[str, Any] | None:
    """Return a file's object, or None if the file is missing. Raise DataError if a field of its layout is missing."""
    if not path.is_file():
        return None
    value: dict[str, Any] = finite(read_json(path))
    layout = layout or path.name
    if layout == "plan.json" and isinstance(value.get("cuts"), dict):
        # In format 1 these fields lie beside the others.
        value |= value["cuts"] | neurons_of(value["cuts"], value.get("model", {}))
    if missing := [name for name in NEEDED.get(layout, ()) if name not in value]:
        raise DataError(f"{path}: {', '.join(missing)} missing; make the file again with this version of flab")
    known = FORMATS.get(layout)
    if known is not None and value.get("format", known) != known:
        raise DataError(f"{path}: has format {value['format']}, but this flab reads {known}; make the file again")
    return value


def finite(value: Any) -> Any:
    """Return the value with null in place of NaN and infinity, which JSON cannot hold and a page cannot draw."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hardware(path: Path) -> Json | None:
    found = read_json(path).get("hardware") if path.is_file() else None
    return found if isinstance(found, Mapping) else None


# CO2 is computed from energy. Without energy, the report has neither a CO2 figure nor a factor that suggests one.
EMISSION_WORDS = ("co2", "carbon", "emission", "grams_per_kwh", "grid")


def _without_unfounded(measure: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the measurement without emissions, unless the energy of its models was measured."""
    if measure is None:
        return None
    figures = [model.get("figures") or {} for model in measure["models"] if isinstance(model, Mapping)]
    known = [(one.get("energy_per_1000_tokens") or {}).get("value") is not None for one in figures]
    return measure if known and all(known) else without_emissions(measure)


def without_emissions(value: Any) -> Any:
    """Return the value without all fields on emissions, at any depth."""
    if isinstance(value, Mapping):
        return {n: without_emissions(v) for n, v in value.items() if not any(w in n.lower() for w in EMISSION_WORDS)}
    return [without_emissions(one) for one in value] if isinstance(value, list) else value
