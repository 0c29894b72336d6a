"""Tensors that are missing, called otherwise or of another shape are found by the headers, for every family."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flab.errors import CheckpointError
from flab.models.source import ModelFolder
from flab.models.tensors import check_tensors
from support import pico


def check(folder: ModelFolder, stored, **changes: object) -> None:
    """Check the folder as if its files held these tensors, with changes to its config."""
    other = ModelFolder(folder.path, {**folder.raw, **changes})
    vars(other)["stored"] = stored  # where the cached property keeps what it has read
    check_tensors(other)


def renamed(folder: ModelFolder, old: str, new: str):
    """The stored tensors, one part of their names changed."""
    made = {name.replace(old, new): tensor for name, tensor in folder.stored.items()}
    assert made.keys() != folder.stored.keys()
    return made


@pytest.mark.parametrize("family", pico.FAMILY_SETTINGS)
def test_the_tensors_of_every_family_are_as_its_row_says(family, pico_folder):
    folder = ModelFolder.open(pico_folder(family))
    check_tensors(folder)
    inside = [name for name in folder.stored if ".layers.1." in name and ".self_attn." not in name]
    assert len(inside) > 3
    for name in inside:
        with pytest.raises(CheckpointError, match="1 missing keys in the weights") as caught:
            check(folder, renamed(folder, name, f"{name}_old"))
        assert f"({name}), but it has {name}_old. Fetch it again." in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("layers.2.", "layers.7.", "9 missing keys in the weights (model.layers.2.input_layernorm.weight, "),
        ("up_proj", "linear_v", "missing keys in the weights (model.layers.0.mlp.up_proj.weight, model.layers.1."),
        ("embed_tokens", "wte", "1 missing keys in the weights (model.embed_tokens.weight)"),
        ("model.norm", "model.ln_f", "1 missing keys in the weights (model.norm.weight)"),
        ("lm_head", "output", "1 missing keys in the weights (lm_head.weight)"),
    ],
)
def test_what_a_model_cannot_do_without_is_missed(old, new, words, pico_folder):
    folder = ModelFolder.open(pico_folder("llama"))
    with pytest.raises(CheckpointError) as caught:
        check(folder, renamed(folder, old, new))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("model.layers.1.self_attn.q_proj.weight", (7, 32)), ("model.layers.2.mlp.down_proj.weight", (32, 63))],
)
def test_another_shape_is_named(name, shape, pico_folder):
    folder = ModelFolder.open(pico_folder("llama"))
    stored = {**folder.stored, name: replace(folder.stored[name], shape=shape)}
    with pytest.raises(CheckpointError, match=rf"1 mismatched keys in the weights \({name}\)"):
        check(folder, stored)


def test_a_size_of_the_config_that_no_layer_has_is_named(pico_folder):
    folder = ModelFolder.open(pico_folder("llama"))
    with pytest.raises(CheckpointError, match=r"mismatched keys in the weights \(model.layers.0.mlp.down_proj.weight"):
        check(folder, folder.stored, intermediate_size=60)


def test_what_transformers_accepts_is_accepted(pico_folder):
    """Names without their beginning, buffers of old versions, further layers, and families without a row."""
    folder = ModelFolder.open(pico_folder("llama"))
    some = next(iter(folder.stored.values()))
    check(folder, renamed(folder, "model.", ""))
    check(folder, {**folder.stored, "model.layers.0.self_attn.rotary_emb.inv_freq": some})
    check(folder, {**folder.stored, "mtp.layers.0.mlp.up_proj.weight": replace(some, shape=(1, 1))})
    check(folder, {**folder.stored, "model.layers.99.mlp.up_proj.weight": some, "extra": some})
    check(folder, {}, model_type="unheard_of")
