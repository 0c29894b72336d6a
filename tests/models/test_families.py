"""The contract of every family: what the code assumes about an architecture, checked on a pico model of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from flab import prune
from flab.errors import OptionError, UnsupportedModelError
from flab.models.checkpoint import load, read_config
from flab.models.compatibility import loads_in
from flab.models.families import (
    FAMILIES,
    Family,
    attention_out_at,
    embedding_of,
    family_of,
    head_of,
    is_tied,
    layers_of,
    linear,
    shape_of,
)
from flab.models.layers import Batch, LayerRunner
from flab.models.mixture import mixture_of
from flab.models.scorer import scorer_of
from flab.pruning.cuts.experts import EXPERT_CRITERIA, ExpertSearch
from flab.pruning.cuts.layers import LayerSearch, by_kl, cut_layers
from flab.pruning.cuts.neurons import NeuronSearch, choose_neurons, cut_ffn, score_activation
from flab.pruning.cuts.vocabulary import cut_vocabulary
from flab.pruning.refit.new_layer import Cut
from flab.pruning.surgeon import carve
from flab.recovery.loss import IGNORED, loss_terms
from support import pico


def batch_of(vocabulary: int, lengths: tuple[int, ...] = (16, 11, 5), seed: int = 1) -> Batch:
    """Random ids, padded on the right; the first row is held out."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (len(lengths), max(lengths)), generator=generator)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    none = torch.zeros_like(valid)
    held_out = none.clone()
    held_out[0] = True
    return Batch(ids * valid, valid, none, held_out, torch.ones(ids.shape))


def own_inputs(layer: nn.Module, family: Family) -> Iterator[torch.Tensor]:
    """The weights and biases of the FFN's input projections, (F, ...) each, as parts of the model."""
    for path in family.ffn_in:
        for parameter in linear(layer, path).parameters():
            yield from parameter.data.chunk(2 if family.fused else 1)


@pytest.fixture
def case(name, pico_folder):
    """A pico model of the family, its row and a batch."""
    model = load(pico_folder(name)).model
    generator = torch.Generator().manual_seed(5)
    for path, parameter in model.named_parameters():
        if "norm" in path:  # new norms are all alike, those of a trained model are not
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model, family_of(model.config), batch_of(model.config.vocab_size)


MIXTURES = sorted(name for name, family in FAMILIES.items() if family.experts)


@pytest.mark.parametrize("name", sorted(FAMILIES))
class TestContract:
    def test_layer_by_layer_equals_the_forward_pass(self, name, case):
        model, family, batch = case
        runner = LayerRunner(model, family)
        states = list(runner.forward(batch, range(len(runner.layers))))
        expected = model(batch.ids, use_cache=False).logits
        assert len(states) == len(runner.layers) + 1
        assert torch.equal(scorer_of(model)(runner.finish(states[-1])), expected)
        assert layers_of(model, family)[0] is runner.layers[0]  # the recorders are gone

    def test_padding_changes_nothing_for_real_tokens(self, name, case):
        model, family, batch = case
        runner = LayerRunner(model, family)
        *_, last = runner.forward(batch, range(len(runner.layers)))
        for row, length in enumerate(batch.valid.sum(1).tolist()):
            alone = model(batch.ids[row : row + 1, :length], use_cache=False).logits[0]
            torch.testing.assert_close(scorer_of(model)(runner.finish(last[row, :length])), alone)

    def test_functional_halves_equal_the_layer(self, name, case):
        model, family, batch = case
        runner = LayerRunner(model, family)
        hidden = runner.embed(batch)
        for index, layer in enumerate(runner.layers):
            mid = runner.mid(index, hidden)
            if family.experts:
                out = runner.after_mixture(index, mid)
            else:
                out = mid + runner.ffn_branch(index)(linear(layer, family.ffn_out)(runner.ffn_features(index, mid)))
            hidden = runner.layer(index, hidden)
            assert torch.equal(out, hidden), f"layer {index}"

    def test_shape_accounts_for_every_parameter(self, name, case):
        model, family, _ = case
        shape = shape_of(model, family)
        assert shape.total == sum(p.numel() for p in model.parameters())
        ends = {embedding_of(model, family).weight, head_of(model, family).weight}
        assert shape.body(shape.layers, shape.width) == shape.total - sum(p.numel() for p in ends)
        assert is_tied(model, family) == bool(pico.FAMILY_SETTINGS[name].get("tie_word_embeddings"))

    def test_shape_predicts_other_sizes(self, name, case):
        model, family, _ = case
        changed = copy.deepcopy(model.config)
        width = 22
        layers = max(2, shape_of(model, family).fewest_layers)
        changed.num_hidden_layers, changed.vocab_size = layers, 300
        if family.experts:
            changed.num_experts = 3
        setattr(changed, family.width_entry, width)
        changed.pad_token_id = None
        for entry in family.layer_lists:
            if getattr(changed, entry, None):
                setattr(changed, entry, getattr(changed, entry)[:layers])
        smaller = AutoModelForCausalLM.from_config(changed)
        shape = shape_of(model, family).narrowed(width)
        total = shape.parameters(300, layers, 3 * width if family.experts else width)
        assert total == sum(p.numel() for p in smaller.parameters())

    def test_vocabulary_cut_keeps_hidden_states_and_logits(self, name, case):
        model, family, batch = case
        kept = sorted(
            torch.randperm(model.config.vocab_size, generator=torch.Generator().manual_seed(2))[:200].tolist()
        )
        kept = sorted({*kept, model.config.eos_token_id, model.config.pad_token_id})
        new_ids = batch.ids % len(kept)
        old_ids = torch.tensor(kept)[new_ids]
        before = model(old_ids, use_cache=False, output_hidden_states=True)
        cut_vocabulary(model, family, kept)
        after = model(new_ids, use_cache=False, output_hidden_states=True)
        assert all(torch.equal(a, b) for a, b in zip(before.hidden_states, after.hidden_states, strict=True))
        torch.testing.assert_close(after.logits, before.logits[..., kept], atol=1e-5, rtol=0)
        assert is_tied(model, family) == bool(pico.FAMILY_SETTINGS[name].get("tie_word_embeddings"))

    def test_nothing_cut_gives_the_same_bits(self, name, case):
        model, family, batch = case
        before = model(batch.ids, use_cache=False).logits
        shape = shape_of(model, family)
        carve(model, family, Cut(range(shape.layers), shape.units[shape.inner].count), [batch], [])
        assert torch.equal(model(batch.ids, use_cache=False).logits, before)

    def test_a_layer_that_adds_nothing_goes_first_and_is_not_missed(self, name, case):
        model, family, batch = case
        layer = layers_of(model, family)[2]
        for path in (attention_out_at(layer, family), family.ffn):
            for parameter in layer.get_submodule(path).parameters():
                parameter.zero_()
        before = model(batch.ids, use_cache=False).logits
        search = LayerSearch(LayerRunner(model, family), [batch])
        assert next(by_kl(search)) == (2,)
        assert search.path[0]["kl"] == pytest.approx(0, abs=1e-6)
        cut_layers(model, family, [0, 1, 3, 4])
        assert torch.equal(model(batch.ids, use_cache=False).logits, before)

    def test_the_loss_of_a_recovery_is_the_models_own(self, name, case):
        model, _, batch = case
        targets = batch.ids.roll(-1, dims=1)
        targets[~batch.valid.roll(-1, dims=1)] = IGNORED
        targets[:, -1] = IGNORED
        labels = batch.ids.masked_fill(~batch.valid, IGNORED)
        expected = model(batch.ids, labels=labels, use_cache=False).loss
        states = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state[targets != IGNORED]
        scorer = scorer_of(model)
        terms = loss_terms(scorer, states, targets[targets != IGNORED], states, scorer)
        torch.testing.assert_close(terms.cross_entropy / terms.answers, expected)
        assert float(terms.divergence) == pytest.approx(0, abs=1e-4)

    def test_prune_gives_a_folder_that_checks(self, name, pico_folder, recipe, tmp_path, verify_here):
        report = prune(pico_folder(name), tmp_path / "out", recipe(remove=0.3, finalists=1))
        failed = [line for line in report["check"]["checks"] if line["ok"] is False]
        assert report["check"]["ok"], failed
        assert 0.3 <= report["removed_fraction"] < 0.4
        saved = load(tmp_path / "out").model
        assert report["parameters_after"] == sum(p.numel() for p in saved.parameters())


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - set(MIXTURES)))
class TestNeurons:
    def test_neurons_that_add_nothing_go_first_and_are_not_missed(self, name, case):
        model, family, batch = case
        idle = [3, 17, 40]
        width = shape_of(model, family).width
        for layer in layers_of(model, family):
            linear(layer, family.ffn_out).weight[:, idle] = 0
        before = model(batch.ids, use_cache=False).logits
        scores = score_activation(NeuronSearch(LayerRunner(model, family), [batch]))
        for place, layer in enumerate(layers_of(model, family)):
            kept = choose_neurons(scores[place], width - len(idle))
            assert not set(idle) & set(kept)
            cut_ffn(layer, family, kept)
        torch.testing.assert_close(model(batch.ids, use_cache=False).logits, before, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("kind", ["simple", "residual", "newton", "descent"])
    def test_the_refit_finds_weights_that_make_up_for_neurons_with_a_twin(self, name, kind, case):
        model, family, batch = case
        half = shape_of(model, family).width // 2
        for layer in layers_of(model, family):
            for matrix in own_inputs(layer, family):
                matrix[half:] = matrix[:half]
        before = model(batch.ids, use_cache=False).logits
        fit = [batch_of(model.config.vocab_size, (40,) * 6, seed) for seed in range(4)]
        cut = Cut(range(5), half, kind, neurons=[range(half)] * 5)
        carve(model, family, cut, fit, [])
        after = model(batch.ids, use_cache=False).logits
        assert float((after - before).abs().max()) < 0.02 * float(before.abs().max())


@pytest.mark.parametrize("name", MIXTURES)
class TestExperts:
    def test_routing_and_experts_are_the_models_own(self, name, case):
        model, family, batch = case
        runner = LayerRunner(model, family)
        mixture = mixture_of(runner.layers[0], family)
        hidden, routing = runner.routed(0, runner.mid(0, runner.embed(batch))[batch.valid], mixture)
        expected = mixture.experts(hidden, routing.experts, routing.weights)
        made = torch.zeros_like(expected)
        for expert in range(mixture.count):
            tokens, weight = routing.tokens_of(expert)
            made[tokens] += weight * mixture.output(expert, hidden[tokens])
        torch.testing.assert_close(made, expected)
        everywhere, weights = mixture.route_among(range(mixture.count), hidden)
        assert torch.equal(everywhere, routing.experts)
        torch.testing.assert_close(weights, routing.weights)
        without, _ = mixture.route_among([0, 2, 3, 4, 5, 6, 7], hidden)
        assert 1 not in without

    @pytest.mark.parametrize("criterion", ["reap", "frequency"])
    def test_an_unused_expert_goes_first_and_changes_nothing(self, name, criterion, case):
        model, family, batch = case
        for layer in layers_of(model, family):
            rows = mixture_of(layer, family).router.weight
            # Of each pair of opposite rows one is positive, so two experts always come before a row of zeros.
            rows *= 50
            rows[4:7] = -rows[:3]
            rows[3] = 0
        before = model(batch.ids, use_cache=False).logits[batch.valid]
        search = ExpertSearch(LayerRunner(model, family), [batch])
        scores = EXPERT_CRITERIA[criterion](search)
        used = EXPERT_CRITERIA["frequency"](search) > 0
        assert all(scores[place, 3] < scores[place, used[place]].min() for place in range(5))
        carve(model, family, Cut(range(5), 7, "none", scores=scores), [batch], [])
        torch.testing.assert_close(model(batch.ids, use_cache=False).logits[batch.valid], before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": 3}, "`layers` is the size to keep: got 3, allowed 5 to 5 (its layers differ in size"),
        ({"drop_layers": (1,)}, "`drop_layers`: this model's layers differ in size"),
    ],
)
def test_a_hybrid_keeps_all_of_its_layers(settings, words, pico_folder, recipe, tmp_path):
    with pytest.raises(OptionError) as caught:
        prune(pico_folder("qwen3_5_text"), tmp_path / "out", recipe(remove=0.3, **settings))
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_every_supported_family_has_a_pico_model():
    assert set(pico.FAMILY_SETTINGS) == set(FAMILIES)


@pytest.mark.parametrize(
    ("model_type", "settings", "missing"),
    [
        ("cohere", {}, "attention and FFN side by side"),
        ("gpt2", {}, "transposed"),
        ("olmoe", {"num_experts": 4}, "mixture of experts"),
        ("gpt_oss", {}, "alternate"),
        ("glm4_moe", {}, "dense layers beside"),
        ("mamba", {}, "flab lacks"),
        ("t5", {}, "encoder-decoder"),
    ],
)
def test_other_architectures_are_refused_with_what_is_missing(model_type, settings, missing, tmp_path):
    AutoConfig.for_model(model_type, **settings).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=missing) as caught:
        read_config(tmp_path)
    assert model_type in str(caught.value)
    assert all(name in str(caught.value) for name in FAMILIES)


def test_layers_of_different_widths_are_refused(pico_folder):
    model = load(pico_folder("llama")).model
    model.model.layers[1].mlp.down_proj = nn.Linear(10, 32, bias=False)
    with pytest.raises(UnsupportedModelError, match=r"differ in size.*10, 64"):
        shape_of(model, FAMILIES["llama"])


def test_parameters_of_codeqwen_7b_on_the_meta_device():
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=92416,
        hidden_size=4096,
        intermediate_size=13440,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(model, family_of(config))
    assert shape.total == 7_250_284_544
    assert (shape.vocabulary, shape.layers, shape.width, shape.hidden) == (92416, 32, 13440, 4096)
    assert shape.per_token == 2 * 4096
    assert shape.per_neuron == 3 * 4096


def test_llama_cpp_is_told_where_a_pattern_of_layers_must_repeat():
    config = AutoConfig.for_model("gemma2")
    needs = [loads_in(config, True, [], True, {}, broken_pattern=cut)["llama.cpp"]["needs"] for cut in (False, True)]
    assert "pre-tokenizer" in needs[0]
    assert "repeating pattern" in needs[1]
