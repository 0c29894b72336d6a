"""What is written is what others read: both forms of a config, files by name, links followed only inside the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flab import apply
from flab.errors import CheckpointError
from flab.models.stock import both_forms, check_links, copy_sidecars, full_layers, is_inside, rewrite_tokenizer_config
from flab.pruning.pipeline import plan
from flab.pruning.verify import verify
from support import pico


def cut(source, out, recipe, **changes) -> Path:
    return apply(source, plan(source, recipe(finalists=1, refit="simple", **{"remove": 0.35, **changes})), out)


def test_both_forms_of_rope_and_dtype():
    rope = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 32}
    made = both_forms({"rope_parameters": rope, "dtype": "bfloat16", "auto_map": {"AutoModel": "x"}}, tied=False)
    assert made["rope_theta"] == 5e5
    assert made["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert made["rope_parameters"] == rope
    assert (made["dtype"], made["torch_dtype"], made["tie_word_embeddings"]) == ("bfloat16", "bfloat16", False)
    assert "auto_map" not in made
    plain = both_forms({"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}, tied=True)
    assert (plain["rope_theta"], plain["rope_scaling"], plain["tie_word_embeddings"]) == (777.0, None, True)


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        (["full_attention"] * 3, 3),
        (["full_attention", "sliding_attention"], 1),
        (["sliding_attention"] * 2, 0),
        ([], 0),
    ],
)
def test_windows_begin_where_the_first_layer_has_one(layers, count):
    assert full_layers(layers) == count
    assert both_forms({"layer_types": layers, "max_window_layers": 28}, tied=False)["max_window_layers"] == count


def test_a_tokenizer_config_that_transformers_4_knows():
    given = {
        "tokenizer_class": "TokenizersBackend",
        "added_tokens_decoder": {},
        "auto_map": {},
        "extra_special_tokens": ["a"],
    }
    assert rewrite_tokenizer_config(given) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["a"],
    }
    assert rewrite_tokenizer_config({"tokenizer_class": "Qwen2Tokenizer"}) == {"tokenizer_class": "Qwen2Tokenizer"}


STRAY = (
    "tekken.json", "params.json", "consolidated.safetensors", "model.safetensors.index.json.bak", "quantize_config.json",
    "trainer_state.json", "training_args.bin", ".env", "run.sh", "modeling_x.py", "handler.py", "secrets", "notes.txt",
    "tokenizer.model.v3", "README.md", "all_results.json", "scheduler.pt", "ggml.gguf", "LICENSE.exe",
)  # fmt: skip
LEGAL = ("LICENSE.txt", "NOTICE", "Notice.md", "USE_POLICY.md", "LICENSE-MODEL", "COPYING")


@pytest.mark.parametrize("renumbered", [True, False])
def test_files_travel_by_name_and_never_by_suffix(renumbered, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for name in (*STRAY, *LEGAL, "vocab.json", "tokenizer.json", "chat_template.jinja"):
        (source / name).write_text("{}")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "X", "auto_map": {}}')
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 1 }}")
    (source / "additional_chat_templates" / "x.py").write_text("evil")
    assert copy_sidecars(source, out, renumbered) == []
    tokenizer = set() if renumbered else {"vocab.json", "tokenizer.json"}
    wanted = {*LEGAL, *tokenizer, "chat_template.jinja", "tokenizer_config.json", "additional_chat_templates"}
    assert {path.name for path in out.iterdir()} == wanted
    assert [path.name for path in (out / "additional_chat_templates").iterdir()] == ["tool_use.jinja"]
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"tokenizer_class": "X"}


def test_links_are_followed_only_inside(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "legal").mkdir(parents=True)
    out.mkdir()
    (tmp_path / "passwd").write_text("secret")
    (source / "legal" / "apache").write_text("Apache")
    (source / "LICENSE").symlink_to(tmp_path / "passwd")
    (source / "NOTICE").symlink_to("legal/apache")
    (warning,) = copy_sidecars(source, out, True)
    assert warning.startswith("LICENSE is a link to")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"NOTICE": "Apache"}
    (source / "chat_template.jinja").symlink_to(tmp_path / "passwd")
    with pytest.raises(
        CheckpointError, match=r"chat_template.jinja is a link to .*passwd, outside of the model's folder"
    ):
        check_links(source)


def test_the_hub_cache_is_inside(tmp_path):
    """A snapshot's files are links to blobs beside it."""
    model = tmp_path / "models--owner--name"
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "blobs" / "1").write_text("Apache")
    (model / "snapshots" / "abc" / "LICENSE").symlink_to("../../blobs/1")
    assert is_inside(model / "snapshots" / "abc" / "LICENSE", model / "snapshots" / "abc")
    (tmp_path / "other").write_text("secret")
    (model / "snapshots" / "abc" / "NOTICE").symlink_to(tmp_path / "other")
    assert not is_inside(model / "snapshots" / "abc" / "NOTICE", model / "snapshots" / "abc")


def test_a_bf16_file_without_a_dtype_in_its_config_does_not_grow(recipe, tmp_path):
    source = pico.build("llama", tmp_path / "source", dtype=torch.bfloat16)
    config = json.loads((source / "config.json").read_text())
    del config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    out = cut(source, tmp_path / "out", recipe)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    written = json.loads((out / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert verify(out, source)["ok"]


def test_tied_by_the_config_and_stored_apart_is_written_as_it_is(recipe, tmp_path):
    source = pico.build("qwen2", tmp_path / "source", tie_word_embeddings=False)
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config))
    out = cut(source, tmp_path / "out", recipe)
    assert "lm_head.weight" in load_file(out / "model.safetensors")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert verify(out, source)["ok"]


def test_stray_files_and_links_stay_behind_in_a_whole_run(pico_folder, recipe, tmp_path):
    source = shutil.copytree(pico_folder("llama"), tmp_path / "source")
    for name in STRAY:
        if name != "consolidated.safetensors":
            (source / name).write_text("{}")
    (tmp_path / "secret").write_text("secret")
    (source / "LICENSE").unlink()
    (source / "LICENSE").symlink_to(tmp_path / "secret")
    decided = plan(source, recipe(remove=0.35, finalists=1, refit="simple"))
    assert any("LICENSE is a link to" in warning for warning in decided.warnings)
    out = apply(source, decided, tmp_path / "out")
    names = (
        "chat_template.jinja config.json generation_config.json kept_tokens.json model.safetensors plan.json proof.json"
    )
    assert sorted(path.name for path in out.iterdir()) == [*names.split(), "tokenizer.json", "tokenizer_config.json"]
