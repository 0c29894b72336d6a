"""Smaller models of all families under transformers 4.57: the same logits and the same tokens as under this one.

Give the python of an environment with ``transformers==4.57.3`` and torch in ``FLAB_OLDEST_PYTHON``, and run with ``-m slow``.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from flab import apply
from flab.pruning.pipeline import plan
from flab.pruning.verify import verify
from support import pico

pytestmark = pytest.mark.slow
PYTHON = os.environ.get("FLAB_OLDEST_PYTHON")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES = {
    "another theta": {"rope_type": "default", "rope_theta": 777.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e5, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": LLAMA3,
}

KNOWN = sorted(set(pico.FAMILY_SETTINGS) - {"ministral3", "iquestcoder", "qwen3_5_text"})  # to transformers 4.57
EVERY_ROPE = ("llama", "mistral", "qwen2", "qwen3", "starcoder2", "gemma3_text")  # the rest depends on them no further
# Families with rotary parameters for each kind of attention: the window's theta, or None for the same.
TWO_ROPES = {"gemma3_text": 555.0, "olmo3": None}


@pytest.fixture
def python() -> str:
    if PYTHON is None:
        pytest.skip("no FLAB_OLDEST_PYTHON: the python of an environment with transformers 4.57")
    return PYTHON


def cut(source, out, recipe, **changes):
    """A smaller model of the source, verified beside it with the oldest transformers as well."""
    return apply(source, plan(source, recipe(finalists=1, refit="simple", **{"remove": 0.35, **changes})), out)


def assert_same(folder, python) -> None:
    verdict = verify(folder, None, python)
    line = next(one for one in verdict["checks"] if one["name"] == "the oldest transformers gives the same")
    assert line["ok"] is True, line
    assert line["detail"].startswith("transformers 4.57"), line


@pytest.mark.parametrize(
    ("family", "rope"),
    [(family, rope) for family in KNOWN for rope in sorted(ROPES) if family in EVERY_ROPE or rope == "another theta"],
)
def test_every_family_with_its_ropes(family, rope, python, recipe, tmp_path):
    ropes = ROPES[rope]
    if family in TWO_ROPES:
        window = {"rope_type": "default", "rope_theta": TWO_ROPES[family] or ropes["rope_theta"]}
        ropes = {"full_attention": ropes, "sliding_attention": window}
    source = pico.build(family, tmp_path / "source", rope_parameters=ropes)
    out = cut(source, tmp_path / "out", recipe, layers=4)
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == ROPES[rope]["rope_theta"]
    assert (config["rope_scaling"] is None) == (rope == "another theta")
    assert_same(out, python)


@pytest.mark.parametrize("family", KNOWN)
def test_every_family_in_bfloat16_without_a_dtype_in_its_config(family, python, recipe, tmp_path):
    source = pico.build(family, tmp_path / "source", dtype=torch.bfloat16)
    config = json.loads((source / "config.json").read_text())
    del config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    out = cut(source, tmp_path / "out", recipe)
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert_same(out, python)


@pytest.mark.parametrize("family", ["qwen2", "starcoder2", "llama"])
def test_tied_by_the_config_and_stored_apart(family, python, recipe, tmp_path):
    source = pico.build(family, tmp_path / "source", tie_word_embeddings=False)
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config))
    out = cut(source, tmp_path / "out", recipe)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert_same(out, python)


@pytest.mark.parametrize(("family", "settings"), [
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ("starcoder2", {"sliding_window": 8}),
])  # fmt: skip
def test_windows(family, settings, python, recipe, tmp_path):
    source = pico.build(family, tmp_path / "source", **settings)
    out = cut(source, tmp_path / "out", recipe, drop_layers=(1,))
    config = json.loads((out / "config.json").read_text())
    if "max_window_layers" in settings:
        assert config["max_window_layers"] == settings["max_window_layers"] - 1
    assert_same(out, python)


def test_a_whole_vocabulary_keeps_its_tokenizer(python, recipe, tmp_path):
    source = pico.build("qwen2", tmp_path / "source")
    assert_same(cut(source, tmp_path / "out", recipe, remove=0.1), python)


def test_a_tokenizer_config_of_transformers_5(python, recipe, tmp_path):
    source = pico.build("llama", tmp_path / "source")
    config = json.loads((source / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_start|>"]}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    assert_same(cut(source, tmp_path / "out", recipe), python)


def test_what_only_transformers_5_reads_is_found(python, recipe, tmp_path):
    """Shows that the test can fail: without the second form the rotary base falls back to a default."""
    source = pico.build("llama", tmp_path / "source", rope_parameters=LLAMA3)
    out = cut(source, tmp_path / "out", recipe)
    config = json.loads((out / "config.json").read_text())
    for name in ("rope_theta", "rope_scaling"):
        del config[name]
    (out / "config.json").write_text(json.dumps(config))
    line = next(one for one in verify(out, None, python)["checks"] if one["name"].startswith("the oldest"))
    assert line["ok"] is False


def test_the_reported_config(python, recipe, tmp_path):
    """A config as transformers 4 wrote it, with ``rope_theta`` at the top, is read and written so that both agree."""
    from pathlib import Path

    reported = (
        Path(__file__).parents[2].parent / "shared" / "cases" / "bugs" / "rope-theta" / "config-transformers4.json"
    )
    if not reported.exists():
        pytest.skip(f"no {reported}")
    source = pico.build("qwen2", tmp_path / "source")
    rows = load_file(source / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    config = json.loads(reported.read_text()) | {"vocab_size": rows}
    (source / "config.json").write_text(json.dumps(config))
    if not config.get("tie_word_embeddings", False):
        tensors = load_file(source / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
    out = cut(source, tmp_path / "out", recipe)
    written = json.loads((out / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == config["rope_theta"]
    assert_same(out, python)
    shutil.rmtree(out)
