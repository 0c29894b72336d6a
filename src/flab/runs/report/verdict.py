"""The verdict: one plain sentence, what must be said beside it, and the key figures. Only from the gathered report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from flab.runs.report.blocks import Tile
from flab.runs.report.scores import judged, main_task
from flab.runs.report.speed import LABELS
from flab.runs.report.words import has_value, number, percent, probability, quantity

Json = Mapping[str, Any]

NOT_MEASURED = "not measured"
NOT_PAIRED = "not paired with the original"
OF_NONE = "of 0 nothing can be kept"
MATCHED = ("cot", "output")  # kinds whose pass is an exact match
ROUNDING = 0.005  # what two decimals of a ratio, or a whole percentage, do not show


def verdict(report: Json) -> dict[str, Any]:
    """``sentence``, ``remarks`` and ``tiles``; a loss is called one, and what was not measured is named."""
    parts = [one for one in (_size(report), _kept(report), _cost(report)) if one]
    sentence = "; ".join(parts)
    return {
        "sentence": sentence[:1].upper() + sentence[1:] + ".",
        "remarks": list(_remarks(report)),
        "tiles": [asdict(tile) for tile in _tiles(report)],
    }


def _size(report: Json) -> str:
    models = report["models"]
    if not models or len(models) < 2:
        return "nothing is cut yet"
    return f"{percent(models[-1]['removed_fraction'])} of the parameters are gone"


def _main(report: Json) -> tuple[Json, Json | None, Json | None]:
    """The main task, and the original's and the smaller model's entry in it."""
    task = main_task(report["tasks"]) or {"models": []}
    found = {one["name"]: one for one in task["models"]}
    smaller = (report["models"] or [{"name": None}])[-1]["name"]
    return task, found.get("original"), found.get(smaller) if smaller != "original" else None


def _kept(report: Json) -> str:
    task, original, smaller = _main(report)
    if original is None or smaller is None:
        return "what it keeps was not measured"
    several = (original["num_samples"] or 1) > 1
    what = f"{original['total']} answers to problems" if several else f"{original['total']} problems"
    does, matches = ("has", " exact matches") if _is_matched(task) else ("solves", "")
    solved = f"the original {does} {original['passed']}{matches} and the smaller model {smaller['passed']}"
    scores = f"of the {what} in “{task['name']}” {solved}"
    paired = smaller["paired"]
    if not original["passed"]:
        return f"{scores}: {OF_NONE}"
    if not paired or not paired["retention"]:
        return scores
    kept = paired["retention"]
    return (
        f"{scores}, {percent(kept['ratio'])} of that (95 % interval {percent(kept['low'])} to {percent(kept['high'])}; "
        f"{paired['lost']} lost, {paired['won']} won, McNemar {probability(paired['mcnemar_p'])})"
    )


def _is_matched(task: Json) -> bool:
    """Whether answers are compared with a known one; else tests are run on them."""
    return task["kind"] in MATCHED


def _cost(report: Json) -> str:
    """Speed per token and memory, where they were measured."""
    said = []
    gain = _gain(report, "time_per_output_token")
    if gain is not None:
        spread = f" ({gain['low']:.2f} to {gain['high']:.2f})" if gain.get("low") is not None else ""
        value = gain["value"]
        said.append(f"it is {value:.2f} times as fast per token{spread}" if value >= 1 else
                    f"it is slower per token, at {value:.2f} times the speed{spread}")  # fmt: skip
    memory = _ratio(report, "peak_memory_decode")
    if memory is not None:
        less = f"{percent(abs(1 - memory), 0)} {'less' if memory <= 1 else 'more'}"
        amount = "as much" if abs(1 - memory) < ROUNDING else less
        said.append(f"it needs {amount} memory while it generates")
    return " and ".join(said)


def _gain(report: Json, name: str) -> Json | None:
    gain = ((report["measured"] or {}).get("gains") or {}).get(name)
    return gain if gain and gain.get("value") is not None else None


def _ratio(report: Json, name: str) -> float | None:
    """A figure of the smaller model over the original's."""
    models = (report["measured"] or {}).get("models") or []
    values = [model["figures"].get(name) for model in models]
    if len(values) < 2 or not all(has_value(one) for one in values) or not values[0]["value"]:
        return None
    return float(values[-1]["value"] / values[0]["value"])


def _remarks(report: Json) -> Iterator[str]:
    """What the sentence alone would hide: chance, losses elsewhere, and what is not known."""
    task, _, smaller = _main(report)
    outcome = judged(smaller["paired"]) if smaller else None
    if smaller and outcome:
        yield _chance(outcome, smaller["paired"], task)
    for other in report["tasks"] or []:
        if other["name"] != task["name"] and smaller:
            yield from _elsewhere(other, smaller["name"])
    yield from _other_code(report)
    yield from _against(report)
    for part in ("results", "paired", "measured", "energy"):
        if part in report["missing"]:
            text = report["missing"][part]
            yield text[:1].upper() + text[1:] + "."


def _chance(outcome: str, paired: Json, task: Json) -> str:
    kept = paired["retention"]
    does = "has {} exact matches" if _is_matched(task) else "solves {} of these problems"
    if outcome == "worse":
        return f"This is a loss beyond chance: the smaller model {does.format('fewer')} than the original."
    if outcome == "better":
        return f"The smaller model {does.format('more')} than the original, and by more than chance."
    if kept and kept["low"] < 1:
        return f"The difference may be chance; a loss of up to {percent(1 - kept['low'])} is not excluded."
    return "The difference may be chance."


def _elsewhere(task: Json, name: str) -> Iterator[str]:
    found = {one["name"]: one for one in task["models"]}
    if "original" not in found or name not in found:
        return
    original, smaller, paired = found["original"], found[name], found[name]["paired"]
    outcome = judged(paired)
    exact = " exact matches" if _is_matched(task) else ""
    scores = f"{smaller['passed']}{exact} of {smaller['total']}, the original {original['passed']}"
    word = {"worse": "worse beyond chance", "better": "better beyond chance", None: "not compared"}.get(outcome, "")
    if not word:
        word = "no difference beyond chance"
    kept = f" ({percent(paired['retention']['ratio'])} kept)" if paired and paired["retention"] else ""
    yield f"{task['name']}: {scores}{kept}, {word}."


def _other_code(report: Json) -> Iterator[str]:
    """Bits per byte of code that nothing was fitted on: the first thing that a cut loses."""
    known = [row for row in report["models"] or [] if row["bits_per_byte"] is not None]
    if len(known) > 1:
        before, after = known[0]["bits_per_byte"], known[-1]["bits_per_byte"]
        worse = "worse" if after > before else "not worse"
        which = "cut and not trained" if known[-1]["name"] == "pruned" else known[-1]["name"]
        change = f"{100 * (after / before - 1):+.1f} %".replace("-", "−")
        yield (
            f"On other code the smaller model ({which}) is {worse}: {before:.3f} bits per byte before, {after:.3f} "
            f"after ({change})."
        )


def _against(report: Json) -> Iterator[str]:
    """Where the smaller model is worse than the original in what was measured, and gains far from their prediction."""
    for name in ("time_to_first_token", "throughput", "tokens_per_character", "energy_per_1000_tokens"):
        ratio = _ratio(report, name)
        if ratio is not None and (ratio < 1 - ROUNDING if name == "throughput" else ratio > 1 + ROUNDING):
            yield f"{LABELS[name]}: worse, {ratio:.2f} times the original's."
    gain = _gain(report, "time_per_output_token")
    if gain and gain.get("of_predicted") is not None and gain["of_predicted"] < 0.9:
        promised = quantity(gain["predicted"], "x")
        yield f"The speed-up is {number(gain['of_predicted'])} of what the arithmetic promises ({promised})."


def _tiles(report: Json) -> Iterator[Tile]:
    """Parameters, score, speed, memory, and energy or KL."""
    models = report["models"] or []
    if len(models) > 1:
        before, after = models[0]["parameters"], models[-1]["parameters"]
        yield Tile("Parameters", f"−{percent(models[-1]['removed_fraction'])}", f"{before:,} → {after:,}", "kept")
    yield _score_tile(report)
    gain = _gain(report, "time_per_output_token")
    if gain is None:
        yield Tile("Speed per token", "–", NOT_MEASURED, "missing")
    else:
        note = f"{gain['low']:.2f} to {gain['high']:.2f}" if gain.get("low") is not None else "no spread"
        promised = f", {number(gain['predicted'])} promised" if gain.get("predicted") is not None else ""
        yield Tile(
            "Speed per token", f"{gain['value']:.2f} ×", note + promised, "kept" if gain["value"] >= 1 else "worse"
        )
    yield _change_tile(report, "peak_memory_decode", "Memory, generating")
    yield _change_tile(report, "energy_per_1000_tokens", "Energy, 1,000 tokens")


def _score_tile(report: Json) -> Tile:
    task, original, smaller = _main(report)
    if original is None or smaller is None:
        return Tile("Score kept", "–", NOT_MEASURED, "missing")
    paired = smaller["paired"]
    if not paired or not paired["retention"]:
        note = NOT_PAIRED if original["passed"] else f"{OF_NONE}, {task['name']}"
        return Tile("Score kept", "–", note, "missing")
    kept = paired["retention"]
    state = "worse" if judged(paired) == "worse" else "kept"
    note = f"95 %: {percent(kept['low'])} to {percent(kept['high'])}, {task['name']}"
    return Tile("Score kept", percent(kept["ratio"]), note, state)


def _change_tile(report: Json, name: str, label: str) -> Tile:
    ratio = _ratio(report, name)
    if ratio is None:
        return Tile(label, "–", "no number, see below" if _has_reason(report, name) else NOT_MEASURED, "missing")
    models = report["measured"]["models"]
    before, after = (
        quantity(m["figures"][name]["value"], m["figures"][name].get("unit") or "") for m in (models[0], models[-1])
    )
    change = percent(ratio - 1)
    return Tile(label, change if ratio < 1 else f"+{change}", f"{before} → {after}", "kept" if ratio <= 1 else "worse")


def _has_reason(report: Json, name: str) -> bool:
    """Whether measure.json says why there is no number."""
    models = (report["measured"] or {}).get("models") or []
    return any((model["figures"].get(name) or {}).get("reason") for model in models)
