"""The origin of a model as the general keys of a GGUF file: its name, licence, base model and method. No torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from flab.files import is_legal, read_regular
from flab.version import __version__

# How the text of a licence begins, and the identifier that the hub and SPDX use.
LICENCES = (
    ("apache license", "apache-2.0"),
    ("apache-2.0", "apache-2.0"),
    ("mit license", "mit"),
    ("bigcode openrail-m", "bigcode-openrail-m"),
    ("deepseek license", "deepseek"),
)


def provenance_of(folder: Path) -> dict[str, Any]:
    """Return the general keys: ``general.name``, ``general.license``, the base model, and flab's own."""
    plan = _plan(folder)
    made: dict[str, Any] = {"general.name": folder.resolve().name, "general.type": "model", "flab.version": __version__}
    licence = licence_of(folder)
    if licence is not None:
        made["general.license"] = licence
    if plan is None:
        return made
    sizes = plan.get("cuts", plan)  # a plan of format 1 holds them at the top
    removed = 1 - plan["parameters_after"] / plan["parameters_before"]
    made["general.base_model.count"] = 1
    made["general.base_model.0.name"] = Path(plan["model"]["path"]).name
    made["general.description"] = (
        f"Pruned by flab {plan['flab_version']}: {removed:.1%} of the parameters removed (vocabulary "
        f"{sizes['vocabulary']['after']} of {sizes['vocabulary']['before']}, layers {sizes['layers']['after']} of "
        f"{sizes['layers']['before']}, width {sizes['width']['after']} of {sizes['width']['before']})."
    )
    made["flab.removed_fraction"] = float(removed)
    made["flab.base_model.sha256"] = str(plan["model"]["sha256"])
    made["flab.plan.sha256"] = hashlib.sha256((folder / "plan.json").read_bytes()).hexdigest()
    return made


def recorded_pre_tokenizer(folder: Path) -> str | None:
    """Return llama.cpp's name of the original's pre-tokenizer, as the plan recorded it."""
    plan = _plan(folder) or {}
    name = (plan.get("model") or {}).get("pre_tokenizer")
    return name if isinstance(name, str) else None


def licence_of(folder: Path) -> str | None:
    """Return the licence's identifier: from the model card, or by how the text of the licence begins."""
    card = folder / "README.md"
    if card.is_file():
        parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
        if len(parts) == 3 and not parts[0].strip():
            try:
                named = (yaml.safe_load(parts[1]) or {}).get("license")
            except (yaml.YAMLError, AttributeError):
                named = None
            if isinstance(named, str):
                return named
    for file in sorted(file for file in folder.iterdir() if is_legal(file.name) and file.is_file()):
        start = " ".join(file.read_text(encoding="utf-8", errors="replace")[:400].lower().split())
        for words, name in LICENCES:
            if words in start:
                return name
    return None


def _plan(folder: Path) -> dict[str, Any] | None:
    """Return the plan in the folder, if there is one."""
    file = folder / "plan.json"
    if not file.is_file():
        return None
    plan = json.loads(read_regular(file))
    return plan if isinstance(plan, dict) else None
