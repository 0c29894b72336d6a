"""Peak memory of ``flab plan`` on a CPU: the sum of docs/method.md beside what is measured, on a random model of 0.5 B.

    python benchmarks/plan_memory.py --hidden 1024 --layers 30 --width 4096 --tokens 6144

The model has the bundled tokenizer; the layers to drop and the width are given, so that one candidate is built (by elimination
and the Newton refit) where the search would build several, each like it; before it the layers are scored once, as the search
does. Resident memory counts from before the model is loaded, with the libraries warm. Exit code 1: more was needed than
docs/method.md allows.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import flab
from flab import assets
from flab.models.checkpoint import free
from flab.models.layers import ROW_ELEMENTS
from flab.models.memory import reset_peak, resident_peak, trim
from flab.pruning.objective import CHUNK_ELEMENTS
from flab.pruning.planner import Planner
from flab.pruning.refit.gram import BLOCK_ROWS
from flab.pruning.refit.newton import KEPT_BYTES, MOST_TOKENS
from flab.pruning.refit.streams import SEARCH_BYTES


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
    """The rows of the table in docs/method.md, in bytes, computing in float32 a model stored in bfloat16."""
    width, hidden, tokens = given.width, given.hidden, given.tokens
    kept = width * 5 // 8
    layer = 4 * hidden * hidden + 3 * hidden * width
    ffn = 4 * 3 * hidden * kept
    return {
        "model": 4 * parameters - 2 * given.layers * layer,
        "layer at work": 4 * layer,
        "statistics": 8 * 2 * (width**2 + hidden * width),
        "solver": 8 * (width**2 + 5 * BLOCK_ROWS * width + 4 * hidden * width),
        "newton": 4 * 2 * min(tokens, MOST_TOKENS) * hidden + 8 * ffn + 24 * kept**2 + KEPT_BYTES,
        "calibration": 4 * 5 * tokens * hidden,
        "streams": min(SEARCH_BYTES, 4 * 2 * given.layers * tokens * hidden),
        "activations": 4 * 8 * ROW_ELEMENTS,
        "logits": 4 * 4 * CHUNK_ELEMENTS,
    }


def allowed(given: argparse.Namespace, parameters: int) -> float:
    """Model in the computing precision, one layer's statistics and the calibration cache: what a plan may need, in bytes."""
    rows = predicted(given, parameters)
    return 4 * parameters + rows["statistics"] + rows["calibration"]


def main() -> int:
    """Plan once and print what was taken beside what the rows say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("hidden", 1024), ("layers", 30), ("width", 4096), ("tokens", 6144)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder) / "small")
        parameters = make_model(given, Path(folder))
        trim()
        reset_peak("cpu")
        before, start = resident_peak()[0], time.perf_counter()
        recipe = flab.Recipe(
            remove=0.3, drop_layers=(1, 3), width=given.width * 5 // 8, tokens=given.tokens, search_tokens=given.tokens,
            finalists=1,
        )  # fmt: skip
        score_layers(Path(folder), recipe)
        scored = resident_peak()[0] - before
        print(f"{before / 2**30:.2f} GiB before", flush=True)
        print(f"layers scored: {scored / 2**30:.2f} GiB, {time.perf_counter() - start:.0f} s", flush=True)
        trim()
        plan = flab.plan(folder, recipe)
        measured, how = resident_peak()
    rows, most, taken = predicted(given, parameters), allowed(given, parameters), measured - before
    print(
        f"{parameters:,} parameters, {plan.calibration['fit_tokens']:,} tokens fitted, {time.perf_counter() - start:.0f} s"
    )
    print(", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in rows.items()))
    print(f"sum of the rows {sum(rows.values()) / 2**30:.2f} GiB, measured {taken / 2**30:.2f} GiB ({how})")
    print(
        f"model in float32, statistics and calibration cache: {most / 2**30:.2f} GiB; measured {taken / most:.2f} of it"
    )
    return 0 if taken <= most else 1


def warm_up(folder: Path) -> None:
    """A plan of a tiny model: loads the code of the libraries, which is not the plan's memory."""
    make_model(argparse.Namespace(hidden=64, layers=3, width=128), folder)
    flab.plan(folder, flab.Recipe(remove=0.2, tokens=1024, search_tokens=1024, finalists=1))
    trim()


def score_layers(folder: Path, recipe: flab.Recipe) -> None:
    """The first step of the layer criterion, on a third of the tokens: what the search holds besides its candidates."""
    asked = replace(recipe, search_tokens=recipe.tokens // 3)
    bench, checkpoint = Planner(folder, asked, flab.Options()).open_bench()
    list(islice(bench.search.removals(), 2))  # of no layer and of one
    bench.search.model = None
    free(checkpoint)


if __name__ == "__main__":
    sys.exit(main())
