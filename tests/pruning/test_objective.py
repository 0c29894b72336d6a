"""The KL in nats per token: equal to torch's formula, chunked or not, and exact for the cut vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flab.pruning import objective
from flab.pruning.objective import cut_mass_kl, expected_counts, kl_divergence

D, V, N = 12, 50, 23


@pytest.fixture
def head():
    torch.manual_seed(0)
    return nn.Linear(D, V, bias=True).requires_grad_(False)


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(N, D, generator=generator) * 2 for _ in range(2)]


def test_kl_equals_torch(head, states):
    log_p0, log_p = (head(s).log_softmax(-1) for s in states)
    expected = nn.functional.kl_div(log_p, log_p0, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(kl_divergence(head, *states), expected)
    assert float(expected.min()) > 0.01  # not a comparison of zeros


def test_kl_has_a_direction(head, states):
    assert not torch.allclose(kl_divergence(head, *states), kl_divergence(head, *reversed(states)), rtol=0.05)


@pytest.mark.parametrize("tokens", [1, 4, N - 1, N, N + 1])
def test_chunks_change_nothing(head, states, tokens, monkeypatch):
    whole = kl_divergence(head, *states), cut_mass_kl(head, states[0], [1, 5, 9])
    monkeypatch.setattr(objective, "CHUNK_ELEMENTS", tokens * V)
    chunked = kl_divergence(head, *states), cut_mass_kl(head, states[0], [1, 5, 9])
    for a, b in zip(whole, chunked, strict=True):
        assert a.shape == b.shape == (N,)
        torch.testing.assert_close(a, b)


def test_no_float32_tensor_of_all_tokens_is_held(head, states, monkeypatch):
    rows = []
    monkeypatch.setattr(objective, "CHUNK_ELEMENTS", 5 * V)
    original = objective._logits
    monkeypatch.setattr(objective, "_logits", lambda h, s: rows.append(len(s)) or original(h, s))
    kl_divergence(head, *states)
    assert max(rows) == 5
    assert sum(rows) == 2 * N


def test_identical_models_have_no_divergence(head, states):
    assert torch.equal(kl_divergence(head, states[0], states[0].clone()), torch.zeros(N))


def test_no_tokens_give_an_empty_result(head):
    assert kl_divergence(head, torch.zeros(0, D), torch.zeros(0, D)).shape == (0,)


def test_cut_mass_is_minus_log_of_the_mass_that_stays(head, states):
    kept = [0, 3, 4, 10, 49]
    p0 = head(states[0]).softmax(-1)
    torch.testing.assert_close(cut_mass_kl(head, states[0], kept), -p0[:, kept].sum(-1).log())


def test_cut_mass_is_the_kl_of_the_renormalised_distribution(head, states):
    """KL(q || p_0) with q the original renormalised over the kept tokens."""
    kept = [2, 7, 30]
    p0 = head(states[0]).softmax(-1)
    q = p0[:, kept] / p0[:, kept].sum(-1, keepdim=True)
    expected = (q * (q.log() - p0[:, kept].log())).sum(-1)
    torch.testing.assert_close(cut_mass_kl(head, states[0], kept), expected, atol=1e-5, rtol=1e-5)


def test_keeping_all_tokens_costs_nothing(head, states):
    assert float(cut_mass_kl(head, states[0], list(range(V))).abs().max()) == 0.0


def test_expected_counts_are_the_sum_of_the_probabilities():
    head = torch.nn.Linear(8, 30)
    states = torch.randn(11, 8)
    counts = expected_counts(head, states)
    torch.testing.assert_close(counts, head(states).softmax(-1).sum(0).double(), atol=1e-5, rtol=1e-5)
    assert float(counts.sum()) == pytest.approx(11, abs=1e-4)
