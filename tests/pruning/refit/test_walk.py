"""The walk and its refits: each part helps, the KL is that of the model that is made, outliers and 16 bits do no harm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flab import apply
from flab.models.checkpoint import open_to_cut
from flab.models.families import family_of, head_of, layers_of, linear
from flab.models.layers import LayerRunner
from flab.models.options import Options
from flab.pruning.calibration import CalibrationSet
from flab.pruning.cuts.neurons import NEURON_CRITERIA, NeuronSearch
from flab.pruning.objective import kl_divergence
from flab.pruning.pipeline import plan
from flab.pruning.refit.new_layer import Cut
from flab.pruning.refit.walk import Walk
from flab.pruning.refit.weights import TokenWeights
from flab.pruning.surgeon import carve
from support import pico
from support.calibrated import data_for, fresh


def kl_of(folder, data, kept, width, kind, projection=True, criterion=None):
    model, family = fresh(folder)
    scores = NEURON_CRITERIA[criterion](NeuronSearch(LayerRunner(model, family), data.fit)) if criterion else None
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


def test_the_refit_adds_no_bias(pico_folder, data):
    for family_name, has_bias in (("llama", False), ("starcoder2", True)):
        model = kl_of(pico_folder(family_name), data, [0, 1, 4], 32, "residual")[1]
        out = linear(layers_of(model, family_of(model.config))[0], family_of(model.config).ffn_out)
        assert (out.bias is not None) == has_bias
        assert not any(isinstance(m, nn.Linear) and m.in_features not in (32, 64) for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_nothing_to_remove_the_output_is_the_input(dtype, tmp_path, recipe):
    source = pico.build("qwen2", tmp_path / "source", dtype=dtype)
    decided = plan(source, recipe(remove=0.0))
    out = apply(source, decided, tmp_path / "out")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert decided.kl_nats_per_token == decided.kl_vocabulary == 0
    assert decided.removed_fraction == 0


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
