"""Gather the content of a run's folder into one value, ``report.json``. The pages have no other source.

A part that cannot be made is null. ``missing`` then gives the reason and the command that makes the part.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flab.errors import DataError
from flab.runs.report import budget, cuts, examples, footprint, provenance, recovery, scores, size, speed
from flab.runs.report.inputs import (
    DATA,
    MEASURE,
    MODELS,
    ORIGINAL,
    SUMMARY,
    AbsentError,
    Inputs,
    pair_of,
    read_inputs,
    results_of,
)
from flab.runs.report.taken import of_this_run
from flab.runs.report.verdict import verdict
from flab.runs.report.words import each_text, without_home
from flab.version import __version__

FORMAT = 1
UNFINISHED = "the run is not finished: `flab run RECIPE -o RUN` resumes it"

Part = Callable[[Inputs, dict[str, Any]], Any]  # takes the inputs and what is gathered so far
PARTS: dict[str, tuple[str, Part]] = {  # each part with its files, which messages name
    "models": ("pruned/plan.json, summary.json", lambda inputs, _: size.models(inputs)),
    "cuts": ("pruned/plan.json", lambda inputs, _: cuts.cuts(inputs)),
    "tasks": ("eval/*/results.json, compare-*.json", lambda inputs, _: scores.tasks(inputs)),
    "budget": ("pruned/plan.json, sweep.json", lambda inputs, made: budget.budget(inputs, made["tasks"])),
    "recovery": ("recovered/recovery.json", lambda inputs, _: recovery.recovery(inputs)),
    "robustness": ("eval/*/results.json", lambda inputs, _: scores.robustness(inputs)),
    "overlaps": ("eval/*/results.json", lambda inputs, _: scores.overlaps(inputs)),
    "examples": ("eval/*/results.json", lambda inputs, made: examples.examples(inputs, made["tasks"])),
    "measured": ("measure.json", lambda inputs, _: speed.measured(inputs)),
    "footprint": ("run.json, measure.json", lambda inputs, _: footprint.footprint(inputs)),
    "provenance": ("run.json, summary.json, pruned/plan.json", lambda inputs, _: provenance.provenance(inputs)),
}
MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError, ZeroDivisionError)


def gather(run: Path, sweep: Path | None = None) -> dict[str, Any]:
    """Return the data of all pages.

    Raises:
        DataError: there is no run, or a file is damaged, has another layout, or lacks a field that flab writes.
    """
    try:
        inputs = of_this_run(read_inputs(run, sweep))
    except MALFORMED as error:
        raise malformed(run, "its JSON files", error) from error
    made: dict[str, Any] = {}
    missing: dict[str, str] = {}
    # A part may be missing, and the page then gives the reason. A malformed part stops the report, because an incomplete
    # page would look complete.
    for name, (files, part) in PARTS.items():
        try:
            made[name] = part(inputs, made)
        except AbsentError as why:
            made[name] = None
            missing[name] = str(why)
        except MALFORMED as error:
            raise malformed(run, files, error) from error
    missing |= _smaller_gaps(inputs, made)
    report = {"format": FORMAT, "flab": __version__, "run": run.resolve().name, **made, "missing": missing}
    try:
        report = {"verdict": verdict(report), **report}
    except MALFORMED as error:
        raise malformed(run, "measure.json, compare-*.json", error) from error
    return _cleaned(report)


def _cleaned(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report with the user's home folder written ``~``. Prompts and answers are not changed."""
    made: dict[str, Any] = each_text(report, without_home)
    problems = (report["examples"] or {"problems": []})["problems"]
    for number, problem in enumerate(problems):
        # A model's text is shown exactly as generated, even if it contains such a path.
        clean = made["examples"]["problems"][number]
        clean["prompt"] = problem["prompt"]
        for name in (ORIGINAL, "smaller"):
            clean[name]["text"] = problem[name]["text"]
    return made


def malformed(run: Path, files: str, error: Exception) -> DataError:
    """Return the error about files with invalid values."""
    found = f"{type(error).__name__}: {error}".replace("\n", " ")
    return DataError(f"{run}: {files} are not as flab writes them ({found}); run the command that made them again")


def _smaller_gaps(inputs: Inputs, made: dict[str, Any]) -> dict[str, str]:
    """Return the gaps inside the parts that exist."""
    gaps = {
        "energy": speed.energy_reason(made["measured"]),
        "stage_energy": footprint.energy_reason(made["footprint"]),
        "sweep": budget.no_sweep(inputs) if made["budget"] and made["budget"]["sweep"] is None else None,
        "summary": None if inputs.summary is not None else inputs.earlier(SUMMARY) or UNFINISHED,
        "results": inputs.earlier(*map(results_of, MODELS)) if made["tasks"] else None,
        "data": inputs.earlier(DATA) if made["recovery"] else None,
        "paired": _unpaired(inputs) if made["tasks"] else None,
        "payback": _no_payback(inputs),
    }
    return {name: reason for name, reason in gaps.items() if reason}


def _unpaired(inputs: Inputs) -> str | None:
    gaps = [name for name in inputs.names[1:] if name not in inputs.pairs]
    if not gaps:
        return None
    reason = inputs.earlier(*map(pair_of, gaps))
    return (
        reason
        or f"{' and '.join(gaps)} was not paired with the original: `flab run RECIPE -o RUN` pairs them at its end"
    )


def _no_payback(inputs: Inputs) -> str | None:
    if inputs.measure is None:
        reason = inputs.earlier(MEASURE) or speed.NO_MEASURE.format(name=inputs.smaller)
        return f"the break-even is not known: {reason}"
    known = inputs.measure.get("payback")
    return None if known else "the break-even is not in measure.json: `flab run RECIPE -o RUN` computes it"
