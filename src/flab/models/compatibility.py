"""Which programs can load a folder as it is, by its sizes alone."""

from __future__ import annotations

from typing import Any

TENSOR_PARALLEL = (1, 2, 4, 8, 16)


def loads_in(config: Any, loaded: bool, warnings: list[str], renumbered: bool) -> dict[str, Any]:
    """Which programs take the folder as it is, and what each needs; sizes only, the programs are not run."""
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    sizes = [
        t for t in TENSOR_PARALLEL if heads % t == 0 and width % t == 0 and (kv_heads % t == 0 or t % kv_heads == 0)
    ]
    rows = {"hidden_size": config.hidden_size, "intermediate_size": width}
    odd = [f"{name} {size}" for name, size in rows.items() if size % 256]
    return {
        "transformers": {
            "ok": loaded,
            "how": "AutoModelForCausalLM.from_pretrained, verified here",
            "tokenizer": "AutoTokenizer" if not warnings else "PreTrainedTokenizerFast",
        },
        "vllm": {"tensor_parallel_sizes": sizes, "how": "by its divisibility rules, not run"},
        "llama.cpp": {
            "needs": "the base model's pre-tokenizer named when converting: BPE is recognised by a hash over ids, which are new"
            if renumbered
            else "nothing that the original does not need: the ids are its own",
            "how": "by its converter's rules, not run",
        },
        "k-quants": {
            "ok": not odd,
            "why": f"row lengths not a multiple of 256: {', '.join(odd)}"
            if odd
            else "all row lengths are multiples of 256",
        },
    }
