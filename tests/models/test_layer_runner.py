"""Layers held narrow and tokens taken in parts change no figure."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from flab import Options
from flab.data.samples import Sample
from flab.models.checkpoint import open_model, open_to_cut
from flab.models.families import embedding_of, head_of, is_tied, layers_of
from flab.models.layers import LayerRunner, by_rows
from flab.pruning.calibration import CalibrationSet, calibration_set, windows_of
from flab.pruning.cuts.layers import LAYER_CRITERIA, LayerSearch
from flab.pruning.cuts.neurons import NEURON_CRITERIA, NeuronSearch
from flab.pruning.refit.new_layer import Cut
from flab.pruning.refit.walk import Walk
from flab.pruning.surgeon import carve
from support import pico


@pytest.fixture(scope="module")
def data() -> CalibrationSet:
    samples = [Sample(row["prompt"], row["completion"]) for row in pico.calibration_rows(30)]
    return calibration_set(windows_of(samples, pico.tokenizer(), 64, None), 512)


def dtypes(module: torch.nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


@pytest.fixture(params=["qwen2", "starcoder2"])
def both(request, pico_folder):
    """The same model stored in bfloat16: opened to be cut, and opened whole in float32."""
    folder = pico_folder(request.param, dtype=torch.bfloat16)
    (narrow, family), (whole, _) = open_to_cut(folder, Options()), open_model(folder, Options())
    assert dtypes(whole.model) == {torch.float32}
    return narrow.model, whole.model, family


def test_layers_stay_as_stored_and_all_else_is_wide(both):
    narrow, whole, family = both
    assert dtypes(layers_of(narrow, family)) == {torch.bfloat16}
    assert dtypes(embedding_of(narrow, family)) == dtypes(head_of(narrow, family)) == {torch.float32}
    assert is_tied(narrow, family) == is_tied(whole, family)
    buffers = dict(whole.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in narrow.named_buffers())


def test_the_stored_precision_stays_where_it_is_asked_for_or_wide_anyhow(pico_folder):
    stored, asked = pico_folder("qwen2"), Options(dtype="bfloat16")
    assert dtypes(open_to_cut(stored, Options())[0].model) == {torch.float32}
    assert dtypes(open_to_cut(stored, asked)[0].model) == {torch.bfloat16}


@pytest.mark.parametrize("said", ["bfloat16", "float16"])
def test_files_that_are_wider_than_their_config_says_are_read_as_they_are(said, pico_folder, tmp_path):
    folder = shutil.copytree(pico_folder("qwen2"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": said}))
    assert dtypes(open_to_cut(folder, Options())[0].model) == {torch.float32}


@pytest.mark.parametrize("kind", ["none", "simple", "residual", "descent", "newton", "reconstruction"])
def test_a_walk_over_narrow_layers_is_the_walk_over_wide_ones(kind, both, data):
    *models, family = both
    cut, made, kls = Cut([0, 2, 3], 32, kind), [], []
    for model in models:
        walk = Walk(LayerRunner(model, family), cut, data.fit, data.compare)
        made.append(list(walk))
        kls.append(walk.divergence(head_of(model, family)))
    assert kls[0] == kls[1]
    for narrow, whole in zip(*made, strict=True):
        assert narrow.neurons == whole.neurons
        assert torch.equal(narrow.ffn_out, whole.ffn_out)
        assert narrow.state is None or all(torch.equal(narrow.state[name], whole.state[name]) for name in whole.state)
    assert dtypes(layers_of(models[0], family)) == {torch.bfloat16}


@pytest.mark.parametrize("criterion", ["kl", "perplexity", "block-influence"])
def test_layers_are_judged_alike(criterion, both, data):
    *models, family = both
    searches = [LayerSearch(LayerRunner(model, family), data.fit) for model in models]
    assert len({next(LAYER_CRITERIA[criterion](search)) for search in searches}) == 1
    assert searches[0].path == searches[1].path


@pytest.mark.parametrize("criterion", sorted(NEURON_CRITERIA))
def test_neurons_are_scored_alike(criterion, both, data):
    *models, family = both
    scores = [NEURON_CRITERIA[criterion](NeuronSearch(LayerRunner(model, family), data.fit)) for model in models]
    assert torch.equal(*scores)


def test_after_the_cut_the_layers_are_as_stored_and_widen_for_good(both, data):
    narrow, _, family = both
    carve(narrow, family, Cut([0, 2, 3], 32, "newton"), data.fit, [])
    assert dtypes(layers_of(narrow, family)) == {torch.bfloat16}
    LayerRunner(narrow, family).widen()
    assert dtypes(narrow) == {torch.float32}
    assert narrow(data.compare[0].ids, use_cache=False).logits.isfinite().all()


def test_a_layer_is_put_back_when_its_work_fails(both):
    narrow, _, family = both
    runner = LayerRunner(narrow, family)

    def fail():
        with runner.at_work(1) as layer:
            assert dtypes(layer) == {torch.float32}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert dtypes(runner.layers[1]) == {torch.bfloat16}


def test_decisions_hold_no_weights(both, data):
    narrow, _, family = both
    decisions, _ = carve(narrow, family, Cut([0, 2, 3], 32, "newton"), data.fit, [])
    assert [decision.ffn_out.untyped_storage().nbytes() for decision in decisions] == [0, 0, 0]


@pytest.mark.parametrize("family_name", ["qwen2", "starcoder2"])
def test_an_ffn_by_parts_of_the_tokens_is_the_ffn(family_name, pico_folder, data, monkeypatch):
    checkpoint, family = open_model(pico_folder(family_name), Options())
    runner = LayerRunner(checkpoint.model, family)
    cut, outcomes = Cut([0, 2, 3], 32, "residual"), []
    for elements in (2**22, 64 * 7):
        monkeypatch.setattr("flab.models.layers.ROW_ELEMENTS", elements)
        walk = Walk(runner, cut, data.fit, data.compare)
        outcomes.append(([new.neurons for new in walk], walk.pruned))
    assert outcomes[0][0] == outcomes[1][0]
    for one, other in zip(outcomes[0][1], outcomes[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_rows_come_in_order_and_at_least_one_at_a_time(monkeypatch):
    monkeypatch.setattr("flab.models.layers.ROW_ELEMENTS", 12)
    rows = torch.arange(10.0)[:, None]
    assert [len(part) for part in by_rows(rows, 4)] == [3, 3, 3, 1]
    assert torch.equal(torch.cat(by_rows(rows, 100)), rows)
