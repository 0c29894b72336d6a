"""Write a model's folder as one GGUF file: settings, vocabulary, the model's origin, then one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open

from flab.errors import OptionError
from flab.files import is_legal, new_file, read_regular
from flab.models.chat import template_of
from flab.models.checkpoint import read_config
from flab.models.folder import headers, weight_files
from flab.models.gguf.architectures import (
    architecture_of,
    heads_to_rotate,
    rope_factors,
    settings_of,
    stored_as,
    tensor_name,
    window_warnings,
    written_names,
)
from flab.models.gguf.vocabulary import Vocabulary, read_vocabulary
from flab.version import __version__

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
MOST_F16 = 65504.0


@dataclass
class Written:
    """The written file, its vocabulary, and the warnings for the user."""

    path: Path
    type: str
    architecture: str
    vocabulary: Vocabulary
    context: int
    tensors: int = 0
    fallbacks: list[str] = field(default_factory=list)  # matrices kept in F16, because their rows are no whole blocks
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``flab export --json``."""
        return {
            "output": str(self.path),
            "type": self.type,
            "architecture": self.architecture,
            "bytes": self.path.stat().st_size,
            "tensors": self.tensors,
            "fallbacks": self.fallbacks,
            "tokenizer": self.vocabulary.model,
            "pre_tokenizer": self.vocabulary.pre,
            "tokens": len(self.vocabulary.tokens),
            "context": self.context,
            "warnings": self.warnings,
        }


def gguf_library() -> Any:
    """Return the ``gguf`` package.

    Raises:
        OptionError: it is not installed; says how to install it.
    """
    try:
        import gguf
    except ImportError:
        raise OptionError(
            "writing GGUF needs the gguf package: install it with pip install 'flab-pruner[gguf]'."
        ) from None
    return gguf


def write_gguf(folder: Path, output: Path, kind: str = "f16", pre: str | None = None) -> Written:
    """Write the model in ``folder`` to ``output``. The file appears whole or not at all.

    ``kind`` is how matrices are stored, one of :data:`TYPES`; vectors are always F32. ``pre`` is llama.cpp's name of the
    pre-tokenizer, if flab does not know it.

    Raises:
        OptionError: ``kind`` or ``pre`` is missing or unknown, or a weight does not fit into F16.
        UnsupportedModelError: an architecture or a tokenizer that flab does not write.
    """
    if kind not in TYPES:
        raise OptionError(f"`kind`: got {kind!r}, allowed {', '.join(TYPES)}.")
    gguf = gguf_library()
    config = read_config(folder)
    architecture = architecture_of(config)
    settings = settings_of(config)
    vocabulary = read_vocabulary(folder, config.vocab_size, pre, recorded_pre_tokenizer(folder))
    warnings = vocabulary.warnings + window_warnings(config)
    written = Written(output, kind, architecture, vocabulary, config.max_position_embeddings, warnings=warnings)
    with new_file(output) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            for name, value in settings.items():
                _add(writer, f"{architecture}.{name}", value)
            for name, value in provenance_of(folder).items():
                _add(writer, name, value)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            file_type = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"
            writer.add_file_type(int(getattr(gguf.LlamaFileType, file_type)))
            _add_vocabulary(writer, vocabulary)
            template = template_of(folder)
            if template is not None:
                writer.add_chat_template(template)
            _write_tensors(gguf, writer, folder, config, written)
        finally:
            writer.close()
    return written


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a value by its type; whole numbers are 32 bits wide."""
    # By the exact type, since True is an int to isinstance.
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds[type(value)](key, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    keys = {"unk": "unknown", "pad": "padding"}
    for role, index in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{keys.get(role, role)}_token_id", index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)


def _write_tensors(gguf: Any, writer: Any, folder: Path, config: Any, written: Written) -> None:
    """Write the table of tensors, then their numbers in the same order, without a tied head, as llama.cpp expects."""
    # GGUF needs every shape and type before the first number. The headers are read first, then the weights one at a time.
    stored = headers(folder)
    names = written_names(stored, config)
    kinds = {name: stored_as(written.type, name, stored[name].shape, config) for name in names}
    written.fallbacks = [name for name, (kind, whole) in kinds.items() if kind != whole]
    types = {name: gguf.GGMLQuantizationType[kind.upper()] for name, (kind, _) in kinds.items()}
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", [len(factors)], np.dtype(np.float32), len(factors) * 4)
    for name in names:
        shape = stored[name].shape
        dtype = types[name]
        bytes_shape = gguf.quant_shape_to_byte_shape(shape, dtype)
        size = int(np.prod(bytes_shape))
        plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}.get(dtype)
        if plain is not None:
            writer.add_tensor_info(tensor_name(name), shape, np.dtype(plain), size)
        else:
            writer.add_tensor_info(tensor_name(name), bytes_shape, np.dtype(np.uint8), size, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(np.array(factors, dtype=np.float32))
    for name, tensor in _tensors(folder, names):
        heads = heads_to_rotate(name, config)
        numbers = tensor if heads is None else _rotated(tensor, heads)
        if types[name] == gguf.GGMLQuantizationType.F16 and float(numbers.abs().max()) > MOST_F16:
            raise OptionError(f"{name} holds numbers beyond what F16 can hold ({MOST_F16:g}): use `kind` bf16.")
        writer.write_tensor_data(gguf.quantize(numbers.float().numpy(), types[name]))
    written.tensors = len(names)


def _tensors(folder: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors of a folder, one at a time, in this order."""
    place = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            place.update(dict.fromkeys(opened.keys(), file))
    for name in names:
        with safe_open(place[name], framework="pt") as opened:
            yield name, opened.get_tensor(name)


def _rotated(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows (H * S, ...) of H heads with the halves of each head interleaved: first, S/2 + first, second, ..."""
    size = rows.shape[0] // heads
    halves = rows.reshape(heads, 2, size // 2, *rows.shape[1:])
    # (heads, 2, S/2) becomes (heads, S/2, 2): row i of the first half is followed by row i of the second.
    return halves.transpose(1, 2).reshape(rows.shape)


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
