"""From timings and meters to figures: one model's row, and the gains of the second model over the first.

Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flab.footprint.figures import Figure, MeteredAnswers, Ratio, Throughput, Timing, measured, ratio_of, unknown
from flab.footprint.payback import Solving
from flab.footprint.subject import Subject

KWH_PER_JOULE = 1 / 3.6e6


def best(rows: Sequence[Throughput]) -> Throughput:
    """Return the batch size of the highest throughput."""
    return max(rows, key=lambda row: row.tokens_per_second.value or 0.0)


def row_of(
    subject: Subject,
    speeds: Sequence[Timing],
    batches: Sequence[Throughput],
    energies: Sequence[MeteredAnswers],
    solved: Solving | None,
    grid: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return one model's figures."""
    facts = subject.facts
    prompt = subject.settings.prompt_tokens
    new = subject.settings.new_tokens
    top = best(batches)
    text = facts["text"]
    clock = f"prompt of {prompt} tokens, one answer at a time"
    figures = {name: Figure(**given) for name, given in facts["figures"].items()}
    # What the formula gives stands beside what torch counted, so that a wrong formula shows.
    for name in ("flops_per_token", "flops_prefill"):
        figures[name] = checked(figures[name], facts["flops_counted"][name])
    figures |= memory_figures(facts, speeds, top)
    figures["time_to_first_token"] = measured([one.first for one in speeds], "s", clock)
    rest = f"{clock}, mean of {new - 1} tokens after the first"
    figures["time_per_output_token"] = measured([one.rest / (new - 1) for one in speeds], "s", rest)
    figures["throughput"] = top.tokens_per_second.scaled(1, "tokens/s", f"{top.batch} at once, the best size tried")
    figures["tokens_per_character"] = Figure(
        text["tokens"] / text["characters"], "", f"measured: tokens over characters of {Path(text['name']).name}"
    )
    figures |= energy_figures(energies, top.batch, solved, grid)
    return {
        "name": subject.name,
        "path": str(subject.folder),
        "sha256": facts["sha256"],
        "figures": {name: figure.to_json() for name, figure in figures.items()},
        "throughput": [asdict(row) for row in batches],
    }


def checked(figure: Figure, counted: int) -> Figure:
    """Return the formula's figure, with torch's own count beside it."""
    assert figure.value is not None
    off = counted / figure.value - 1
    return replace(figure, method=f"{figure.method}; torch counts {counted:,} with eager attention ({off:+.2%})")


def memory_figures(facts: Mapping[str, Any], speeds: Sequence[Timing], top: Throughput) -> dict[str, Figure]:
    """Return the peak memory of each phase, and the memory of the process before the model."""
    how = facts["memory_method"]
    found = {"memory_before_load": Figure(facts["before_bytes"], "B", f"measured: {how}, libraries imported, no model")}
    found["peak_memory_load"] = Figure(facts["load_bytes"], "B", f"measured: {how}, peak while loading")
    for phase in ("prefill", "decode"):
        found[f"peak_memory_{phase}"] = measured(
            [getattr(one, f"{phase}_bytes") for one in speeds], "B", f"{how}, peak of the phase, one answer at a time"
        )
    found["peak_memory_throughput"] = Figure(top.peak_bytes, "B", f"measured: {how}, {top.batch} answers at once")
    return found


def energy_figures(
    windows: Sequence[MeteredAnswers], batch: int, solved: Solving | None, grid: Mapping[str, Any] | None
) -> dict[str, Figure]:
    """Return joules and CO2 of 1,000 generated tokens and of each solved problem. CO2 needs joules and a grid."""
    reason = next((one.energy.reason for one in windows if one.energy.value is None), None)
    if reason is not None:
        names = ("energy_per_1000_tokens", "energy_per_solved_problem")
        return {name: unknown("J", reason) for name in names}
    # Joules for 1,000 tokens in each window; the spread of the windows is the interval of the figure.
    values = [1000 * (one.energy.value or 0.0) / one.tokens for one in windows]
    how = f"{windows[-1].energy.method}; {batch} answers at once, prompts included"
    energy = replace(measured(values, "J", ""), method=how)
    if solved is None:
        each = unknown("J", "no results of flab eval were given (`results`)")
    elif not solved.problems:
        each = unknown("J", f"no problem of {solved.name} is solved")
    else:
        each = energy.scaled(
            solved.tokens / solved.problems / 1000, "J", f"{solved.how}; tokens alone, not their test runs"
        )
    found = {"energy_per_1000_tokens": energy, "energy_per_solved_problem": each}
    for name, joules in list(found.items()):
        found[name.replace("energy", "co2")] = _co2(joules, grid)
    return found


def _co2(joules: Figure, grid: Mapping[str, Any] | None) -> Figure:
    if joules.value is None:
        return unknown("g", str(joules.reason))
    if grid is None:
        return unknown("g", "no grid was given (`grid`, grams per kWh or a country's code)")
    per_kwh = grid["grams_per_kwh"]
    return joules.scaled(per_kwh * KWH_PER_JOULE, "g", f"x {per_kwh:g} g CO2 per kWh, {grid['source']}")


def gains(subjects: Sequence[Subject], rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return how many times faster the second model is, and the factor that its bytes and operations predict."""
    old, new = (row["figures"] for row in rows)
    # Memory limits the decoding of one answer: each token reads every weight and the cache once. Arithmetic limits a full
    # batch, so its gain is predicted from operations instead.
    steps = [subject.facts["step_bytes"] for subject in subjects]
    work = [subject.facts["answer_flops"] for subject in subjects]
    return {
        "time_per_output_token": _gain(
            ratio_of(old["time_per_output_token"], new["time_per_output_token"]), steps[0] / steps[1],
            "bytes of weights and cache that a token reads, original over smaller",
        ),
        "throughput": _gain(
            ratio_of(new["throughput"], old["throughput"]), work[0] / work[1],
            "floating-point operations of an answer, original over smaller",
        ),
    }  # fmt: skip


def _gain(found: Ratio | None, predicted: float, prediction: str) -> dict[str, Any]:
    """Return how many times better the second model is, the widest range of it, and its share of the prediction."""
    assert found is not None
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "rounds": found.rounds,
        "unit": "x",
        "predicted": predicted,
        "of_predicted": found.value / predicted,
        "prediction": prediction,
    }
