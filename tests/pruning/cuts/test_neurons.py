"""Scores of neurons: dead ones go first, and every criterion is what its definition says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flab.models.families import layers_of, linear
from flab.models.layers import LayerRunner
from flab.pruning.cuts.layers import LAYER_CRITERIA
from flab.pruning.cuts.neurons import NEURON_CRITERIA, NeuronSearch, choose_neurons, score_activation
from flab.pruning.recipe import LAYER_CRITERION_NAMES, NEURON_CRITERION_NAMES
from flab.pruning.refit.new_layer import Cut
from flab.pruning.refit.walk import Walk
from flab.pruning.surgeon import carve
from support.calibrated import data_for, fresh


def test_every_named_criterion_exists():
    assert set(LAYER_CRITERIA) == set(LAYER_CRITERION_NAMES)
    assert set(NEURON_CRITERIA) | {"elimination"} == set(NEURON_CRITERION_NAMES)


DEAD = [3, 17, 40, 41]


def kill_neurons(model, family) -> None:
    with torch.no_grad():
        for layer in layers_of(model, family):
            linear(layer, family.ffn_out).weight[:, DEAD] = 0


def decisions_for(model, family, data, criterion: str, width: int, kind: str = "none"):
    scores = None
    if criterion != "elimination":
        scores = NEURON_CRITERIA[criterion](NeuronSearch(LayerRunner(model, family), data.fit))
    cut = Cut(range(len(layers_of(model, family))), width, kind, scores=scores)
    return cut, list(Walk(LayerRunner(model, family), cut, data.fit, data.compare))


@pytest.mark.parametrize("family_name", ["llama", "starcoder2"])
@pytest.mark.parametrize("criterion", ["elimination", "activation", "fisher", "entropy", "magnitude"])
def test_a_neuron_that_adds_nothing_goes_first(criterion, family_name, pico_folder, data):
    model, family = fresh(pico_folder(family_name))
    kill_neurons(model, family)
    cut, decisions = decisions_for(model, family, data, criterion, 64 - len(DEAD))
    alive = [i for i in range(64) if i not in DEAD]
    assert [d.neurons for d in decisions] == [alive] * 5
    ids = data.compare[0].ids
    before = model(ids, use_cache=False).logits
    carve(model, family, cut, data.fit, [])
    assert linear(layers_of(model, family)[0], family.ffn_out).in_features == 60
    torch.testing.assert_close(model(ids, use_cache=False).logits, before, atol=1e-5, rtol=1e-5)


def test_choose_neurons_is_ascending_and_ties_go_to_the_lower_index():
    assert choose_neurons(torch.tensor([1.0, 5.0, 5.0, 0.0, 5.0]), 2) == [1, 2]
    assert choose_neurons(torch.tensor([1.0, 0.0, 7.0]), 2) == [0, 2]


def test_first_random_and_magnitude(pico_folder, data):
    model, family = fresh(pico_folder("llama"))
    search = NeuronSearch(LayerRunner(model, family), data.fit, seed=4)
    assert choose_neurons(NEURON_CRITERIA["first"](search)[2], 10) == list(range(10))
    noise = NEURON_CRITERIA["random"](search)
    assert noise.shape == (5, 64)
    assert torch.equal(noise, NEURON_CRITERIA["random"](search))
    assert not torch.equal(noise, NEURON_CRITERIA["random"](replace(search, seed=5)))
    mlp = model.model.layers[1].mlp
    expected = mlp.down_proj.weight[:, 7].norm() * mlp.gate_proj.weight[7].norm() * mlp.up_proj.weight[7].norm()
    torch.testing.assert_close(NEURON_CRITERIA["magnitude"](search)[1, 7].float(), expected)


@pytest.mark.parametrize("family_name", ["qwen2", "starcoder2"])
def test_activation_does_not_depend_on_the_batches(family_name, pico_folder):
    model, family = fresh(pico_folder(family_name))
    runner = LayerRunner(model, family)
    sizes = [1, 300, 5000]
    scores = [score_activation(NeuronSearch(runner, data_for(20, tokens).fit)) for tokens in sizes]
    assert len({len(data_for(20, tokens).fit) for tokens in sizes}) == 3
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], rtol=1e-4, atol=1e-6)


def by_tokens(model, family, batch, loss_of, power):
    """The definition, token by token: one backward pass for each token's own loss."""
    outs = [linear(layer, family.ffn_out) for layer in layers_of(model, family)]
    total = torch.zeros(len(outs), outs[0].in_features, dtype=torch.float64)
    for row in range(batch.ids.shape[0]):
        ids = batch.ids[row : row + 1, : int(batch.valid[row].sum())]
        caught: list[torch.Tensor] = []
        handles = [o.register_forward_pre_hook(lambda _, args, to=caught: to.append(args[0])) for o in outs]
        inputs = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        logits = model(inputs_embeds=inputs, use_cache=False).logits[0]
        [h.remove() for h in handles]
        loss = sum(loss_of(logits[t], row, t) for t in range(len(logits)))
        for index, gradient in enumerate(torch.autograd.grad(loss, caught)):
            product = (caught[index] * gradient)[0].detach()
            total[index] += product.abs().pow(power).sum(0).double()
    return total


def test_entropy_equals_its_definition(pico_folder):
    model, family = fresh(pico_folder("llama"))
    batch = data_for(12).fit[0]

    def entropy(logits, row, t):
        return torch.distributions.Categorical(logits=logits).entropy()

    got = NEURON_CRITERIA["entropy"](NeuronSearch(LayerRunner(model, family), [batch]))
    torch.testing.assert_close(got, by_tokens(model, family, batch, entropy, 1), rtol=1e-3, atol=1e-7)
    assert float(got.min()) > 0


def test_fisher_equals_its_definition(pico_folder):
    """With the labels that its generator draws; squared per position, as the sum over tokens asks."""
    model, family = fresh(pico_folder("starcoder2"))
    batch = data_for(12).fit[0]
    logits = model(batch.ids, use_cache=False).logits[batch.valid].float()
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(9))[:, 0]
    labels = torch.zeros_like(batch.ids)
    labels[batch.valid] = drawn

    def log_likelihood(logits, row, t):
        return logits.log_softmax(-1)[labels[row, t]]

    got = NEURON_CRITERIA["fisher"](NeuronSearch(LayerRunner(model, family), [batch], seed=9))
    torch.testing.assert_close(got, by_tokens(model, family, batch, log_likelihood, 2), rtol=1e-3, atol=1e-9)
    assert float(got.min()) > 0
