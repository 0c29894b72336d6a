"""An architecture in llama.cpp's terms: its name, its settings, and the names of its tensors. No torch.

A tensor keeps its numbers. Only llama's query and key rows are reordered, because transformers rotates a head's first half
with its second half, and llama.cpp's llama rotates neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from flab.errors import UnsupportedModelError
from flab.models.shape import BLOCK, LARGE_BLOCK

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "starcoder2": "starcoder2"}
ACTIVATIONS = {"starcoder2": ("gelu", "gelu_pytorch_tanh", "gelu_new")}
SILU = ("silu", "swish")
# The block of each quantised type, and how the matrix that makes the logits is stored beside it: an error there reaches the
# answer directly. llama-quantize does the same, but takes Q6_K for q4_0 too where rows are a multiple of 256; the ``gguf``
# package cannot write that.
QUANTISED = {"q8_0": (BLOCK, "q8_0"), "q4_0": (BLOCK, "q8_0"), "q4_k": (LARGE_BLOCK, "q6_k")}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def architecture_of(config: Any) -> str:
    """Return llama.cpp's name of the architecture.

    Raises:
        UnsupportedModelError: llama.cpp has none that computes the same.
    """
    name = ARCHITECTURES.get(config.model_type)
    if name is None:
        raise UnsupportedModelError(
            f"model_type {config.model_type!r} cannot be written as GGUF yet: flab writes {', '.join(ARCHITECTURES)}."
        )
    allowed = ACTIVATIONS.get(config.model_type, SILU)
    if config.hidden_act not in allowed:
        raise UnsupportedModelError(
            f"hidden_act {config.hidden_act!r}: llama.cpp computes {config.model_type} with {allowed[0]} alone."
        )
    return name


def tensor_name(name: str) -> str:
    """Return a tensor's name in GGUF, from its name in transformers.

    Raises:
        UnsupportedModelError: llama.cpp has no place for the tensor.
    """
    module, _, kind = name.rpartition(".")
    layer = ""
    if module.startswith("model.layers."):
        _, _, number, module = module.split(".", 3)
        layer = f"blk.{number}."
    if module not in _NAMES or kind not in ("weight", "bias"):
        raise UnsupportedModelError(f"the tensor {name} has no place in GGUF: flab cannot write this model.")
    return f"{layer}{_NAMES[module]}.{kind}"


def written_names(names: Iterable[str], config: Any) -> list[str]:
    """Return the tensors that a GGUF file holds: all but a tied head, which llama.cpp takes from the embedding."""
    return [name for name in names if not (name == "lm_head.weight" and _tied(config))]


def stored_as(kind: str, name: str, shape: tuple[int, ...], config: Any) -> tuple[str, str]:
    """Return how a tensor is stored in a file of this type, and how it would be stored if its rows were whole blocks.

    Vectors are F32. A matrix whose rows are not a whole number of blocks falls back to F16, or to Q5_0 if ``kind`` has blocks of
    256 and rows are a multiple of 32; of these types the matrix that makes the logits takes Q8_0 instead.
    """
    if len(shape) < 2:
        return "f32", "f32"
    if kind not in QUANTISED:
        return kind, kind
    block, kind_of_head = QUANTISED[kind]
    head = name == ("model.embed_tokens.weight" if _tied(config) else "lm_head.weight")
    whole = kind_of_head if head else kind
    if shape[-1] % block == 0:
        return whole, whole
    if shape[-1] % BLOCK:
        return "f16", whole
    return "q8_0" if head else "q5_0", whole


def _tied(config: Any) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def heads_to_rotate(name: str, config: Any) -> int | None:
    """Return the number of heads whose rows must be reordered in this tensor for llama.cpp, or None if none must be."""
    if ARCHITECTURES[config.model_type] != "llama":
        return None
    module = name.rpartition(".")[0]
    if module.endswith("q_proj"):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if module.endswith("k_proj") else None


def settings_of(config: Any) -> dict[str, int | float | str]:
    """Return the settings of the architecture, by GGUF key without the architecture's name."""
    head = head_size(config)
    rope = rope_of(config)
    made: dict[str, int | float | str] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
    }
    if config.model_type == "starcoder2":
        made["attention.layer_norm_epsilon"] = float(config.norm_epsilon)
    else:
        made["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    return made | _scaling(rope, config)


def head_size(config: Any) -> int:
    """Return the size of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_of(config: Any) -> dict[str, Any]:
    """Return the settings of the rotary embedding, wherever this version of the config keeps them."""
    rope = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    rope.setdefault("rope_theta", getattr(config, "rope_theta", None) or 10000.0)
    rope.setdefault("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("flab cannot write a partial rotary embedding as GGUF yet.")
    return rope


def _scaling(rope: Mapping[str, Any], config: Any) -> dict[str, int | float | str]:
    kind = rope["rope_type"]
    if kind in ("default", "llama3"):  # llama3 is a tensor of factors, see rope_factors
        return {}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": int(original),
        }
    raise UnsupportedModelError(f"rope_type {kind!r} is not known to llama.cpp: default, linear, yarn and llama3 are.")


def rope_factors(config: Any) -> list[float] | None:
    """Return Llama 3's divisor of each rotary frequency, which GGUF keeps as a tensor; None for other models.

    Long waves are stretched by ``factor``, short ones stay, and those between are interpolated.
    """
    rope = rope_of(config)
    if rope["rope_type"] != "llama3":
        return None
    head = head_size(config)
    base = float(rope["rope_theta"])
    factor = float(rope["factor"])
    low = float(rope["low_freq_factor"])
    high = float(rope["high_freq_factor"])
    context = float(rope["original_max_position_embeddings"])
    divisors = []
    for place in range(0, head, 2):
        # How often the wave turns within the original context.
        turns = context / (2 * math.pi * base ** (place / head))
        # 0 for waves that turn rarely within the original context (stretched), 1 for fast ones (kept), linear
        # in between.
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        divisors.append(1 / ((1 - share) / factor + share))
    return divisors


def window_warnings(config: Any) -> list[str]:
    """Return a warning if transformers attends to a window that llama.cpp does not know in this architecture."""
    kinds = getattr(config, "layer_types", None) or []
    used = config.model_type in ("mistral", "starcoder2") or "sliding_attention" in kinds
    window = getattr(config, "sliding_window", None)
    if not used or window is None or window >= config.max_position_embeddings:
        return []
    return [
        f"the model attends to the last {window} tokens only; llama.cpp attends to all of them, so prompts longer than that "
        "give other answers."
    ]
