"""Peak memory of a recovery: the formula beside what is measured, on a random model of a given size.

    python benchmarks/memory.py --hidden 1024 --layers 12 --width 4096 --rows 4 --length 512

Each setting runs two steps in a process of its own; resident memory counts from before the models are made, so that the
libraries do not count. With --device cuda the allocator's peak is taken.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM

from flab import Options, Training
from flab.models.checkpoint import Checkpoint
from flab.progress import add, console, table_of
from flab.recovery.examples import Examples
from flab.recovery.memory import measured_peak, predicted_peak
from flab.recovery.trainer import make_trainer


def model_of(given: argparse.Namespace) -> Checkpoint:
    """A random qwen2 without a tokenizer."""
    config = Qwen2Config(
        hidden_size=given.hidden, num_hidden_layers=given.layers, intermediate_size=given.width, vocab_size=given.vocabulary,
        num_attention_heads=given.hidden // 64, num_key_value_heads=given.hidden // 64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device(given.device):
        return Checkpoint(Path(), Qwen2ForCausalLM(config), None)  # type: ignore[arg-type]


def rows_of(given: argparse.Namespace, count: int, first: int) -> Dataset:
    """Full rows of random tokens, all of them targets."""
    ids = torch.randint(0, given.vocabulary, (count, given.length)).tolist()
    columns = {"input_ids": ids, "targets": ids, "seq_lengths": [[given.length]] * count}
    return Dataset.from_dict({**columns, "row": list(range(first, first + count))})


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Two steps; bytes by the formula and as measured."""
    before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if given.device == "cpu" else 0
    student, teacher = model_of(given), model_of(given)
    parameters = sum(p.numel() for p in student.model.parameters())
    teacher.model.requires_grad_(False)
    training = Training(method=given.method, steps=2, length=given.length, batch=given.rows, micro_batch=given.rows,
                        gradient_checkpointing=given.checkpointing, evaluations=1)  # fmt: skip
    examples = Examples(rows_of(given, given.rows, 0), rows_of(given, 1, given.rows), {})
    with tempfile.TemporaryDirectory() as work:
        trainer = make_trainer(
            student, teacher, examples, training, parameters, Path(work), Options(device=given.device)
        )
        trainer.plan_steps(training, 2, 0.0, resumed=True)
        trainer.args.save_strategy = trainer.args.eval_strategy = "no"
        trainer.args.load_best_model_at_end = False
        trainer.callback_handler.callbacks = [
            c for c in trainer.callback_handler.callbacks if "Early" not in type(c).__name__
        ]
        trainer.train()
        peak = measured_peak(trainer.args.device)["measured_bytes"] - before
        return {"parameters": parameters, "measured": peak,
                "predicted": predicted_peak(student.model, teacher.model, training, parameters)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (
        ("hidden", 1024),
        ("layers", 12),
        ("width", 4096),
        ("vocabulary", 8192),
        ("rows", 4),
        ("length", 512),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--method", choices=["full", "lora"])
    parser.add_argument("--checkpointing", action="store_true")
    given = parser.parse_args()
    if given.method:
        print(json.dumps(measure(given)))
        return
    table = table_of(
        "Peak memory of two steps, GiB", ["method", "parameters", "formula", "measured", "measured / formula"]
    )
    for method, checkpointing in itertools.product(("full", "lora"), (False, True)):
        more = ["--method", method, *(["--checkpointing"] if checkpointing else [])]
        done = subprocess.run([sys.executable, *sys.argv, *more], capture_output=True, text=True, check=True)
        one = json.loads(done.stdout.splitlines()[-1])
        name = f"{method}{', gradient checkpointing' if checkpointing else ''}"
        sizes = [f"{one[key] / 2**30:.2f}" for key in ("predicted", "measured")]
        add(table, name, f"{one['parameters']:,}", *sizes, f"{one['measured'] / one['predicted']:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
