"""Figures that follow from a model's sizes: parameters, bytes, cache and floating-point operations, which torch also counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flab.footprint.figures import Figure, by_formula
from flab.models.engines.protocol import Encoded
from flab.models.engines.transformers import Batch
from flab.models.families import Family, head_of, is_tied, kv_numbers, kv_width, layers_of
from flab.models.folder import headers
from flab.models.shape import Shape


def storage(folder: Path) -> Figure:
    """Return bytes of all tensors in the folder's safetensors files, from their headers."""
    total = sum(tensor.size_bytes for tensor in headers(folder).values())
    return Figure(total, "B", "measured: bytes of all tensors in the safetensors files")


def size_figures(model: Any, family: Family, shape: Shape, prompt: int) -> dict[str, Figure]:
    """Return parameters in parts, cache bytes for each token, operations of the prompt and of the token after it."""
    sizes = (shape.vocabulary, shape.layers, shape.width)
    body = shape.body(shape.layers, shape.width)
    attention = kv_numbers(model.config, shape.layers)
    seen = attended(model.config, shape.layers, prompt + 1)
    element = head_of(model, family).weight.element_size()
    left_out = "; without the recurrence of linear attention" if shape.is_hybrid else ""
    once = "embedding and head" if not is_tied(model, family) else "embedding, which is the head too"
    return {
        "parameters": by_formula(shape.total, "", "sum over the tensors, tied ones once"),
        "parameters_body": by_formula(body, "", "without embedding and head"),
        "parameters_embedding": by_formula(shape.total - body, "", once),
        "kv_bytes_per_token": by_formula(
            attention * element, "B", f"2 x layers x key-value heads x head size x {element} bytes"
        ),
        "flops_per_token": by_formula(
            shape.flops_per_token(*sizes) + 4 * seen * shape.attention,
            "FLOP",
            f"2 x weights in products + 4 x layers x context x attention width, context {prompt + 1} or the layer's window"
            + left_out,
        ),
        "flops_prefill": by_formula(
            shape.flops_of_prompt(*sizes, tokens=prompt),
            "FLOP",
            f"the same for {prompt} tokens, logits of the last{left_out}",
        ),
    }


def attended(config: Any, layers: int, context: int) -> int:
    """Return the number of tokens that one token sees, summed over the layers: the context, or a layer's sliding window."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    # Linear attention reads a state of fixed size instead of the tokens before it.
    seen = {"linear_attention": 0, "sliding_attention": min(context, window) if window else context}
    return sum(seen.get(kind, context) for kind in kinds)


def bytes_per_step(model: Any, family: Family, context: int) -> float:
    """Return the bytes that one decoded token reads at batch size 1: every weight in a product once, and the cache."""
    # An embedding that is not the head is looked up and not multiplied. Only one row is read, which is negligible.
    embedding = 0 if is_tied(model, family) else model.get_input_embeddings().weight.nbytes
    element = head_of(model, family).weight.element_size()
    layers = len(layers_of(model, family))
    cache = 2 * kv_width(model.config) * element * attended(model.config, layers, context)
    return float(sum(p.nbytes for p in model.parameters()) - embedding + cache)


def answer_flops(config: Any, shape: Shape, prompt: int, new: int) -> int:
    """Return operations of a whole answer: the prompt, then every token after the first, each with its own context."""
    sizes = (shape.vocabulary, shape.layers, shape.width)
    # The context grows by one token a step; a layer with a sliding window sees no more than its window.
    seen = sum(attended(config, shape.layers, prompt + step) for step in range(1, new))
    steps = (new - 1) * shape.flops_per_token(*sizes) + 4 * seen * shape.attention
    return shape.flops_of_prompt(*sizes, tokens=prompt) + steps


def count_flops(model: Any, prompt: int) -> dict[str, int]:
    """Return torch's count for a prompt and the next token, with eager attention, because it does not see fused kernels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # The counter sees products, not fused kernels, so attention and experts are made by plain products here.
    before = model.config._attn_implementation, model.config._experts_implementation
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    try:
        with torch.inference_mode():
            batch = Batch(model, [Encoded([0] * prompt, 2, (), 0)], pad_id=0)
            with FlopCounterMode(display=False) as first:
                logits_BV = batch.read_prompts()
            with FlopCounterMode(display=False) as second:
                batch.read_tokens(logits_BV.argmax(dim=-1), [0])
    finally:
        model.set_attn_implementation(before[0])
        model.set_experts_implementation(before[1])
    return {"flops_prefill": first.get_total_flops(), "flops_per_token": second.get_total_flops()}
