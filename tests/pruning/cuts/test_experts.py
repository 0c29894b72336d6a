"""Experts: criteria by hand, the refit's right values, a plan that replays, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from flab import apply
from flab.errors import BudgetError, OptionError
from flab.models.checkpoint import load
from flab.models.families import family_of, layers_of, shape_of
from flab.models.layers import Batch, LayerRunner
from flab.models.mixture import mixture_of
from flab.pruning.cuts.experts import EXPERT_CRITERIA, ExpertSearch
from flab.pruning.pipeline import build
from flab.pruning.plan import Plan
from flab.pruning.recipe import Recipe
from flab.pruning.refit.experts import MixtureTokens, refit_experts
from flab.pruning.refit.new_layer import Cut
from flab.pruning.surgeon import carve


@pytest.fixture
def mixture(pico_folder):
    """A pico mixture of experts and some text."""
    model = load(pico_folder("qwen3_moe")).model
    ids = torch.randint(400, (12, 40), generator=torch.Generator().manual_seed(3))
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    held_out = nothing.clone()
    held_out[::4] = True
    batch = Batch(ids, ~nothing, nothing, held_out, torch.ones(ids.shape))
    return model, family_of(model.config), batch


def test_criteria_are_counts_and_means_over_the_experts_own_tokens(mixture):
    model, family, batch = mixture
    runner = LayerRunner(model, family)
    search = ExpertSearch(runner, [batch])
    frequency = EXPERT_CRITERIA["frequency"](search)
    assert frequency.sum(1).tolist() == [2 * batch.num_tokens] * 5
    first = mixture_of(runner.layers[0], family)
    hidden, routing = runner.routed(0, runner.mid(0, runner.embed(batch)).flatten(0, 1), first)
    tokens, weight = routing.tokens_of(5)
    assert frequency[0, 5] == len(tokens)
    expected = (weight * first.output(5, hidden[tokens]).norm(dim=1, keepdim=True)).mean()
    assert float(EXPERT_CRITERIA["reap"](search)[0, 5]) == pytest.approx(float(expected), rel=1e-5)


def test_elimination_takes_the_expert_without_which_the_mixture_changes_least(mixture):
    model, family, batch = mixture
    runner = LayerRunner(model, family)
    scores = EXPERT_CRITERIA["error"](ExpertSearch(runner, [batch]))
    assert sorted(scores[0].tolist()) == [0, 1, 2, 3, 4, 5, 8, 8]  # two are left, as many as a token passes through
    first = mixture_of(runner.layers[0], family)
    hidden, whole = runner.routed(0, runner.mid(0, runner.embed(batch)).flatten(0, 1), first)
    kept = list(range(8))
    for step in range(2):
        without = {e: first.only([k for k in kept if k != e]).route(hidden).output for e in kept}
        gone = min(kept, key=lambda e: float((without[e] - whole.output).norm()))
        assert scores[0, gone] == step
        kept.remove(gone)


def test_the_refit_finds_the_projections_that_the_target_was_made_with(pico_folder):
    model = load(pico_folder("qwen3_moe", num_experts_per_tok=1)).model
    mixture = mixture_of(layers_of(model, family_of(model.config))[1], family_of(model.config))
    start = mixture.experts.down_proj.clone()
    inputs = torch.randn(2000, 32, generator=torch.Generator().manual_seed(1))
    wanted = start + 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    mixture.experts.down_proj.copy_(wanted)
    targets = mixture.route(inputs).output
    mixture.experts.down_proj.copy_(start)
    held_out = torch.arange(2000) % 5 == 0
    refit_experts(mixture, MixtureTokens(inputs, targets, torch.ones(2000, 1), held_out), moved=[])
    assert float((mixture.experts.down_proj - wanted).norm() / (start - wanted).norm()) < 0.01


def test_descent_follows_a_target_that_output_projections_alone_cannot_reach(pico_folder):
    model = load(pico_folder("qwen3_moe")).model
    inputs = torch.randn(13_000, 32, generator=torch.Generator().manual_seed(1))
    whole = mixture_of(layers_of(model, family_of(model.config))[1], family_of(model.config))
    start = whole.experts.gate_up_proj.clone()
    whole.experts.gate_up_proj.mul_(1 + 0.5 * torch.randn(start.shape, generator=torch.Generator().manual_seed(2)))
    targets = whole.route(inputs).output
    whole.experts.gate_up_proj.copy_(start)
    tokens = MixtureTokens(inputs[1000:], targets[1000:], torch.ones(12_000, 1), torch.arange(12_000) % 5 == 0)
    error = {}
    for moved in ([], ["gate"], ["gate", "experts"]):
        mixture = whole.only(range(8))
        refit_experts(mixture, tokens, moved)
        error[len(moved)] = float((mixture.route(inputs[:1000]).output - targets[:1000]).pow(2).sum())
    assert error[2] < 0.7 * min(error[0], error[1])


def test_the_refit_makes_up_for_half_of_the_experts(pico_folder, mixture):
    model, family, batch = mixture
    scores = EXPERT_CRITERIA["reap"](ExpertSearch(LayerRunner(model, family), [batch]))
    kl = {}
    for kind in ("none", "simple", "residual", "descent"):
        fresh = load(pico_folder("qwen3_moe")).model
        _, walk = carve(fresh, family, Cut(range(5), 4, kind, scores=scores), [batch], [batch])
        kl[kind] = walk.divergence(fresh.lm_head)[0]
    assert kl["residual"] < kl["simple"] < kl["none"]
    assert kl["descent"] < 0.5 * kl["none"]
    assert kl["residual"] < 0.5 * kl["none"]


@pytest.mark.parametrize("refit", ["residual", "descent"])
def test_a_plan_of_experts_is_written_read_and_replayed(refit, pico_folder, recipe, tmp_path):
    source = pico_folder("qwen3_moe")
    made = build(source, tmp_path / "built", recipe(remove=0.1, experts=5, layers=4, refit=refit))
    assert set(made.cuts) == {"vocabulary", "layers", "experts"}
    assert made.cuts["experts"].sizes() == {"before": 8, "after": 5}
    assert made.summary()["width"] == {"before": 8 * 24, "after": 5 * 24}  # neurons of all experts
    assert made.criteria["experts"] == "reap"
    made.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == made
    apply(source, tmp_path / "plan.json", tmp_path / "applied")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("built", "applied"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "model.layers.3.mlp.experts.4.down_proj.weight" in one  # each expert apart, as in the original's files
    assert "model.layers.3.mlp.experts.5.down_proj.weight" not in one
    config = json.loads((tmp_path / "applied" / "config.json").read_text())
    assert config["num_experts"] == config["num_local_experts"] == 5  # the names in transformers 4 and 5


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"experts": 1}, OptionError, "allowed 2 to 8"),
        ({"experts": 9}, OptionError, "allowed 2 to 8"),
        ({"width": 25}, OptionError, "allowed 1 to 24"),
        ({"width_multiple": 8}, OptionError, "give `width`"),
        ({"width": 8, "neuron_criterion": "fisher"}, OptionError, "gradients of a dense FFN"),
        ({"refit": "newton"}, OptionError, "residual, descent or reconstruction"),
        ({"remove": 0.9, "layers": 5}, BudgetError, "2 experts"),
    ],
)
def test_what_a_mixture_cannot_do_is_refused(settings, error, said, pico_folder, recipe, tmp_path):
    with pytest.raises(error, match=said):
        build(pico_folder("qwen3_moe"), tmp_path / "out", recipe(**settings))


@pytest.mark.parametrize(("tokens", "refit"), [(4 * 24 * 20, "descent"), (4 * 24 * 20 - 1, "residual")])
def test_descent_is_left_to_mixtures_whose_neurons_see_twenty_tokens_each(tokens, refit, pico_folder):
    model = load(pico_folder("qwen3_moe")).model  # a token passes through 2 of 8 experts of 24 neurons
    assert Recipe(remove=0.1, tokens=tokens).resolved(shape_of(model, family_of(model.config))).refit == refit


def test_a_dense_model_has_no_experts_to_keep(pico_folder, recipe, tmp_path):
    with pytest.raises(OptionError, match="give `width`"):
        build(pico_folder("qwen3"), tmp_path / "out", recipe(experts=4))
