"""Show the models before and after: their sizes, and the figures that sum up what changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flab.runs.report.blocks import Block, Table
from flab.runs.report.inputs import ORIGINAL, PLAN, AbsentError, Inputs
from flab.runs.report.words import NONE, count, number, percent, quantity, rate

Json = Mapping[str, Any]


def models(inputs: Inputs) -> list[dict[str, Any]]:
    """Return one row for each model: its sizes, and what the plan and the run measured on it."""
    if inputs.plan is None:
        raise AbsentError(
            inputs.earlier(PLAN)
            or "the run has not cut the model yet: `flab run RECIPE -o RUN` resumes where it stopped"
        )
    return [_model(inputs, name) for name in inputs.names]


def _model(inputs: Inputs, name: str) -> dict[str, Any]:
    plan = inputs.plan
    assert plan is not None
    when = "before" if name == ORIGINAL else "after"
    total = plan[f"parameters_{when}"]
    body = plan.get(f"body_{when}")
    return {
        "name": name,
        "parameters": total,
        "parameters_body": body,
        "parameters_embedding": None if body is None else total - body,
        "removed_fraction": 1 - total / plan["parameters_before"],
        "bytes": _bytes(inputs, name),
        **{part: plan[part][when] for part in ("vocabulary", "layers", "width")},
        "kl_nats_per_token": plan.get("kl_nats_per_token") if name == "pruned" else None,
        "bits_per_byte": _bits_per_byte(inputs, name),
    }


def _bytes(inputs: Inputs, name: str) -> int | None:
    rows = (inputs.summary or {}).get("models", [])
    return next((row.get("bytes") for row in rows if row["name"] == name), None)


def _bits_per_byte(inputs: Inputs, name: str) -> float | None:
    """Return the bits per byte that the run measured after the cut, or after training for the recovered model."""
    field = {ORIGINAL: "bits_per_byte_before"}.get(name, "bits_per_byte_after")
    # The original's figure also comes from the cut, which measured it on the same text at the same time.
    stage = "recover" if name == "recovered" else "prune"
    found = inputs.run["stages"].get(stage, {}).get("generality") or {}
    return found.get(field)


def blocks(report: Json) -> Iterator[Block]:
    """Return the table of all models, with one row for each figure."""
    rows = report["models"]
    first = rows[0]
    last = rows[-1]
    table = [_line(label, how, [show(row[name]) for row in rows], _change(first[name], last[name]))
             for name, label, show, how in SIZES]  # fmt: skip
    table += [_line(label, how, [show(row[name]) for row in rows], "") for name, label, show, how in FIGURES]
    table += _scores(report)
    columns = ["", *(row["name"] for row in rows), "change", "method"]
    note = "The change is that of the last model from the original. " + _why_gaps(rows)
    yield Table("The models", columns, table, note, words=(0, len(columns) - 1))


def _line(label: str, how: str, cells: list[str], change: str) -> list[str]:
    return [label, *cells, change, how]


def _change(before: float | None, after: float | None) -> str:
    if not before or after is None or before == after:
        return "" if before is None or after is None else "none"
    share = percent(after / before - 1)
    return share if share.startswith("−") else f"+{share}"


def _scores(report: Json) -> list[list[str]]:
    """Return the rows of pass@1 on every unperturbed task."""
    lines = []
    for task in report["tasks"] or []:
        found = {one["name"]: one for one in task["models"]}
        cells = [rate(found[row["name"]]["pass@1"]) if row["name"] in found else NONE for row in report["models"]]
        paired = task["models"][-1].get("paired")
        kept = percent(paired["retention"]["ratio"]) + " kept" if paired and paired["retention"] else ""
        lines.append(_line(f"{task['name']}, pass@1", "results.json, all samples", cells, kept))
    return lines


def _why_gaps(rows: list[Json]) -> str:
    if rows[-1]["name"] != "recovered":
        return ""
    gaps = "The KL is measured after the cut. Its change by training, on held-out rows, is under Recovery."
    bits = " Bits per byte were not measured again after training." if rows[-1]["bits_per_byte"] is None else ""
    return gaps + bits


SIZES = (
    ("parameters", "Parameters", count, "plan.json, tied weights counted once"),
    ("parameters_body", "… in the body", count, "plan.json"),
    ("parameters_embedding", "… in embeddings and head", count, "plan.json, the rest"),
    ("bytes", "Weights on disk", lambda value: quantity(value, "B"), "size of the safetensors files"),
    ("vocabulary", "Vocabulary, tokens", count, "plan.json"),
    ("layers", "Layers", count, "plan.json"),
    ("width", "FFN width, neurons", count, "plan.json"),
)
FIGURES = (
    ("kl_nats_per_token", "KL from the original, nats per token", number, "plan.json, on the comparison windows"),
    ("bits_per_byte", "Bits per byte of other code", rate, "run.json, text outside the calibration"),
)
