"""A pico tokenizer as converters make it of SentencePiece's BPE: metaspaces, bytes for what has no piece, all merges listed."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from support import pico

ROLES = ["<unk>", "<s>", "</s>"]


def tokenizer_json(vocabulary: int = 420) -> dict:
    """Llama 2's kind: for each piece every pair that makes it is a merge, ordered by the piece; a text begins with <s>."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    symbols = [*ROLES, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=symbols, max_token_length=8, show_progress=False
    )
    tok.train_from_iterator(pico.CODE, trainer)
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    data = json.loads(tok.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in ROLES]
    pieces = data["model"]["vocab"]
    made = list(dict.fromkeys("".join(pair) for pair in data["model"]["merges"]))
    data["model"]["merges"] = [
        [piece[:cut], piece[cut:]]
        for piece in made
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return data


def build(folder: Path, family: str = "llama") -> Path:
    """A pico model of the family with this tokenizer."""
    data = tokenizer_json()
    size = len(data["model"]["vocab"])
    pico.build(family, folder, vocab_size=size, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    roles = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": 2, "pad_token_id": 0}))
    (folder / "chat_template.jinja").unlink()
    return folder
