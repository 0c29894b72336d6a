"""The distillation loss against autograd and against the cross entropy of transformers' own trainer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from flab.recovery import loss as module
from flab.recovery.loss import IGNORED, Objective, loss_terms
from flab.recovery.teacher import Teacher
from flab.recovery.trainer import distilled_forward, install_loss, remove_loss

V, D, N = 11, 6, 9


@pytest.fixture
def parts(monkeypatch):
    """Heads, states and targets in float64, and chunks of three tokens."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * V)
    torch.manual_seed(0)
    student, teacher = nn.Linear(D, V).double(), nn.Linear(D, V).double()
    states, taught = torch.randn(N, D, dtype=torch.float64, requires_grad=True), torch.randn(N, D, dtype=torch.float64)
    targets = torch.tensor([1, 2, IGNORED, 3, 4, IGNORED, 5, 6, 7])
    return student, teacher, states, taught, targets


def plain_kl(student, teacher, states, taught, temperature):
    """The same written out: sum of p (log p - log q), times the square of the temperature."""
    p = (teacher(taught) / temperature).softmax(-1)
    q = (student(states) / temperature).softmax(-1)
    return (p * (p.log() - q.log())).sum() * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_and_its_gradient_equal_autograd_on_the_formula(parts, temperature):
    student, teacher, states, taught, targets = parts
    plain = plain_kl(student, teacher, states, taught, temperature)
    wanted = torch.autograd.grad(plain, [states, student.weight, student.bias])
    terms = loss_terms(student, states, targets, taught, teacher, temperature)
    got = torch.autograd.grad(terms.divergence, [states, student.weight, student.bias])
    assert terms.divergence.item() == pytest.approx(plain.item(), rel=1e-5)
    for a, b in zip(got, wanted, strict=True):
        assert b.abs().max() > 0.01
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_gradient_passes_a_finite_difference(parts):
    student, teacher, states, taught, targets = parts
    terms = loss_terms(student, states, targets, taught, teacher)
    (gradient,) = torch.autograd.grad(terms.divergence, [states])
    step, at = 1e-2, (4, 2)
    values = []
    for sign in (1, -1):
        moved = states.detach().clone()
        moved[at] += sign * step
        values.append(loss_terms(student, moved, targets, taught, teacher).divergence.item())
    assert gradient[at].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-2)


def test_cross_entropy_counts_targets_only(parts):
    student, _, states, _, targets = parts
    terms = loss_terms(student, states, targets)
    wanted = nn.functional.cross_entropy(student(states), targets, ignore_index=IGNORED, reduction="sum")
    assert terms.cross_entropy.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (terms.answers, terms.tokens, terms.divergence.item()) == (7, 0, 0.0)


def test_the_teacher_gets_no_gradient_and_equal_models_have_no_divergence(parts):
    student, _, states, _, targets = parts
    terms = loss_terms(student, states, targets, states.detach(), student)
    (gradient,) = torch.autograd.grad(terms.divergence, [states])
    assert terms.divergence.item() == pytest.approx(0, abs=1e-5)
    assert gradient.abs().max() < 1e-5


def batch_of(vocabulary: int) -> dict[str, torch.Tensor]:
    """Two examples packed into one row, and their answers."""
    torch.manual_seed(1)
    ids = torch.randint(3, vocabulary, (1, 12))
    targets = torch.cat([ids[:, 1:], torch.full((1, 1), IGNORED)], dim=1)
    targets[0, [0, 1, 6, 7]] = IGNORED  # two tokens of each prompt, and the jump between the examples
    positions = torch.tensor([[*range(7), *range(5)]])
    within = torch.tensor([[True] * 6 + [False] + [True] * 4 + [False]])
    return {"input_ids": ids, "targets": targets, "position_ids": positions, "within": within}


@pytest.fixture
def models(pico_folder):
    """Two copies of one pico model; the second is changed a little."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(pico_folder("qwen2")).eval() for _ in range(2))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student, teacher


def test_at_alpha_zero_the_loss_is_the_models_own_cross_entropy(models):
    student, _ = models
    batch = batch_of(student.config.vocab_size)
    labels = torch.full_like(batch["targets"], IGNORED)
    labels[:, 1:] = batch["targets"][:, :-1]
    given = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    own = student(**given, labels=labels, use_cache=False).loss  # with a cache the examples would see each other
    ours = distilled_forward(student, None, Objective(alpha=0.0), **batch)["loss"]
    assert ours.item() == pytest.approx(own.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, list(student.parameters())) for value in (own, ours)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_packed_examples_do_not_see_each_other(models):
    student, _ = models
    batch = batch_of(student.config.vocab_size)
    together = distilled_forward(student, None, Objective(alpha=0.0), **batch)["sums"]
    apart = [
        distilled_forward(student, None, Objective(alpha=0.0), **{n: v[:, part] for n, v in batch.items()})["sums"]
        for part in (slice(0, 7), slice(7, 12))
    ]
    torch.testing.assert_close(together, apart[0] + apart[1], rtol=1e-4, atol=1e-4)


def test_both_terms_are_means_over_their_own_tokens(models):
    student, teacher = models
    batch = batch_of(student.config.vocab_size)
    states = teacher.base_model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).last_hidden_state
    head = teacher.get_output_embeddings()
    for on, used in (("answers", batch["targets"] != IGNORED), ("all", batch["within"])):
        given = Objective(alpha=0.25, on=on)
        out = distilled_forward(student, head, given, **batch, teacher_states=states[used].detach())
        ce, answers, kl, tokens = out["sums"].tolist()
        assert (answers, tokens) == (7, used.sum().item())
        assert out["loss"].item() == pytest.approx(0.75 * ce / answers + 0.25 * kl / tokens, rel=1e-5)
        assert kl > 0


def test_the_forward_is_given_back(models):
    student, teacher = models
    before = student(torch.tensor([[5, 6, 7]])).logits
    install_loss(student, teacher.get_output_embeddings(), Objective())
    assert "loss" in student(**batch_of(student.config.vocab_size))
    remove_loss(student)
    assert torch.equal(student(torch.tensor([[5, 6, 7]])).logits, before)


def test_what_the_teacher_said_is_remembered_row_by_row(models):
    """The second time the teacher is not asked; the order of the batch decides the order of the states."""
    _, model = models
    targets = torch.where(torch.rand(3, 8) > 0.4, 5, IGNORED)
    batch = {"input_ids": torch.randint(3, 400, (3, 8)), "position_ids": torch.arange(8).repeat(3, 1)}
    batch |= {"targets": targets, "rows": torch.tensor([7, 9, 4])}
    plain = model.base_model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).last_hidden_state
    teacher = Teacher(model, lambda given: given["targets"] != IGNORED)
    torch.testing.assert_close(teacher(batch), plain[targets != IGNORED])
    assert not teacher.states
    teacher.remember([batch])
    teacher.model = None
    order = [1, 2, 0]
    mixed = teacher({name: value[order] for name, value in batch.items()})
    torch.testing.assert_close(mixed, plain[order][targets[order] != IGNORED])
