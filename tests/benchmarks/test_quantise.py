"""The distance that ``benchmarks/quantise.py`` measures, by hand; and the whole of it on a pico model where an engine is."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest

from flab import apply
from flab.pruning.pipeline import plan

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import quantise  # noqa: E402
from quantise_worker import compare, distance  # noqa: E402


class FixedEngine:
    """The same probabilities at every place."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def likeliest(self, texts, top):
        return (self.probabilities for ids in texts for _ in ids[1:])


def test_the_distance_is_the_kl_in_nats():
    kl, vocabulary = distance({0: 0.5, 1: 0.5}, None, {0: 0.75, 1: 0.25})
    assert kl == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert vocabulary == 0.0
    assert distance({0: 0.5, 1: 0.5}, None, {0: 0.5, 1: 0.5})[0] == pytest.approx(0.0, abs=1e-9)


def test_dropped_tokens_leave_the_distance_and_are_counted_apart():
    kl, vocabulary = distance({0: 0.4, 1: 0.4, 9: 0.2}, {0, 1}, {0: 0.5, 1: 0.5})
    assert kl == pytest.approx(0.0, abs=1e-9)
    assert vocabulary == pytest.approx(-math.log(0.8))


def test_tokens_that_one_side_does_not_name_are_one_class():
    kl, _ = distance({0: 0.5, 1: 0.5}, None, {0: 0.25, 7: 0.75})
    assert kl == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))


def test_ids_of_a_cut_vocabulary_are_read_as_the_originals():
    """Tokens 0 and 1 of the pruned model are 5 and 9 of the original."""
    model = {"texts": [[0, 1]], "kept": [5, 9]}
    row = compare([{5: 0.25, 9: 0.75}], FixedEngine({0: 0.25, 1: 0.75}), model, 2)
    assert row["kl"] == pytest.approx(0.0, abs=1e-9)
    assert (row["places"], row["same_first_choice"]) == (1, 1.0)
    assert row["bits"] == pytest.approx(-math.log2(0.75))


@pytest.mark.engines
def test_the_whole_of_it_on_a_pico_model(pico_folder, recipe, tmp_path):
    python = os.environ.get("FLAB_ENGINES_PYTHON")
    if not python:
        pytest.skip("no environment with engines: run make engines, or set FLAB_ENGINES_PYTHON")
    source = pico_folder("llama")
    small = tmp_path / "small"
    apply(source, plan(source, recipe(remove=0.3, layers=4, finalists=1, width_multiple=32)), small)
    out = tmp_path / "out"
    named = ["--model", source, "--pruned", small, "--engines-python", python, "-o", out]
    sizes = ["--num-texts", "1", "--length", "40", "--rounds", "1", "--top", "1000"]
    result = quantise.main([*map(str, named), *sizes])
    first, exact, coarse, *pruned = result["rows"]
    assert [row["type"] for row in result["rows"]] == ["f16", "q8_0", "q4_0"] * 2
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert exact["kl"] < coarse["kl"]
    assert first["bytes"] > exact["bytes"] > coarse["bytes"]
    assert all(0.2 < row["removed"] < 0.4 and row["kl"] > 0 for row in pruned)
    assert json.loads((out / "quantise.json").read_text())["rows"] == result["rows"]
    assert (out / "quantise.svg").read_text().startswith("<svg")
