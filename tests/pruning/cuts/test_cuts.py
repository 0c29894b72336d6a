"""The cuts: dead neurons and identity layers go first, the search is exact, the refit helps and solves what it says."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from torch import nn

from flab import apply
from flab.data.samples import Sample
from flab.errors import CheckpointError
from flab.models.checkpoint import cutting_dtype, load, open_to_cut
from flab.models.families import family_of, head_of, layers_of, linear, shape_of
from flab.models.layers import LayerRunner
from flab.models.options import Options
from flab.models.tokenizer import special_prefix
from flab.pruning.budget import Pins, feasible_splits
from flab.pruning.calibration import CalibrationSet, calibration_set, windows_of
from flab.pruning.cuts.layers import LAYER_CRITERIA, LayerSearch, cut_layers, reference_states, spread
from flab.pruning.cuts.neurons import FFN_CRITERIA, NeuronSearch, choose_neurons, score_activation
from flab.pruning.objective import kl_divergence
from flab.pruning.pipeline import plan
from flab.pruning.recipe import LAYER_CRITERION_NAMES, NEURON_CRITERION_NAMES, Recipe
from flab.pruning.refit.gram import MEAN_RIDGES, RIDGES, Gram, lowest
from flab.pruning.refit.streams import Streams
from flab.pruning.refit.walk import Cut, Walk
from flab.pruning.refit.weights import TokenWeights
from flab.pruning.search import Search, search_splits
from flab.pruning.surgeon import carve
from support import pico


def data_for(count: int = 30, batch_tokens: int = 512) -> CalibrationSet:
    samples = [Sample(r["prompt"], r["completion"]) for r in pico.calibration_rows(count)]
    return calibration_set(windows_of(samples, pico.tokenizer(), 64, None), batch_tokens)


@pytest.fixture(scope="module")
def data() -> CalibrationSet:
    return data_for()


def fresh(folder):
    model = load(folder).model
    return model, family_of(model.config)


def test_every_named_criterion_exists():
    assert set(LAYER_CRITERIA) == set(LAYER_CRITERION_NAMES)
    assert set(FFN_CRITERIA) | {"elimination"} == set(NEURON_CRITERION_NAMES)


# --- neurons ---

DEAD = [3, 17, 40, 41]


def kill_neurons(model, family) -> None:
    with torch.no_grad():
        for layer in layers_of(model, family):
            linear(layer, family.ffn_out).weight[:, DEAD] = 0


def decisions_for(model, family, data, criterion: str, width: int, kind: str = "none"):
    scores = None
    if criterion != "elimination":
        scores = FFN_CRITERIA[criterion](NeuronSearch(LayerRunner(model, family), data.fit))
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
    assert choose_neurons(FFN_CRITERIA["first"](search)[2], 10) == list(range(10))
    noise = FFN_CRITERIA["random"](search)
    assert noise.shape == (5, 64)
    assert torch.equal(noise, FFN_CRITERIA["random"](search))
    assert not torch.equal(noise, FFN_CRITERIA["random"](replace(search, seed=5)))
    mlp = model.model.layers[1].mlp
    expected = mlp.down_proj.weight[:, 7].norm() * mlp.gate_proj.weight[7].norm() * mlp.up_proj.weight[7].norm()
    torch.testing.assert_close(FFN_CRITERIA["magnitude"](search)[1, 7].float(), expected)


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

    got = FFN_CRITERIA["entropy"](NeuronSearch(LayerRunner(model, family), [batch]))
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

    got = FFN_CRITERIA["fisher"](NeuronSearch(LayerRunner(model, family), [batch], seed=9))
    torch.testing.assert_close(got, by_tokens(model, family, batch, log_likelihood, 2), rtol=1e-3, atol=1e-9)
    assert float(got.min()) > 0


# --- layers ---


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
    (first, *_) = reference_states(LayerRunner(model, family), data.fit)
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


# --- refit ---


def random_gram(features=9, targets=4, tokens=60, seed=0, scaling="feature"):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=generator)
    x = torch.randn(tokens, features, generator=generator) @ mix
    y = torch.randn(tokens, targets, generator=generator) + x[:, :targets]
    gram = Gram(torch.randn(targets, features, generator=generator).double(), scaling)
    gram.add(x[:40], y[:40], held_out=False)
    gram.add(x[40:], y[40:], held_out=True)
    return gram, x.double().numpy(), y.double().numpy()


def ridge_by_lstsq(x, y, prior, shift):
    """argmin ||y - x w|| ^ 2 + sum_j shift_j ||w_j - prior_j|| ^ 2 as one stacked least-squares problem."""
    root = np.diag(np.sqrt(np.broadcast_to(shift, x.shape[1])))
    stacked = np.linalg.lstsq(np.vstack([x, root]), np.vstack([y, root @ prior.T]), rcond=None)[0]
    return stacked.T


def shift_of(ridge, x, scaling, every=None):
    """The ridge of each feature: relative to its own sum of squares, or to the mean of all of them."""
    squares = (x**2).sum(0)
    if scaling == "mean":
        return ridge * squares.mean()
    every = squares if every is None else (every**2).sum(0)
    return ridge * every * (squares / every).mean()


@pytest.mark.parametrize("scaling", ["feature", "mean"])
@pytest.mark.parametrize("columns", [list(range(9)), [0, 4, 8]])
def test_solve_equals_least_squares(columns, scaling):
    gram, x, y = random_gram(scaling=scaling)
    weights, ridge = gram.solve(columns, 1e-2)
    shift = shift_of(1e-2, x[:, columns], scaling)
    expected = ridge_by_lstsq(x[:, columns], y, gram.weight[:, columns].numpy(), shift)
    assert ridge == 1e-2
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("scaling", "grid"), [("feature", RIDGES), ("mean", MEAN_RIDGES)])
def test_the_ridge_is_the_best_on_held_out_tokens(scaling, grid):
    gram, x, y = random_gram(tokens=52, seed=3, scaling=scaling)
    errors = {}
    for ridge in grid:
        w = ridge_by_lstsq(x[:40], y[:40], gram.weight.numpy(), shift_of(ridge, x[:40], scaling, x))
        errors[ridge] = ((y[40:] - x[40:] @ w.T) ** 2).sum()
    assert gram.solve(range(9), None)[1] == min(errors, key=errors.get)


def test_a_feature_in_other_units_changes_no_prediction():
    """Real models have features ten thousand times larger than the rest; the refit must not depend on it."""
    (plain, _, _), (scaled, _, _) = random_gram(), random_gram()
    units = torch.tensor([1e4, 1, 1, 1e-4, 1, 1, 1e2, 1, 1], dtype=torch.float64)
    for which in (0, 1):
        scaled.gram[which] *= units * units[:, None]
        scaled.cross[which] *= units
    scaled.weight = scaled.weight / units
    kept = plain.eliminate(5)
    again = random_gram()[0]
    assert scaled.eliminate(5) == kept
    expected, ridge = again.solve(kept, None)
    other = random_gram()[0]
    for which in (0, 1):
        other.gram[which] *= units * units[:, None]
        other.cross[which] *= units
    other.weight = other.weight / units
    got, same = other.solve(kept, None)
    assert same == ridge
    torch.testing.assert_close(got * units[kept], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tokens", [3, 200])
@pytest.mark.parametrize("features", [12, 300])
def test_outliers_and_missing_rank_leave_finite_weights(features, tokens, monkeypatch):
    """Activations of 10^4 beside ordinary ones, repeated and dead features, fewer tokens than features."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, features, generator=generator)
    x[:, 0] *= 1e4
    x[0] *= 1e3
    x[:, 5] = x[:, 4]
    x[:, 7] = 0
    y = torch.randn(tokens, 4, generator=generator)
    monkeypatch.setattr(
        "flab.pruning.refit.gram.FAST_FEATURES", 100
    )  # so that the larger one compares ridges in float32

    def fresh_gram():
        gram = Gram(torch.randn(4, features, generator=torch.Generator().manual_seed(2)))
        gram.add(x, y, held_out=False)
        gram.add(x[::2] + 0.1, y[::2], held_out=True)
        return gram

    kept = fresh_gram().eliminate(features // 2)
    assert len(kept) == features // 2
    weights, ridge = fresh_gram().solve(kept, None)
    assert ridge in RIDGES
    assert bool(torch.isfinite(weights).all())


def test_activations_that_are_no_numbers_are_one_line():
    gram, _, _ = random_gram()
    gram.gram[0][2, 2] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinite: try --dtype float32"):
        gram.solve(range(9), None)


@pytest.mark.parametrize("best", range(5))
@pytest.mark.parametrize("start", [None, 0, 2, 4])
def test_the_lowest_of_a_valley_is_found_from_anywhere(best, start):
    grid = (1.0, 2.0, 3.0, 4.0, 5.0)
    assert lowest(grid, lambda value: abs(value - grid[best]), start) == grid[best]
    assert lowest(grid, lambda value: 0.0, start) == 5.0


def cost_of(gram: Gram, columns: list[int], shift: torch.Tensor) -> float:
    """What the best weights on these columns leave, by the objective that the elimination downdates."""
    total, cross = gram.gram[0] + gram.gram[1], gram.cross[0] + gram.cross[1] + shift * gram.weight
    left = total[columns][:, columns] + shift[columns].diag()
    return -float((torch.linalg.solve(left, cross[:, columns].T) * cross[:, columns].T).sum())


def test_in_blocks_of_rows_the_outcome_is_the_same(monkeypatch):
    whole, again = random_gram(features=37)[0], [random_gram(features=37)[0]]
    kept = whole.eliminate(17, forced=(36,))
    assert len(kept) == 17
    columns = [*kept, 36]
    expected, ridge = whole.solve(columns, None)
    monkeypatch.setattr("flab.pruning.refit.gram.BLOCK_ROWS", 5)
    again.append(random_gram(features=37)[0])
    for gram in again:
        assert gram.eliminate(17, forced=(36,)) == kept
        weights, chosen = gram.solve(columns, None)
        assert chosen == ridge
        torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)  # ill-conditioned sums


@pytest.mark.parametrize("forced", [(), (8,)])
def test_elimination_equals_brute_force_greedy(forced):
    """With fewer columns to go than rounds, one goes at a time: the one whose loss costs least, all else refitted."""
    from flab.pruning.refit.gram import ELIMINATION_RIDGE

    gram, _, _ = random_gram(seed=5)
    shift = ELIMINATION_RIDGE * (gram.gram[0] + gram.gram[1]).diagonal()
    alive = list(range(9))
    while len(alive) - len(forced) > 3:
        trials = {j: cost_of(gram, [i for i in alive if i != j], shift) for j in alive if j not in forced}
        alive.remove(min(trials, key=trials.get))
    before = [g.clone() for g in gram.gram]
    assert gram.eliminate(3, forced) == [i for i in alive if i not in forced]
    assert all(torch.equal(a, b) for a, b in zip(before, gram.gram, strict=True))


def test_elimination_of_nothing_keeps_everything():
    assert random_gram()[0].eliminate(9) == list(range(9))


def kl_of(folder, data, kept, width, kind, projection=True, criterion=None):
    model, family = fresh(folder)
    scores = FFN_CRITERIA[criterion](NeuronSearch(LayerRunner(model, family), data.fit)) if criterion else None
    cut = Cut(kept, width, kind, projection, scores)
    _, walk = carve(model, family, cut, data.fit, data.compare)
    return walk.divergence(head_of(model, family))[0], model


def test_the_descent_refit_helps(trained_folder, monkeypatch):
    monkeypatch.setattr("flab.pruning.refit.descent.STEP_TOKENS", 64)
    data = data_for(60, 2048)
    descent, residual = (
        kl_of(trained_folder, data, range(5), 16, kind, True, "activation")[0] for kind in ("descent", "residual")
    )
    assert descent < residual


def test_each_part_of_the_refit_helps(trained_folder):
    data = data_for(60, 2048)
    kls = [
        kl_of(trained_folder, data, [0, 2, 3, 4], 40, kind, projection, "activation")[0]
        for kind, projection in (
            ("reconstruction", True),
            ("newton", True),
            ("residual", True),
            ("residual", False),
            ("none", False),
        )
    ]
    assert kls == sorted(kls), kls
    assert kls[3] < 0.7 * kls[4]
    simple = kl_of(trained_folder, data, range(5), 40, "simple", False, "activation")[0]
    assert simple < kl_of(trained_folder, data, range(5), 40, "none", False, "activation")[0]


@pytest.mark.parametrize("kind", ["residual", "descent", "newton", "reconstruction"])
@pytest.mark.parametrize("family_name", ["qwen3", "starcoder2"])
def test_the_walk_measures_the_model_that_it_makes(family_name, kind, pico_folder, data):
    """Its KL equals that of the carved model run as a whole."""
    kl, carved = kl_of(pico_folder(family_name), data, [0, 1, 3], 32, kind)
    original, family = fresh(pico_folder(family_name))
    values = []
    for batch in data.compare:
        states = [m.model(batch.ids, use_cache=False).last_hidden_state[batch.valid] for m in (original, carved)]
        values.append(kl_divergence(head_of(original, family), *states).double())
    assert float(torch.cat(values).mean()) == pytest.approx(kl, rel=1e-3)
    assert kl > 0
    assert carved.config.intermediate_size == 32
    assert carved.config.num_hidden_layers == 3


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
        search.scores, FFN_CRITERIA["activation"](NeuronSearch(LayerRunner(model, family), few.fit))
    )
    assert "chosen by activation" in search.warnings[0]


def test_the_refit_adds_no_bias(pico_folder, data):
    for family_name, has_bias in (("llama", False), ("starcoder2", True)):
        model = kl_of(pico_folder(family_name), data, [0, 1, 4], 32, "residual")[1]
        out = linear(layers_of(model, family_of(model.config))[0], family_of(model.config).ffn_out)
        assert (out.bias is not None) == has_bias
        assert not any(isinstance(m, nn.Linear) and m.in_features not in (32, 64) for m in model.modules())


# --- nothing to do ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_nothing_to_remove_the_output_is_the_input(dtype, tmp_path, recipe):
    source = pico.build("qwen2", tmp_path / "source", dtype=dtype)
    decided = plan(source, recipe(remove=0.0))
    out = apply(source, decided, tmp_path / "out")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert decided.kl_nats_per_token == decided.kl_vocabulary == 0
    assert decided.removed_fraction == 0


# --- the original's streams ---


@pytest.mark.parametrize("room", [2**30, 2_000_000, 0], ids=["all", "some", "nothing"])
def test_kept_streams_change_nothing(room, pico_folder, data):
    """Several walks over one model, each with other layers out: as they are without, to the bit."""
    model, family = fresh(pico_folder("qwen2"))
    runner, streams = LayerRunner(model, family), Streams(room)
    for kept in ([0, 1, 3], [0, 2, 4], [1, 2, 3], [0, 1, 3]):
        walks = [Walk(runner, Cut(kept, 32, "newton"), data.fit, data.compare, some) for some in (None, streams)]
        made = [list(walk) for walk in walks]
        assert walks[0].divergence(head_of(model, family)) == walks[1].divergence(head_of(model, family))
        for one, other in zip(*made, strict=True):
            assert one.neurons == other.neurons
            assert torch.equal(one.ffn_out, other.ffn_out)
    assert streams.num_bytes <= room
    assert (streams.num_bytes > 0) == (room > 0)


def test_kept_streams_are_made_once_and_let_go():
    streams, made = Streams(), []

    def make():
        made.append(1)
        return [torch.ones(2, 3, 4)]

    first = streams.get((0, "after"), make)
    first[0] = torch.zeros(1)  # a list of its own: the caller goes on with it
    assert torch.equal(streams.get((0, "after"), make)[0], torch.ones(2, 3, 4))
    assert len(made) == 1
    assert streams.num_bytes == 96
    streams.get((0, "before FFN"), make)
    streams.clear()
    assert streams.num_bytes == 0
    streams.get((0, "after"), make)
    assert len(made) == 3


# --- real models: BOS, outliers, mixed precision ---


def test_windows_begin_as_the_tokenizer_begins_a_text():
    """Every runtime sends BOS where tokenizer.json says so; a model that has one behaves otherwise without it."""
    plain = pico.tokenizer()
    with_bos = Tokenizer.from_str(plain.to_str())
    bos = with_bos.token_to_id("<|im_start|>")
    with_bos.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", bos)]
    )
    assert special_prefix(plain) == []
    assert special_prefix(with_bos) == [bos]
    samples = [Sample("def f(x):\n", "    return x + 1\n" * 9)]
    windows = windows_of(samples, with_bos, 16, None, [bos])
    without = windows_of(samples, with_bos, 15, None)
    assert len(windows) > 1
    assert [w.ids for w in windows] == [[bos, *w.ids] for w in without]
    assert [w.answer_from for w in windows] == [w.answer_from + 1 for w in without]
    assert windows[0].ids == with_bos.encode(samples[0].text).ids[:16]


@pytest.fixture
def massive(pico_folder):
    """A model whose layer 1 writes a huge value into one feature of the stream at the first position."""
    model, family = fresh(pico_folder("llama"))
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[0] *= 2000  # the padding token, put in front of every window below
    return model, family


def with_sink(data: CalibrationSet) -> CalibrationSet:
    """The same batches with token 0 in front of every window."""
    for batch in (*data.fit, *data.compare):
        batch.ids[:, 0] = 0
    return data


@pytest.mark.parametrize("kind", ["residual", "descent", "newton", "reconstruction"])
def test_massive_activations_end_well(kind, massive):
    """The first token's stream is thousands of times larger than the rest, as in real models."""
    model, family = massive
    data = with_sink(data_for(30))
    sizes = LayerRunner(model, family).embed(data.fit[0])[0].norm(dim=-1)
    assert float(sizes[0]) > 500 * float(sizes[1:].median())
    kls = {}
    for refit in ("none", kind):
        cut = Cut([0, 1, 2, 3, 4], 40, refit, scores=torch.arange(64.0).expand(5, -1))
        walk = Walk(LayerRunner(model, family), cut, data.fit, data.compare)
        for new in walk:
            assert bool(torch.isfinite(new.ffn_out).all())
        kls[refit] = walk.divergence(head_of(model, family))[0]
    assert kls[kind] < kls["none"]


def test_only_outliers_are_damped():
    stream = torch.ones(4, 8) * torch.tensor([[1.0], [3.9], [8.0], [4000.0]])
    damped = TokenWeights([], "feature").damped(stream, 1.0)
    torch.testing.assert_close(damped.squeeze(1), torch.tensor([1.0, 1.0, 0.5, 0.001]))
    assert TokenWeights([], "mean").damped(stream, 1.0).tolist() == [[1.0]] * 4


def test_mixed_precision_is_close_and_keeps_the_stream_in_float32(tmp_path, data):
    folder = pico.build("llama", tmp_path / "half", dtype=torch.bfloat16)
    (mixed, family), (exact, _) = (open_to_cut(folder, Options(), dtype) for dtype in ("mixed", "float32"))
    kls = []
    for checkpoint in (mixed, exact):
        walk = Walk(LayerRunner(checkpoint.model, family), Cut([0, 2, 3, 4], 40), data.fit, data.compare)
        for _ in walk:
            pass
        assert {stream.dtype for stream in walk.pruned} == {torch.float32}
        kls.append(walk.divergence(head_of(checkpoint.model, family))[0])
    assert kls[0] == pytest.approx(kls[1], rel=0.2)
    assert linear(layers_of(mixed.model, family)[0], family.ffn_out).weight.dtype == torch.bfloat16
    LayerRunner(mixed.model, family).widen()
    assert {p.dtype for p in mixed.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("asked", "size", "expected"), [("auto", 1, "mixed"), ("auto", 2**40, "float32"), ("float32", 1, "float32")]
)
def test_large_models_of_bfloat16_are_cut_in_mixed_precision(asked, size, expected, tmp_path, monkeypatch):
    folder = pico.build("llama", tmp_path / "half", dtype=torch.bfloat16)
    monkeypatch.setattr("flab.models.checkpoint.MIXED_BYTES", size)
    monkeypatch.setattr("flab.models.checkpoint.multiplies_bfloat16", lambda device: True)
    assert cutting_dtype(folder, Options(dtype=asked)) == expected
    monkeypatch.setattr("flab.models.checkpoint.multiplies_bfloat16", lambda device: False)
    assert cutting_dtype(folder, Options(dtype=asked)) == "float32"
