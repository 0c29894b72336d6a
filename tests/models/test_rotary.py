"""Rotary scalings of every kind are read in the spellings of transformers 4 and 5, and written so that both read the same."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoConfig

from flab import apply
from flab.models.checkpoint import load
from flab.models.stock import rewrite_config
from flab.pruning.pipeline import plan
from support import pico

LONG = {"original_max_position_embeddings": 32}
KINDS = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, **LONG},
    "yarn with all fields": {"factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.2, **LONG},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LONG},
}
THETA = 5e5


def scaling_of(kind):
    return {"rope_type": kind.split()[0], **KINDS[kind]}


def as_transformers_4(source, folder, name="rope_type"):
    """The same model with its config in the older spelling, where ``rope_type`` was first called ``type``."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {name: kind, **rope}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pruned(source, out, recipe):
    asked = recipe(remove=0.35, refit="none", finalists=1, layers=4)
    folder = apply(source, plan(source, asked), out)
    return folder, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_folder_has_the_scaling_in_both_spellings_whichever_the_source_has(kind, recipe, tmp_path):
    new = pico.build("llama", tmp_path / "new", rope_parameters={"rope_theta": THETA, **scaling_of(kind)})
    old = as_transformers_4(new, tmp_path / "old")
    (folder, config), (_, other) = (pruned(source, tmp_path / f"{source.name}-out", recipe) for source in (new, old))
    assert config == other
    assert config["rope_parameters"] == {"rope_theta": THETA, **scaling_of(kind)}
    assert config["rope_theta"] == THETA
    assert config["rope_scaling"] == (None if kind == "default" else scaling_of(kind))
    # What the older transformers would write of it is read as the same, and turns the same way.
    again = as_transformers_4(folder, tmp_path / "again", "type")
    models = [load(path).model for path in (new, folder, again)]
    turns = [model.model.rotary_emb.inv_freq for model in models]
    assert torch.equal(turns[0], turns[1])
    assert torch.equal(turns[0], turns[2])
    scales = {model.model.rotary_emb.attention_scaling for model in models}
    assert len(scales) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gemma3_text", "olmo3"])
def test_full_and_windowed_attention_keep_their_own(family, kind, tmp_path):
    """Only full attention is scaled, and the older spelling has no other place for the window's base."""
    window = {"rope_type": "default", "rope_theta": 1e4 if family == "gemma3_text" else THETA}
    rope = {"sliding_attention": window, "full_attention": {"rope_theta": THETA, **scaling_of(kind)}}
    AutoConfig.for_model(family, rope_parameters=rope).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).rope_parameters
    rewrite_config(tmp_path, tied=True)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == before
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == before
