"""Show the recovery: how training changed the model on held-out rows, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flab.runs.report.blocks import Block, Chart, Charts, Gap, Table
from flab.runs.report.inputs import RECOVERY, AbsentError, Inputs
from flab.runs.report.words import count, number, percent, quantity

Json = Mapping[str, Any]

FACTS = ("method", "learning_rate", "steps", "planned_steps", "chosen_step", "stopped_early", "tokens", "seconds",
         "devices", "device", "examples", "held_out", "peak_memory")  # fmt: skip
TERMS = (("kl", "KL", "accent"), ("cross_entropy", "cross entropy", "accent"))


def recovery(inputs: Inputs) -> dict[str, Any]:
    """Return settings, cost, the held-out terms before and after, and the curve."""
    found = inputs.recovery
    if found is None:
        raise AbsentError(
            inputs.earlier(RECOVERY)
            or "nothing was trained: add `data:` and `recover:` to the recipe, or use "
            "`flab recover SMALLER --teacher MODEL --data data.jsonl --minutes 30 -o RECOVERED`"
        )
    # transformers logs the training loss and the held-out measurements in one list. They are told apart by their
    # keys.
    curve = found["curve"]
    return {
        **{name: found.get(name) for name in FACTS},
        "curve": [_terms(entry, "eval_") for entry in curve if "eval_loss" in entry],
        "training_curve": [_terms(entry, "") for entry in curve if "loss" in entry],
        "data": _data(inputs.data),
    }


def _terms(entry: Json, prefix: str) -> dict[str, Any]:
    names = ("loss", "kl", "cross_entropy")
    return {"step": entry["step"]} | {n: entry[prefix + n] for n in names if prefix + n in entry}


def _data(meta: Json | None) -> dict[str, Any] | None:
    return None if meta is None else {name: meta.get(name) for name in ("rows", "kinds", "sources", "steps")}


def blocks(report: Json) -> Iterator[Block]:
    """Return the held-out curve, the terms before and after, and the settings and cost."""
    found = report["recovery"]
    yield Charts([_chart(found, *term) for term in TERMS if any(term[0] in entry for entry in found["curve"])])
    yield _held_out(found)
    yield _cost(found)
    if found["data"]:
        yield _steps(found["data"])
    elif "data" in report["missing"]:
        yield Gap(report["missing"]["data"])


def _chart(found: Json, term: str, label: str, style: str) -> Chart:
    held_out = [{"x": one["step"], "y": one[term]} for one in found["curve"] if term in one]
    training = [{"x": one["step"], "y": one[term]} for one in found["training_curve"] if term in one]
    chosen = [point | {"text": "chosen"} for point in held_out if point["x"] == found["chosen_step"]]
    series = [
        {"label": "training rows", "style": "faint", "line": True, "marks": False, "points": training},
        {"label": "held-out rows", "style": style, "line": True, "points": held_out},
        {"label": "", "style": style, "line": False, "points": chosen},
    ]
    note = "recovery.json: nats per token. The prompts of held-out rows do not occur in training rows."
    table = Table(f"Held-out {label}", ["step", label], [[str(p["x"]), number(p["y"], 4)] for p in held_out], note)
    data = {"x": "steps", "y": f"{label}, nats per token", "series": series}
    return Chart(f"recovery-{term}", "lines", f"{label[0].upper()}{label[1:]} over the training", data, note, table)


def _held_out(found: Json) -> Table:
    before = found["held_out"]["before"]
    after = found["held_out"]["after"]
    rows = []
    for name in ("loss", "kl", "cross_entropy"):
        if name in before and name in after:
            change = percent(after[name] / before[name] - 1) if before[name] else ""
            rows.append([NAMES[name], number(before[name], 4), number(after[name], 4), change])
    note = "recovery.json: before the first step and at the chosen step. The loss is the quantity that was minimised."
    return Table("Held-out rows, nats per token", ["", "before", "after", "change"], rows, note)


NAMES = {"loss": "Loss", "kl": "KL from the original", "cross_entropy": "Cross entropy"}


def _cost(found: Json) -> Table:
    """Return the settings and costs that recovery.json contains."""
    memory = found["peak_memory"] or {}
    examples = found["examples"] or {}
    early = ", stopped early" if found["stopped_early"] else ""
    lines = [
        ("Method", found["method"]),
        ("Learning rate", number(found["learning_rate"])),
        ("Steps", f"{count(found['steps'])} of {count(found['planned_steps'])} planned{early}"),
        ("Step taken", f"{count(found['chosen_step'])}, the best on held-out rows"),
        ("Rows", f"{count(examples.get('train'))} to train on, {count(examples.get('held_out'))} held out"),
        ("Tokens read", count(found["tokens"])),
        ("Time of training", quantity(found["seconds"], "s")),
        ("Devices", f"{found['devices']} {found['device']}"),
        ("Peak memory", f"{quantity(memory.get('measured_bytes'), 'B')} ({memory.get('method', 'not said')}); "
                        f"{quantity(memory.get('predicted_bytes'), 'B')} by formula"),
    ]  # fmt: skip
    return Table("How it was trained", ["", "recovery.json"], [list(line) for line in lines], words=(0, 1))


def _steps(data: Json) -> Table:
    rows = []
    for step in data["steps"]:
        found = ", ".join(f"{name} {count(n)}" for name, n in step.items() if name not in ("step", "left"))
        rows.append([step["step"], count(step["left"]), found])
    note = f"data.meta.json: {count(data['rows'])} rows remain. Contaminated rows overlap with a problem of the evaluation."
    return Table("Where the training rows come from", ["step", "left", "found"], rows, note, words=(0, 2))
