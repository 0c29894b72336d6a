"""The training loss ``(1 - alpha) CE + alpha KL(teacher || student)``, chunked over tokens.

Only one chunk's logits exist at a time, forward and backward: each chunk is recomputed in the backward pass
(``torch.utils.checkpoint``), so neither the teacher's nor the student's B x T x V tensor is ever held.
The KL at a temperature is multiplied by its square (Hinton, Vinyals and Dean 2015, section 2.1), so that the size of
its gradient does not depend on it. Legend: N tokens with a target, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flab.models.scorer import Scorer

CHUNK_ELEMENTS = 2**25  # float32 logits held at once: 128 MiB
IGNORED = -100  # the label of a token that is not a target


@dataclass(frozen=True)
class Objective:
    """The objective. ``alpha`` is the weight of the KL, and ``on`` is the tokens that it covers: ``answers`` or ``all``.

    The cross entropy always covers answer tokens only.
    """

    alpha: float = 1.0
    temperature: float = 1.0
    on: str = "answers"


@dataclass
class Terms:
    """Sums over the tokens of a batch, in nats, each with its number of tokens."""

    cross_entropy: torch.Tensor
    answers: int
    divergence: torch.Tensor
    tokens: int


def chunk_terms(
    states_ND: torch.Tensor,
    head: nn.Linear | Scorer,
    targets_N: torch.Tensor,
    teacher_ND: torch.Tensor | None,
    teacher_head: nn.Linear | Scorer | None,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropy summed over tokens whose target is not ``IGNORED``, and the KL summed over all tokens."""
    logits_NV = head(states_ND).float()
    cross_entropy = nn.functional.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")
    if teacher_ND is None or teacher_head is None:
        return cross_entropy, cross_entropy.new_zeros(())
    with torch.no_grad():
        # The temperature softens both distributions before the softmax.
        teacher_NV = (teacher_head(teacher_ND).float() / temperature).log_softmax(-1)
    student_NV = (logits_NV / temperature).log_softmax(-1)
    # The first argument of ``kl_div`` is log q, the second log p: this is KL(p_teacher || p_student), summed
    # over the vocabulary and the chunk's tokens.
    divergence = nn.functional.kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)
    return cross_entropy, divergence * temperature**2


def loss_terms(
    head: nn.Linear | Scorer,
    states_ND: torch.Tensor,
    targets_N: torch.Tensor,
    teacher_ND: torch.Tensor | None = None,
    teacher_head: nn.Linear | Scorer | None = None,
    temperature: float = 1.0,
) -> Terms:
    """Return both terms of the loss, with gradients to the states and the head.

    Args:
        head: turns the student's states into logits (:func:`flab.models.scorer.scorer_of`).
        states_ND: the student's hidden states after the final norm, before the tokens to predict.
        targets_N: the tokens to predict, ``IGNORED`` where only the KL counts.
        teacher_ND: the teacher's hidden states for the same tokens; None leaves out the KL (0).
        teacher_head: the teacher's head, with the same vocabulary.
    """
    size = max(1, CHUNK_ELEMENTS // head.out_features)
    cross_entropy = states_ND.new_zeros((), dtype=torch.float32)
    divergence = states_ND.new_zeros((), dtype=torch.float32)
    for start in range(0, len(states_ND), size):
        part = slice(start, start + size)
        teacher = None if teacher_ND is None else teacher_ND[part]
        # ``checkpoint`` drops the chunk's logits after the forward pass and computes them again in the backward pass. This
        # costs one more product with the head and avoids holding N x V numbers.
        ce, kl = checkpoint(
            chunk_terms, states_ND[part], head, targets_N[part], teacher, teacher_head, temperature,
            use_reentrant=False,
        )  # fmt: skip
        cross_entropy = cross_entropy + ce
        divergence = divergence + kl
    answers = int((targets_N != IGNORED).sum())
    return Terms(cross_entropy, answers, divergence, len(states_ND) if teacher_ND is not None else 0)
