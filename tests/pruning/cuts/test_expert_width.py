"""The width of experts: neurons by each criterion, what the refit makes up for, and a plan of both experts and width."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from flab import apply
from flab.errors import OptionError, PlanError
from flab.models.checkpoint import load
from flab.models.families import family_of, layers_of, shape_of
from flab.models.layers import Batch
from flab.models.mixture import mixture_of
from flab.pruning.advice import experts_without_elimination
from flab.pruning.budget import Pins, feasible_splits
from flab.pruning.cuts.experts import EXPERT_NEURON_CRITERIA
from flab.pruning.pipeline import build
from flab.pruning.plan import Plan
from flab.pruning.recipe import GRADIENT_CRITERIA, NEURON_CRITERION_NAMES
from flab.pruning.refit.experts import MixtureTokens, choose_inside
from flab.pruning.refit.new_layer import Cut, Narrowing, NewLayer
from flab.pruning.surgeon import carve

MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe"]


def opened(pico_folder, name="qwen3_moe"):
    model = load(pico_folder(name)).model
    return model, family_of(model.config)


def text() -> Batch:
    ids = torch.randint(400, (24, 40), generator=torch.Generator().manual_seed(3))
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    held_out = nothing.clone()
    held_out[::4] = True
    return Batch(ids, ~nothing, nothing, held_out, torch.ones(ids.shape))


def tokens_of(mixture, count) -> MixtureTokens:
    inputs = torch.randn(count, 32, generator=torch.Generator().manual_seed(1))
    return MixtureTokens(inputs, mixture.route(inputs).output, torch.ones(count, 1), torch.arange(count) % 5 == 0)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("criterion", ["elimination", "activation", "magnitude"])
def test_neurons_that_add_nothing_go_first_and_are_not_missed(criterion, name, pico_folder):
    model, family = opened(pico_folder, name)
    batch = text()
    idle = [2, 3, 7, 8, 13, 17, 20, 23]
    width = shape_of(model, family).block
    for layer in layers_of(model, family):
        mixture_of(layer, family).experts.down_proj[:, :, idle] = 0
    before = model(batch.ids, use_cache=False).logits
    cut = Cut(range(5), 8, "none", narrowing=Narrowing(width - len(idle), criterion))
    decisions, _ = carve(model, family, cut, [batch], [])
    stay = sorted(set(range(width)) - set(idle))
    assert all(list(kept) == stay for one in decisions for kept in one.inside)
    assert getattr(model.config, family.width_entry) == width - len(idle)
    assert mixture_of(layers_of(model, family)[0], family).experts.intermediate_dim == width - len(idle)
    torch.testing.assert_close(model(batch.ids, use_cache=False).logits, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_that_keep_all_neurons_give_the_same_bits(name, pico_folder):
    model, family = opened(pico_folder, name)
    batch = text()
    before = model(batch.ids, use_cache=False).logits
    width = shape_of(model, family).block
    everything = [[range(width)] * 8] * 5
    carve(model, family, Cut(range(5), 8, "none", narrowing=Narrowing(width, neurons=everything)), [batch], [])
    assert torch.equal(model(batch.ids, use_cache=False).logits, before)


def test_elimination_keeps_one_of_each_pair_of_twins_and_the_refit_makes_up_for_the_other(pico_folder):
    model, family = opened(pico_folder)
    batch = text()
    for layer in layers_of(model, family):
        rows = mixture_of(layer, family).experts.gate_up_proj
        rows[:, 12:24] = rows[:, :12]  # of the gate
        rows[:, 36:] = rows[:, 24:36]
    before = model(batch.ids, use_cache=False).logits
    decisions, _ = carve(model, family, Cut(range(5), 8, "simple", narrowing=Narrowing(12)), [batch], [])
    # The ridge prices a very active twin above a neuron that hardly ever fires, so a few experts lose such a pair.
    pairs = [len({neuron % 12 for neuron in kept}) for one in decisions for kept in one.inside]
    assert min(pairs) >= 11
    assert sum(pairs) >= 475  # of 480
    after = model(batch.ids, use_cache=False).logits
    assert float((after - before).abs().max()) < 0.1 * float(before.abs().max())


def test_an_expert_without_enough_tokens_keeps_its_most_active_neurons(pico_folder):
    model, family = opened(pico_folder)
    mixture = mixture_of(layers_of(model, family)[1], family)
    tokens = tokens_of(mixture, 40)
    (chosen, short), (active, none) = (
        choose_inside(mixture, tokens, Narrowing(9, name)) for name in ("elimination", "activation")
    )
    assert chosen == active
    # Activation that was asked for replaces nothing.
    assert (short, none) == (sum(len(mixture.route(tokens.inputs).tokens_of(n)[0]) < 24 for n in range(8)), 0)
    assert choose_inside(mixture, tokens_of(mixture, 2000), Narrowing(9))[1] == 0
    places, gate = mixture.route(tokens.inputs).tokens_of(5)
    energy = (mixture.features(5, tokens.inputs[places]) * gate).pow(2).sum(0)
    energy *= mixture.experts.down_proj[5].pow(2).sum(0)
    assert chosen[5] == sorted(energy.topk(9).indices.tolist())
    columns = mixture.experts.down_proj[5].norm(dim=0)
    assert choose_inside(mixture, tokens_of(mixture, 0), Narrowing(9))[0][5] == sorted(columns.topk(9).indices.tolist())


def test_a_plan_warns_of_experts_without_enough_tokens_and_counts_them(pico_folder, recipe, tmp_path):
    asked = {"remove": 0.1, "layers": 5, "refit": "none"}
    wide = pico_folder("qwen3_moe", moe_intermediate_size=256)

    def warned(name, source, **changes):
        made = build(source, tmp_path / name, recipe(**asked, **changes))
        return [line for line in made.warnings if "activation instead of elimination chose" in line]

    # Five layers of eight experts with 256 neurons each, and at most 256 tokens for all of them.
    assert warned("few", wide, width=128, tokens=256) == [
        "40 of 40 experts get fewer calibration tokens than they have neurons: activation instead of elimination chose their "
        "neurons; give more text or raise `tokens`."
    ]
    assert warned("asked", wide, width=128, tokens=256, neuron_criterion="activation") == []


def test_random_neurons_differ_between_experts_and_seeds(pico_folder):
    model, family = opened(pico_folder)
    mixture = mixture_of(layers_of(model, family)[1], family)
    tokens = tokens_of(mixture, 40)
    one, again, other = (choose_inside(mixture, tokens, Narrowing(9, "random", seed))[0] for seed in (1, 1, 2))
    assert one == again
    assert len({str(kept) for kept in one + other}) == 16
    assert choose_inside(mixture, tokens, Narrowing(9, "first"))[0] == [list(range(9))] * 8


def test_the_criteria_are_those_of_dense_models_without_gradients():
    assert {"elimination", *EXPERT_NEURON_CRITERIA} == set(NEURON_CRITERION_NAMES) - set(GRADIENT_CRITERIA)


def test_a_pinned_width_leaves_the_rest_of_the_budget_to_layers_and_experts(pico_folder):
    shape = shape_of(*opened(pico_folder))
    for remove, experts in ((0.2, [8]), (0.35, [5, 7])):
        splits = feasible_splits(shape, remove, 400, Pins(width=16).settled(shape))[:2]
        assert [split.sizes["experts"] for split in splits] == experts
        for split in splits:
            assert split.inside == 16
            assert split.parameters == shape.narrowed(16).parameters(400, split.layers, 16 * split.sizes["experts"])
            assert split.parameters <= shape.total * (1 - remove)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_plan_of_experts_and_width_is_written_read_and_replayed(name, pico_folder, recipe, tmp_path):
    source = pico_folder(name)
    whole = shape_of(*opened(pico_folder, name))
    made = build(source, tmp_path / "built", recipe(remove=0.1, experts=6, width=16, layers=4, refit="residual"))
    assert made.cuts["experts"].sizes() == {"before": 8, "after": 6}
    assert made.cuts["width"].sizes() == {"before": whole.block, "after": 16}
    assert made.criteria == {"layers": "kl", "experts": "reap", "neurons": "elimination"}
    sizes = made.summary()
    assert sizes["width"] == {"before": 8 * whole.block, "after": 6 * 16}  # neurons of all experts
    assert sizes["expert_width"] == {"before": whole.block, "after": 16}
    made.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == made
    apply(source, tmp_path / "plan.json", tmp_path / "applied")
    one, other = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("built", "applied"))
    assert one == other
    saved = load(tmp_path / "applied").model
    assert made.parameters_after == sum(p.numel() for p in saved.parameters())
    after = shape_of(saved, family_of(saved.config))
    assert made.body_after == after.body(after.layers, after.width)
    assert made.candidates[0]["flops_per_token"] == after.flops_per_token(after.vocabulary, after.layers, after.width)
    config = json.loads((tmp_path / "applied" / "config.json").read_text())
    assert config[family_of(saved.config).width_entry] == 16
    if name == "qwen2_moe":  # the shared expert stays as it is
        tensors = load_file(tmp_path / "applied" / "model.safetensors")
        assert tensors["model.layers.3.mlp.shared_expert.down_proj.weight"].shape == (32, 16)
        assert config["shared_expert_intermediate_size"] == 16


def test_a_plan_with_damaged_widths_and_a_model_of_another_width_are_refused(pico_folder, recipe, tmp_path):
    build(pico_folder("qwen3_moe"), tmp_path / "built", recipe(remove=0.1, width=16, layers=5, refit="none"))
    file = tmp_path / "built" / "plan.json"
    other = pico_folder("qwen3_moe", moe_intermediate_size=20)
    with pytest.raises(PlanError, match=r"width 20 \(plan: 24\)"):
        apply(other, file, tmp_path / "out", sibling=True)
    data = json.loads(file.read_text())
    short, twice = json.loads(file.read_text()), json.loads(file.read_text())
    del short["cuts"]["width"]["kept"][2][5]
    twice["cuts"]["width"]["kept"][2][5][1] = twice["cuts"]["width"]["kept"][2][5][0]
    for damaged, words in (
        (short, "width of layer 2 has 7 lists for 8 experts"),
        (twice, "width of layer 2 are not 16"),
    ):
        assert damaged != data
        file.write_text(json.dumps(damaged))
        with pytest.raises(PlanError, match=words):
            Plan.read(file)


@pytest.mark.parametrize(("width", "words"), [(65, "allowed 1 to 64"), (12, "allowed multiples of 8")])
def test_a_width_that_experts_cannot_have_is_refused(width, words, pico_folder, recipe, tmp_path):
    with pytest.raises(OptionError, match=words):
        build(pico_folder("mixtral"), tmp_path / "out", recipe(remove=0.1, width=width))


def test_the_warning_counts_the_experts_of_all_layers():
    def layer(short):
        return NewLayer(0, [1, 2, 5], torch.zeros(1), None, 0.0, 0.0, num_short=short)

    assert experts_without_elimination([layer(0), layer(0)]) == []
    (said,) = experts_without_elimination([layer(2), layer(0), layer(1)])
    assert said.startswith("3 of 9 experts get fewer calibration tokens than they have neurons")
