"""What follows from sizes, against what is there: torch's count, the cache's tensors, the files' tensors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from flab.footprint.sizes import answer_flops, attended, bytes_per_step, count_flops, size_figures, storage
from flab.models.checkpoint import load, load_model
from flab.models.engines.protocol import Encoded
from flab.models.engines.transformers import Batch
from flab.models.families import FAMILIES, family_of, shape_of
from support import pico

PROMPT = 11


def opened(folder):
    model = load_model(folder)
    family = family_of(model.config)
    return model, family, shape_of(model, family)


HYBRIDS = [name for name, family in FAMILIES.items() if family.linear_attention]


@pytest.mark.parametrize("family", HYBRIDS)
def test_flops_of_a_hybrid_are_torchs_but_for_the_recurrence(tmp_path, family):
    folder = pico.build(family, tmp_path, hidden_size=256, intermediate_size=512, linear_num_value_heads=8)
    model, row, shape = opened(folder)
    figures, counted = size_figures(model, row, shape, PROMPT), count_flops(model, PROMPT)
    assert figures["flops_per_token"].value == pytest.approx(counted["flops_per_token"], rel=3e-3)
    assert figures["flops_prefill"].value < counted["flops_prefill"]
    assert "without the recurrence" in figures["flops_prefill"].method


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in HYBRIDS])
def test_flops_equal_torchs_counter_with_eager_attention(pico_folder, family):
    model, row, shape = opened(pico_folder(family))
    figures, counted = size_figures(model, row, shape, PROMPT), count_flops(model, PROMPT)
    for name in ("flops_prefill", "flops_per_token"):
        assert counted[name] > 0
        assert figures[name].value == pytest.approx(counted[name], rel=1e-3), name


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mistral", {"sliding_window": 6}),
        ("starcoder2", {"sliding_window": 6, "tie_word_embeddings": True}),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2, "tie_word_embeddings": True},
        ),
    ],
)
def test_a_sliding_window_ends_what_a_token_sees(tmp_path, family, settings):
    model, row, shape = opened(pico.build(family, tmp_path, **settings))
    figures, counted = size_figures(model, row, shape, PROMPT), count_flops(model, PROMPT)
    assert figures["flops_per_token"].value == pytest.approx(counted["flops_per_token"], rel=1e-3)
    assert figures["flops_prefill"].value == pytest.approx(counted["flops_prefill"], rel=1e-3)
    windowed = 5 if family != "qwen2" else 3
    assert attended(model.config, 5, PROMPT + 1) == windowed * 6 + (5 - windowed) * (PROMPT + 1)
    assert attended(model.config, 5, 4) == 20


def test_an_answer_is_its_prompt_and_every_token_after_the_first(pico_folder):
    model, row, shape = opened(pico_folder())
    one = size_figures(model, row, shape, PROMPT)
    after = size_figures(model, row, shape, PROMPT + 1)["flops_per_token"].value
    expected = one["flops_prefill"].value + one["flops_per_token"].value + after
    assert answer_flops(model.config, shape, PROMPT, 3) == expected
    assert answer_flops(model.config, shape, PROMPT, 1) == one["flops_prefill"].value


def test_counting_leaves_the_attention_as_it_was(pico_folder):
    model, *_ = opened(pico_folder())
    before = model.config._attn_implementation
    count_flops(model, 4)
    assert model.config._attn_implementation == before != "eager"


def test_flops_of_codeqwen_7b_at_full_size():
    """torch's counter gave 7,173,669,126,144 on this shape for 512 tokens with all logits (design notes)."""
    config = AutoConfig.for_model(
        "qwen2", vocab_size=92416, hidden_size=4096, intermediate_size=13440, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(model, family_of(config))
    sizes = (shape.vocabulary, shape.layers, shape.width)
    assert shape.total == 7_250_284_544
    assert 512 * shape.flops_per_token(*sizes, context=512) == 7_173_669_126_144
    last_only = 512 * shape.flops_per_token(0, *sizes[1:], context=512) + 2 * 92416 * 4096
    assert shape.flops_of_prompt(*sizes, tokens=512) == last_only


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_bytes_are_those_of_the_cache(pico_folder, family):
    wide = {"sliding_window": 2 * PROMPT} if pico.FAMILY_SETTINGS[family].get("sliding_window") else {}
    model, row, shape = opened(pico_folder(family, **wide))
    batch = Batch(model, [Encoded([1] * PROMPT, 1, (), 0)], pad_id=0)
    with torch.inference_mode():
        batch.read_prompts()
    # The state of linear attention does not grow with the tokens.
    growing = [layer for layer in batch.cache.layers if hasattr(layer, "keys")]
    held = sum(t.nbytes for layer in growing for t in (layer.keys, layer.values))
    assert size_figures(model, row, shape, PROMPT)["kv_bytes_per_token"].value == held / PROMPT


def test_storage_is_the_sum_of_the_tensors_over_all_shards(tmp_path, pico_folder):
    model = load_model(pico_folder())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    expected = sum(tensor.nbytes for file in files for tensor in load_file(file).values())
    assert storage(tmp_path).value == expected
    assert expected < sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # untied, tied
def test_parameters_add_up_and_tied_ones_count_once(pico_folder, family):
    checkpoint = load(pico_folder(family))
    model, row, shape = opened(pico_folder(family))
    figures = size_figures(model, row, shape, PROMPT)
    parts = [figures[f"parameters{part}"].value for part in ("", "_body", "_embedding")]
    assert parts[0] == parts[1] + parts[2] == sum(p.numel() for p in checkpoint.model.parameters())
    copies = 1 if FAMILIES[family].model_type == "qwen2" else 2
    assert parts[2] == copies * model.get_input_embeddings().weight.numel()


def test_a_step_reads_an_untied_embedding_not(pico_folder):
    sizes = {}
    for family in ("llama", "qwen2"):
        model, row, _ = opened(pico_folder(family))
        total = sum(p.nbytes for p in model.parameters())
        sizes[family] = total - bytes_per_step(model, row, 0)
    assert sizes["qwen2"] == 0
    assert sizes["llama"] == 4 * pico.SIZES["hidden_size"] * pico.tokenizer().get_vocab_size()
    cache = 7 * size_figures(model, row, shape_of(model, row), 1)["kv_bytes_per_token"].value
    assert bytes_per_step(model, row, 7) == bytes_per_step(model, row, 0) + cache
