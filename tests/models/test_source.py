"""What would stop the work at its end, or never let it end, is found at its start, in one line, with nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flab.errors import CheckpointError
from flab.models.checkpoint import Checkpoint, load, try_saving
from flab.models.families import family_of
from flab.models.folder import INDEX, header_of, headers, weight_files
from flab.models.source import ModelFolder
from flab.pruning.pipeline import plan, prune

BUGS = Path(__file__).parents[2].parent / "shared" / "cases" / "bugs"
WEIGHTS = "model.safetensors"


@pytest.fixture
def source(pico_folder, tmp_path) -> Path:
    return shutil.copytree(pico_folder("llama"), tmp_path / "source")


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def set_weight(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[name].view(-1)[5] = value
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def quantise(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def pack(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(8, 64, dtype=torch.int32)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def adapt(folder: Path, base: str = "owner/base") -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))


def only_adapter(folder: Path) -> None:
    adapt(folder)
    for name in ("config.json", WEIGHTS):
        (folder / name).unlink()


def pipe(name: str):
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def index(weight_map: object):
    def make(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return make


def normalizer(steps: list[dict[str, object]]):
    def make(folder: Path) -> None:
        edit(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": steps})

    return make


def write(name: str, text: str | bytes):
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
DEEP = '{"a":' * 100_000
FAULTS = {
    "fp8 by its config": (lambda f: edit(f / "config.json", quantization_config={"quant_method": "fp8"}), "quantised by fp8"),
    "gptq": (lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "quantised by gptq"),
    "awq": (lambda f: edit(f / "config.json", quantization_config={"quant_method": "awq"}), "quantised by awq"),
    "bitsandbytes": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantised by bitsandbytes .*: give the unquantised model",
    ),
    "compressed-tensors": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "compressed-tensors"}),
        "quantised by compressed-tensors",
    ),
    "a compression config": (lambda f: edit(f / "config.json", compression_config={}), "is quantised"),
    "an empty quantisation": (lambda f: edit(f / "config.json", quantization_config={}), "is quantised"),
    "fp8 without a word": (quantise, "quantised weights .*up_proj.weight is F8_E4M3"),
    "packed weights": (pack, "quantised weights .*qweight is I32"),
    "an adapter beside": (adapt, "an adapter of owner/base beside the model .*: merge it"),
    "an adapter instead": (only_adapter, "holds an adapter of owner/base, not a model"),
    "a NaN": (lambda f: set_weight(f, "model.layers.2.mlp.up_proj.weight", torch.nan), "layers.2.mlp.up_proj.weight holds NaN"),
    "an infinity": (lambda f: set_weight(f, "lm_head.weight", -torch.inf), "lm_head.weight holds NaN or infinite"),
    "ten million layers": (lambda f: edit(f / "config.json", num_hidden_layers=10**7), "num_hidden_layers 10000000"),
    "a huge width": (lambda f: edit(f / "config.json", intermediate_size=10**9), "do not belong together"),
    "a huge vocabulary": (lambda f: edit(f / "config.json", vocab_size=10**9), "vocab_size 1000000000"),
    "a hundred million labels": (lambda f: edit(f / "config.json", num_labels=10**8), "num_labels is 100000000"),
    "no layers": (lambda f: edit(f / "config.json", num_hidden_layers=0), "num_hidden_layers is 0, expected a whole number"),
    "a size in words": (lambda f: edit(f / "config.json", hidden_size="big"), "hidden_size is 'big', expected a whole number"),
    "a list of sizes": (lambda f: edit(f / "config.json", intermediate_size=[64] * 5), r"intermediate_size is \[64"),
    "an unknown family of ten million layers": (
        lambda f: edit(f / "config.json", model_type="gpt2", num_hidden_layers=10**7), "model_type 'gpt2' cannot be cut"
    ),
    "a tokenizer that is too large": (lambda f: edit(f / "config.json", vocab_size=400), "more tokens than the embedding has"),
    "a normalizer that explodes": (normalizer([DOUBLE] * 40), "its normalizer makes a text up to .* times as long"),
    "one inside a sequence": (
        normalizer([{"type": "Sequence", "normalizers": [DOUBLE] * 6}, {"type": "Sequence", "normalizers": [DOUBLE] * 6}]),
        "its normalizer makes a text up to 4.1e\\+03 times",
    ),
    "a config that is a pipe": (pipe("config.json"), "config.json is a pipe"),
    "a generation config that is a pipe": (pipe("generation_config.json"), "generation_config.json is a pipe"),
    "weights that are a pipe": (pipe(WEIGHTS), "model.safetensors is a pipe"),
    "a template that is a pipe": (pipe("chat_template.jinja"), "chat_template.jinja is a pipe"),
    "a deep config": (write("config.json", DEEP), r"nested too deeply|cannot be read as JSON"),
    "a deep generation config": (write("generation_config.json", DEEP), "generation_config.json"),
    "a deep tokenizer config": (write("tokenizer_config.json", DEEP), "tokenizer_config.json"),
    "a deep tokenizer": (write("tokenizer.json", DEEP), "tokenizer.json cannot be read as JSON .nested too deeply"),
    "a config that can be parsed but not copied": (
        lambda f: edit(f / "config.json", extra=json.loads("[" * 101 + "]" * 101)), "config.json .*nested too deeply"
    ),
    "weights under another name": (
        lambda f: (f / WEIGHTS).rename(f / "consolidated.safetensors"), "has consolidated.safetensors, but neither"
    ),
    "a deep index": (lambda f: [index({})(f), write(INDEX, DEEP)(f)], "cannot be read as JSON"),
    "an index of shards that are gone": (index({"a": "model-00001-of-00002.safetensors"}), "named by the index are missing"),
    "a list as index": (index([]), "index.json is malformed"),
    "an empty index": (index({}), "index.json is malformed"),
    "an index of numbers": (index({"a": 3}), "index.json is malformed"),
    "an index that leads elsewhere": (index({"a": "../secret.safetensors"}), "index.json is malformed"),
    "an absolute index": (index({"a": "/etc/passwd"}), "index.json is malformed"),
    "a template in another encoding": (write("chat_template.jinja", b"\xff\xfe\xff"), "chat_template.jinja is not UTF-8 text"),
    "a generation config of no known cache": (
        write("generation_config.json", json.dumps({"cache_implementation": "magic"})), "Invalid `cache_implementation`"
    ),
    "an empty file of weights": (write(WEIGHTS, b""), "truncated or damaged"),
    "a header beyond the file": (write(WEIGHTS, (10**12).to_bytes(8, "little") + b"{}"), "truncated or damaged"),
    "a deep header": (write(WEIGHTS, len(DEEP).to_bytes(8, "little") + DEEP.encode()), "truncated or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_faults_are_found_before_the_work(kind, source, recipe, tmp_path):
    damage, words = FAULTS[kind]
    damage(source)
    (tmp_path / "place").mkdir()
    start = time.process_time()
    with pytest.raises(CheckpointError if "family" not in kind else Exception, match=words) as caught:
        prune(source, tmp_path / "place" / "out", recipe(remove=0.3, finalists=1))
    assert time.process_time() - start < 20, "it hung"
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "place").iterdir())


def test_a_vocabulary_with_gaps_may_not_leave_the_embedding(source):
    """The number of tokens fits, the id of one does not."""
    data = json.loads((source / "tokenizer.json").read_text())
    data["added_tokens"].append(data["added_tokens"][-1] | {"id": 5000, "content": "<|new|>"})
    (source / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"more tokens than the embedding has rows|damaged"):
        load(source)


def opened(folder: Path) -> Checkpoint:
    checkpoint = load(folder)
    try_saving(checkpoint, family_of(checkpoint.model.config))
    return checkpoint


def test_greedy_settings_with_flags_of_sampling_are_settled_with_a_warning(source, tmp_path):
    ids = json.loads((source / "generation_config.json").read_text())["eos_token_id"]
    edit(source / "generation_config.json", temperature=0.6, top_p=0.9, do_sample=False, length_penalty=2.0)
    checkpoint = opened(source)
    assert checkpoint.warnings[-1].startswith(
        "generation_config.json: temperature, top_p, length_penalty without sampling"
    )
    config = checkpoint.model.generation_config
    assert (config.do_sample, config.temperature, config.eos_token_id) == (False, None, ids)
    config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("num_beams", "x", "a whole number"),
        ("eos_token_id", [1, "x"], "a whole number"),
        ("temperature", "hot", "a number"),
        ("stop_strings", 5, "text"),
        ("pad_token_id", True, "a whole number"),
    ],
)
def test_a_generation_config_that_nothing_can_generate_with_is_refused_at_the_start(field, value, wanted, source):
    edit(source / "generation_config.json", **{field: value})
    with pytest.raises(CheckpointError, match=rf"generation_config.json: {field} is .*, expected {wanted}"):
        opened(source)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "none"}, "does not load: unknown name 'none'"),
        ({"rms_norm_eps": "x"}, "Validation error for field 'rms_norm_eps': TypeError"),
        ({"intermediate_size": 60}, r"mismatched keys in the weights \(model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_what_transformers_does_not_load_is_named(changes, words, source):
    edit(source / "config.json", **changes)
    with pytest.raises(CheckpointError, match=words):
        load(source)


def test_settings_of_sampling_stay(source):
    edit(source / "generation_config.json", temperature=0.6, top_p=0.9, top_k=20, do_sample=True)
    checkpoint = opened(source)
    config = checkpoint.model.generation_config
    assert (config.do_sample, config.temperature, config.top_p, config.top_k) == (True, 0.6, 0.9, 20)
    assert not [line for line in checkpoint.warnings if "generation_config" in line]


@pytest.mark.usefixtures("verify_here")
def test_the_reported_generation_config_goes_the_whole_way(source, recipe, tmp_path):
    reported = BUGS / "gen-config-flags" / "generation_config.json"
    if not reported.exists():
        pytest.skip(f"no {reported}")
    shutil.copyfile(reported, source / "generation_config.json")
    report = prune(source, tmp_path / "out", recipe(remove=0.3, finalists=1))
    assert report["check"]["ok"], report["check"]
    assert any("temperature, top_p" in warning for warning in report["warnings"])
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert not written.get("do_sample")
    assert "temperature" not in written


def test_the_reported_adapter_is_refused(source):
    if not (BUGS / "adapter-beside-base").exists():
        pytest.skip("no reported adapter")
    for file in (BUGS / "adapter-beside-base").iterdir():
        shutil.copyfile(file, source / file.name)
    with pytest.raises(CheckpointError, match=r"an adapter of work/base-llama beside the model"):
        load(source)


def test_headers_say_what_safetensors_says(source, tmp_path):
    tensors = load_file(source / WEIGHTS)
    found = headers(source)
    assert {name: stored.shape for name, stored in found.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert {stored.dtype for stored in found.values()} == {"F32"}
    data = (source / WEIGHTS).read_bytes()
    for cut in (7, 8, 100, len(data) - 1):
        (tmp_path / "cut.safetensors").write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            header_of(tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(data + b"x")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        header_of(tmp_path / "cut.safetensors")


def test_the_dtype_is_that_of_most_numbers(source):
    tensors = {
        name: t.to(torch.bfloat16) if "norm" not in name else t for name, t in load_file(source / WEIGHTS).items()
    }
    save_file(tensors, source / WEIGHTS, {"format": "pt"})
    edit(source / "config.json", dtype="float32")
    assert ModelFolder.open(source).stored_dtype == "bfloat16"
    assert load(source).model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["gone", "there", "deep"])
def test_an_index_beside_whole_weights_is_a_leftover_that_is_not_read(kind, source):
    """transformers reads the whole file: so does flab, whatever the index of an earlier, larger model names."""
    tensors = load_file(source / WEIGHTS)
    old = "model-00001-of-00002.safetensors"
    (source / INDEX).write_text(DEEP if kind == "deep" else json.dumps({"weight_map": dict.fromkeys(tensors, old)}))
    if kind == "there":
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, source / old, {"format": "pt"})
    assert ModelFolder.open(source).files == [source / WEIGHTS]
    loaded = load(source).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_only_the_weights_that_are_loaded_count(source):
    save_file({"a": torch.zeros(3)}, source / "consolidated.safetensors")
    assert [file.name for file in weight_files(source)] == [WEIGHTS]


@pytest.fixture
def counted(monkeypatch):
    """How often each check of a folder was made."""
    import flab.models.source as module

    counts = Counter()

    def counting(name):
        real = getattr(module, name)

        def count(*given):
            counts[name] += 1
            return real(*given)

        monkeypatch.setattr(module, name, count)

    for name in ("check_source", "header_of", "weight_files"):
        counting(name)
    return counts


def test_loading_checks_a_folder_once(pico_folder, counted):
    load(pico_folder())
    assert counted == {"check_source": 1, "header_of": 1, "weight_files": 1}


def test_planning_checks_a_folder_once_however_often_the_model_is_loaded(pico_folder, recipe, counted):
    plan(pico_folder("qwen2"), recipe(remove=0.3, refit="none"))
    assert counted == {"check_source": 1, "header_of": 1, "weight_files": 1}


def test_a_folder_that_is_open_is_not_opened_again(pico_folder, counted):
    folder = ModelFolder.open(pico_folder())
    assert ModelFolder.open(folder) is folder
    assert counted["check_source"] == 1
    assert counted["header_of"] == 0, "headers are read when they are needed"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "small.gguf",
            b"GGUF\x03\0\0\0",
            "it is a GGUF file of llama.cpp; give the Hugging Face folder that it was made",
        ),
        ("pytorch_model.bin", b"\x80\x02}q\0.", "it is a Python pickle, which can run code; give a folder with"),
        ("rows.rtf", b"{\\rtf1", "it is an RTF document; give a folder with config.json"),
        ("config.json", b"{}", "it is one file of a model; give its folder, "),
        ("some.safetensors", (8).to_bytes(8, "little") + b'{"a":{}}', "it is one file of a model; give its folder, "),
    ],
)
def test_a_file_given_as_a_model_is_named(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(tmp_path / name)
    assert f"no model folder at {tmp_path / name}: {words}" in str(caught.value)


def test_a_folder_for_llama_cpp_is_named(tmp_path):
    (tmp_path / "small-q4.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(CheckpointError, match=r"holds a model for llama.cpp \(small-q4.gguf\): give the Hugging Face"):
        ModelFolder.open(tmp_path)
