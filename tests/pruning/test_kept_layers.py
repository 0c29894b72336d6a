"""The refitted layers that a plan leaves beside it: applying it ends at the same bytes, and fits nothing again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from flab import Options, apply
from flab.models import checkpoint
from flab.models.checkpoint import MIXED
from flab.pruning import pipeline, planner
from flab.pruning.pipeline import build, plan
from flab.pruning.plan import Plan
from flab.pruning.refit.resume import layers_of_plan, read_layer
from flab.pruning.refit.walk import Walk


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def planned(trained_folder, recipe, tmp_path):
    """A plan file of one folder, with the layers beside it."""
    file = tmp_path / "plan.json"
    plan(trained_folder, recipe(remove=0.35, refit="residual", layers=4), Options(), file)
    assert layers_of_plan(file).is_dir()
    return file


@pytest.fixture
def fits(monkeypatch):
    """The places of the layers that are fitted from now on."""
    fitted = []
    real = Walk._layer

    def counted(walk, place, index, after):
        fitted.append(place)
        return real(walk, place, index, after)

    monkeypatch.setattr(Walk, "_layer", counted)
    return fitted


@pytest.mark.parametrize(
    ("family", "computing", "changes"),
    [
        ("qwen2", "float32", {"refit": "newton"}),
        ("qwen2", MIXED, {"refit": "newton"}),
        ("starcoder2", MIXED, {"refit": "residual", "layers": 4}),
        ("llama", MIXED, {"refit": "reconstruction", "layers": 3}),
        ("gemma2", "bfloat16", {"refit": "residual"}),
        ("phi3", MIXED, {"refit": "descent"}),
        ("qwen3_5_text", MIXED, {"refit": "residual"}),
    ],
)
def test_applying_a_plan_takes_its_layers(family, changes, computing, pico_folder, recipe, tmp_path, fits, monkeypatch):
    for module in (checkpoint, planner):
        monkeypatch.setattr(module, "cutting_dtype", lambda *_: computing)
    model, file = pico_folder(family, dtype=torch.bfloat16), tmp_path / "plan.json"
    plan(model, recipe(remove=0.3, **changes), Options(), file)
    apply(model, Plan.read(file), tmp_path / "refitted")
    assert fits
    fits.clear()

    def read(*_):
        raise AssertionError("the calibration text is read")

    monkeypatch.setattr(pipeline, "read_texts", read)
    apply(model, file, tmp_path / "taken")
    assert not fits
    assert files_of(tmp_path / "taken") == files_of(tmp_path / "refitted")


def test_a_streamed_pruning_fits_each_layer_once(pico_folder, recipe, tmp_path, fits):
    model, asked = pico_folder("llama"), recipe(remove=0.35, refit="residual")
    build(model, tmp_path / "whole", asked, Options())
    once = len(fits)
    fits.clear()
    build(model, tmp_path / "streamed", asked, replace(Options(), in_memory="layer"))
    assert len(fits) == once
    assert files_of(tmp_path / "streamed").keys() == files_of(tmp_path / "whole").keys()
    tensors = "model.safetensors"
    assert files_of(tmp_path / "streamed")[tensors] == files_of(tmp_path / "whole")[tensors]


def spoil_plan(file, folder):
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"warnings": ["edited"]}))


def spoil_layer(file, folder):
    layer = folder / "1.safetensors"
    layer.write_bytes(layer.read_bytes()[:-10])


def lose_layer(file, folder):
    (folder / "0.safetensors").unlink()


def lose_digest(file, folder):
    (folder / "plan.sha256").unlink()


def swap_layers(file, folder):
    (folder / "0.safetensors").rename(folder / "x")
    (folder / "1.safetensors").rename(folder / "0.safetensors")
    (folder / "x").rename(folder / "1.safetensors")


@pytest.mark.parametrize("spoil", [spoil_plan, spoil_layer, lose_layer, lose_digest, swap_layers])
def test_layers_that_are_not_whole_are_fitted_again(spoil, planned, trained_folder, tmp_path, fits):
    apply(trained_folder, planned, tmp_path / "taken")
    spoil(planned, layers_of_plan(planned))
    apply(trained_folder, planned, tmp_path / "refitted")
    assert fits
    weights = "model.safetensors"
    assert files_of(tmp_path / "refitted")[weights] == files_of(tmp_path / "taken")[weights]


def test_another_plan_of_the_name_replaces_the_layers(planned, trained_folder, recipe, tmp_path, fits):
    before = files_of(layers_of_plan(planned))
    plan(trained_folder, recipe(remove=0.2, refit="residual"), Options(overwrite=True), planned)
    assert files_of(layers_of_plan(planned)) != before
    fits.clear()
    apply(trained_folder, planned, tmp_path / "taken")
    assert not fits
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "plan.json.layers", "taken"]


def test_a_folder_of_that_name_that_is_not_flabs_stays(trained_folder, recipe, tmp_path):
    file = tmp_path / "plan.json"
    layers_of_plan(file).mkdir()
    (layers_of_plan(file) / "mine.txt").write_text("mine")
    plan(trained_folder, recipe(remove=0.35, refit="residual", layers=4), Options(), file)
    assert [path.name for path in layers_of_plan(file).iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "changes", [{"refit": "none"}, {"layers": 5, "width": 64, "refit": "residual", "remove": 0.02}]
)
def test_a_cut_without_a_refit_leaves_no_layers(changes, trained_folder, recipe, tmp_path):
    decided = plan(trained_folder, recipe(**{"remove": 0.35, **changes}), Options(), tmp_path / "plan.json")
    assert changes["refit"] == "none" or decided.body_removed_fraction == 0
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_layer_is_read_to_the_device_that_goes_on_with_it(planned):
    layer = read_layer(layers_of_plan(planned) / "1.safetensors", "meta")
    assert layer.ffn_out.is_meta
    assert layer.attention_out.is_meta
