"""Find the named pre-tokenizer of llama.cpp that splits text as a tokenizer.json does.

llama.cpp has a fixed set of splitting rules for byte-level BPE, each with a name, and a GGUF file names one. Its converter
finds the name by a hash over the ids of a fixed text, which a cut vocabulary changes. The rule itself is in
tokenizer.json and no cut changes it, so it is compared first. For originals whose rule is not listed here, the hash gives the
name during planning, and the plan records it. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The text whose ids llama.cpp's converter hashes (its chktxt), and the hashes of tokenizers that flab's families use.
CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? "
    "'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
HASHES = {
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d": "smaug-bpe",
    "049ecf7629871e3041641907f3de7c733e4dbfdc736f57d882ba0b0845599754": "deepseek-llm",
    "347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821": "deepseek-coder",
    "35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34": "starcoder",
    "6221ad2852e85ce96f791f476e0b390cf9b474c9e3d1362f53a24a06dc8220ff": "refact",
    "7b3e7548e4308f52a76e8229e4e6cc831195d0d1df43aed21ac6c93da05fec5f": "codeshell",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
    "32d85c31273f8019248f2559fed492d929ea28b17e51d81d3bb36fff23ca72b3": "stablelm2",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
    "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": "qwen2",
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
    "d5f1dd6f980fec569fb218a81a7658ac45fc56b38c5a0adeb1c232fbe04ef5ec": "seed-coder",
    "a1e163ecab2e718a4c829d1148b6e86824ec36163bb71941c3dca9cd5ac25756": "mellum",
}

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
Step = tuple[str, Any]
WHOLE_BYTES: Step = ("bytes", False)  # maps bytes to characters and splits nothing more
WORD_BYTES: Step = ("bytes", True)  # splits by GPT-2's rule too
# Each rule as the steps of its pre-tokenizer, with its name where words are merged, and where a word that is a token is
# taken whole (ignore_merges); None where llama.cpp has no such name.
RULES: tuple[tuple[tuple[Step, ...], str | None, str | None], ...] = (
    ((("split", _WORDS + r"|\p{N}" + _REST), WHOLE_BYTES), "qwen2", None),
    ((("split", _WORDS + r"|\p{N}{1,3}" + _REST), WHOLE_BYTES), "smaug-bpe", "llama-bpe"),
    ((("split", _CASED + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"), WHOLE_BYTES), None, "tekken"),
    ((WORD_BYTES,), "gpt-2", None),
    ((("digits", True), WORD_BYTES), "smollm", None),
    (
        (
            ("split", "[\r\n]"),
            ("split", r"\s?\p{L}+"),
            ("split", r"\s?\p{P}+"),
            ("split", "[一-龥ࠀ-一가-퟿]+"),
            ("digits", True),
            WHOLE_BYTES,
        ),
        "deepseek-coder",
        None,
    ),
)


def name_of(tokenizer: Any, tokenizer_json: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name of the rule, by the rule itself or else by a known hash; None if neither is known.

    ``tokenizer`` is the ``tokenizers.Tokenizer`` of the ``tokenizer_json``.
    """
    if (name := by_rule(tokenizer_json)) is not None:
        return name
    return HASHES.get(hashlib.sha256(str(tokenizer.encode(CHECK_TEXT).ids).encode()).hexdigest())


def name_in(folder: Path) -> str | None:
    """Return the same for the tokenizer in a model's folder."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    return name_of(Tokenizer.from_file(str(file)), json.loads(file.read_text(encoding="utf-8")))


def by_rule(tokenizer_json: Mapping[str, Any]) -> str | None:
    """Return the name of a tokenizer whose pre-tokenizer is one of :data:`RULES`, step by step."""
    steps = steps_of(tokenizer_json.get("pre_tokenizer"))
    whole_words = bool(tokenizer_json.get("model", {}).get("ignore_merges"))
    for rule, merged, whole in RULES:
        if rule == steps:
            return whole if whole_words else merged
    return None


def steps_of(pre_tokenizer: Mapping[str, Any] | None) -> tuple[Step, ...]:
    """Return the steps of a pre-tokenizer. A step of no known rule keeps its type, so that it matches none."""
    if pre_tokenizer is None:
        return ()
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return tuple(step for part in pre_tokenizer["pretokenizers"] for step in steps_of(part))
    if kind == "Split" and pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert"):
        pattern = pre_tokenizer["pattern"]
        return (("split", pattern.get("Regex", pattern)),)
    if kind == "Digits":
        return (("digits", bool(pre_tokenizer.get("individual_digits"))),)
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space"):
        return (("bytes", bool(pre_tokenizer.get("use_regex", True))),)
    return ((str(kind), None),)
