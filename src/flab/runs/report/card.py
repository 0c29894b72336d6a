"""Write the model card of a checkpoint: metadata for the hub, what the model is, what it keeps, and how to load it.

A card contains only names, never paths of the machine on which the model was made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flab.runs.report import markup
from flab.runs.report.inputs import ORIGINAL
from flab.runs.report.scores import judged
from flab.runs.report.words import (
    NONE,
    between,
    count,
    each_text,
    number,
    percent,
    probability,
    quantity,
    rate,
    visible,
)

Json = Mapping[str, Any]

MARK = "<!-- written by flab report, which replaces this file; remove this line to keep your own changes -->"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LICENCES = (
    ("apache-2.0", ("Apache License", "Version 2.0")),
    ("mit", ("Permission is hereby granted, free of charge", "THE SOFTWARE IS PROVIDED")),
)


def card(report: Json, name: str, licence: str = "") -> str:
    """Return the text of ``README.md`` for one of the report's smaller models. ``licence`` is the text of its licence file."""
    shown = each_text(report, visible)
    row = next(row for row in shown["models"] if row["name"] == name)
    parts = [
        f"---\n{metadata(shown, name, licence)}\n---",
        MARK,
        f"# {markup.plain(_title(shown, row))}",
        *_what(shown, row),
        "## What was kept",
        *_kept(shown, row),
        "## Load it",
        *_load(shown, name),
        "## Limits",
        *_limits(shown, row),
        "## Make it again",
        markup.fenced("\n".join(shown["provenance"]["commands_by_name"]), "bash"),
        "## Provenance",
        *_provenance(shown, name),
    ]
    return "\n\n".join(parts) + "\n"


def metadata(report: Json, name: str, licence: str) -> str:
    """Return the YAML head: base model, licence, tags, and pass@1 of each task."""
    from huggingface_hub import EvalResult, ModelCardData

    model = " ".join(report["provenance"]["model"].split())
    results = [
        EvalResult(task_type="text-generation", dataset_type=_slug(task["name"]), dataset_name=" ".join(task["name"].split()),
                   metric_type="pass@1", metric_name="pass@1", metric_value=round(one["pass@1"], 4))
        for task in report["tasks"] or [] for one in task["models"] if one["name"] == name
    ]  # fmt: skip
    # The hub refuses a card whose base model is not a hub id.
    known: dict[str, Any] = {"base_model": model} if HUB_ID.fullmatch(model) else {}
    data = ModelCardData(
        **known, language="code", license=licence_of(licence), library_name="transformers",
        pipeline_tag="text-generation", tags=["code", "pruning", "flab", *(["distillation"] if name == "recovered" else [])],
        model_name=f"{model.rpartition('/')[2]}-{name}" if results else None, eval_results=results or None,
    )  # fmt: skip
    return str(data.to_yaml()).strip()


def licence_of(text: str) -> str:
    """Return the hub's identifier for a licence text, or ``other`` if the text is missing or not recognised."""
    flat = " ".join(text.split())
    return next((name for name, marks in LICENCES if all(mark in flat for mark in marks)), "other")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "task"


def _title(report: Json, row: Json) -> str:
    return f"{report['provenance']['model']}, {percent(row['removed_fraction'])} smaller ({row['name']})"


def _what(report: Json, row: Json) -> list[str]:
    """Describe what the model is and how it was made."""
    cuts = report["cuts"]
    training = report["recovery"]
    sizes = ", ".join(f"{what} {count(cuts[part]['before'])} → {count(cuts[part]['after'])}" for part, what in PARTS)
    made = (
        f"A code model: {report['provenance']['model']} with {count(report['models'][0]['parameters'])} parameters cut to "
        f"{count(row['parameters'])} ({sizes}) by flab {report['flab']}. The cuts were chosen by the KL divergence from the "
        "original, and the remaining weights were refitted to it. It is a standard checkpoint that needs no custom code."
    )
    if row["name"] != "recovered" or training is None:
        return [markup.markdown(made), "It was not trained afterwards."]
    rows = (training["data"] or {}).get("rows")
    taught = (
        f"Then the original was distilled into it: {training['method']} training, {count(training['chosen_step'])} steps, "
        f"{count(training['tokens'])} tokens"
        + (f" of {count(rows)} rows" if rows else "")
        + f", {quantity(training['seconds'], 's')}."
    )
    return [markup.markdown(made), markup.markdown(taught)]


PARTS = (("vocabulary", "vocabulary"), ("layers", "layers"), ("width", "FFN width"))


def _kept(report: Json, row: Json) -> list[str]:
    """Return the scores beside the original's, and the sizes."""
    lines = []
    for task in report["tasks"] or []:
        found = {one["name"]: one for one in task["models"]}
        if row["name"] not in found:
            continue
        one = found[row["name"]]
        first = found.get(ORIGINAL)
        pair = one["paired"] or {}
        kept = pair.get("retention")
        lines.append([
            task["name"], rate(first["pass@1"]) if first else NONE, f"{rate(one['pass@1'])} ({between(one['interval_95'], 2)})",
            f"{percent(kept['ratio'])} ({percent(kept['low'])} to {percent(kept['high'])})" if kept else NONE,
            f"{pair['lost']} / {pair['won']}" if pair else NONE, probability(pair.get("mcnemar_p")),
        ])  # fmt: skip
    if not lines:
        return ["It was not evaluated."]
    columns = ["task", "original", "this model (95 %)", "kept (95 %)", "lost / won", "McNemar"]
    note = (
        "pass@1, or the fraction of exact matches for tasks without tests. Lost / won: problems that only the original / "
        "only this model passes."
    )
    size = f"Weights on disk: {quantity(report['models'][0]['bytes'], 'B')} → {quantity(row['bytes'], 'B')}."
    return [markup.table(columns, lines), markup.plain(note), *([size] if row["bytes"] else [])]


def _load(report: Json, name: str) -> list[str]:
    """Return a snippet that loads the model and the tokenizer, with the tokenizer class that passed the check."""
    tokenizer = report["provenance"]["tokenizers"].get(name)
    used = tokenizer or "AutoTokenizer"
    snippet = (
        f"from transformers import AutoModelForCausalLM, {used}\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("PATH")\ntokenizer = {used}.from_pretrained("PATH")\n'
        'inputs = tokenizer("def add(a, b):\\n", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"
    )
    said = "`flab check` found that this class splits text according to tokenizer.json."
    unsaid = "`flab check PATH` says whether another class is needed for the tokenizer."
    return [markup.fenced(snippet, "python"), markup.markdown(said if tokenizer else unsaid)]


def _limits(report: Json, row: Json) -> list[str]:
    """List what is known to be worse and what was not measured."""
    lines = [
        "It was evaluated only on the tasks above. It is most at risk on code unlike its calibration and training data."
    ]
    first = report["models"][0]["bits_per_byte"]
    if first is not None and row["bits_per_byte"] is not None:
        lines.append(f"Bits per byte of other code: {number(first, 4)} → {number(row['bits_per_byte'], 4)}.")
    for task in report["tasks"] or []:
        if any(one["name"] == row["name"] and judged(one["paired"]) == "worse" for one in task["models"]):
            lines.append(f"{task['name']}: significantly worse than the original.")
    if report["robustness"] is None:
        lines.append("Robustness under perturbed prompts was not measured.")
    lines += [f"{one['task']} and {one['data']}: {one['warning']}." for one in report["overlaps"] or []]
    lines.append("The licence and the limits of the original also apply to this model.")
    return ["\n".join(f"- {markup.markdown(line)}" for line in lines)]


def _provenance(report: Json, name: str) -> list[str]:
    found = report["provenance"]
    digests = [[what, f"`{digest}`"] for what, digest in found["sha256"].items()]
    versions = ", ".join(f"{what} {version}" for what, version in found["versions"].items())
    return [markup.table(["of", "SHA-256"], digests, words=(0, 1)), markup.markdown(f"Versions: {versions}.")]
