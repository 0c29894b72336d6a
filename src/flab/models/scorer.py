"""From final hidden states to logits: the output head, and what some families do to its output.

Granite divides the logits by a constant, and Gemma 2 bounds them. Code that compares distributions must use this, because
the head alone would give different ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flab.errors import UnsupportedModelError


class Scorer(nn.Module):
    """A head whose logits are multiplied by a factor, then bounded by ``cap * tanh(logits / cap)``; may be used like the head."""

    def __init__(self, head: nn.Linear, factor: float, cap: float | None) -> None:
        super().__init__()
        self.head = head
        self.factor = factor
        self.cap = cap

    @property
    def weight(self) -> torch.Tensor:
        """The head's weight, (V, D)."""
        return self.head.weight

    @property
    def out_features(self) -> int:
        """The size of the vocabulary."""
        return self.head.out_features

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits (..., V) of hidden states (..., D)."""
        logits: torch.Tensor = self.head(hidden) * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def scorer_of(model: Any) -> nn.Linear | Scorer:
    """Return the model's output head together with what the model does to its logits, or the head itself if nothing.

    Raises:
        UnsupportedModelError: the model has no output matrix.
    """
    config = model.config
    head: nn.Linear | None = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError(
            f"{config.model_type} has no output matrix, so no distribution over tokens can be made"
        )
    # Cohere multiplies its logits (``logit_scale``), Granite divides them (``logits_scaling``).
    factor = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return head if factor == 1.0 and cap is None else Scorer(head, factor, cap)
