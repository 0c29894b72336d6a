"""Which programs can load a folder as it is, and whether an older transformers makes the same of it.

What is said of vLLM, llama.cpp and k-quants follows from sizes alone: these programs are not run. No torch at import.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TENSOR_PARALLEL = (1, 2, 4, 8, 16)
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3, "float16": 1e-3}  # relative to the largest logit


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


def probe_ids(vocabulary: int) -> list[list[int]]:
    """Return three fixed rows of token ids, of 3, 12 and 24 tokens."""
    chooser = random.Random(0)
    return [[chooser.randrange(vocabulary) for _ in range(length)] for length in (3, 12, 24)]


def last_logits(model: Any, ids: list[list[int]]) -> list[list[float]]:
    """Return the first 64 logits after each row of ids."""
    import torch

    with torch.no_grad():
        device = model.get_input_embeddings().weight.device
        return [model(torch.tensor([row], device=device)).logits[0, -1, :64].float().tolist() for row in ids]


def same_logits(now: list[list[float]], then: list[list[float]], dtype: str) -> tuple[bool, str]:
    """Compare logits within the rounding error of the dtype; returns whether they agree, and the largest difference."""
    largest = max(abs(x) for row in then for x in row)
    error = max(abs(a - b) for row, old in zip(now, then, strict=True) for a, b in zip(row, old, strict=True))
    return error <= TOLERANCE[dtype] * max(largest, 1.0), f"largest difference {error:.2g}"


def ask_oldest(python: str, folder: Path, ids: list[list[int]], texts: Sequence[str]) -> dict[str, Any]:
    """Load the folder with another interpreter's transformers, by the script :mod:`flab.models.oldest`.

    Returns:
        What the script prints: ``version``, ``logits``, ``tokens`` and ``lost``, or ``error`` alone.
    """
    command = [python, "-I", str(Path(__file__).with_name("oldest.py")), str(folder)]
    asked = json.dumps({"ids": ids, "texts": list(texts)})
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    try:
        made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return made
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"no answer (exit {done.returncode}): {last}"}
