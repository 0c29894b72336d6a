"""Where each architecture keeps its layers, FFN and embeddings: one row of data per family.

All families here are sequential decoders: ``h += attention(h)``, then ``h += ffn(h)``, each with a norm before it, after it,
or both. Any other model is refused, and the message says what is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flab.errors import UnsupportedModelError
from flab.models.shape import Shape

if TYPE_CHECKING:  # the table below is read before torch is loaded
    import torch
    from torch import nn


@dataclass(frozen=True)
class Family:
    """Paths of the parts inside a transformers model. The first four start at the model, the others at a layer.

    An empty path means that the family has no such part.
    """

    model_type: str
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    head: str = "lm_head"
    final_norm: str = "model.norm"
    input_norm: str = "input_layernorm"
    attention: str = "self_attn"
    attention_out: str = "self_attn.o_proj"
    linear_attention: str = ""  # what some layers of a hybrid have instead of the attention
    linear_attention_out: str = ""
    ffn_norm: str = "post_attention_layernorm"
    ffn: str = "mlp"
    ffn_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    ffn_out: str = "mlp.down_proj"
    fused: bool = False  # ffn_in is one matrix: the gate's rows, then the rows that the gate multiplies
    activation: str = "act_fn"  # the FFN's attribute
    experts: str = ""  # the FFN's attributes in a mixture of experts, which has no ffn_in and ffn_out
    router: str = "gate"
    width_entry: str = "intermediate_size"  # the config entry of the FFN's width, or of one expert's
    attention_norm_after: str = ""  # between the attention's output projection and the stream
    ffn_norm_after: str = ""
    residual_factor: str = ""  # the layer's attribute by which both are multiplied before they join the stream
    layer_lists: tuple[str, ...] = ("layer_types",)  # config entries with one item per layer
    depth_limits: tuple[str, ...] = ()  # config entries that may not exceed the number of layers
    periodic: bool = False  # its kinds of layers repeat, and llama.cpp counts on it
    since: str = "4.57"  # the oldest transformers that its folders are tested with

    @property
    def fitted(self) -> tuple[str, ...]:
        """The tensors that a cut and its refit may change in a kept layer."""
        ffn = (
            (f"{self.ffn}.{self.experts}", f"{self.ffn}.{self.router}")
            if self.experts
            else (*self.ffn_in, self.ffn_out)
        )
        return (*ffn, *filter(None, (self.attention_out, self.linear_attention_out)))


# Fields that several families share, so that each row below holds only what is special to it.
_QWEN_LIMITS = ("max_window_layers",)
_FUSED: dict[str, Any] = {"ffn_in": ("mlp.gate_up_proj",), "fused": True, "activation": "activation_fn"}
_AFTER = {"attention_norm_after": "post_attention_layernorm", "ffn_norm_after": "post_feedforward_layernorm"}
_NORMS_AFTER: dict[str, Any] = {**_AFTER, "input_norm": "", "ffn_norm": ""}
_MIXTURE: dict[str, Any] = {"ffn_in": (), "ffn_out": "", "experts": "experts", "width_entry": "moe_intermediate_size"}
_NORMS_AROUND: dict[str, Any] = {**_AFTER, "ffn_norm": "pre_feedforward_layernorm"}
FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama"),
        Family("mistral"),
        Family("qwen2", depth_limits=_QWEN_LIMITS),
        Family("qwen3", depth_limits=_QWEN_LIMITS),
        Family(
            "qwen3_5_text",
            linear_attention="linear_attn",
            linear_attention_out="linear_attn.out_proj",
            since="5",
        ),
        Family("qwen3_moe", **_MIXTURE, depth_limits=_QWEN_LIMITS),
        Family("qwen2_moe", **_MIXTURE, depth_limits=_QWEN_LIMITS),
        Family("mixtral", **_MIXTURE | {"width_entry": "intermediate_size"}),
        Family("seed_oss"),
        Family("ministral3", since="5"),
        Family("iquestcoder", since="5"),
        Family("smollm3", layer_lists=("layer_types", "no_rope_layers"), periodic=True),
        Family("hunyuan_v1_dense"),
        Family("ernie4_5"),
        Family("helium"),
        Family("gemma"),
        Family("granite", residual_factor="residual_multiplier"),
        Family("phi3", **_FUSED),
        Family("glm", **_FUSED),
        Family("glm4", **_FUSED, attention_norm_after="post_self_attn_layernorm", ffn_norm_after="post_mlp_layernorm"),
        Family("olmo2", **_NORMS_AFTER),
        Family("olmo3", **_NORMS_AFTER, periodic=True),
        Family("exaone4", **_NORMS_AFTER, periodic=True),
        Family("gemma2", **_NORMS_AROUND, periodic=True),
        Family("gemma3_text", **_NORMS_AROUND, periodic=True),
        Family("starcoder2", ffn_in=("mlp.c_fc",), ffn_out="mlp.c_proj", activation="act"),
    )
}

_EXPERTS = "a row and a contract test for its mixture of experts"
_DENSE_FIRST = "dense layers beside mixtures of experts, which differ in size"
_LINEAR = "linear-attention layers beside a mixture of experts"
_SIDE_BY_SIDE = "layers with attention and FFN side by side, h += attention(norm(h)) + ffn(norm(h))"
_TRANSPOSED = "transposed projections (Conv1D)"
_NESTED_MIXTURE = "multimodal models and mixtures of experts beside linear attention"
_NESTED = "multimodal models; flab text takes the text model out, which can be cut"
# What is missing for a model_type, if its config does not tell.
REFUSED = {
    "cohere": _SIDE_BY_SIDE,
    "cohere2": _SIDE_BY_SIDE,
    "codegen": _SIDE_BY_SIDE,
    "deepseek_v2": _DENSE_FIRST,
    "deepseek_v3": _DENSE_FIRST,
    "falcon": _SIDE_BY_SIDE,
    "gemma3": _NESTED,
    "gpt2": _TRANSPOSED,
    "gpt_bigcode": "sizes under config names of its own (n_inner)",
    "gpt_neox": _SIDE_BY_SIDE,
    "glm4_moe": _DENSE_FIRST,
    "glm4_moe_lite": _DENSE_FIRST,
    "gpt_oss": "experts with biases, whose gate and up rows alternate",
    "mistral3": _NESTED,
    "phi": _SIDE_BY_SIDE,
    "qwen3_5": _NESTED,
    "qwen3_5_moe": _NESTED_MIXTURE,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_next": _LINEAR,
}
# What is missing for a model whose config has such an entry.
_MISSING = {
    "num_experts": _EXPERTS,
    "num_local_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "linear_num_value_heads": "a row and a contract test for its linear-attention layers",
    "mamba_d_state": "state-space (mamba) layers",
    "is_encoder_decoder": "encoder-decoder models",
    "vision_config": "multimodal models (this text model included)",
}


def family_of(config: Any) -> Family:
    """Return the family row of a transformers config.

    Raises:
        UnsupportedModelError: names the architecture, what is missing for it, and what is supported.
    """
    family = FAMILIES.get(config.model_type)
    if family is not None:
        return family
    if text_type(config) in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {config.model_type!r} is multimodal: flab cuts its text model alone. Take that out with flab text MODEL "
            "-o TEXT, and cut the result."
        )
    reason = REFUSED.get(config.model_type) or next(
        (what for key, what in _MISSING.items() if getattr(config, key, None)), "a family row and its contract test"
    )
    raise UnsupportedModelError(
        f"model_type {config.model_type!r} cannot be cut: flab lacks {reason}. Supported: {', '.join(FAMILIES)}."
    )


def text_type(config: Any) -> str | None:
    """Return the model_type of the text model inside a multimodal model's config, raw or opened; None if there is none."""
    text = getattr(config, "text_config", None)
    return text.get("model_type") if isinstance(text, Mapping) else getattr(text, "model_type", None)


def layers_of(model: nn.Module, family: Family) -> nn.ModuleList:
    """Return the list of decoder layers."""
    layers: nn.ModuleList = model.get_submodule(family.layers)  # type: ignore[assignment]
    return layers


def linear(module: nn.Module, path: str) -> nn.Linear:
    """Return the linear layer at ``path``."""
    from torch import nn

    found = module.get_submodule(path)
    assert isinstance(found, nn.Linear), f"{path} is {type(found).__name__}"
    return found


def attention_at(layer: nn.Module, family: Family) -> str:
    """Return the path of a layer's attention. In some layers of a hybrid this is linear attention."""
    is_linear = bool(family.linear_attention) and hasattr(layer, family.linear_attention)
    return family.linear_attention if is_linear else family.attention


def attention_out_at(layer: nn.Module, family: Family) -> str:
    """Return the path of the output projection of a layer's attention."""
    is_linear = attention_at(layer, family) == family.linear_attention
    return family.linear_attention_out if is_linear else family.attention_out


def attention_out(layer: nn.Module, family: Family) -> nn.Linear:
    """Return the output projection of a layer's attention."""
    return linear(layer, attention_out_at(layer, family))


def head_of(model: nn.Module, family: Family) -> nn.Linear:
    """Return the output head."""
    return linear(model, family.head)


def embedding_of(model: nn.Module, family: Family) -> nn.Embedding:
    """Return the input embedding."""
    found: nn.Embedding = model.get_submodule(family.embedding)  # type: ignore[assignment]
    return found


def is_tied(model: nn.Module, family: Family) -> bool:
    """Return whether embedding and head are one parameter."""
    return head_of(model, family).weight is embedding_of(model, family).weight


def with_bias(module: nn.Linear) -> torch.Tensor:
    """Return the weight (outputs, inputs), the bias as one more column if there is one."""
    import torch

    return module.weight if module.bias is None else torch.cat([module.weight, module.bias[:, None]], dim=1)


def extended(features: torch.Tensor, columns: int) -> torch.Tensor:
    """Return the features (..., inputs), with a column of ones if their weights hold a bias."""
    import torch

    if features.shape[-1] == columns:
        return features
    return torch.cat([features, features.new_ones(*features.shape[:-1], 1)], dim=-1)


def norm_at(layer: nn.Module, path: str) -> nn.Module:
    """Return the norm at ``path``, or one that changes nothing if the family has none there."""
    from torch import nn

    return layer.get_submodule(path) if path else nn.Identity()


@contextlib.contextmanager
def calls_of(module: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """Yield a list that receives the positional arguments of each call of a module."""
    calls: list[tuple[Any, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, args: calls.append(args))
    try:
        yield calls
    finally:
        handle.remove()


def activation_of(layer: nn.Module, family: Family) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the FFN's activation function."""
    return getattr(layer.get_submodule(family.ffn), family.activation)  # type: ignore[no-any-return]


def ffn_inputs(layer: nn.Module, family: Family, neurons: Sequence[int] | None = None) -> list[torch.Tensor]:
    """Return the FFN's input projections, (F, D) each or (F, D + 1) with a bias: all neurons or the given ones."""
    matrices = [with_bias(linear(layer, path)) for path in family.ffn_in]
    if family.fused:
        matrices = list(matrices[0].chunk(2))
    return matrices if neurons is None else [m[list(neurons)] for m in matrices]


def ffn_activations(
    layer: nn.Module, family: Family, mid: torch.Tensor, inputs: Sequence[torch.Tensor] | None = None
) -> torch.Tensor:
    """Return the input of the FFN's output projection, (..., F), from the residual stream before the FFN, (..., D).

    ``inputs`` replace the layer's own input projections.
    """
    from torch import nn

    hidden = norm_at(layer, family.ffn_norm)(mid)
    matrices = ffn_inputs(layer, family) if inputs is None else inputs
    parts = [nn.functional.linear(extended(hidden, m.shape[1]), m) for m in matrices]
    # A gated FFN, act(W_gate x) * (W_up x), has two input projections; a plain one, act(W x), has one.
    first = activation_of(layer, family)(parts[0])
    return first * parts[1] if len(parts) == 2 else first


def kv_width(config: Any) -> int:
    """Return how many numbers one layer keeps as keys for each token (and again as values)."""
    # With grouped-query attention several query heads share one key-value head, and only the latter are cached.
    heads = int(config.num_attention_heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return int(getattr(config, "num_key_value_heads", None) or heads) * head_size


def kv_numbers(config: Any, layers: int) -> int:
    """Return how many numbers so many layers keep for each token, keys and values; linear attention keeps none."""
    linear_layers = list(getattr(config, "layer_types", None) or ()).count("linear_attention")
    return 2 * (layers - linear_layers) * kv_width(config)


def shape_of(model: nn.Module, family: Family) -> Shape:
    """Return sizes and unit costs of a model, read from its tensors. Meta tensors are enough.

    Raises:
        UnsupportedModelError: its layers differ in shape.
    """
    embedding = embedding_of(model, family)
    head = head_of(model, family)
    layers = layers_of(model, family)
    ffns = [_ffn_shape(layer, family) for layer in layers]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    if len(set(ffns)) != 1 or (len(set(sizes)) != 1 and not family.linear_attention):
        widths = sorted({ffn.width for ffn in ffns})
        raise UnsupportedModelError(
            f"the layers of this model differ in size (widths {widths}): flab cuts models of one uniform width."
        )
    ffn = ffns[0]
    per_token = embedding.embedding_dim if is_tied(model, family) else 2 * embedding.embedding_dim
    per_token += head.bias is not None
    total = sum(p.numel() for p in model.parameters())
    # The rest is found by subtraction, which counts the norms, query norms and biases of any family. The parameters by which a
    # hybrid's larger layers exceed its smallest are fixed, because none of its layers is cut.
    per_layer = min(sizes)
    # Of tensors with three dimensions, the convolution of linear attention is a product of its own; stacked experts are
    # counted with the FFN.
    dimensions = (2, 3) if family.linear_attention else (2,)
    matrices = [sum(p.numel() for p in layer.parameters() if p.dim() in dimensions) for layer in layers]
    # Scores cost operations in layers with full attention only.
    attending = [layer for layer in layers if attention_at(layer, family) == family.attention]
    return Shape(
        vocabulary=embedding.num_embeddings,
        layers=len(layers),
        width=ffn.width,
        per_token=per_token,
        per_layer=per_layer - ffn.parameters,
        per_neuron=ffn.per_neuron,
        fixed=total - embedding.num_embeddings * per_token - len(layers) * per_layer,
        hidden=embedding.embedding_dim,
        products_per_layer=min(matrices) - ffn.matrices,
        products_fixed=sum(matrices) - len(layers) * min(matrices),
        products_per_neuron=ffn.products_per_neuron,
        attention=attention_out((attending or layers)[0], family).in_features,
        attending=len(attending) if family.linear_attention else -1,
        block=ffn.block,
        per_block=ffn.per_block,
        active=ffn.active,
    )


@dataclass(frozen=True)
class _FfnShape:
    """The FFN of one layer, in the terms of :class:`Shape`; all zeros if the layer lacks the parts of its family."""

    width: int = 0
    per_neuron: int = 0
    products_per_neuron: int = 0
    matrices: int = 0  # parameters of the neurons in tensors of two dimensions
    block: int = 1
    per_block: int = 0
    active: int = 0

    @property
    def parameters(self) -> int:
        return self.width * self.per_neuron + self.width // self.block * self.per_block


def _ffn_shape(layer: nn.Module, family: Family) -> _FfnShape:
    ffn: Any = layer.get_submodule(family.ffn)
    if family.experts:
        if not hasattr(ffn, family.experts):
            return _FfnShape()  # a dense layer
        router: Any = ffn.get_submodule(family.router)
        down: torch.Tensor = getattr(ffn, family.experts).down_proj
        experts, hidden, block = down.shape
        per_block = sum(p.numel() for p in router.parameters()) // experts
        return _FfnShape(
            width=experts * block,
            per_neuron=3 * hidden,
            products_per_neuron=3 * hidden,
            matrices=experts * per_block,
            block=block,
            per_block=per_block,
            active=block * int(router.top_k),
        )
    # A neuron costs its column of the output projection, and a row (and a bias) of each input projection. A fused
    # projection counts twice, because it holds two rows for each neuron.
    out = linear(layer, family.ffn_out)
    ffn_in = [linear(layer, path) for path in family.ffn_in] * (2 if family.fused else 1)
    products = out.out_features * (1 + len(ffn_in))
    return _FfnShape(
        width=out.in_features,
        per_neuron=products + sum(m.bias is not None for m in ffn_in),
        products_per_neuron=products,
        matrices=out.in_features * products,
    )
