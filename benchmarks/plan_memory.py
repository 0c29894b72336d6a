"""Peak memory of ``flab plan`` on a CPU: the sum of docs/method.md beside what is measured, on a random model of 0.5 B.

    python benchmarks/plan_memory.py --hidden 1024 --layers 30 --width 4096 --tokens 6144

The model has the bundled tokenizer; the layers to drop and the width are given, so that one candidate is built (by elimination
and the Newton refit) where the search would build several, each like it. Resident memory counts from before the model is loaded.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import flab
from flab import assets
from flab.cuts.refit import NEWTON_TOKENS
from flab.cuts.streams import KEPT_BYTES
from flab.footprint.memory import reset_peak, resident_peak
from flab.objective import CHUNK_ELEMENTS


def make_model(given: argparse.Namespace, folder: Path) -> int:
    """Save a random qwen2 with the bundled tokenizer; returns its parameters."""
    source = assets.model_path()
    config = Qwen2Config(
        hidden_size=given.hidden, num_hidden_layers=given.layers, intermediate_size=given.width, vocab_size=4096,
        num_attention_heads=given.hidden // 64, num_key_value_heads=given.hidden // 64, tie_word_embeddings=True,
        eos_token_id=0, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens")):
            shutil.copyfile(file, folder / file.name)
    return sum(p.numel() for p in model.parameters())


def predicted(given: argparse.Namespace, parameters: int) -> dict[str, float]:
    """The rows of the table in docs/method.md, in bytes, computing in float32."""
    width, hidden, tokens = given.width, given.hidden, given.tokens
    return {
        "model": 4 * parameters,
        "statistics": 8 * 2 * (width**2 + hidden * width),
        "solver": 8 * 6.3 * width**2,
        "newton": 4 * (2 * min(tokens, NEWTON_TOKENS) * hidden + 8 * 3 * hidden * width + 6 * width**2) + 512 * 2**20,
        "calibration": 4 * 5 * tokens * hidden,
        "streams": min(KEPT_BYTES, 4 * 2 * given.layers * tokens * hidden),
        "logits": 3 * 4 * CHUNK_ELEMENTS,
    }


def main() -> int:
    """Plan once and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("hidden", 1024), ("layers", 30), ("width", 4096), ("tokens", 6144)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parameters = make_model(given, Path(folder))
        reset_peak("cpu")
        before, start = resident_peak()[0], time.perf_counter()
        recipe = flab.Recipe(
            remove=0.3, drop_layers=(1, 3), width=given.width * 5 // 8, tokens=given.tokens, search_tokens=given.tokens,
            finalists=1,
        )  # fmt: skip
        plan = flab.plan(folder, recipe)
        measured, how = resident_peak()
    rows = predicted(given, parameters)
    total, taken = sum(rows.values()), measured - before
    print(
        f"{parameters:,} parameters, {plan.calibration['fit_tokens']:,} tokens fitted, {time.perf_counter() - start:.0f} s"
    )
    print(", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in rows.items()))
    print(f"formula {total / 2**30:.2f} GiB, measured {taken / 2**30:.2f} GiB ({how}): {taken / total:.2f} of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
