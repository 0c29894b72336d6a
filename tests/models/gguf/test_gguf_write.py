"""A written file, read back: every number, every key, and nothing left behind on a failure."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf import GGUFReader, LlamaFileType, dequantize
from safetensors.torch import load_file, save_file

from flab import apply, assets
from flab.errors import OptionError, OutputError
from flab.models.checkpoint import read_config
from flab.models.compatibility import quantised
from flab.models.folder import Stored, headers
from flab.models.gguf import write
from flab.models.gguf.architectures import tensor_name
from flab.models.gguf.export import export_gguf, modelfile_of
from flab.models.gguf.write import licence_of, write_gguf
from flab.pruning.pipeline import plan
from support import pico


def read(path):
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    return fields, tensors, {t.name: t.tensor_type.name for t in reader.tensors}


@pytest.fixture(scope="module")
def pruned(pico_folder, recipe, tmp_path_factory):
    """A pruned llama, with the plan that made it."""
    source = pico_folder("llama")
    decided = plan(source, recipe(remove=0.33, layers=4, finalists=1, width_multiple=32))
    return apply(source, decided, tmp_path_factory.mktemp("written") / "small")


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "starcoder2"])
def test_every_number_is_written_as_it_is(pico_folder, tmp_path, family):
    folder = pico_folder(family)
    write_gguf(folder, tmp_path / "model.gguf", "f32")
    fields, tensors, types = read(tmp_path / "model.gguf")
    stored = load_file(folder / "model.safetensors")
    assert {tensor_name(name) for name in stored} == set(tensors)
    for name, tensor in stored.items():
        assert np.array_equal(tensors[tensor_name(name)], tensor.numpy()), name
    assert set(types.values()) == {"F32"}
    assert fields["general.architecture"] == family
    assert fields[f"{family}.block_count"] == 5
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    assert fields["tokenizer.chat_template"] == pico.CHAT_TEMPLATE
    assert fields["general.license"] == "apache-2.0"


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_rows_of_llamas_heads_are_interleaved(pico_folder, tmp_path, family):
    """Row 1 of a head is what transformers keeps in the middle of it: 4 heads of 8 rows, of keys 2."""
    folder = pico_folder(family)
    write_gguf(folder, tmp_path / "model.gguf", "f32")
    fields, tensors, _ = read(tmp_path / "model.gguf")
    stored = load_file(folder / "model.safetensors")
    assert fields["general.architecture"] == "llama"
    for name, heads in (("q", 4), ("k", 2)):
        rows = stored[f"model.layers.0.self_attn.{name}_proj.weight"].numpy()
        order = [head * 8 + half * 4 + place for head in range(heads) for place in range(4) for half in range(2)]
        assert np.array_equal(tensors[f"blk.0.attn_{name}.weight"], rows[order])
    assert np.array_equal(tensors["output.weight"], stored["lm_head.weight"].numpy())


@pytest.mark.parametrize(("kind", "error"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 2e-2), ("q4_0", 0.13)])
def test_smaller_types_are_close_and_vectors_stay_exact(pico_folder, tmp_path, kind, error):
    folder = pico_folder("llama")
    written = write_gguf(folder, tmp_path / "model.gguf", kind)
    _, tensors, types = read(tmp_path / "model.gguf")
    right = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].numpy()
    assert np.abs(tensors["blk.1.ffn_down.weight"] - right).max() <= error * np.abs(right).max()
    assert types["blk.1.ffn_down.weight"] == kind.upper()
    assert types["output_norm.weight"] == "F32"
    assert written.fallbacks == []


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_rows_that_are_no_whole_blocks_stay_in_f16(pico_folder, tmp_path, kind):
    folder = pico_folder("llama", intermediate_size=48)
    written = write_gguf(folder, tmp_path / "model.gguf", kind)
    _, _, types = read(tmp_path / "model.gguf")
    assert written.fallbacks == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(5)]
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == kind.upper()


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen2", True)])
def test_q4_0_keeps_the_head_in_eight_bits_and_the_vectors_exact(pico_folder, tmp_path, family, tied):
    folder = pico_folder(family)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] == tied
    write_gguf(folder, tmp_path / "model.gguf", "q4_0")
    fields, tensors, types = read(tmp_path / "model.gguf")
    head = "token_embd.weight" if tied else "output.weight"
    kinds = {name: "F32" if tensor.ndim == 1 else "Q4_0" for name, tensor in tensors.items()} | {head: "Q8_0"}
    assert types == kinds
    assert fields["general.file_type"] == LlamaFileType.MOSTLY_Q4_0
    right = load_file(folder / "model.safetensors")
    assert np.array_equal(tensors["output_norm.weight"], right["model.norm.weight"].numpy())


def test_q4_0_errs_by_at_most_an_eighth_of_a_blocks_largest_number(pico_folder, tmp_path):
    """A block of 32 has 16 steps from -8 to 7; the largest number is step -8, so its opposite is off by a whole step."""
    folder = pico_folder("qwen2")
    write_gguf(folder, tmp_path / "model.gguf", "q4_0")
    _, tensors, types = read(tmp_path / "model.gguf")
    for name, stored in load_file(folder / "model.safetensors").items():
        if types[tensor_name(name)] != "Q4_0":
            continue
        right = stored.numpy().reshape(-1, 32)
        error = np.abs(tensors[tensor_name(name)].reshape(-1, 32) - right)
        largest = np.abs(right).max(axis=1, keepdims=True)
        assert (error <= largest * (1 / 8 + 1 / 1024)).all(), name
        assert 0 < error.mean() < (largest / 16).mean(), name


def test_q4_0_keeps_whole_steps_as_they_are(tmp_path):
    folder = pico.build("qwen2", tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    steps = torch.arange(-8, 8).repeat(2, 32, 1).transpose(0, 1).reshape(32, 32) * 0.25
    whole = steps.repeat(1, 2) * torch.tensor([1.0, -1.0]).repeat(16)[:, None]
    name = "model.layers.0.mlp.down_proj.weight"
    assert weights[name].shape == whole.shape
    save_file({**weights, name: whole.contiguous()}, folder / "model.safetensors", {"format": "pt"})
    write_gguf(folder, tmp_path / "model.gguf", "q4_0")
    assert np.array_equal(read(tmp_path / "model.gguf")[1]["blk.0.ffn_down.weight"], whole.numpy())


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_pruned_model_falls_back_no_more_than_its_original(pruned, pico_folder, tmp_path, kind):
    written = [write_gguf(folder, tmp_path / f"{folder.name}.gguf", kind) for folder in (pico_folder("llama"), pruned)]
    assert [one.fallbacks for one in written] == [[], []]


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("width", [480, 320])
def test_the_bundled_models_bytes_fall_as_its_parameters_do(kind, width):
    """By its sizes as the budgets of 22 and 40 % cut them; the vocabulary goes first, so q4_0, whose head is dearer, gains."""
    config = read_config(assets.model_path())
    stored = headers(assets.model_path())
    cut = {4096: 2304, 640: width}
    smaller = {name: Stored(t.dtype, tuple(cut.get(size, size) for size in t.shape)) for name, t in stored.items()}
    found = quantised(kind, (config, smaller), (config, stored))
    assert found["bytes_ratio"] <= found["parameters_ratio"] + 0.02
    assert found["falls_back"] == found["original"]["falls_back"] == 0


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize(("family", "width"), [("llama", 64), ("qwen2", 64), ("qwen2", 48), ("starcoder2", 48)])
def test_the_bytes_that_check_works_out_are_those_written(pico_folder, tmp_path, kind, family, width):
    """A head of its own and a tied one, rows of whole blocks and others: all tensors' bytes, without the file's settings."""
    folder = pico_folder(family, intermediate_size=width)
    written = write_gguf(folder, tmp_path / "model.gguf", kind)
    found = quantised(kind, (read_config(folder), headers(folder)))
    assert found["bytes"] == sum(tensor.n_bytes for tensor in GGUFReader(tmp_path / "model.gguf").tensors)
    assert found["falls_back"] == len(written.fallbacks)


def test_a_pruned_model_says_where_it_comes_from(pruned, pico_folder, tmp_path):
    write_gguf(pruned, tmp_path / "model.gguf", "f32")
    fields, tensors, _ = read(tmp_path / "model.gguf")
    decided = json.loads((pruned / "plan.json").read_text())
    assert fields["llama.block_count"] == 4
    assert fields["llama.vocab_size"] == len(fields["tokenizer.ggml.tokens"]) == decided["cuts"]["vocabulary"]["after"]
    assert tensors["token_embd.weight"].shape == (decided["cuts"]["vocabulary"]["after"], 32)
    assert fields["general.base_model.0.name"] == pico_folder("llama").name
    assert fields["flab.base_model.sha256"] == decided["model"]["sha256"]
    assert fields["flab.removed_fraction"] == pytest.approx(
        1 - decided["parameters_after"] / decided["parameters_before"]
    )
    assert "Pruned by flab" in fields["general.description"]


def test_the_plan_records_what_llama_cpp_calls_the_pre_tokenizer(pruned):
    assert json.loads((pruned / "plan.json").read_text())["model"]["pre_tokenizer"] == "qwen2"


def test_numbers_beyond_f16_are_refused_and_leave_nothing(pico_folder, tmp_path):
    folder = tmp_path / "large"
    pico.build("llama", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.full((64, 32), 1e5)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(OptionError, match="`kind` bf16"):
        write_gguf(folder, tmp_path / "model.gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_an_unknown_type_names_those_allowed(pico_folder, tmp_path):
    with pytest.raises(OptionError, match="got 'q9', allowed f32, f16, bf16, q8_0, q4_0"):
        export_gguf(pico_folder(), tmp_path / "model.gguf", "q9")


def test_without_llama_quantize_its_types_are_refused_and_it_is_run_where_it_is(pico_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OptionError, match="llama-quantize, which is not found on the path"):
        export_gguf(pico_folder(), tmp_path / "model.gguf", "q4_k_m")
    with pytest.raises(OptionError, match=r"not found at .*nowhere: install llama\.cpp"):
        export_gguf(pico_folder(), tmp_path / "model.gguf", "q4_k_m", llama_quantize=tmp_path / "nowhere")
    program = tmp_path / "llama-quantize"
    program.write_text('#!/bin/sh\necho "made $3" > "$2"\n')
    program.chmod(0o755)
    made = export_gguf(pico_folder(), tmp_path / "model.gguf", "q4_k_m")
    assert (tmp_path / "model.gguf").read_text() == "made Q4_K_M\n"
    assert made["type"] == "q4_k_m"
    program.write_text("#!/bin/sh\necho no such type >&2\nexit 3\n")
    with pytest.raises(OutputError, match="exit code 3: no such type"):
        export_gguf(pico_folder(), tmp_path / "other.gguf", "q6_k")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama-quantize", "model.gguf"]


def test_the_command_prints_what_serves_the_file(pico_folder, tmp_path, flab):
    code, out, _ = flab("export", "gguf", pico_folder(), "-o", tmp_path / "small.gguf", "--modelfile", "--json")
    made = json.loads(out)
    assert code == 0
    assert made["serve"]["llama.cpp"] == f"llama-server -m {tmp_path / 'small.gguf'} -c 128"
    assert made["serve"]["ollama"].startswith("ollama create small -f ")
    recipe = (tmp_path / "small.Modelfile").read_text()
    assert recipe.startswith("FROM ./small.gguf\nPARAMETER num_ctx 128\n")
    assert 'PARAMETER stop "<|im_end|>"' in recipe
    assert "<|im_start|>{{ .Role }}" in recipe
    code, _, err = flab("export", "gguf", pico_folder(), "-o", tmp_path / "small.gguf")
    assert code == 2
    assert "exists: pass --overwrite" in err


def test_a_model_without_a_chat_template_gets_the_prompt_as_it_is(tmp_path):
    folder = pico.build("qwen2", tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    written = write_gguf(folder, tmp_path / "model.gguf", "f32")
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile_of(written, folder)


def test_other_formats_are_refused(pico_folder, tmp_path, flab):
    code, _, err = flab("export", "onnx", pico_folder(), "-o", tmp_path / "model.onnx")
    assert (code, "allowed gguf" in err) == (2, True)


def test_without_the_library_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(OptionError, match=r"pip install 'flab-pruner\[gguf\]'"):
        write.gguf_library()


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("LICENSE", "   Apache License\n  Version 2.0, January 2004", "apache-2.0"),
        ("LICENSE.txt", "MIT License\n\nCopyright", "mit"),
        ("README.md", "---\nlicense: llama3\n---\n# Model", "llama3"),
        ("README.md", "# no front matter\n---\nlicense: x\n---\n", None),
        ("LICENSE", "All rights reserved.", None),
    ],
)
def test_the_licence_is_named(tmp_path, name, text, found):
    (tmp_path / name).write_text(text)
    assert licence_of(tmp_path) == found
