"""Write the verdict from the gathered report: a headline, the key figures, a sentence with the evidence, and remarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from flab.footprint.figures import Ratio, ratio_of
from flab.runs.report.blocks import Tile
from flab.runs.report.scores import judged, main_task
from flab.runs.report.speed import LABELS
from flab.runs.report.words import percent, probability, quantity, span

Json = Mapping[str, Any]

NOT_MEASURED = "not measured"
NOT_PAIRED = "not paired with the original"
OF_NONE = "retention is undefined"
MATCHED = ("cot", "output")  # in these kinds of tasks an answer passes if it is an exact match
OUTCOMES = {
    "worse": "significantly worse",
    "better": "significantly better",
    "open": "not significantly different",
    None: "not compared",
}
ROUNDING = 0.005  # a difference too small for two decimals of a ratio or a whole percentage


def verdict(report: Json) -> dict[str, Any]:
    """Return ``headline``, ``outcome``, ``sentence``, ``remarks`` and ``tiles``.

    The verdict names every loss and every missing measurement. The outcome is that of the main task: ``kept``, ``worse``
    or ``missing``.
    """
    # The sentence at the top of the report tells how much was removed, how much was kept (with its interval), and the cost.
    parts = [one for one in (_size(report), _kept(report), _cost(report)) if one]
    sentence = "; ".join(parts)
    outcome = _outcome(report)
    return {
        "headline": _headline(report),
        "outcome": "missing" if outcome is None else "worse" if outcome == "worse" else "kept",
        "sentence": sentence[:1].upper() + sentence[1:] + ".",
        "remarks": list(_remarks(report)),
        "tiles": [asdict(tile) for tile in _tiles(report)],
    }


def _outcome(report: Json) -> str | None:
    """Judge the smaller model by the main task: ``worse``, ``better``, ``open``, or None if it was not compared."""
    smaller = _main(report)[2]
    return judged(smaller["paired"]) if smaller else None


def _headline(report: Json) -> str:
    """Return one short line: how much smaller the model is, whether it is worse, and how fast."""
    models = report["models"] or []
    if len(models) < 2:
        return "Nothing has been cut yet."
    task, original, smaller = _main(report)
    said = [f"{percent(models[-1]['removed_fraction'])} smaller", OUTCOMES[_outcome(report)]]
    if original and smaller:
        said[-1] += f" on {task['name']} ({smaller['passed']} instead of {original['passed']} of {original['total']})"
    if found := _gain(report):
        said.append("no difference in speed shown" if found.is_open else f"{found.value:.2f} times as fast")
    return ", ".join(said) + "."


def _size(report: Json) -> str:
    models = report["models"]
    if not models or len(models) < 2:
        return "nothing has been cut yet"
    return f"{percent(models[-1]['removed_fraction'])} of the parameters were removed"


def _main(report: Json) -> tuple[Json, Json | None, Json | None]:
    """Return the main task, and the original's and the smaller model's entry in it."""
    task = main_task(report["tasks"]) or {"models": []}
    found = {one["name"]: one for one in task["models"]}
    smaller = (report["models"] or [{"name": None}])[-1]["name"]
    return task, found.get("original"), found.get(smaller) if smaller != "original" else None


def _kept(report: Json) -> str:
    task, original, smaller = _main(report)
    if original is None or smaller is None:
        return "how much the model keeps was not measured"
    several = (original["num_samples"] or 1) > 1
    what = f"{original['total']} answers to problems" if several else f"{original['total']} problems"
    does, matches = ("has", " exact matches") if _is_matched(task) else ("solves", "")
    solved = f"the original {does} {original['passed']}{matches} and the smaller model {smaller['passed']}"
    scores = f"of the {what} in “{task['name']}”, {solved}"
    paired = smaller["paired"]
    if not original["passed"]:
        return f"{scores}, so {OF_NONE}"
    if not paired or not paired["retention"]:
        return scores
    kept = paired["retention"]
    return (
        f"{scores}, {percent(kept['ratio'])} of that (95 % interval {percent(kept['low'])} to {percent(kept['high'])}; "
        f"{paired['lost']} lost, {paired['won']} won, McNemar {probability(paired['mcnemar_p'])})"
    )


def _is_matched(task: Json) -> bool:
    """Return whether answers are compared with a reference. In other tasks, tests are run on them."""
    return task["kind"] in MATCHED


def _cost(report: Json) -> str:
    """Return the speed per token and the memory, if they were measured."""
    said = []
    found = _gain(report)
    if found is not None and found.is_single:
        said.append(f"one round shows no difference in speed per token ({found.value:.2f} times the original's)")
    elif found is not None and found.is_open:
        said.append(f"no difference in speed per token was shown ({span(found)} times the original's)")
    elif found is not None:
        spread = f" ({span(found)})" if found.low < found.high else ""
        said.append(f"it is {found.value:.2f} times as fast per token{spread}" if found.value >= 1 else
                    f"it is slower per token, at {found.value:.2f} times the speed{spread}")  # fmt: skip
    for name, what in (("storage_bytes", "its weights take"), ("kv_bytes_per_token", "its key-value cache takes")):
        found = _ratio(report, name)
        if found is not None:
            ratio = found.value
            less = f"{percent(abs(1 - ratio), 0)} {'less' if ratio <= 1 else 'more'}"
            said.append(f"{what} {'as much' if abs(1 - ratio) < ROUNDING else less} memory")
    return " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


def _gain(report: Json) -> Ratio | None:
    """Return how many times as fast the smaller model generates a token as the original."""
    gain = _speed(report)
    if gain.get("value") is None:
        return None
    return Ratio.of_gain(gain)


def _speed(report: Json) -> Json:
    """Return the gain in time per token as it is in ``measure.json``, with its prediction."""
    gains = (report["measured"] or {}).get("gains") or {}
    return gains.get("time_per_output_token") or {}


def _ratio(report: Json, name: str) -> Ratio | None:
    """Return a figure of the smaller model divided by the original's."""
    models = (report["measured"] or {}).get("models") or []
    values = [model["figures"].get(name) for model in models]
    return ratio_of(values[-1], values[0]) if len(values) > 1 else None


def _remarks(report: Json) -> Iterator[str]:
    """Yield remarks on what the sentence leaves out: chance, losses elsewhere, and gaps."""
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
        return f"The loss is significant: the smaller model {does.format('fewer')} than the original."
    if outcome == "better":
        return f"The gain is significant: the smaller model {does.format('more')} than the original."
    # A difference that is not significant may still be a loss. The lower end of the interval shows how large it could be.
    if kept and kept["low"] < 1:
        return f"The difference is not significant; a loss of up to {percent(1 - kept['low'])} cannot be excluded."
    return "The difference is not significant."


def _elsewhere(task: Json, name: str) -> Iterator[str]:
    found = {one["name"]: one for one in task["models"]}
    if "original" not in found or name not in found:
        return
    original = found["original"]
    smaller = found[name]
    paired = found[name]["paired"]
    outcome = judged(paired)
    exact = " exact matches" if _is_matched(task) else ""
    scores = f"{smaller['passed']}{exact} of {smaller['total']}, the original {original['passed']}"
    kept = f" ({percent(paired['retention']['ratio'])} kept)" if paired and paired["retention"] else ""
    yield f"{task['name']}: {scores}{kept}, {OUTCOMES[outcome]}."


def _other_code(report: Json) -> Iterator[str]:
    """Yield the bits per byte of code that was not used for fitting, where the effect of a cut shows first."""
    known = [row for row in report["models"] or [] if row["bits_per_byte"] is not None]
    if len(known) > 1:
        before = known[0]["bits_per_byte"]
        after = known[-1]["bits_per_byte"]
        worse = "worse" if after > before else "not worse"
        which = "cut and not trained" if known[-1]["name"] == "pruned" else known[-1]["name"]
        change = f"{100 * (after / before - 1):+.1f} %".replace("-", "−")
        yield (
            f"On other code the smaller model ({which}) is {worse}: {after:.3f} bits per byte instead of {before:.3f} "
            f"({change})."
        )


def _against(report: Json) -> Iterator[str]:
    """Yield the figures in which the smaller model is worse, and gains that are far from their predictions."""
    for name in ("time_to_first_token", "throughput", "tokens_per_character", "energy_per_1000_tokens"):
        found = _ratio(report, name)
        if found is None or found.is_open:
            continue
        if found.value < 1 - ROUNDING if name == "throughput" else found.value > 1 + ROUNDING:
            yield f"{LABELS[name]}: worse, {found.value:.2f} times the original's."
    gain = _speed(report)
    speed_up = _gain(report)
    if speed_up and gain.get("of_predicted") is not None and gain["of_predicted"] < 0.9:
        promised = quantity(gain["predicted"], "x")
        yield (f"No speed-up was shown; {promised} was predicted." if speed_up.is_open else
               f"The speed-up is {percent(gain['of_predicted'], 0)} of the predicted one ({promised}).")  # fmt: skip


def _tiles(report: Json) -> Iterator[Tile]:
    """Yield the tiles of parameters, score, speed, memory and energy. A tile without a figure is marked as missing."""
    models = report["models"] or []
    if len(models) > 1:
        before = models[0]["parameters"]
        after = models[-1]["parameters"]
        yield Tile("Parameters", f"−{percent(models[-1]['removed_fraction'])}", f"{before:,} → {after:,}", "kept")
    yield _score_tile(report)
    yield _speed_tile(report)
    yield _change_tile(report, "storage_bytes", "Memory of the weights")
    yield _change_tile(report, "kv_bytes_per_token", "Cache per token")
    yield _change_tile(report, "energy_per_1000_tokens", "Energy, 1,000 tokens")


def _speed_tile(report: Json) -> Tile:
    label = "Speed per token"
    found = _gain(report)
    if found is None:
        return Tile(label, "–", NOT_MEASURED, "missing")
    predicted = _speed(report).get("predicted")
    promised = f", {predicted:.2f} predicted" if predicted is not None else ""
    if found.is_open:
        return Tile(label, *_open(found, promised))
    note = span(found) if found.low < found.high else "no spread"
    return Tile(label, f"{found.value:.2f} ×", note + promised, "kept" if found.value >= 1 else "worse")


def _open(found: Ratio, more: str = "") -> tuple[str, str, str]:
    """Return the value, the note and the state of a tile that claims neither a gain nor a loss."""
    why = (
        f"one round shows no difference: {found.value:.2f}"
        if found.is_single
        else f"no difference shown: {span(found)}"
    )
    return "unclear", f"{why} times the original's{more}", "plain"


def _score_tile(report: Json) -> Tile:
    task, original, smaller = _main(report)
    if original is None or smaller is None:
        return Tile("Score kept", "–", NOT_MEASURED, "missing")
    paired = smaller["paired"]
    if not paired or not paired["retention"]:
        note = NOT_PAIRED if original["passed"] else f"{OF_NONE}, {task['name']}"
        return Tile("Score kept", "–", note, "missing")
    kept = paired["retention"]
    # Only a significant difference has a colour.
    state = {"worse": "worse", "better": "kept"}.get(judged(paired) or "", "plain")
    note = f"95 %: {percent(kept['low'])} to {percent(kept['high'])}, {task['name']}"
    return Tile("Score kept", percent(kept["ratio"]), note, state)


def _change_tile(report: Json, name: str, label: str) -> Tile:
    found = _ratio(report, name)
    if found is None:
        return Tile(label, "–", "no value, see below" if _has_reason(report, name) else NOT_MEASURED, "missing")
    if found.is_open:
        return Tile(label, *_open(found))
    ratio = found.value
    models = report["measured"]["models"]
    before, after = (
        quantity(m["figures"][name]["value"], m["figures"][name].get("unit") or "") for m in (models[0], models[-1])
    )
    if abs(ratio - 1) <= ROUNDING:
        return Tile(label, percent(0.0), f"{after}, as before", "plain")
    change = percent(ratio - 1)
    return Tile(label, change if ratio < 1 else f"+{change}", f"{before} → {after}", "kept" if ratio < 1 else "worse")


def _has_reason(report: Json, name: str) -> bool:
    """Return whether measure.json gives a reason for a missing figure."""
    models = (report["measured"] or {}).get("models") or []
    return any((model["figures"].get(name) or {}).get("reason") for model in models)
