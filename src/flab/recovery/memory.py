"""The peak memory of a recovery: by formula before it starts, and measured after it.

``bytes = student weights + teacher weights + trainable * (4 gradient + 8 Adam) + activations + logits``: the weights as they
are stored in memory, gradients and both moments of Adam in float32; activations of one micro-batch of M = micro_batch x
length tokens; logits of one chunk. Activations per token and layer, in elements: 12 D (norms, residuals, attention and its
inputs and outputs) + 2 q + 2 kv (projections) + 4 F (gate, up, activation, product), twice under gradient checkpointing for
the one layer that is recomputed, and D for each other layer.
"""

from __future__ import annotations

from typing import Any

import torch

from flab.models.compatibility import ffn_width
from flab.models.memory import resident_peak
from flab.recovery.loss import CHUNK_ELEMENTS
from flab.recovery.settings import Training

# Logits, their gradient, both log-softmax results, and the difference.
LOGIT_COPIES = 5


def predicted_peak(student: Any, teacher: Any, training: Training, parameters: int) -> int:
    """Return the bytes on one device that holds both models whole."""
    config = student.config
    trainable = sum(p.numel() for p in student.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for model in (student, teacher) for p in model.parameters())
    tokens = training.micro_batch * training.length
    element = 2 if student.dtype != torch.float32 else 4
    # 4 bytes of gradient and 8 of Adam's two moments, in float32, for each trained parameter.
    return int(weights + 12 * trainable) + activation_bytes(config, tokens, element, training) + logit_bytes()


def activation_bytes(config: Any, tokens: int, element: int, training: Training) -> int:
    """Return what the backward pass of one micro-batch needs, without the logits."""
    width = int(config.hidden_size)
    layers = int(config.num_hidden_layers)
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    heads = config.num_attention_heads + getattr(config, "num_key_value_heads", config.num_attention_heads)
    neurons = ffn_width(config) * int(getattr(config, "num_experts_per_tok", None) or 1)
    per_layer = int(12 * width + 2 * heads * head + 4 * neurons)
    if training.gradient_checkpointing:
        return tokens * element * (layers * width + 2 * per_layer)
    return tokens * element * layers * per_layer


def logit_bytes() -> int:
    """Return the bytes of the student's and the teacher's logits of one chunk, float32."""
    return 4 * CHUNK_ELEMENTS * LOGIT_COPIES


def measured_peak(device: torch.device) -> dict[str, Any]:
    """Return ``measured_bytes`` and ``method``: allocated on the CUDA device, or resident in this process."""
    if device.type == "cuda":
        return {"measured_bytes": torch.cuda.max_memory_allocated(device), "method": "measured: CUDA allocator"}
    used, how = resident_peak()
    return {"measured_bytes": used, "method": f"measured: {how}"}
