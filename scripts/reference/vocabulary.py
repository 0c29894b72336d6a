"""The tokenizer: byte-level BPE in the Qwen2 form, trained on code and on nine natural languages."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

SIZE = 4096
END, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PROBES = (
    "def f(x):\n    return sorted(x)[::-1]\n",
    "assert f([3, 1, 2]) == [1, 2, 3]\n",
    "for i in range(10):\n\n\tprint(f'{i:>3}', end=' ')  # don't\n",
    "Straße, œuvre, niño, coração, Ответственность 学校へ行く مسؤولية विज्ञान 🙂",
    "  leading, trailing  \r\n and cafe\u0301",
)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    """A Qwen2 tokenizer of exactly SIZE entries, the special tokens among them."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 3,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return _as_qwen2(raw)


def _as_qwen2(raw: Tokenizer) -> PreTrainedTokenizerBase:
    """The trained merges inside the stock class, so that what is saved loads as any Qwen2 tokenizer."""
    model = json.loads(raw.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"] | {END: SIZE - 3, TURN_START: SIZE - 2, TURN_END: SIZE - 1},
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=None,
        eos_token=END,
        pad_token=END,
        extra_special_tokens=[TURN_START, TURN_END],
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def disagreements(folder: Path) -> list[str]:
    """The probe texts on which AutoTokenizer and the bare tokenizer.json give different ids."""
    from transformers import AutoTokenizer

    auto, raw = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [text for text in PROBES if auto(text).input_ids != raw.encode(text).ids or raw.get_vocab_size() != SIZE]


def unused_share(tokenizer: PreTrainedTokenizerBase, code: list[str]) -> float:
    """The share of the entries that never occurs in `code`."""
    used = {token for ids in tokenizer(code).input_ids for token in ids}
    return 1 - len(used) / SIZE
