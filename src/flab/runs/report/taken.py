"""Decide which files in a run's folder belong to this run, because an earlier recipe may have left others.

``met`` in ``run.json`` lists the stages that the last recipe reached. Without that list, all files are used. This module
works on :class:`~flab.runs.report.inputs.Inputs` and reads no file itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from flab.runs.report.inputs import DATA, MEASURE, ORIGINAL, PLAN, RECOVERY, SUMMARY, Inputs, pair_of, results_of

Json = Mapping[str, Any]

MADE_BY = {"pruned": "prune", "recovered": "recover"}
SECTIONS = {
    "data": "data",
    "recover": "recover",
    "evaluate recovered": "recover",
    "measure": "measure",
}  # optional sections


def of_this_run(inputs: Inputs) -> Inputs:
    """Return the inputs without files of an earlier run and without a sweep of another model. ``left`` names the files."""
    known = inputs.run.get("met")
    found = inputs.run["stages"]
    stages = found if known is None else {name: found[name] for name in known if name in found}
    inputs = replace(inputs, run={**inputs.run, "stages": stages})
    left = dict(_left(inputs))
    pairs = {name: one for name, one in inputs.pairs.items() if _is_of_results(inputs, name, left)}
    left |= {
        pair_of(name): "" for name in inputs.pairs if name not in pairs and {ORIGINAL, name} <= set(inputs.results)
    }
    return replace(
        inputs,
        summary=None if SUMMARY in left else inputs.summary,
        plan=None if PLAN in left else inputs.plan,
        recovery=None if RECOVERY in left else inputs.recovery,
        data=None if DATA in left else inputs.data,
        measure=None if MEASURE in left else inputs.measure,
        results={name: one for name, one in inputs.results.items() if results_of(name) not in left},
        pairs=pairs,
        hardware=None if results_of(ORIGINAL) in left else inputs.hardware,
        left=left,
        **_sweep(inputs),
    )


def _left(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Return the files of an earlier run, except comparisons, each with the optional section of the recipe that it needs."""
    stages = inputs.run["stages"]
    made = {name: (stages.get(stage) or {}).get("sha256") for name, stage in MADE_BY.items()}
    summed_up = _prints((inputs.summary or {}).get("stages"))
    if inputs.run.get("met") is not None and summed_up is not None and summed_up != _prints(stages):
        yield SUMMARY, ""
    # A recovered model belongs to this run only if its student is the model that this run pruned.
    student = inputs.recovery["identity"].get("student") if inputs.recovery is not None else None
    is_made = {
        ORIGINAL: True,
        "pruned": _is_met(inputs, "prune"),
        "recovered": _is_met(inputs, "recover", student, made["pruned"]),
    }
    if inputs.plan is not None and not is_made["pruned"]:
        yield PLAN, ""
    if inputs.recovery is not None and not is_made["recovered"]:
        yield RECOVERY, _section(inputs, "recover")
    if inputs.data is not None and not _is_met(inputs, "data"):
        yield DATA, _section(inputs, "data")
    for name, one in inputs.results.items():
        stage = f"evaluate {name}"
        if not is_made[name] or not _is_met(inputs, stage, one["identity"].get("sha256"), made.get(name)):
            yield results_of(name), _section(inputs, stage)
    if inputs.measure is not None:
        measured = inputs.measure["models"][-1].get("sha256") if inputs.measure["models"] else None
        last = made["recovered"] if "recover" in stages else made["pruned"]
        if not _is_met(inputs, "measure", measured, last):
            yield MEASURE, _section(inputs, "measure")


def _is_met(inputs: Inputs, stage: str, of: str | None = None, made: str | None = None) -> bool:
    """Return whether this run did a stage and, if both digests are known, did it on the model that it made."""
    done = inputs.run.get("met") is None or stage in inputs.run["stages"]
    return done and (of is None or made is None or of == made)


def _section(inputs: Inputs, stage: str) -> str:
    """Return the section of the recipe that a missing stage needs, or an empty text if the stage needs none."""
    return "" if stage in (inputs.run.get("met") or ()) else SECTIONS.get(stage, "")


def _prints(stages: Json | None) -> dict[str, Any] | None:
    """Return the fingerprint of each stage's inputs."""
    return None if stages is None else {name: one.get("fingerprint") for name, one in stages.items()}


def _is_of_results(inputs: Inputs, name: str, left: Json) -> bool:
    """Return whether a comparison belongs to the two results in the folder, and both are of this run."""
    for side, model in (("a", ORIGINAL), ("b", name)):
        results = inputs.results.get(model)
        if results is None or results_of(model) in left:
            return False
        compared = (inputs.pairs[name].get(side) or {}).get("fingerprint")
        if None not in (compared, results.get("fingerprint")) and compared != results["fingerprint"]:
            return False
    return True


def _sweep(inputs: Inputs) -> dict[str, Any]:
    """Drop the sweep if its model is not the plan's. ``other_sweep`` is then the path of the sweep's model."""
    swept = (inputs.sweep or {}).get("model_sha256")
    planned = ((inputs.plan or {}).get("model") or {}).get("sha256")
    if inputs.sweep is None or None in (swept, planned) or swept == planned:
        return {}
    return {"sweep": None, "other_sweep": str(inputs.sweep.get("model") or "not named")}
