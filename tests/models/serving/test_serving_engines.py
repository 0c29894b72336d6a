"""Engines run beside transformers: pico models of every family and the bundled one, original and pruned, and planted faults.

They need an environment with the engines: ``make engines`` makes one and runs these tests. FLAB_ENGINES_PYTHON names its
Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from flab import Options, assets, check, prune
from flab.models.gguf import write
from flab.models.serving import compare
from flab.models.serving.compare import NUM_PROMPTS, NUM_TEXTS, run_engines
from flab.pruning.recipe import Recipe
from flab.pruning.verify import SAME_TOKENS
from support import pico, sentencepiece

pytestmark = pytest.mark.engines
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "starcoder2")
MODULES = {"llama.cpp": "xllamacpp", "ctranslate2": "ctranslate2", "vllm": "vllm", "transformers-serve": "uvicorn"}
# vLLM's attention on the CPU takes heads of 32 numbers or more; those of the pico models have 8 or 16.
SETTINGS = {"vllm": {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}}
# CTranslate2's converter has no loader for starcoder2, and its loaders of llama and mistral want a tokenizer that names a
# beginning of text, which the pico tokenizer of the other tests does not.
CONVERTED = ("qwen2", "qwen3")


@pytest.fixture(scope="session")
def python() -> str:
    named = os.environ.get("FLAB_ENGINES_PYTHON")
    if not named:
        pytest.skip("no environment with engines: run make engines, or set FLAB_ENGINES_PYTHON")
    return named


@pytest.fixture(scope="session")
def run(python):
    """Run one engine on a folder; skips where it is not installed."""
    look = "import sys; from importlib.util import find_spec; print([bool(find_spec(name)) for name in sys.argv[1:]])"
    there = subprocess.run([python, "-c", look, *MODULES.values()], capture_output=True, text=True, check=True)
    installed = [engine for engine, found in zip(MODULES, json.loads(there.stdout.lower()), strict=True) if found]

    def skip_without(engine):
        if engine not in installed:
            pytest.skip(f"{engine} is not installed in that environment")

    def give(engine, folder, pre=None):
        skip_without(engine)
        return run_engines(folder, [engine], python, pre)[engine]

    give.skip_without = skip_without
    return give


def assert_same(verdict):
    assert verdict["ok"], verdict
    assert verdict["same_answers"] == verdict["prompts"] == NUM_PROMPTS
    assert verdict["same_texts"] in (NUM_TEXTS, None)
    assert verdict["ties"] <= 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", list(MODULES))
def test_the_original_gives_the_same(run, pico_folder, engine, family):
    if engine == "ctranslate2" and family not in CONVERTED:
        pytest.skip(f"CTranslate2 cannot convert this pico {family}")
    assert_same(run(engine, pico_folder(family, **SETTINGS.get(engine, {}))))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", list(MODULES))
def test_the_pruned_model_gives_the_same(run, smaller, engine, family):
    if engine == "ctranslate2" and family not in CONVERTED:
        pytest.skip(f"CTranslate2 cannot convert this pico {family}")
    assert_same(run(engine, smaller(family, **SETTINGS.get(engine, {}))))


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("engine", ["llama.cpp", "ctranslate2"])
def test_a_sentencepiece_vocabulary_gives_the_same(run, tmp_path, engine, family):
    assert_same(run(engine, sentencepiece.build(tmp_path / "model", family)))


@pytest.mark.parametrize("rope", ["llama3", "linear", "yarn"])
def test_scaled_rotary_embeddings_give_the_same(run, tmp_path, rope):
    scaling = {
        "rope_type": rope,
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    keys = {"llama3": 6, "linear": 3, "yarn": 3}[rope]
    settings = dict(list(scaling.items())[:keys]) | {"original_max_position_embeddings": 32}
    assert_same(run("llama.cpp", pico.build("llama", tmp_path / "model", rope_parameters=settings)))


def test_the_bundled_model_gives_the_same_before_and_after(run, tmp_path):
    assert_same(run("llama.cpp", assets.model_path()))
    prune(assets.model_path(), tmp_path / "small", Recipe(remove=0.4, tokens=4096, finalists=1), Options())
    for engine in MODULES:
        assert_same(run(engine, tmp_path / "small"))


def test_a_swapped_id_is_found(run, smaller, tmp_path, monkeypatch):
    """Two tokens of the written vocabulary change places: texts are split into other ids."""
    plain = write.read_vocabulary

    def swapped(*arguments):
        made = plain(*arguments)
        made.tokens[60], made.tokens[61] = made.tokens[61], made.tokens[60]
        return made

    monkeypatch.setattr(write, "read_vocabulary", swapped)
    verdict = run("llama.cpp", smaller("qwen2"))
    assert not verdict["ok"]
    assert verdict["same_texts"] < NUM_TEXTS
    assert "is split differently" in verdict["first_difference"]


@pytest.fixture
def instead(monkeypatch):
    """Give engines another folder than the one that the reference reads."""

    def give(damaged):
        plain = compare.ask
        monkeypatch.setattr(compare, "ask", lambda engine, folder, *rest: plain(engine, damaged, *rest))

    return give


@pytest.mark.parametrize("engine", list(MODULES))
def test_swapped_rows_are_found_by_every_engine(run, smaller, tmp_path, instead, engine):
    """Two rows of the embedding change places in what the engine is given, not in the reference."""
    right = smaller("qwen2", **SETTINGS.get(engine, {}))
    damaged = shutil.copytree(right, tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    order = list(range(len(tensors["model.embed_tokens.weight"])))
    frequent = Tokenizer.from_file(str(right / "tokenizer.json")).encode("def ").ids[0]
    order[frequent], order[frequent + 1] = order[frequent + 1], order[frequent]
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][order].contiguous()
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    instead(damaged)
    verdict = run(engine, right)
    assert not verdict["ok"]
    assert verdict["same_answers"] < NUM_PROMPTS


def swap_ids(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    one, other = (next(token for token, index in vocabulary.items() if index == wanted) for wanted in (60, 61))
    vocabulary[one], vocabulary[other] = 61, 60


def split_as_gpt_2(tokenizer):
    tokenizer["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }


def edit_tokenizer(folder, plant):
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    plant(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.mark.parametrize("engine", ["vllm", "transformers-serve"])
def test_an_engine_with_another_tokenizer_is_found(run, smaller, tmp_path, instead, engine):
    right = smaller("qwen2", **SETTINGS.get(engine, {}))
    damaged = shutil.copytree(right, tmp_path / "damaged")
    edit_tokenizer(damaged, swap_ids)
    instead(damaged)
    verdict = run(engine, right)
    assert not verdict["ok"]
    assert verdict["same_texts"] < NUM_TEXTS
    assert "is split differently" in verdict["first_difference"]


@pytest.mark.parametrize("plant", [swap_ids, split_as_gpt_2])
@pytest.mark.parametrize("engine", list(MODULES))
def test_a_folder_whose_tokenizer_was_changed_fails_with_every_engine(run, python, smaller, tmp_path, engine, plant):
    """The reference reads the same damaged tokenizer as the engine, so only the record in the folder can tell."""
    right = smaller("qwen2", **SETTINGS.get(engine, {}))
    run.skip_without(engine)
    damaged = shutil.copytree(right, tmp_path / "damaged")
    edit_tokenizer(damaged, plant)
    verdict = check(damaged, engines=[engine], engines_python=python)
    line = next(line for line in verdict["checks"] if line["name"] == SAME_TOKENS)
    assert not verdict["ok"]
    assert line["ok"] is False
    assert "is split differently from token" in line["detail"]
    assert verdict["engines"][engine]["ran"]


def test_heads_that_vllm_does_not_take_are_named(run, smaller):
    """Its engine dies without a word on them."""
    verdict = run("vllm", smaller("llama"))
    if "why" not in verdict:
        pytest.skip("vLLM runs on a GPU here, which takes these heads")
    assert not verdict["ok"]
    assert "takes heads of 32, 64" in verdict["why"]
    assert "this model's have 8" in verdict["why"]


def test_a_wrong_pre_tokenizer_is_found(run, smaller):
    verdict = run("llama.cpp", smaller("qwen2"), pre="gpt-2")
    assert not verdict["ok"]
    assert "is split differently" in verdict["first_difference"]


def test_the_command_prints_how_many_are_the_same(smaller, python, flab):
    code, out, _ = flab("check", smaller("qwen2"), "--run", "llama.cpp", "--engines-python", python)
    assert code == 0
    assert f"run: {NUM_PROMPTS}/{NUM_PROMPTS}" in out
    code, out, _ = flab("check", smaller("qwen2"), "--run", "vllm", "--engines-python", python, "--json")
    verdict = json.loads(out)["engines"]["vllm"]
    assert (verdict["ran"], verdict["ok"]) in ((False, None), (True, True))
