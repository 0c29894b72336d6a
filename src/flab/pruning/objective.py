"""The measure of every cut: KL(p_0 || p) in nats per token, between two sets of final hidden states under one output head.

The tokens are taken in chunks, so float32 logits exist for one chunk only. Reference and candidate share the head, because
the vocabulary is cut before either is computed and no other cut changes the head.
Legend: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn

from flab.models.scorer import Scorer

CHUNK_ELEMENTS = 2**23  # float32 logits held at once: 32 MiB


def _chunk(head: nn.Linear | Scorer) -> int:
    return max(1, CHUNK_ELEMENTS // head.out_features)


@torch.no_grad()
def kl_divergence(head: nn.Linear | Scorer, reference_ND: torch.Tensor, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Return KL(p_0 || p) of every token in nats, shape (N,), float32.

    Args:
        head: turns hidden states of both models into logits (:func:`flab.models.scorer.scorer_of`).
        reference_ND: the original's hidden states after the final norm.
        hidden_ND: those of the pruned model, for the same tokens.
    """
    out = []
    for start in range(0, reference_ND.shape[0], _chunk(head)):
        window = slice(start, start + _chunk(head))
        # KL = sum_v p_0(v) (log p_0(v) - log p(v)). Both factors overwrite existing tensors, because a chunk of logits
        # takes 32 MiB and this runs for every candidate and every token.
        log_p0 = _log_probabilities(head, reference_ND[window])
        p0 = log_p0.exp()
        ratio = log_p0.sub_(_log_probabilities(head, hidden_ND[window]))
        out.append(p0.mul_(ratio).sum(-1))
    return torch.cat(out) if out else torch.zeros(0)


@torch.no_grad()
def cut_mass_kl(head: nn.Linear | Scorer, hidden_ND: torch.Tensor, kept: list[int]) -> torch.Tensor:
    """Return the exact KL of keeping only some tokens, ``-log(sum of p_0 over the kept)``, in nats, shape (N,)."""
    index = torch.tensor(kept, device=head.weight.device)
    out = []
    for start in range(0, hidden_ND.shape[0], _chunk(head)):
        # Without the other logits, the softmax of the kept ones is p_0 divided by their mass m, so
        # KL(p || p_0) = log(p / p_0) = -log m for every kept token. A difference of logsumexps cannot underflow.
        logits = _logits(head, hidden_ND[start : start + _chunk(head)])
        out.append(logits.logsumexp(-1) - logits[:, index].logsumexp(-1))
    return torch.cat(out) if out else torch.zeros(0)


@torch.no_grad()
def expected_counts(head: nn.Linear | Scorer, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Return how often the model itself would write each token here: the sum over the positions of ``p(token)``, (V,)."""
    total = torch.zeros(head.out_features, dtype=torch.float64, device=head.weight.device)
    for start in range(0, hidden_ND.shape[0], _chunk(head)):
        # The sums are float64, because a rare token's probabilities of 1e-7 are added to sums of thousands.
        total += _logits(head, hidden_ND[start : start + _chunk(head)]).softmax(-1).sum(0).double()
    return total


def _logits(head: nn.Linear | Scorer, hidden_ND: torch.Tensor) -> torch.Tensor:
    return head(hidden_ND.to(head.weight)).float()  # type: ignore[no-any-return]


def _log_probabilities(head: nn.Linear | Scorer, hidden_ND: torch.Tensor) -> torch.Tensor:
    return _logits(head, hidden_ND).log_softmax(-1)
