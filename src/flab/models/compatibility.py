"""Which programs can load a folder as it is, and which formats quantise all of it. Only sizes are read; nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flab.models.folder import Stored
from flab.models.gguf.architectures import ARCHITECTURES, QUANTISED, stored_as, written_names
from flab.models.shape import BLOCK, LARGE_BLOCK

PERIODIC = "counts on a repeating pattern of layers: keep all layers for it"
TENSOR_PARALLEL = (1, 2, 4, 8, 16)
# Bits per weight of each type in a GGUF file.
BITS = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5, "q6_k": 6.5625, "q5_0": 5.5, "q4_k": 4.5, "q4_0": 4.5}
# A model's config and its tensors by name.
Sizes = tuple[Any, Mapping[str, Stored]]


def loads_in(
    config: Any,
    loaded: bool,
    warnings: list[str],
    renumbered: bool,
    stored: Mapping[str, Stored],
    original: Sizes | None = None,
    broken_pattern: bool = False,
) -> dict[str, Any]:
    """Return which programs can load the folder as it is, and what each needs.

    ``stored`` are its tensors by name; ``original`` is the config and the tensors of the model it was made from.
    ``broken_pattern`` is whether layers were removed from a pattern that repeats.
    """
    rows = {"hidden_size": config.hidden_size, "intermediate_size": ffn_width(config)}
    odd = [f"{name} {size}" for name, size in rows.items() if size % LARGE_BLOCK]
    return {
        "transformers": {
            "ok": loaded,
            "how": "AutoModelForCausalLM.from_pretrained, verified here",
            "tokenizer": "AutoTokenizer" if not warnings else "PreTrainedTokenizerFast",
        },
        "vllm": {
            "tensor_parallel_sizes": tensor_parallel_sizes(config),
            "of_the_original": tensor_parallel_sizes(original[0]) if original else None,
            "how": "by its divisibility rules, not run",
        },
        "llama.cpp": {"needs": _needs(config, renumbered, broken_pattern), "how": "by its converter's rules, not run"},
        "k-quants": {
            "ok": not odd,
            "why": f"row lengths not a multiple of 256: {', '.join(odd)}"
            if odd
            else "all row lengths are multiples of 256",
        },
        "quantised": {name: quantised(name, (config, stored), original) for name in QUANTISED},
    }


def ffn_width(config: Any) -> int:
    """Return the neurons of one FFN, or in a mixture of experts those of one expert."""
    return int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)


def tensor_parallel_sizes(config: Any) -> list[int]:
    """Return over which of 1, 2, 4, 8 and 16 devices vLLM can divide the model evenly."""
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads
    width = ffn_width(config)
    # vLLM gives each device the same number of query heads and neurons. It distributes key-value heads, or repeats them if
    # there are fewer than devices.
    return [
        t for t in TENSOR_PARALLEL if heads % t == 0 and width % t == 0 and (kv_heads % t == 0 or t % kv_heads == 0)
    ]


def quantised(kind: str, model: Sizes, original: Sizes | None = None) -> dict[str, Any]:
    """Return how many matrices a GGUF type cannot take, the bytes of all tensors, and the same of the original.

    ``more_bytes`` is the cost of the fallbacks, relative to a file without any. ``bytes_ratio`` is the pruned model's bytes
    over the original's in this type, and ``parameters_ratio`` the same for the parameters. The settings and the vocabulary
    in the file are not counted.
    """
    found = _fallbacks(kind, *model)
    if original is None:
        return found
    before = _fallbacks(kind, *original)
    # Tensors as the file holds them: a tied head is not written a second time, so it is not counted twice.
    counts = [sum(stored[name].numel for name in written_names(stored, config)) for config, stored in (model, original)]
    return found | {
        "original": before,
        "bytes_ratio": found["bytes"] / before["bytes"],
        "parameters_ratio": counts[0] / counts[1],
    }


def _fallbacks(kind: str, config: Any, stored: Mapping[str, Stored]) -> dict[str, Any]:
    block, _ = QUANTISED[kind]
    tensors = {name: stored[name] for name in written_names(stored, config)}
    kinds = {name: stored_as(kind, name, tensor.shape, config) for name, tensor in tensors.items()}
    # Bytes as the tensors are stored, and as they would be if every row length suited the format.
    found, whole = (sum(tensors[name].numel * BITS[both[side]] for name, both in kinds.items()) / 8 for side in (0, 1))
    return {
        "block": block,
        "to": "F16" if block == BLOCK else "Q5_0, or F16 if no multiple of 32",
        "falls_back": sum(got != wanted for got, wanted in kinds.values()),
        "of": sum(len(tensor.shape) > 1 for tensor in tensors.values()),
        "bytes": round(found),
        "more_bytes": found / whole - 1 if whole else 0.0,
    }


def _needs(config: Any, renumbered: bool, broken_pattern: bool) -> str:
    """Return what llama.cpp needs to load the folder."""
    if broken_pattern:
        return f"another cut: it {PERIODIC}"
    if renumbered:
        export = "flab export gguf, or " if getattr(config, "model_type", None) in ARCHITECTURES else ""
        return (
            f"{export}the base model's pre-tokenizer named when converting: the stock converter recognises BPE by a hash over "
            "ids, which are new"
        )
    return "nothing beyond what the original needs: the ids are its own"
