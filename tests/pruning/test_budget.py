"""The budget's arithmetic, as properties over random shapes."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flab.errors import BudgetError, OptionError
from flab.models.shape import Shape
from flab.pruning.budget import (
    VOCABULARY_MULTIPLE,
    Pins,
    allowed_parameters,
    feasible_splits,
    spare_tokens,
    vocabulary_for,
    widest,
)
from flab.pruning.recipe import Recipe

PRODUCTS = {"products_per_layer": 190, "products_per_neuron": 24, "attention": 8}
SMALL = Shape(
    vocabulary=100, layers=4, width=64, per_token=8, per_layer=200, per_neuron=24, fixed=8, hidden=8, **PRODUCTS
)


@st.composite
def shapes(draw) -> Shape:
    hidden = draw(st.integers(2, 512))
    return Shape(
        vocabulary=draw(st.integers(10, 50_000)),
        layers=draw(st.integers(1, 40)),
        width=draw(st.integers(1, 9000)),
        per_token=hidden * draw(st.sampled_from([1, 2])),
        per_layer=draw(st.integers(1, 4 * 512**2)),
        per_neuron=hidden * draw(st.sampled_from([2, 3])),
        fixed=draw(st.integers(0, 1000)),
        hidden=hidden,
        **PRODUCTS,
    )


fractions = st.floats(0, 0.99).map(lambda x: round(x, 3))


@given(shapes(), fractions)
def test_allowed_is_the_largest_number_that_removes_enough(shape, remove):
    allowed = allowed_parameters(shape, remove)
    assert Fraction(shape.total - allowed, shape.total) >= Fraction(str(remove))
    assert Fraction(shape.total - allowed - 1, shape.total) < Fraction(str(remove))


@given(shapes(), fractions, st.data())
def test_every_split_meets_the_budget_and_is_the_widest(shape, remove, data):
    vocabulary = data.draw(st.integers(1, shape.vocabulary))
    allowed, multiple = allowed_parameters(shape, remove), shape.width_multiple()
    given_away = shape.width // 64 if shape.width >= 512 else 0
    try:
        splits = feasible_splits(shape, remove, vocabulary, Pins())
    except BudgetError:
        assert all(shape.parameters(vocabulary, n, multiple) > allowed for n in range(1, shape.layers + 1))
        return
    for split in splits:
        assert split.parameters == shape.parameters(vocabulary, split.layers, split.width) <= allowed
        assert split.width == shape.width or split.width % multiple == 0
        assert 0 < split.width <= shape.width
        if split.width < shape.width:
            wider = min(split.width + given_away + multiple, shape.width)
            assert shape.parameters(vocabulary, split.layers, wider) > allowed
    depths = [s.layers for s in splits]
    assert depths == sorted(set(depths), reverse=True)
    assert [s.width for s in splits] == sorted(s.width for s in splits)


@given(shapes(), fractions)
def test_no_feasible_depth_is_left_out(shape, remove):
    allowed, vocabulary = allowed_parameters(shape, remove), shape.vocabulary
    try:
        splits = feasible_splits(shape, remove, vocabulary, Pins())
    except BudgetError:
        splits = []
    deepest = next((s.layers for s in splits if s.width == shape.width), 1)
    possible = {n for n in range(deepest, shape.layers + 1) if widest(shape, vocabulary, n, allowed) > 0}
    assert {s.layers for s in splits} == possible


@given(shapes(), fractions, st.data())
def test_the_error_names_the_floor_and_what_is_reachable(shape, remove, data):
    vocabulary = data.draw(st.integers(1, shape.vocabulary))
    layers = data.draw(st.none() | st.integers(1, shape.layers))
    width = data.draw(st.none() | st.integers(1, shape.width))
    pins = Pins(layers=layers, width=width)
    try:
        feasible_splits(shape, remove, vocabulary, pins)
    except BudgetError as error:
        message = str(error)
    else:
        return
    assert f"floor is {vocabulary} tokens" in message
    assert f"{layers} layer" in message if layers else "1 layer" in message
    reachable = float(re.search(r"at most ([0-9.e-]+) can be removed", message).group(1))
    assert reachable < remove
    assert feasible_splits(shape, reachable, vocabulary, pins)


@given(shapes(), fractions, st.data())
def test_pins_are_kept(shape, remove, data):
    pins = Pins(layers=data.draw(st.integers(1, shape.layers)), width=data.draw(st.integers(1, shape.width)))
    try:
        splits = feasible_splits(shape, remove, shape.vocabulary, pins)
    except BudgetError:
        assert shape.parameters(shape.vocabulary, pins.layers, pins.width) > allowed_parameters(shape, remove)
    else:
        assert [(s.layers, s.width) for s in splits] == [(pins.layers, pins.width)]


@given(shapes(), fractions, st.data())
def test_vocabulary_never_falls_below_what_is_covered(shape, remove, data):
    floor = data.draw(st.integers(1, shape.vocabulary))
    size = vocabulary_for(shape, remove, floor, Pins())
    assert floor <= size <= shape.vocabulary
    assert size in (floor, shape.vocabulary) or size % VOCABULARY_MULTIPLE == 0
    if size > floor:  # more than covered is kept only where the budget is met by it alone
        assert shape.parameters(size, shape.layers, shape.width) <= allowed_parameters(shape, remove)


@given(shapes(), st.integers(1, 5))
def test_a_pinned_vocabulary_is_kept(shape, size):
    assert vocabulary_for(shape, 0.5, 3, Pins(vocabulary=size)) == size


@given(shapes())
def test_nothing_to_remove_keeps_everything(shape):
    assert vocabulary_for(shape, 0.0, 1, Pins()) == shape.vocabulary
    (split,) = feasible_splits(shape, 0.0, shape.vocabulary, Pins())
    assert (split.layers, split.width, split.parameters) == (shape.layers, shape.width, shape.total)


@pytest.mark.parametrize("remove", [-0.1, -1e-9, 1.0, 1.5, float("inf"), float("nan")])
def test_fractions_outside_are_refused(remove):
    with pytest.raises(OptionError, match=r"`remove` .*allowed 0 <= x < 1"):
        allowed_parameters(SMALL, remove)


def test_layers_to_drop_and_another_number_to_keep_are_refused():
    assert Recipe(drop_layers=(1,), layers=3).pins(SMALL).layers == 3
    with pytest.raises(
        OptionError, match=r"`layers`: got 2, and `drop_layers` \[1\] leaves 3 of 4: give one of the two"
    ):
        Recipe(drop_layers=(1,), layers=2).pins(SMALL)


@pytest.mark.parametrize("pins", [{"vocabulary": 101}, {"layers": 0}, {"layers": 5}, {"width": 65}, {"width": -1}])
def test_pins_outside_of_the_model_are_refused(pins):
    (name,) = pins
    with pytest.raises(OptionError, match=rf"`{name}` .*allowed 1 to {getattr(SMALL, name)}"):
        Pins(**pins).check(SMALL)


def test_pins_inside_are_allowed():
    Pins(vocabulary=100, layers=4, width=64).check(SMALL)
    assert Pins(layers=1).check(SMALL) is None


def test_decimal_fractions_are_not_rounded_by_floats():
    """0.1 of 10 parameters is one parameter, although 10 * (1 - 0.1) < 9 may hold in floats."""
    ten = Shape(vocabulary=1, layers=1, width=1, per_token=5, per_layer=3, per_neuron=2, fixed=0, hidden=1, **PRODUCTS)
    assert ten.total == 10
    assert [allowed_parameters(ten, x / 10) for x in range(10)] == [10 - x for x in range(10)]


def of_width(width: int) -> Shape:
    return Shape(1, 1, width, 1, 1, 1, 0, 1, 1, 1, 1)


@pytest.mark.parametrize(("width", "multiple"), [(13440, 32), (640, 32), (512, 32), (511, 8), (64, 2), (31, 1)])
def test_widths_are_chosen_in_blocks_where_the_model_has_16_of_them(width, multiple):
    assert of_width(width).width_multiple() == multiple


@pytest.mark.parametrize(
    ("width", "affordable", "rounded"),
    [
        (640, 330, 320),  # the bundled model at 40 %
        (640, 500, 480),  # and at 22 %: 496 is no whole number of blocks, and 448 would give away 32 of 10 neurons
        (1536, 1000, 992),  # 960 would give away 32 of 24 neurons
        (1536, 1056, 1056),  # SmolLM2-135M at 30 %
        (1536, 1040, 1024),
        (4096, 3000, 2944),  # a multiple of 128
        (4096, 3140, 3072),  # a multiple of 256, which gives away 64 of 64 neurons
        (8960, 7000, 6912),
        (13440, 9999, 9984),
        (4096, 31, 0),
        (64, 33, 32),
    ],
)
def test_the_coarsest_multiple_is_taken_that_costs_no_more_than_a_64th(width, affordable, rounded):
    assert of_width(width).rounded_width(affordable) == rounded


@given(st.integers(512, 20_000), st.data())
def test_a_chosen_width_is_quantised_and_shared_as_the_original_was(width, data):
    """Every rounded width is a whole number of blocks, and 2, 4, 8 or 16 devices share it evenly."""
    made = of_width(width).rounded_width(data.draw(st.integers(32, width)))
    assert made >= 32
    assert made % 32 == 0
    assert all(made % devices == 0 for devices in (2, 4, 8, 16))


@given(shapes(), fractions, st.integers(1, 300))
def test_a_given_multiple_is_kept(shape, remove, multiple):
    multiple = min(multiple, shape.width)
    try:
        splits = feasible_splits(shape, remove, shape.vocabulary, Pins(width_multiple=multiple))
    except BudgetError:
        allowed = allowed_parameters(shape, remove)
        assert all(shape.parameters(shape.vocabulary, n, multiple) > allowed for n in range(1, shape.layers + 1))
        return
    assert all(split.width % multiple == 0 or split.width == shape.width for split in splits)


def test_a_multiple_beyond_the_width_is_refused():
    with pytest.raises(OptionError, match=r"`width_multiple` .*got 65, allowed 1 to 64"):
        Pins(width_multiple=65).check(SMALL)


@given(shapes(), fractions, st.data())
def test_what_a_coarse_width_leaves_is_spent_on_tokens_and_no_more(shape, remove, data):
    vocabulary = data.draw(st.integers(1, shape.vocabulary))
    allowed = allowed_parameters(shape, remove)
    width = widest(shape, vocabulary, shape.layers, allowed)
    more = spare_tokens(shape, remove, vocabulary, Pins())
    if not width:
        assert more == 0
        return
    assert shape.parameters(vocabulary + more, shape.layers, width) <= allowed
    assert shape.parameters(vocabulary + more + VOCABULARY_MULTIPLE, shape.layers, width) > allowed


def test_a_pinned_vocabulary_gets_no_more_tokens():
    shape = replace(SMALL, width=8192, per_neuron=2)
    assert spare_tokens(shape, 0.2, 90, Pins(vocabulary=90)) == 0
