"""Removing layers: identity layers go first, the search is exact, and per-layer entries of the config follow."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from flab.models.families import head_of, layers_of, linear
from flab.models.layers import LayerRunner
from flab.pruning.cuts.layers import LAYER_CRITERIA, LayerSearch, cut_layers, spread
from flab.pruning.objective import kl_divergence
from support import pico
from support.calibrated import data_for, fresh


def make_identity(model, family, index: int) -> None:
    layer = layers_of(model, family)[index]
    with torch.no_grad():
        for path in (family.attention_out, family.ffn_out):
            linear(layer, path).weight.zero_()
            if linear(layer, path).bias is not None:
                linear(layer, path).bias.zero_()


@pytest.mark.parametrize("criterion", ["kl", "block-influence", "last-token", "angular"])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_an_identity_layer_goes_first(criterion, index, pico_folder, data):
    model, family = fresh(pico_folder("starcoder2"))
    make_identity(model, family, index)
    search = LayerSearch(LayerRunner(model, family), data.fit)
    assert next(LAYER_CRITERIA[criterion](search)) == (index,)


@pytest.mark.parametrize("index", [1, 4])
def test_an_identity_layer_goes_first_by_perplexity(index, trained_folder, data):
    """Perplexity is of the text, not of the model: only where every real layer helps does the identity come first."""
    model, family = fresh(trained_folder)
    make_identity(model, family, index)
    search = LayerSearch(LayerRunner(model, family), data.fit)
    assert next(LAYER_CRITERIA["perplexity"](search)) == (index,)
    ids = data.compare[0].ids
    before = model(ids, use_cache=False).logits
    cut_layers(model, family, [i for i in range(5) if i != index])
    torch.testing.assert_close(model(ids, use_cache=False).logits, before, atol=1e-5, rtol=1e-5)


def naive_greedy(folder, batches) -> list[tuple[int, ...]]:
    """Rebuild every candidate from scratch, whole model, whole set."""
    model, family = fresh(folder)
    reference = [model.model(b.ids, use_cache=False).last_hidden_state[b.valid] for b in batches]
    kept, path = list(range(5)), []
    while len(kept) > 1:
        costs = {}
        for gone in kept:
            smaller = copy.deepcopy(model)
            cut_layers(smaller, family, [i for i in kept if i != gone])
            states = [smaller.model(b.ids, use_cache=False).last_hidden_state[b.valid] for b in batches]
            kl = [kl_divergence(head_of(model, family), r, s) for r, s in zip(reference, states, strict=True)]
            costs[gone] = float(torch.cat(kl).double().mean())
        kept.remove(min(costs, key=lambda i: (costs[i], i)))
        path.append(tuple(sorted(set(range(5)) - set(kept))))
    return path


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16, 23])
def test_every_beginning_of_the_spread_order_reaches_over_all_lengths(count):
    order = spread(count)
    assert sorted(order) == list(range(count))
    for done in (4, 8):
        edges = [0, *sorted(order[:done]), count]
        assert max(b - a for a, b in zip(edges, edges[1:], strict=False)) <= 2 * -(-count // min(done, count))


@pytest.mark.parametrize("race", [True, False])
def test_greedy_picks_what_the_naive_search_picks(race, trained_folder):
    batches = data_for(40, 128).fit
    assert len(batches) > 8  # enough for the race to drop some
    model, family = fresh(trained_folder)
    search = LayerSearch(LayerRunner(model, family), batches, race=race)
    assert list(LAYER_CRITERIA["kl"](search)) == naive_greedy(trained_folder, batches)
    dropped = [len(step["scores"]) < 5 - n for n, step in enumerate(search.path)]
    assert any(dropped) == race  # the race did leave some out, and only the race does


def test_reference_states_are_the_models_own(pico_folder, data):
    model, family = fresh(pico_folder("qwen3"))
    (first, *_) = LayerRunner(model, family).finals(data.fit, "Reference distribution")
    batch = data.fit[0]
    assert torch.equal(first, model.model(batch.ids, use_cache=False).last_hidden_state[batch.valid])


@pytest.mark.parametrize("criterion", sorted(LAYER_CRITERIA))
def test_every_criterion_yields_each_size_once(criterion, pico_folder, data):
    model, family = fresh(pico_folder("llama"))
    search = LayerSearch(LayerRunner(model, family), data.fit[:1], seed=3)
    removed = list(LAYER_CRITERIA[criterion](search))
    assert [len(r) for r in removed] == [1, 2, 3, 4]
    assert len(search.path) == 4
    if criterion == "angular":
        assert all(r == tuple(range(r[0], r[-1] + 1)) for r in removed)
    else:
        assert all(set(a) < set(b) for a, b in itertools.pairwise(removed))


def test_per_layer_lists_follow_by_index(tmp_path):
    folder = pico.build("qwen2", tmp_path / "m", use_sliding_window=True, sliding_window=8, max_window_layers=3)
    model, family = fresh(folder)
    types = list(model.config.layer_types)
    assert len(set(types)) == 2
    cut_layers(model, family, [0, 3, 4])
    assert model.config.layer_types == [types[i] for i in (0, 3, 4)]
    assert model.config.num_hidden_layers == 3
    assert model.config.max_window_layers == 1  # one layer of full attention is left before the sliding ones
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]
    ids = torch.arange(1, 30)[None]
    whole, _ = fresh(folder)
    hidden = whole.model.embed_tokens(ids)
    assert model(ids, use_cache=False).logits.shape[1] == hidden.shape[1]
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0),
                       model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, use_cache=False))  # fmt: skip
