"""Which programs can load a folder as it is, and which formats quantise it whole: by its sizes alone, nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flab.models.folder import Stored
from flab.models.gguf.architectures import ARCHITECTURES
from flab.models.shape import BLOCK, LARGE_BLOCK

PERIODIC = "counts on a repeating pattern of layers: keep all layers for it"
TENSOR_PARALLEL = (1, 2, 4, 8, 16)
F16_BITS = 16.0
Q5_0_BITS = 5.5
# Bits per weight and the block of each format. llama.cpp stores a matrix whose rows are no whole number of blocks in the
# format that it falls back to: F16, or for the k-quants Q5_0 where blocks of 32 fit.
FORMATS = {"q8_0": (8.5, BLOCK), "q4_0": (4.5, BLOCK), "q4_k": (4.5, LARGE_BLOCK)}


def loads_in(
    config: Any,
    loaded: bool,
    warnings: list[str],
    renumbered: bool,
    stored: Mapping[str, Stored],
    original: tuple[Any, Mapping[str, Stored]] | None = None,
    broken_pattern: bool = False,
) -> dict[str, Any]:
    """Return which programs take the folder as it is, and what each needs.

    ``stored`` are its tensors by name; ``original`` is the config and the tensors of the model it was made from.
    ``broken_pattern`` is whether layers are gone from a pattern that repeats.
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
        "quantised": {name: quantised(name, stored, original[1] if original else None) for name in FORMATS},
    }


def ffn_width(config: Any) -> int:
    """Return the neurons of one FFN, in a mixture of experts of one expert."""
    return int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)


def tensor_parallel_sizes(config: Any) -> list[int]:
    """On how many devices vLLM can share the model evenly, of 1, 2, 4, 8 and 16."""
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads
    width = ffn_width(config)
    # vLLM gives each device the same number of query heads and neurons. Key-value heads are shared out, or
    # repeated where there are fewer of them than devices.
    return [
        t for t in TENSOR_PARALLEL if heads % t == 0 and width % t == 0 and (kv_heads % t == 0 or t % kv_heads == 0)
    ]


def quantised(name: str, stored: Mapping[str, Stored], original: Mapping[str, Stored] | None = None) -> dict[str, Any]:
    """Return how many matrices the format cannot take, how many bytes that costs, and the same of the original.

    ``more_bytes`` is relative to all matrices in the format. ``bytes_ratio`` is the pruned model's bytes over the original's
    in this format; ``parameters_ratio`` is what it would be if both were quantised whole.
    """
    found = _fallbacks(name, stored)
    if original is None:
        return found
    before = _fallbacks(name, original)
    counts = [sum(tensor.numel for tensor in tensors.values()) for tensors in (stored, original)]
    return found | {
        "original": before,
        "bytes_ratio": found["bytes"] / before["bytes"],
        "parameters_ratio": counts[0] / counts[1],
    }


def _fallbacks(name: str, stored: Mapping[str, Stored]) -> dict[str, Any]:
    bits, block = FORMATS[name]
    # Only matrices are quantised; norms and biases stay in float32 and are too small to count here.
    matrices = [tensor for tensor in stored.values() if len(tensor.shape) == 2]
    odd = [tensor for tensor in matrices if tensor.shape[1] % block]
    lost = sum(tensor.numel * (_fallback_bits(tensor.shape[1], block) - bits) for tensor in odd) / 8
    whole = sum(tensor.numel for tensor in matrices) * bits / 8
    return {
        "block": block,
        "to": "F16" if block == BLOCK else "Q5_0, or F16 if no multiple of 32",
        "falls_back": len(odd),
        "of": len(matrices),
        "bytes": round(whole + lost),
        "more_bytes": lost / whole if whole else 0.0,
    }


def _fallback_bits(row: int, block: int) -> float:
    return Q5_0_BITS if block == LARGE_BLOCK and row % BLOCK == 0 else F16_BITS


def _needs(config: Any, renumbered: bool, broken_pattern: bool) -> str:
    """Return what llama.cpp needs to take the folder."""
    if broken_pattern:
        return f"another cut: it {PERIODIC}"
    if renumbered:
        export = "flab export gguf, or " if getattr(config, "model_type", None) in ARCHITECTURES else ""
        return (
            f"{export}the base model's pre-tokenizer named when converting: the stock converter recognises BPE by a hash over "
            "ids, which are new"
        )
    return "nothing beyond what the original needs: the ids are its own"
