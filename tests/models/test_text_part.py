"""The text model of a multimodal one: the same logits, nothing of the vision part, and then it is cut as any other."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from flab import prune
from flab.errors import CheckpointError, OptionError, UnsupportedModelError
from flab.models.checkpoint import load, read_config
from flab.models.text_part import text_name, write_text_part

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
OUTER = {  # the multimodal model, by its text model
    "gemma3_text": (
        "gemma3",
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4},
    ),
    "qwen3_5_text": (
        "qwen3_5",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "depth": 1,
                "num_heads": 2,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
            }
        },
    ),
    "ministral3": ("mistral3", {"vision_config": {"model_type": "pixtral", **VISION}, "image_token_index": 5}),
}


@pytest.fixture(scope="module", params=sorted(OUTER))
def multimodal(request, pico_folder, tmp_path_factory):
    """A pico multimodal model in several files, with a tokenizer and a licence."""
    text = pico_folder(request.param)
    folder = tmp_path_factory.mktemp("multimodal") / "model"
    shutil.copytree(text, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    kind, settings = OUTER[request.param]
    inner = AutoConfig.from_pretrained(text).to_dict()
    tied = inner["tie_word_embeddings"]
    config = AutoConfig.for_model(kind, text_config=inner, tie_word_embeddings=tied, **settings)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else None
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder


def test_it_gives_the_same_logits_and_nothing_else_is_kept(multimodal, tmp_path):
    made = write_text_part(multimodal, tmp_path / "text")
    ids = torch.arange(10, 40)[None]
    whole = AutoModelForImageTextToText.from_pretrained(multimodal).eval()
    opened = load(made.folder)
    assert torch.equal(opened.model(ids).logits, whole(input_ids=ids).logits)
    assert made.parameters == sum(p.numel() for p in opened.model.parameters())
    assert made.parameters + sum(made.left_out.values()) == sum(p.numel() for p in whole.parameters())
    assert made.left_out.keys() & {"vision_tower", "model.visual"}
    assert opened.tokenizer.to_str() == load(made.folder).tokenizer.to_str()
    assert (made.folder / "LICENSE").read_text() == (multimodal / "LICENSE").read_text()
    assert len(list(made.folder.glob("*.safetensors"))) > 1


def test_the_result_is_cut_as_any_other(multimodal, tmp_path, recipe, verify_here):
    made = write_text_part(multimodal, tmp_path / "text")
    report = prune(made.folder, tmp_path / "out", recipe(remove=0.3, finalists=1))
    assert report["check"]["ok"]


def write_index(folder):
    """Write the index of the tensors that the folder's files hold."""
    files = {name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_names_with_the_head_outside_are_known_too(multimodal, tmp_path):
    other = shutil.copytree(multimodal, tmp_path / "other")
    for file in other.glob("*.safetensors"):
        renamed = {}
        for name, tensor in load_file(file).items():
            new = name.replace("language_model.model.", "model.language_model.").replace(
                "language_model.lm_head", "lm_head"
            )
            renamed[new] = tensor
        save_file(renamed, file, {"format": "pt"})
    write_index(other)
    texts = [write_text_part(source, tmp_path / name).folder for name, source in (("one", multimodal), ("two", other))]
    one, two = ({k: v for f in text.glob("*.safetensors") for k, v in load_file(f).items()} for text in texts)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_multimodal_model_itself_is_refused_with_the_command(multimodal):
    with pytest.raises(UnsupportedModelError, match="flab text MODEL"):
        read_config(multimodal)


def test_a_missing_tensor_is_found_before_anything_is_written(multimodal, tmp_path):
    other = shutil.copytree(multimodal, tmp_path / "other")
    file = next(f for f in other.glob("*.safetensors") if any("layers.1.mlp.up_proj" in n for n in load_file(f)))
    kept = {n: t for n, t in load_file(file).items() if "language_model.layers.1.mlp.up_proj" not in n}
    kept = {n: t for n, t in kept.items() if "layers.1.mlp.up_proj" not in n}
    save_file(kept, file, {"format": "pt"})
    write_index(other)
    with pytest.raises(CheckpointError, match=r"1 tensors of the text model.*layers\.1\.mlp\.up_proj"):
        write_text_part(other, tmp_path / "text")
    assert not (tmp_path / "text").exists()


def test_what_is_not_multimodal_or_would_be_replaced_is_refused(multimodal, pico_folder, tmp_path):
    with pytest.raises(UnsupportedModelError, match="not multimodal"):
        write_text_part(pico_folder("llama"), tmp_path / "text")
    (tmp_path / "text").mkdir()
    with pytest.raises(OptionError, match="exists"):
        write_text_part(multimodal, tmp_path / "text")


def test_a_text_model_of_another_family_is_refused_with_what_is_missing(tmp_path, pico_folder):
    folder = shutil.copytree(pico_folder("llama"), tmp_path / "hybrid")
    (folder / "config.json").write_text(json.dumps(AutoConfig.for_model("qwen3_5_moe").to_dict()))
    with pytest.raises(UnsupportedModelError, match="linear-attention"):
        write_text_part(folder, tmp_path / "text")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.visual.blocks.0.norm1.weight", None),
        ("mtp.fc.weight", None),
    ],
)
def test_names(name, expected):
    assert text_name(name) == expected


def test_the_command_says_what_is_left_out(multimodal, flab, tmp_path):
    code, out, _ = flab("text", str(multimodal), "-o", str(tmp_path / "text"))
    assert code == 0
    assert "left out: vision_tower" in out or "left out: model.visual" in out
    code, _, err = flab("text", str(multimodal), "-o", str(tmp_path / "text"))
    assert code == 2
    assert "text exists: remove it, or choose another." in err
