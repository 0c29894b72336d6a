"""The search for depth and width on a model in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flab.models.families import shape_of
from flab.models.layers import LayerRunner
from flab.pruning.budget import Pins, feasible_splits
from flab.pruning.cuts.neurons import NEURON_CRITERIA, NeuronSearch
from flab.pruning.recipe import Recipe
from flab.pruning.refit.new_layer import Cut
from flab.pruning.refit.walk import Walk
from flab.pruning.search import Search, search_splits
from support.calibrated import fresh


def test_the_search_leaves_the_model_alone(pico_folder, data):
    model, family = fresh(pico_folder("qwen2"))
    before = {n: p.clone() for n, p in model.state_dict().items()}
    for _ in Walk(LayerRunner(model, family), Cut([0, 2, 4], 32), data.fit, data.compare):
        pass
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "needed"),
    [({}, False), ({"drop_layers": (1,), "layers": None}, False), ({"neuron_criterion": "magnitude"}, True)],
)
def test_a_split_without_a_rival_is_scored_only_if_the_winner_needs_it(changes, needed, pico_folder, data):
    model, family = fresh(pico_folder("llama"))
    shape = shape_of(model, family)
    recipe = Recipe(**{"remove": 0.1, "layers": 5, **changes})
    splits = feasible_splits(shape, 0.1, shape.vocabulary, Pins(layers=recipe.layers or 4))
    search = Search(model, family, shape, recipe, data, winner_tokens=shape.width)
    assert len(search_splits(search, splits)) == 1
    assert (search.scores is not None) == needed


def test_with_fewer_tokens_than_neurons_a_split_without_a_rival_is_scored_by_activation(pico_folder, data):
    model, family = fresh(pico_folder("llama"))
    shape = shape_of(model, family)
    splits = feasible_splits(shape, 0.1, shape.vocabulary, Pins(layers=5))
    few = replace(
        data, fit=[replace(data.fit[0], valid=data.fit[0].valid & (torch.arange(data.fit[0].ids.shape[1]) < 2))]
    )
    assert few.num_fit_tokens < shape.width
    search = Search(model, family, shape, Recipe(remove=0.1), few, winner_tokens=few.num_fit_tokens)
    search_splits(search, splits)
    torch.testing.assert_close(
        search.scores, NEURON_CRITERIA["activation"](NeuronSearch(LayerRunner(model, family), few.fit))
    )
    assert "chosen by activation" in search.warnings[0]
