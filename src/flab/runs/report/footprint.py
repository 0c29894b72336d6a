"""Show the footprint of the run itself: the cost of each stage, and the number of tokens after which it pays off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flab.runs.report.blocks import Block, Chart, Charts, Gap, Table
from flab.runs.report.inputs import AbsentError, Inputs
from flab.runs.report.words import NONE, figure, has_value, method, quantity

Json = Mapping[str, Any]


def footprint(inputs: Inputs) -> dict[str, Any]:
    """Return the seconds, peak memory and energy of each stage, and the payback that ``flab measure`` computed."""
    stages = inputs.run["stages"]
    if not stages:
        raise AbsentError("no stage of the run is finished: `flab run RECIPE -o RUN` resumes where it stopped")
    rows = [{"name": name} | {n: one.get(n) for n in ("seconds", "peak_resident_bytes", "peak_device_bytes", "energy")}
            for name, one in stages.items()]  # fmt: skip
    return {
        "stages": rows,
        "seconds": sum(row["seconds"] or 0 for row in rows),
        "payback": (inputs.measure or {}).get("payback"),
    }


def energy_reason(found: Json | None) -> str | None:
    """Return why the stages have no energy, or None if all have a figure."""
    gaps = [row["energy"] for row in (found or {"stages": []})["stages"] if not has_value(row["energy"])]
    if not gaps:
        return None
    said = next((gap["reason"] for gap in gaps if gap and gap.get("reason")), None)
    return (
        f"the energy of the stages is not known: {said or 'run.json holds none; a run with this version of flab may'}"
    )


def blocks(report: Json) -> Iterator[Block]:
    """Return a chart and a table of the stages, then the payback."""
    found = report["footprint"]
    yield Charts([_chart(found)])
    yield _stages(found)
    if "stage_energy" in report["missing"]:
        yield Gap(report["missing"]["stage_energy"])
    yield from _payback(found["payback"]) or [Gap(report["missing"]["payback"])]


def _chart(found: Json) -> Chart:
    rows = [{"label": row["name"], "value": row["seconds"], "low": None, "high": None, "style": "accent",
             "text": quantity(row["seconds"], "s")} for row in found["stages"]]  # fmt: skip
    return Chart("stages", "bars", "Time of each stage", {"rows": rows}, "run.json: wall clock", None)


def _stages(found: Json) -> Table:
    # Columns that would be empty in all rows are left out.
    on_device = any(row["peak_device_bytes"] is not None for row in found["stages"])
    metered = any(has_value(row["energy"]) for row in found["stages"])
    rows = [_stage(row, on_device, metered) for row in found["stages"]]
    rows.append(["all", quantity(found["seconds"], "s"), *[NONE] * (len(rows[0]) - 2)])
    device = "; on the device the allocator's peak" if on_device else ""
    note = f"run.json: wall clock; peak memory is the resident set of the process, without the programs that it starts{device}."
    columns = [
        "stage",
        "time",
        "peak memory",
        *(["on the device"] if on_device else []),
        *(["energy", "method of the energy"] if metered else []),
    ]
    words = (0, len(columns) - 1) if metered else (0,)
    return Table("Stages of the run", columns, rows, note, words=words, marked=(len(rows) - 1,))


def _stage(row: Json, on_device: bool, metered: bool) -> list[str]:
    device = [quantity(row["peak_device_bytes"], "B")] if on_device else []
    memory = quantity(row["peak_resident_bytes"], "B")
    energy = [figure(row["energy"]), method(row["energy"])] if metered else []
    return [row["name"], quantity(row["seconds"], "s"), memory, *device, *energy]


def _payback(payback: Json | None) -> list[Block]:
    """Return the number of generated tokens after which pruning and recovery have paid for themselves."""
    if not payback:
        return []
    by_time = payback.get("seconds") or {}
    by_energy = payback.get("energy") or {}
    lines = [
        ("Time, generated tokens", by_time.get("tokens")),
        ("Energy, generated tokens", by_energy.get("tokens")),
        ("Solved problems", payback.get("solved_problems")),
    ]
    rows = [[label, figure(one), method(one)] for label, one in lines]
    cost = by_time.get("cost")
    saved = by_time.get("saved_per_token")
    spent = f" Pruning and recovery took {quantity(cost, 's')}." if isinstance(cost, int | float) else ""
    saves = f" A token takes {quantity(saved, 's')} less." if has_value(by_time.get("tokens")) else ""
    note = f"measure.json: how much must be generated until the savings cover the cost.{spent}{saves}"
    return [Table("Break-even", ["", "after", "method"], rows, note, words=(0, 1, 2))]
