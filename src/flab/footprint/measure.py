"""``flab measure``: the figures of one model, or of two in turn (A B A B), each in its own process; gains and predictions.

Nothing here is fitted or corrected. A gain is a ratio of medians on this machine, its prediction follows from bytes and
floating-point operations alone, and both are printed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flab.data.samples import files_under
from flab.errors import OptionError
from flab.files import PathLike
from flab.footprint.figures import MeteredAnswers, Throughput, Timing, measured, unknown
from flab.footprint.payback import solving
from flab.footprint.rows import best, gains, row_of
from flab.footprint.settings import Measuring, carbon_intensity, check_context
from flab.footprint.subject import OutOfMemoryError, Subject
from flab.models.folder import read_object, resolve
from flab.models.options import Options, settled
from flab.progress import say, track
from flab.version import __version__

FORMAT = 1
# Throughput that grows by less than this from one batch size to the next is saturated.
GROWTH = 1.05


def measure(
    model: PathLike,
    against: PathLike | None = None,
    settings: Measuring | None = None,
    options: Options | None = None,
    results: PathLike | None = None,
    against_results: PathLike | None = None,
) -> dict[str, Any]:
    """Return the costs of running a model and, with ``against`` (the original), how much lower they are.

    ``results`` and ``against_results`` are runs of ``flab eval``, which add the energy for each solved problem.

    Raises:
        OptionError: a setting or country is invalid, or there are more tokens than the model reads.
        CheckpointError, UnsupportedModelError, DataError
    """
    settings = settings or Measuring()
    options = options or Options()
    grid = carbon_intensity(settings.grid) if settings.grid is not None else None
    named = [("original", against, against_results)] if against is not None else []
    named.append(("smaller" if named else "model", model, results))
    if against is None and against_results is not None:
        raise OptionError("`against_results` is the run of the original: give `against` too, or leave it out.")
    if settings.text is not None:
        files_under(settings.text)
    solved = [solving(Path(found)) if found is not None else None for _, _, found in named]
    for _, path, _ in named:
        config = SimpleNamespace(**read_object(resolve(os.fspath(path)) / "config.json"))
        check_context(config, settings.prompt_tokens + settings.new_tokens)
    if against is not None:
        from flab.models.checkpoint import same_precision

        options = same_precision(resolve(os.fspath(against)), options)
    options = settled(options)
    with ExitStack() as open_processes:
        subjects = [
            open_processes.enter_context(Subject(name, resolve(os.fspath(path)), settings, options))
            for name, path, _ in named
            if path is not None
        ]
        # The models take turns. A machine that gets warmer or busier then slows both equally.
        speeds = time_rounds(subjects, settings, 1, "Timing single answers")
        batches = time_batches(subjects, settings)
        energies = meter(subjects, settings, batches)
    known = all(window.energy.value is not None for windows in energies for window in windows)
    rows = [row_of(*parts, grid) for parts in zip(subjects, speeds, batches, energies, solved, strict=True)]
    if not known:  # no CO2 if the other model's energy has no value
        for row in rows:
            row["figures"] = {name: figure for name, figure in row["figures"].items() if not name.startswith("co2")}
    return {
        "format": FORMAT,
        "flab": __version__,
        "device": options.device,
        "dtype": subjects[0].facts["dtype"],
        "machine": machine(subjects[0].facts),
        "settings": asdict(settings) | {"text": subjects[0].facts["text"]["name"], "grid": None},
        "grid": grid if known else None,
        "models": rows,
        "gains": gains(subjects, rows) if len(rows) == 2 else {},
    }


def time_rounds(subjects: Sequence[Subject], settings: Measuring, batch: int, title: str) -> list[list[Timing]]:
    """Return each model's timings, round by round, with the models in turn. The first round only warms up."""
    found: list[list[Timing]] = [[] for _ in subjects]
    for number in track(range(settings.rounds + 1), title):
        for place, subject in enumerate(subjects):
            timing = subject.time(batch)
            found[place] += [timing] if number else []
    return found


def time_batches(subjects: Sequence[Subject], settings: Measuring) -> list[list[Throughput]]:
    """Return timings of 1, 2, 4, ... answers at once, until no model gains a factor of :data:`GROWTH` in tokens per second."""
    found: list[list[Throughput]] = [[] for _ in subjects]
    size = 1
    while size <= settings.max_batch:
        try:
            timings = time_rounds(subjects, settings, size, f"Throughput, {size} at once")
        except OutOfMemoryError:
            if size == 1:
                raise
            say(f"{size} answers at once do not fit in memory: throughput ends at {size // 2}")
            break
        for rows, made in zip(found, timings, strict=True):
            rows.append(throughput(size, made, settings))
        # Both models get the same batch sizes, so their curves can be laid side by side.
        if all(map(_is_saturated, found)):
            break
        size *= 2
    return found


def throughput(size: int, timings: Sequence[Timing], settings: Measuring) -> Throughput:
    """Return tokens per second and peak memory at one batch size."""
    speeds = [size * settings.new_tokens / (one.first + one.rest) for one in timings]
    how = f"generated tokens over seconds, reading {settings.prompt_tokens} tokens each included"
    peak = max(max(one.prefill_bytes, one.decode_bytes) for one in timings)
    return Throughput(size, measured(speeds, "tokens/s", how), peak)


def _is_saturated(rows: Sequence[Throughput]) -> bool:
    if len(rows) < 2:
        return False
    before, now = (row.tokens_per_second.value or 0.0 for row in rows[-2:])
    return now < GROWTH * before


def meter(
    subjects: Sequence[Subject], settings: Measuring, batches: Sequence[Sequence[Throughput]]
) -> list[list[MeteredAnswers]]:
    """Return windows of metered answers at each model's best batch size, in turn. Without a meter they hold the reason."""
    found: list[list[MeteredAnswers]] = [[] for _ in subjects]
    if why := subjects[0].facts["no_meter"]:
        return [[MeteredAnswers(unknown("J", why), 0)] for _ in subjects]
    for _ in track(range(settings.rounds), "Metering energy"):
        for rows, subject, sizes in zip(found, subjects, batches, strict=True):
            rows.append(subject.energy(best(sizes).batch, settings.window_seconds))
    return found


def machine(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hardware and the versions, without which timings mean nothing."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": facts["threads"],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "gpu": facts["gpu"],
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
