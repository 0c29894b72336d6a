"""Load a folder with another, older transformers. This is a script for an interpreter without flab.

Run as ``PYTHON -I oldest.py FOLDER``; reads one JSON object with ``ids`` and ``texts`` from stdin and prints one with
``version``, ``logits`` (the first 64 after each row of ids) and ``tokens`` of each text, or with ``error``.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def answer(folder: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Load the folder as any user would, and return its logits and tokens."""
    import torch
    import transformers

    made: dict[str, Any] = {"version": transformers.__version__}
    transformers.logging.set_verbosity_error()
    # ``torch_dtype`` is the name that every transformers 4 knows; ``dtype`` came late.
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype="auto", use_safetensors=True, output_loading_info=True
    )
    made["lost"] = sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in info[kind])
    model.eval()
    with torch.no_grad():
        made["logits"] = [model(torch.tensor([row])).logits[0, -1, :64].float().tolist() for row in asked["ids"]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    made["tokens"] = [tokenizer.encode(text, add_special_tokens=False) for text in asked["texts"]]
    return made


if __name__ == "__main__":
    try:
        result = answer(sys.argv[1], json.load(sys.stdin))
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(result))
