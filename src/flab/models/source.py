"""A model's folder, opened once (:class:`ModelFolder`), and the early checks of its content.

Adapters, quantised weights, sizes that the weights do not have and exploding normalizers are found before anything is
loaded. Reads JSON and headers; no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flab.errors import CheckpointError, UnsupportedModelError
from flab.models.folder import (
    DTYPES,
    Stored,
    check_entries,
    check_no_gguf,
    header_of,
    read_object,
    resolve,
    weight_files,
)

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip
MOST_LABELS = 100_000  # transformers makes a table of them
SLACK = 1_000_000  # numbers that a config may ask for beyond twice the stored ones
QUANTISED = ("qweight", "qzeros", "weight_packed", "weight_scale", "weight_scale_inv", "absmax", "quant_state", "SCB")
MOST_GROWTH = 1000  # the factor by which a normalizer may lengthen a text


@dataclass(frozen=True)
class ModelFolder:
    """A folder with its checked config. The headers of the weights are read when first needed, once per file."""

    path: Path
    raw: dict[str, Any]  # config.json

    @classmethod
    def open(cls, source: ModelSource) -> ModelFolder:
        """Resolve a path or hub id and check its config. A folder that is already open is returned as it is.

        Raises:
            CheckpointError: there is no such folder or hub model, or :func:`check_source` raises it.
        """
        if isinstance(source, ModelFolder):
            return source
        path = resolve(source)
        return cls(path, check_source(path))

    @cached_property
    def files(self) -> list[Path]:
        """The safetensors files."""
        return weight_files(self.path)

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """The tensors by name, from the files' headers. Raises CheckpointError if a file is truncated or damaged."""
        return {name: tensor for file in self.files for name, tensor in header_of(file).items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over config, weights and tokenizer: two folders with the same one behave alike."""
        digest = hashlib.sha256()
        # A folder without a tokenizer has a fingerprint too; whoever needs the tokenizer says that there is none.
        files = [self.path / "config.json", *self.files, self.path / "tokenizer.json"]
        for file in filter(Path.is_file, files):
            digest.update(file.name.encode())
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()

    @property
    def size_bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def dtypes(self) -> set[str]:
        """The dtypes of all tensors, by safetensors' own names (``BF16``, ``F32``, ...)."""
        return {tensor.dtype for tensor in self.stored.values()}

    @property
    def stored_dtype(self) -> str:
        """The stored dtype of most of the weights, whatever the config says."""
        sizes = Counter[str]()
        for tensor in self.stored.values():
            sizes[tensor.dtype] += tensor.numel
        return DTYPES.get(sizes.most_common(1)[0][0], "float32")


ModelSource = str | os.PathLike[str] | ModelFolder


def check_source(path: Path) -> dict[str, Any]:
    """Return the raw config of a folder that holds a whole model of plain weights.

    Raises:
        CheckpointError: the folder holds an adapter, quantised weights, invalid sizes, sizes that the weights do not have,
            or a pipe.
    """
    check_entries(path)
    if (path / "adapter_config.json").exists() or (path / "adapter_model.safetensors").exists():
        raise CheckpointError(_adapter(path))
    check_no_gguf(path)
    raw = read_object(path / "config.json")
    _check_plain(path, raw)
    _check_sizes(path, raw)
    if (path / "generation_config.json").exists():
        read_object(path / "generation_config.json")
    return raw


def text_config(folder: ModelFolder) -> Mapping[str, Any]:
    """Return the raw config of the text model inside a multimodal one.

    Raises:
        UnsupportedModelError: the model is not multimodal.
    """
    text = folder.raw.get("text_config")
    if not isinstance(text, Mapping):
        raise UnsupportedModelError(
            f"{folder.path} is not multimodal (its config has no text_config): prune it as it is."
        )
    return text


def check_weights(folder: ModelFolder) -> None:
    """Compare the config with the headers of the weights, before anything is allocated.

    Raises:
        CheckpointError: the weights are quantised, or the config asks for far more than is stored.
    """
    path = folder.path
    # The names and dtypes of the tensors decide, because the config of a quantised model does not always say so.
    for name, tensor in folder.stored.items():
        last = name.rpartition(".")[2]
        if last in QUANTISED or (last in ("weight", "bias") and tensor.dtype not in DTYPES):
            raise CheckpointError(
                f"{path} holds quantised weights ({name} is {tensor.dtype}): give the unquantised model, in float32, bfloat16 "
                "or float16."
            )
    _check_asked(path, folder.raw, folder.stored)


def _adapter(path: Path) -> str:
    """Refuse an adapter, which transformers would load unasked, and say what to do."""
    try:
        base = read_object(path / "adapter_config.json").get("base_model_name_or_path")
    except CheckpointError:
        base = None
    of = f" of {base}" if isinstance(base, str) and base else ""
    if (path / "config.json").exists():
        return (
            f"{path} holds an adapter{of} beside the model (adapter_config.json): merge it with peft's merge_and_unload, or "
            "move its files away."
        )
    return (
        f"{path} holds an adapter{of}, not a model: merge it into its base with peft's merge_and_unload, and give that."
    )


def _check_plain(path: Path, raw: Mapping[str, Any]) -> None:
    for name in ("quantization_config", "compression_config"):
        if raw.get(name) is None:
            continue
        method = raw[name].get("quant_method") if isinstance(raw[name], Mapping) else None
        kind = f" by {method}" if isinstance(method, str) else ""
        raise CheckpointError(f"{path} is quantised{kind} ({name} in its config): give the unquantised model.")


def _check_sizes(path: Path, raw: Mapping[str, Any]) -> None:
    """Check that sizes are whole numbers above 0, and that a table of labels is not absurdly large."""
    for name in SIZES:
        value = raw.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise CheckpointError(f"{path}/config.json: {name} is {value!r:.40}, expected a whole number above 0.")
    labels = raw.get("num_labels", 0)
    table = raw.get("id2label")
    count = max(labels if isinstance(labels, int) else 0, len(table) if isinstance(table, Mapping) else 0)
    if count > MOST_LABELS:
        raise CheckpointError(
            f"{path}/config.json: num_labels is {count}, but flab reads at most {MOST_LABELS}: remove it, "
            "because a code model has no labels."
        )


def _check_asked(path: Path, raw: Mapping[str, Any], stored: Mapping[str, Stored]) -> None:
    """Check that a config asks for at most twice the stored numbers. More could use up all memory, or never end."""
    given = {name: raw.get(name) for name in SIZES}
    width = int(given["hidden_size"] or 0)
    ffn = int(given["intermediate_size"] or 0)
    layers = int(given["num_hidden_layers"] or 0)
    vocabulary = int(given["vocab_size"] or 0)
    heads = int(given["num_attention_heads"] or 1)
    head = int(given["head_dim"] or width // heads)
    keys = int(given["num_key_value_heads"] or heads)
    # An estimate tells a damaged config from a real one: embedding, FFN, and the four projections of attention.
    asked = vocabulary * width + layers * (2 * width * ffn + 2 * width * head * (heads + keys))
    there = sum(tensor.numel for tensor in stored.values())
    if asked > 2 * there + SLACK:
        sizes = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        raise CheckpointError(
            f"{path}/config.json asks for about {asked:.3g} parameters ({sizes}), the weights hold {there:.3g}: the two do not "
            "belong together. Fetch the model again."
        )


def check_tokenizer(path: Path) -> None:
    """Check the tokenizer.json of a model's folder, as far as that is possible without the tokenizers library.

    Raises:
        CheckpointError: there is none, it is not a tokenizer, or its normalizer or decoder lengthens texts without bound.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{path} has no tokenizer.json: save the tokenizer once with transformers to get one.")
    data = read_object(file)
    if not isinstance(data.get("model"), Mapping):
        raise CheckpointError(f"{file} is damaged (it has no model of a tokenizer). Fetch it again.")
    for name in ("normalizer", "decoder"):
        # The growth of successive steps multiplies: a few replacements can turn one character into gigabytes.
        growth = 1.0
        for step in _steps(data[name]) if isinstance(data.get(name), Mapping) else ():
            growth *= _growth(step)
        if growth > MOST_GROWTH:
            raise CheckpointError(
                f"{file}: its {name} makes a text up to {growth:.3g} times as long, which no tokenizer needs. Fetch it again."
            )


def _steps(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer or decoder, including those of nested sequences."""
    inner = part.get("normalizers") or part.get("decoders")
    return [step for one in inner for step in _steps(one)] if isinstance(inner, list) else [part]


def _growth(step: Mapping[str, Any]) -> float:
    """Return the factor by which one step can lengthen a text of at least one character."""
    if step.get("type") == "Prepend":
        return 1.0 + len(step.get("prepend") or "")
    if step.get("type") != "Replace":
        return 1.0
    pattern = step.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, Mapping) else None
    return max(1.0, len(step.get("content") or "") / max(1, len(literal or "")))
