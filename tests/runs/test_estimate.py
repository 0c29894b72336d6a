"""What is counted before work begins is what the work then does: parts of the formulas against counted operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flab import assets
from flab.models.shape import Shape
from flab.pruning.calibration import COMPARE_EVERY, Window, calibration_set
from flab.pruning.refit.descent import Descent, Examples
from flab.pruning.refit.gram import RIDGES, Gram
from flab.runs.costs import vocabulary_work
from flab.runs.estimate import (
    Size,
    answering_bytes,
    answering_work,
    candidates_built,
    descent_work,
    elimination,
    gram_work,
    layer_share,
    model_bytes,
    seconds,
    solving,
    split_tokens,
    times,
    training_work,
    walk_bytes,
    walk_work,
    work,
)

SHAPE = Shape(
    vocabulary=4096, layers=7, width=640, per_token=192, per_layer=99_008, per_neuron=576, fixed=192, hidden=192,
    products_per_layer=98_304, products_per_neuron=576, attention=192,
)  # fmt: skip


def counted(action) -> int:
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def test_seconds_are_amounts_over_rates():
    assert seconds(work(layer=10, head=6), {"layer": 5, "head": 2, "gram": 1}) == 5
    assert seconds(work(gram=0), {}) == 0


def test_work_adds_up_and_multiplies():
    assert work(layer=1) + work(layer=2, head=3) == work(layer=3, head=3)
    assert times(work(layer=2), 3) == work(layer=6)


def test_tokens_split_as_the_calibration_splits_them():
    windows = [Window([1, 2, 3, 4], 4, n) for n in range(10 * COMPARE_EVERY)]
    data = calibration_set(windows)
    assert split_tokens(len(windows) * 4) == (data.num_fit_tokens, data.num_compare_tokens)


@pytest.mark.parametrize(("vocabulary", "kept", "expected"), [(4096, 4096, 0), (4096, 512, 0), (40_000, 512, 12_288)])
def test_a_large_vocabulary_is_chosen_by_what_the_model_expects(vocabulary, kept, expected):
    shape = Shape(**{**SHAPE.__dict__, "vocabulary": vocabulary})
    tokens = 10**6
    read = split_tokens(tokens)[1] + expected if kept < vocabulary else 0
    assert vocabulary_work(shape, kept, tokens) == work(
        layer=shape.layers * read, head=2 * shape.hidden * vocabulary * read
    )


@pytest.mark.parametrize("features", [48, 1024])
def test_the_statistics_are_counted_as_they_are_made(features):
    gram = Gram(torch.zeros(16, features))
    x, y = torch.ones(64, features), torch.ones(64, 16)
    assert gram_work(features, 16, 64)["gram"] == counted(lambda: gram.add(x, y, False))


def test_a_descent_is_counted_as_it_is_made():
    hidden, width, tokens = 8, 12, 2048
    inputs = torch.randn(tokens, hidden)
    held = torch.arange(tokens) % 8 == 0
    examples = Examples(inputs, inputs.clone(), inputs.clone(), torch.ones(tokens, 1), held)
    matrices = [torch.randn(width, hidden), torch.randn(width, hidden), torch.randn(hidden, width)]
    descent = Descent(torch.nn.functional.silu, examples, matrices)

    def all_of_it() -> None:
        descent.error(descent.fit(matrices))
        descent.error(matrices)

    made = counted(all_of_it)
    assert descent_work(3 * hidden * width, hidden * width, tokens)["learning"] == pytest.approx(made, rel=0.01)


def test_an_uncut_layer_is_a_whole_one_and_its_ffn_the_larger_part():
    assert layer_share(SHAPE, SHAPE.width) == 1
    assert layer_share(SHAPE, 0) == pytest.approx(98_304 / (98_304 + 640 * 576))


def test_few_features_try_every_ridge_in_float64_and_many_only_some_in_float32():
    once = 100**3 / 3 + 2 * 10 * 100**2
    assert solving(100, 10) == work(double=len(RIDGES) * (once + 2 * 10 * 100**2) + once)
    many = solving(4096, 10)
    assert many["single"] > many["double"] > 0


def test_elimination_costs_more_the_more_goes():
    assert elimination(640, 320, 192)["double"] > elimination(640, 600, 192)["double"] > 640**3


def test_a_walk_without_refit_takes_both_streams_through_their_layers():
    cut = Size(4096, 5, 640)
    made = walk_work(SHAPE, cut, 800, 200, "none")
    assert made == work(layer=7 * 1000 + 5 * 1000, head=4 * 192 * 4096 * 200)


def test_dearer_refits_cost_more():
    cut, speed = (
        Size(4096, 7, 320),
        dict.fromkeys(("head", "gram", "single", "double", "learning", "memory"), 1e9) | {"layer": 1e3},
    )
    costs = [
        seconds(walk_work(SHAPE, cut, 8000, 2000, refit), speed)
        for refit in ("none", "simple", "residual", "descent", "newton", "reconstruction")
    ]
    assert costs == sorted(costs)
    assert seconds(walk_work(SHAPE, cut, 8000, 2000, "residual", eliminate=True), speed) > costs[2]


def test_large_models_and_pinned_ones_build_no_candidates():
    large = Shape(**{**SHAPE.__dict__, "vocabulary": 10**6})
    assert candidates_built(large, 7, False) == 0
    assert candidates_built(SHAPE, 7, True) == candidates_built(SHAPE, 1, False) == 0
    assert candidates_built(SHAPE, 7, False) == 5
    assert candidates_built(SHAPE, 3, False) == 3


def test_an_answer_costs_a_step_for_each_token_of_each_batch():
    made = answering_work(SHAPE, Size(4096, 7, 640), 100, 5000, 20, batch=64)
    assert made["layer"] == 7 * 5000
    assert made["step"] == 2 * 20 * 7
    assert made["head"] == 2 * 192 * 4096 * (100 + 40 * 32)


@pytest.mark.parametrize(("full", "passes", "heads"), [(True, 3, 6), (False, 2, 5)])
def test_training_reads_with_the_teacher_once_and_an_adapter_needs_no_gradients_of_weights(full, passes, heads):
    size = Size(4096, 7, 640)
    asked = {"tokens": 3000, "held_out": 100, "evaluations": 2, "epochs": 3, "full": full}
    made = training_work(SHAPE, size, **asked, recompute=False)
    assert made["layer"] == 7 * (3000 * passes + 2 * 100 + 3000 / 3 + 100)
    assert made["head"] == 2 * 192 * 4096 * (3000 * heads + 2 * 100 * 2)
    dearer = training_work(SHAPE, size, **asked, recompute=True)
    assert dearer["layer"] - made["layer"] == 7 * 3000


def test_memory_of_a_model_counts_each_part_in_its_own_precision():
    assert model_bytes(SHAPE, Size(4096, 7, 640), 4) == 4 * SHAPE.total
    assert model_bytes(SHAPE, Size(4096, 7, 640), 2) == 2 * SHAPE.body(7, 640) + 2 * SHAPE.fixed + 4 * 4096 * 192


def test_memory_of_a_walk_holds_the_streams_and_three_gram_matrices():
    cut = Size(4096, 7, 320)
    streams = 5 * 4 * 1000 * 192
    assert walk_bytes(SHAPE, cut, 800, 200, "none") == streams
    assert walk_bytes(SHAPE, cut, 800, 200, "residual") == streams + 3 * 8 * 640 * (640 + 192)
    assert walk_bytes(SHAPE, cut, 800_000, 200, "descent") > walk_bytes(SHAPE, cut, 800_000, 200, "residual")


def test_memory_of_answers_grows_with_the_batch():
    assert answering_bytes(1000, 10, 4, 100, 50) == 1000 + 2 * 10 * 4 * 100 + 3 * 4 * 4 * 50


def test_the_shape_above_is_the_bundled_model():
    from flab.runs.facts import model_facts

    assert model_facts(assets.model_path()).shape == SHAPE
