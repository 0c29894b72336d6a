"""List the provenance: digests, versions, settings, seeds, and the commands that reproduce the run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flab.runs.report.blocks import Block, Code, Heading, Table, Text
from flab.runs.report.inputs import ORIGINAL, Inputs
from flab.runs.report.words import name_of, without_home

Json = Mapping[str, Any]

CALIBRATION = ("fit_tokens", "compare_tokens", "tokens", "max_length", "general", "seed", "judge_problems", "sandbox")
MEASURING = ("prompt_tokens", "new_tokens", "rounds", "max_batch", "window_seconds", "device")
TOKENIZERS = ("AutoTokenizer", "PreTrainedTokenizerFast")  # what flab check can say


def provenance(inputs: Inputs) -> dict[str, Any]:
    """Return the files, programs and settings behind the figures."""
    summary = inputs.summary or {}
    plan = inputs.plan or {}
    first = inputs.results.get(ORIGINAL) or next(iter(inputs.results.values()), {})
    calibration = plan.get("calibration") or {}
    return {
        "recipe": name_of(str(summary.get("recipe", "RECIPE"))),
        "model": _model_name(_model(inputs)),
        "run": inputs.folder.resolve().name,
        "sha256": dict(_digests(inputs)),
        "stages": {name: one.get("fingerprint") for name, one in inputs.run["stages"].items()},
        "versions": first.get("versions") or {"flab": inputs.run.get("flab")},
        "hardware": inputs.hardware,
        "evaluation": dict(first.get("settings") or {}),
        "identity": {n: (first.get("identity") or {}).get(n) for n in ("dtype", "device")},
        "calibration": {name: calibration.get(name) for name in CALIBRATION if name in calibration},
        "training": ((inputs.recovery or {}).get("identity") or {}).get("training"),
        "tokenizers": _tokenizers(inputs),
        "commands": commands(inputs, _path),
        "commands_by_name": commands(inputs, lambda path: shlex.quote(name_of(path))),
    }


def _digests(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Yield the files that the run read and wrote, and their SHA-256."""
    if inputs.plan is not None and inputs.plan["model"].get("sha256"):
        yield "original, config, weights and tokenizer", inputs.plan["model"]["sha256"]
    for name, results in inputs.results.items():
        if name != ORIGINAL and results["identity"].get("sha256"):
            yield f"{name}, config, weights and tokenizer", results["identity"]["sha256"]
    for source in ((inputs.plan or {}).get("calibration") or {}).get("sources", []):
        yield f"calibration: {name_of(source['path'])}", source["sha256"]
    if inputs.recovery is not None and inputs.recovery["identity"].get("data"):
        yield "training rows", inputs.recovery["identity"]["data"]
    for task in (inputs.results.get(ORIGINAL) or {"tasks": []})["tasks"]:
        yield f"task {task['name']}, its items", task["sha256"]


def _model(inputs: Inputs) -> str:
    """Return the original's path or hub id, from the recipe or, if that has none, from the plan."""
    planned = ((inputs.plan or {}).get("model") or {}).get("path")
    return str((inputs.summary or {}).get("model") or planned or "MODEL")


def _model_name(path: str) -> str:
    """Return the model's name. The bundled model gets a name that tells more than its folder's."""
    bundled = path == "bundled" or path.endswith("flab/assets/model")
    return "flab-bundled" if bundled else name_of(path)


def _tokenizers(inputs: Inputs) -> dict[str, str]:
    """Return the tokenizer class that the check of each smaller model recommended, if the run has recorded it."""
    found = {}
    for stage, name in (("prune", "pruned"), ("recover", "recovered")):
        loads = inputs.run["stages"].get(stage, {}).get("loads_in") or {}
        used = (loads.get("transformers") or {}).get("tokenizer")
        if used in TOKENIZERS:
            found[name] = used
    return found


def commands(inputs: Inputs, show: Callable[[str], str]) -> list[str]:
    """Return the commands that repeat the run, its measurements and this report. ``show`` renders a path."""
    run = show(str(inputs.folder))
    model = show(_model(inputs))
    # The page shows full paths. A card is published, so it shows only names.
    lines = [f"flab run {show(str((inputs.summary or {}).get('recipe') or 'RECIPE'))} -o {run}"]
    for name in inputs.names[1:]:
        lines.append(f"flab check {run}/{name} --against {model}")
        lines.append(f"flab compare {run}/eval/original {run}/eval/{name}")
    return [
        *lines,
        f"flab measure {run}/{inputs.smaller} --against {model}{_measuring(inputs.measure)} -o {run}/measured-again.json",
        f"flab sweep {model} {_budgets(inputs.sweep)} -o {run}/sweep",
        f"flab report {run}",
    ]


def _measuring(measure: Json | None) -> str:
    """Return the options of the measurement. They write to another file, because the run's file also holds the payback."""
    settings = dict((measure or {}).get("settings") or {}) | {"device": (measure or {}).get("device")}
    known = {name: settings[name] for name in MEASURING if settings.get(name) is not None}
    return "".join(f" --{name.replace('_', '-')} {_value(value)}" for name, value in known.items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else shlex.quote(str(value))


def _path(path: str) -> str:
    """Return a path for the shell, with the user's home folder written ``~``."""
    short = without_home(path)
    return f"~/{shlex.quote(short[2:])}" if short.startswith("~/") else shlex.quote(short)


def _budgets(sweep: Json | None) -> str:
    asked = [one["remove"] for one in (sweep or {"budgets": []})["budgets"]] or [0.1, 0.2]
    return " ".join(f"--remove {value:g}" for value in asked)


def blocks(report: Json) -> Iterator[Block]:
    """Return tables of digests, versions and settings, then the commands."""
    found = report["provenance"]
    digests = [[what, f"`{digest}`"] for what, digest in found["sha256"].items()]
    digests += [
        [f"stage {name}, all that it read", f"`{digest}`"] for name, digest in found["stages"].items() if digest
    ]
    yield Table("Digests", ["of", "SHA-256"], digests, words=(0, 1))
    yield Table("Versions, settings, seeds", ["", ""], list(_settings(found)), words=(0, 1))
    yield Heading("To make it again")
    yield Code("\n".join(found["commands"]), "bash")
    again = "On one machine, the same plan gives the same bytes. Training with a limit in minutes takes as many steps as fit."
    yield Text(again, small=True)


def _settings(found: Json) -> Iterator[list[str]]:
    """Yield one line for each group of settings that is known."""
    for name in ("versions", "hardware", "identity", "evaluation", "calibration", "training"):
        values = found[name]
        if values:
            yield [name, ", ".join(f"{n} {_shown(v)}" for n, v in values.items() if v is not None)]


def _shown(value: Any) -> str:
    if isinstance(value, float) and 0 < value < 1:
        return f"{value:g}"
    return str(value)
