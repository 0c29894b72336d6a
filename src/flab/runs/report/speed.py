"""Show speed, memory and energy: the figures of ``flab measure`` for the original and the smaller model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flab.footprint.figures import Ratio, ratio_of
from flab.runs.report.blocks import Block, Chart, Charts, Gap, Table
from flab.runs.report.inputs import MEASURE, ORIGINAL, AbsentError, Inputs
from flab.runs.report.words import NONE, figures, has_value, method, quantity, span

Json = Mapping[str, Any]

LABELS = {
    "storage_bytes": "Weights",
    "kv_bytes_per_token": "Key-value cache per token",
    "parameters": "Parameters",
    "parameters_body": "Parameters in the body",
    "parameters_embedding": "Parameters in embeddings and head",
    "flops_per_token": "Arithmetic per generated token",
    "flops_prefill": "Arithmetic of the prompt",
    "memory_before_load": "Memory before loading",
    "peak_memory_load": "Peak memory, loading",
    "peak_memory_prefill": "Peak memory, reading the prompt",
    "peak_memory_decode": "Peak memory, generating",
    "peak_memory_throughput": "Peak memory, best throughput",
    "time_to_first_token": "Time to the first token",
    "time_per_output_token": "Time per generated token",
    "throughput": "Throughput",
    "tokens_per_character": "Tokens per character",
    "energy_per_1000_tokens": "Energy per 1,000 tokens",
    "co2_per_1000_tokens": "CO₂ per 1,000 tokens",
    "energy_per_solved_problem": "Energy per solved problem",
    "co2_per_solved_problem": "CO₂ per solved problem",
}
DRAWN = (
    "time_per_output_token", "time_to_first_token", "throughput", "storage_bytes", "kv_bytes_per_token",
    "peak_memory_decode", "energy_per_1000_tokens",
)  # fmt: skip
MORE_IS_BETTER = {"throughput"}
NO_MEASURE = (
    "speed, memory and energy were not measured: `measure:` in the recipe measures them, and "
    "`flab measure RUN/{name} --against MODEL` shows them without the run"
)


def measured(inputs: Inputs) -> dict[str, Any]:
    """Return the figures of both models, the gains with their predictions, and the machine."""
    found = inputs.measure
    if found is None:
        raise AbsentError(inputs.earlier(MEASURE) or NO_MEASURE.format(name=inputs.smaller))
    models = [{"name": one["name"], "figures": one.get("figures") or {}, "throughput": one.get("throughput") or []}
              for one in found["models"]]  # fmt: skip
    return {
        "models": models,
        "gains": found.get("gains") or {},
        **{name: found.get(name) for name in ("flab", "device", "dtype", "machine", "settings")},
        **({"grid": found["grid"]} if found.get("grid") else {}),
    }


def energy_reason(found: Json | None) -> str | None:
    """Return why the smaller model's energy was not measured, or None if it was."""
    if not found or not found["models"]:
        return None
    value = found["models"][-1]["figures"].get("energy_per_1000_tokens")
    if has_value(value):
        return None
    reason = (value or {}).get("reason")
    return f"energy was not measured: {reason or 'measure.json gives no reason'}"


def blocks(report: Json) -> Iterator[Block]:
    """Return bars with whiskers, throughput by batch size, gains with predictions, then all figures."""
    found = report["measured"]
    if len(found["models"]) < 2:
        yield Gap(
            "only one model was measured, so there is nothing to compare it with: give `flab measure` `--against MODEL`"
        )
    drawn = [_bars(name, found) for name in DRAWN if any(has_value(f) for f in _of(name, found).values())]
    yield Charts([*drawn, *_throughput(found)])
    yield from _gains(found["gains"])
    if "energy" in report["missing"]:
        yield Gap(report["missing"]["energy"])
    yield _figures(found)
    yield _conditions(found)


def _of(name: str, found: Json) -> dict[str, Any]:
    return {model["name"]: model["figures"].get(name) for model in found["models"]}


def _bars(name: str, found: Json) -> Chart:
    rows = []
    for model, one in _of(name, found).items():
        style = "muted" if model == ORIGINAL else "accent"
        text = quantity(one["value"], one.get("unit") or "") if has_value(one) else "no value"
        rows.append(
            {"label": model, "style": style, "text": text} | {n: (one or {}).get(n) for n in ("value", "low", "high")}
        )
    better = "more is better" if name in MORE_IS_BETTER else "less is better"
    methods = {one["method"] for one in _of(name, found).values() if one and one.get("method")}
    spread = ["whiskers: lowest and highest round"] if any(row["low"] is not None for row in rows) else []
    note = "; ".join([better, *sorted(methods), *spread])
    return Chart(f"bar-{name}", "bars", LABELS[name], {"rows": rows}, note, None)


def _throughput(found: Json) -> Iterator[Chart]:
    """Yield the chart of tokens per second over the batch size, if several batch sizes were measured."""
    series = []
    rows = []
    how = ""
    for model in found["models"]:
        known = [one for one in model["throughput"] if has_value(one["tokens_per_second"])]
        values = [(one["batch"], one["tokens_per_second"]) for one in known]
        style = "muted" if model["name"] == ORIGINAL else "accent"
        points = [
            {"x": batch, "y": one["value"], "low": one.get("low"), "high": one.get("high")} for batch, one in values
        ]
        series.append({"label": model["name"], "style": style, "line": True, "points": points})
        shown = figures([one for _, one in values])
        rows += [[model["name"], str(batch), text] for (batch, _), text in zip(values, shown, strict=True)]
        how = next((one["method"] for _, one in values if one.get("method")), how)
    if len({row[1] for row in rows}) > 1:
        data = {"x": "sequences at once", "y": "tokens per second", "series": series, "log_x": True}
        note = "; ".join(filter(None, ["more is better", how, "whiskers: lowest and highest round"]))
        table = Table("Throughput over the batch", ["model", "batch", "tokens per second"], rows, how)
        yield Chart("throughput", "lines", "Throughput over the batch", data, note, table)


def _gains(gains: Json) -> list[Block]:
    """Return the table of how many times better the smaller model is, with the predictions."""
    rows = []
    for name, one in gains.items():
        spread = f"{one['low']:.2f} to {one['high']:.2f}" if one.get("low") is not None else NONE
        spread = "one round" if one.get("value") is not None and Ratio.of_gain(one).is_single else spread
        part = NONE if one.get("of_predicted") is None else f"{one['of_predicted']:.2f}"
        rows.append([LABELS.get(name, name), quantity(one.get("value"), one.get("unit") or "x"), spread,
                     quantity(one.get("predicted"), "x"), part, one.get("prediction") or NONE])  # fmt: skip
    columns = ["times better", "measured", "spread", "predicted", "measured / predicted", "prediction from"]
    note = (
        "measure.json: the smaller model is better if the gain is above 1. A spread that contains 1 shows no difference. One "
        "round shows none either."
    )
    return [Table("Gains, measured and predicted", columns, rows, note, words=(0, 5))] if rows else []


def _figures(found: Json) -> Table:
    """Return the table of all figures of all models: first the known names in their order, then the others."""
    models = found["models"]
    names = dict.fromkeys(name for model in models for name in model["figures"])
    ordered = [*(name for name in LABELS if name in names), *(name for name in names if name not in LABELS)]
    rows: list[list[str]] = []
    without: dict[str, list[str]] = {}  # the figures that no model has, grouped by reason
    for name in ordered:
        values = list(_of(name, found).values())
        if any(map(has_value, values)):
            how = "; ".join(dict.fromkeys(method(one) for one in values))
            rows.append([LABELS.get(name, name), *figures(values), _ratio(values), how])
        else:
            reason = next((one["reason"] for one in values if one and one.get("reason")), "no reason is given")
            without.setdefault(reason, []).append(LABELS.get(name, name))
    columns = ["", *(model["name"] for model in models), "ratio", "method"]
    note = (
        "measure.json: medians of the rounds, with the lowest and the highest in brackets. The ratio is smaller over "
        "original. A ratio whose range contains 1 shows no difference. One round shows none either."
    )
    note += "".join(f" Not measured ({reason}): {', '.join(names)}." for reason, names in without.items())
    return Table("Every figure", columns, rows, note, words=(0, len(columns) - 1))


def _ratio(values: list[Json | None]) -> str:
    """Return the last model's figure over the first's, and the range of it if the figures have a spread."""
    found = ratio_of(values[-1], values[0]) if len(values) > 1 else None
    if found is None:
        return NONE
    if found.is_single:
        return f"{found.value:.2f} (one round)"
    return f"{found.value:.2f}" + (f" ({span(found)})" if found.low < found.high else "")


def _conditions(found: Json) -> Table:
    """Return the machine and the method of the measurement."""
    machine = found["machine"] or {}
    settings = found["settings"] or {}
    rows = [["device", str(found["device"])], ["precision", str(found["dtype"])]]
    for name, value in machine.items():
        shown = quantity(value, "B") if name.endswith("_bytes") and isinstance(value, int | float) else value
        rows.append([name.replace("_", " "), NONE if shown is None else str(shown)])
    rows += [[name.replace("_", " "), str(value)] for name, value in settings.items()]
    for name, value in (found.get("grid") or {}).items():
        rows.append([f"grid, {name.replace('_', ' ')}", str(value)])
    return Table("Measured on, and how", ["", "measure.json"], rows, words=(0, 1))
