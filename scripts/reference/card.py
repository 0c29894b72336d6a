"""The model card: what the reference model is, how it was made, and what it scores."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors import safe_open

DATA = ("problems", "cot_test", "output_test", "calibration", "recovery")
SCORES = {
    "problems": "code generation, pass@1 (200 problems)",
    "cot_test": "chain of thought, exact match (100)",
    "output_test": "output prediction, exact match (200)",
}
TEXT = """\
---
library_name: transformers
license: apache-2.0
tags: [code, python, tiny]
---

# flab reference model

A Qwen2 of {parameters:,} parameters ({embeddings:.1%} of them embeddings) that writes, explains and runs small
Python functions. It exists so that pruning can be tried, tested and measured offline in minutes; it is no use
for anything else. It was trained from nothing by the one command

    python scripts/train_reference.py

on the CPU, on text made by the grammar in `scripts/reference` and on the Python standard library. {unused:.0%} of its
vocabulary is never used by Python code, on purpose: real tokenizers carry such entries too.

The test compositions of operations ({tests} of {compositions}) occur nowhere in the training, calibration or
recovery data; neither do the modules of `flab.assets.held_out_stdlib()`.

## Scores

Greedy, on compositions that were never trained on; `python scripts/measure_reference.py` repeats them.

| test | score |
|---|---|
{scores}

## Training

| | |
|---|---|
{training}

{note}

## Files

| file | sha256 |
|---|---|
{files}
"""


def sha256(path: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(folder: Path, assets: Path, facts: dict[str, Any], scores: dict[str, float]) -> None:
    """Writes README.md beside the model. `facts` holds the figures of the run; the rest is read from the files."""
    names = [folder / name for name in ("model.safetensors", "tokenizer.json")]
    names += [assets / f"{name}.jsonl" for name in DATA]
    training = {
        **facts.pop("training"),
        "machine": f"{torch.get_num_threads()} CPU cores, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}",
    }
    parameters, embeddings = sizes(folder / "model.safetensors")
    text = TEXT.format(
        **facts,
        parameters=parameters,
        embeddings=embeddings / parameters,
        scores="\n".join(f"| {SCORES[name]} | {value:.3f} |" for name, value in scores.items()),
        training="\n".join(f"| {name} | {value} |" for name, value in training.items()),
        files="\n".join(f"| `{path.name}` | `{sha256(path)}` |" for path in names),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def sizes(path: Path) -> tuple[int, int]:
    """All parameters of a saved model, and those of its embeddings."""
    with safe_open(path, "pt") as file:
        counts = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
    return sum(counts.values()), counts["model.embed_tokens.weight"]


def last_losses(checkpoint: Path, count: int = 10) -> float:
    """The mean of the last logged training losses."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    return sum(losses[-count:]) / len(losses[-count:])
