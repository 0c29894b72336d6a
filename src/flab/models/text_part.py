"""The text model inside a multimodal one, written as a separate folder. Tensors are copied file by file; no model is built.

Checkpoints name the text model's tensors ``language_model.*``, or ``model.language_model.*`` with the head beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import safe_open, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from flab.errors import CheckpointError
from flab.files import check_folder, check_space, new_folder
from flab.models.families import family_of
from flab.models.folder import INDEX, WHOLE, Stored, header_of
from flab.models.source import ModelFolder, ModelSource, check_weights, text_config
from flab.models.stock import copy_sidecars, rewrite_config
from flab.models.tokenizer import first_line, quiet

HEAD = "lm_head."
INNER = "model.language_model."
OUTER = "language_model."
# Entries that some models have only in the outer config.
SHARED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class TextPart:
    """What was written, and which parts of the model were left out."""

    folder: Path
    model_type: str
    parameters: int
    left_out: dict[str, int]  # parameters by the first parts of their names


def text_name(name: str) -> str | None:
    """Return the name of a tensor in the text model, or None if it belongs to another part."""
    if name.startswith(INNER):
        return "model." + name.removeprefix(INNER)
    if name.startswith(OUTER):
        return name.removeprefix(OUTER)
    return name if name.startswith(HEAD) else None


def write_text_part(source: ModelSource, out: Path) -> TextPart:
    """Write the text model of a multimodal one at ``out``, with its tokenizer, template and licence.

    Raises:
        UnsupportedModelError: the model is not multimodal, or the family of its text model is not supported.
        CheckpointError: tensors of the text model are missing, or there are too many.
        OptionError: ``out`` exists, or cannot be written.
    """
    opened = ModelFolder.open(source)
    check_folder(out, None, [opened.path])
    check_weights(opened)
    config = _text_config(opened)
    kept = {name: new for name in opened.stored if (new := text_name(name)) is not None}
    stored = {new: opened.stored[name] for name, new in kept.items()}
    config.tie_word_embeddings = HEAD + "weight" not in stored
    _check_complete(opened.path, config, stored)
    check_space(out, opened.size_bytes)
    with new_folder(out) as folder:
        _copy_tensors(opened, kept, folder)
        with quiet():
            config.save_pretrained(folder)
        rewrite_config(folder, config.tie_word_embeddings)
        copy_sidecars(opened.path, folder, renumbered=False)
        generation = opened.path / "generation_config.json"
        if generation.is_file():
            (folder / generation.name).write_bytes(generation.read_bytes())
    others = Counter[str]()
    for name, tensor in opened.stored.items():
        if name not in kept:
            others[".".join(name.split(".")[: 2 if name.startswith("model.") else 1])] += tensor.numel
    return TextPart(out, config.model_type, sum(tensor.numel for tensor in stored.values()), dict(others))


def _text_config(opened: ModelFolder) -> Any:
    """Return the config of the text model, with the entries that only the outer config has."""
    raw = text_config(opened)
    if "auto_map" in opened.raw or "auto_map" in raw:
        raise CheckpointError(
            f"{opened.path} asks to run its own code (auto_map): give a model that transformers knows."
        )
    try:
        config = AutoConfig.from_pretrained(opened.path).get_text_config()
    except Exception as error:
        raise CheckpointError(
            f"{opened.path}/config.json is not a config that transformers knows: {first_line(error)}"
        ) from None
    family_of(config)
    for name in SHARED:
        value = opened.raw.get(name)
        if value is not None and raw.get(name) is None:
            setattr(config, name.removeprefix("torch_"), value)
    # On the meta device a model has shapes but no memory, so this costs nothing for a model of any size.
    with torch.device("meta"):
        config.architectures = [type(AutoModelForCausalLM.from_config(config)).__name__]
    return config


def _check_complete(path: Path, config: Any, stored: Mapping[str, Stored]) -> None:
    """Raise CheckpointError if these are not the tensors of the text model, by name and shape."""
    with torch.device("meta"), quiet():
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop(HEAD + "weight")
    found = {name: tensor.shape for name, tensor in stored.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        names = ", ".join(wrong[:3]) + (", …" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors of the text model are missing, unknown or of another shape ({names}). Fetch it again."
        )


def _copy_tensors(opened: ModelFolder, kept: Mapping[str, str], folder: Path) -> None:
    """Copy the tensors under their new names, into one file for each source file that holds any."""
    files = [file for file in opened.files if not kept.keys().isdisjoint(header_of(file))]
    where: dict[str, str] = {}
    total = 0
    for number, file in enumerate(files, 1):
        name = WHOLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        # One file at a time, tensor by tensor, so the peak is the largest file and not the model.
        with safe_open(file, "pt") as reader:
            tensors = {kept[key]: reader.get_tensor(key) for key in reader.keys() if key in kept}  # noqa: SIM118
        save_file(tensors, folder / name, {"format": "pt"})
        (folder / name).chmod(0o644)
        where |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
