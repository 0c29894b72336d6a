"""Pico models of every family, built from configs: no network, a second each, random weights of a lively scale."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16}
FAMILY_SETTINGS: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "seed_oss": {"attention_bias": True, "head_dim": 16},
    "ministral3": {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 8,
            "llama_4_scaling_beta": 0.1,  # queries grow with their position, in steps of the 8 above
        },
    },
    "iquestcoder": {"head_dim": 16},
    "smollm3": {"tie_word_embeddings": True, "no_rope_layer_interval": 2},
    "hunyuan_v1_dense": {
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 1000.0},
    },
    "ernie4_5": {"head_dim": 16, "tie_word_embeddings": True, "use_bias": True},
    "helium": {"head_dim": 8},
    "gemma": {"head_dim": 16, "tie_word_embeddings": True},
    "granite": {
        "tie_word_embeddings": True,
        "residual_multiplier": 0.22,
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "attention_multiplier": 0.15,
    },
    "phi3": {
        "tie_word_embeddings": True,
        "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.2],
            "long_factor": [1.0, 2.0, 4.0],
        },
    },
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "olmo2": {},
    "olmo3": {
        "sliding_window": 8,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 16,
                "attention_factor": 1.2,
            },
        },
    },
    "exaone4": {"sliding_window": 8, "sliding_window_pattern": 4},
    "gemma2": {"head_dim": 16, "tie_word_embeddings": True, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        "head_dim": 16,
        "tie_word_embeddings": True,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 16,
    },
    "qwen3_5_text": {
        "head_dim": 16,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "qwen3_moe": {"num_experts": 8, "norm_topk_prob": True, **MIXTURE},
    "qwen2_moe": {"num_experts": 8, "shared_expert_intermediate_size": 16, **MIXTURE},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
    "starcoder2": {"tie_word_embeddings": True, "sliding_window": None},
}
QUICK = {"tokens": 4000, "search_tokens": 1000, "general": 0.0}  # settings of a recipe that takes a second
CODE = [
    f'def {verb}_{noun}(values):\n    """{verb.title()} the {noun}."""\n    return [{verb}(v) for v in values if v != {n}]\n'
    for n, (verb, noun) in enumerate(
        (v, w) for v in ("add", "sort", "count", "join") for w in ("items", "words", "keys", "rows")
    )
]
OTHER = [
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Быстрая лисица прыгает.",
    "素早い茶色の狐",
    "naïve café",
] * 3


@cache
def tokenizer(vocabulary: int = 480) -> Tokenizer:
    """A byte-level BPE like Qwen2's, trained on a few lines."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(CODE + OTHER, trainer)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tok


def write_tokenizer(folder: Path) -> int:
    """tokenizer.json, its config and a chat template; returns the number of tokens."""
    tok = tokenizer()
    tok.save(str(folder / "tokenizer.json"))
    roles = {
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "unk_token": None,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "LICENSE").write_text("Apache-2.0\n")
    return int(tok.get_vocab_size())


def build(family: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: object) -> Path:
    """A saved pico checkpoint of the family."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder)
    end, pad = tokenizer().token_to_id(SPECIAL[2]), tokenizer().token_to_id(SPECIAL[0])
    ids = {"eos_token_id": end, "pad_token_id": pad, "bos_token_id": None}
    sizes = {"vocab_size": vocabulary, **SIZES, **FAMILY_SETTINGS[family], **ids, **settings}
    config = AutoConfig.for_model(family, **copy.deepcopy(sizes))  # a config adds entries to the dicts it is given
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(4.0)  # or every layer is nearly the identity
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    model.generation_config.eos_token_id = [end, pad]
    model.generation_config.pad_token_id = pad
    model.save_pretrained(folder)
    return folder


def calibration_rows(count: int = 60) -> list[dict[str, str]]:
    """Instruction rows over the pico grammar."""
    rows = []
    for number in range(count):
        head, _, body = CODE[number % len(CODE)].partition('"""\n')
        rows.append({"prompt": head + '"""\n', "completion": body + f"# {number}\n"})
    return rows


def write_calibration(path: Path, count: int = 60) -> Path:
    """The rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in calibration_rows(count)))
    return path


def train(folder: Path, steps: int = 100) -> Path:
    """Teach the saved model the rows of the pico grammar, in place; a few seconds."""
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    tok = tokenizer()
    rows = [tok.encode(r["prompt"] + r["completion"]).ids for r in calibration_rows()]
    length = max(map(len, rows))
    ids = torch.tensor([r + [0] * (length - len(r)) for r in rows])
    labels = torch.tensor([r + [-100] * (length - len(r)) for r in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for step in range(steps):
        part = slice(step % 4, None, 4)
        loss = model(ids[part], labels=labels[part]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.5, f"the pico model learned nothing: loss {loss.item():.2f}"
    model.save_pretrained(folder)
    return folder
