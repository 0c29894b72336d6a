"""A model larger than memory: `flab plan` with one layer in memory, and `flab apply` beside copying, in turn.

    python benchmarks/large.py OUT --tokens 512 --pairs 3

OUT/model is made if it is not there: random weights of CodeQwen1.5-7B's shape (qwen2, 7.25 B parameters, 14.5 GB in
bfloat16) with the bundled tokenizer or that of `--tokenizer`. Another model may be put there instead. The plan is made without
a refit unless `--refit` names one, with as many layers as `--kept-layers` says. Then `cp -r` and `flab apply --no-refit`
take turns, each with the source's pages dropped from the cache first. Prints Markdown: wall and processor time, the peak of
each process's resident set, and the ratio of each pair. OUT needs twice the model's size on disk; the copies are removed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHAPE = (("hidden", 4096), ("layers", 32), ("width", 13440), ("vocabulary", 92416), ("heads", 32), ("kv-heads", 4))
COLUMNS = ("step", "wall, s", "processor, s", "peak of the resident set, GB")


@dataclass(frozen=True)
class Taken:
    """What one process took."""

    wall: float
    processor: float
    peak_bytes: int

    def row(self, name: str) -> str:
        """Return a row of the table."""
        return f"| {name} | {self.wall:.1f} | {self.processor:.1f} | {self.peak_bytes / 1e9:.2f} |"


def run(command: Sequence[str]) -> Taken:
    """Run a command to its end. Its output goes to stderr."""
    os.sync()  # what the step before left to be written is not this one's
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    # The system counts this one process; all children together would share one peak.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}")
    return Taken(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss)


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_model(given: argparse.Namespace, folder: Path) -> None:
    """Write a random qwen2, one tensor in memory at a time."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from flab import assets
    from flab.models.families import family_of
    from flab.models.shards import ShardWriter, layout

    config = Qwen2Config(
        hidden_size=given.hidden, num_hidden_layers=given.layers, intermediate_size=given.width, vocab_size=given.vocabulary,
        num_attention_heads=given.heads, num_key_value_heads=given.kv_heads, tie_word_embeddings=False,
        eos_token_id=0, pad_token_id=0, bos_token_id=None, dtype="bfloat16", architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    with ShardWriter(folder, layout(model, family_of(config), torch.bfloat16)) as writer:
        for name, empty in writer.layout.items():
            made = torch.empty(empty.shape, dtype=empty.dtype).normal_(0.0, 0.02, generator=random)
            writer.write(name, made + 1 if name.endswith("norm.weight") else made)
    for file in (given.tokenizer or assets.model_path()).iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "vocab.", "merges.")):
            shutil.copyfile(file, folder / file.name)
    config.save_pretrained(folder)  # last, so that a stopped run leaves no model


def make_plan(given: argparse.Namespace) -> None:
    """Plan with one layer in memory, however much is free."""
    import flab

    recipe = flab.Recipe(
        remove=given.remove, layers=given.kept_layers, refit=given.refit, tokens=given.tokens,
        search_tokens=given.tokens, finalist_tokens=given.tokens,
    )  # fmt: skip
    options = flab.Options(in_memory="layer", overwrite=True, device="cpu")
    plan = flab.plan(given.out / "model", recipe, options, out=given.out / "plan.json")
    kept = ", ".join(f"{one.after:,} of {one.before:,} {name}" for name, one in plan.cuts.items())
    print(f"{plan.parameters_before:,} parameters; {kept} stay; KL {plan.kl_nats_per_token:.4f}; {plan.seconds}")


def compare(given: argparse.Namespace) -> None:
    """Copy and apply in turn; prints a row for each, and a sentence about their ratios."""
    model, copy = given.out / "model", given.out / "copy"
    plan = str(given.out / "plan.json")
    steps = {
        "cp -r": ["cp", "-r", str(model), str(copy)],
        "apply": [sys.executable, "-m", "flab", "apply", str(model), plan, "-o", str(copy), "--no-refit", "--device", "cpu"],
    }  # fmt: skip
    walls, processors = [], []
    for _ in range(given.pairs):
        pair = []
        for name, command in steps.items():
            forget(model)
            pair.append(run(command))
            print(pair[-1].row(name), flush=True)
            shutil.rmtree(copy)
        walls.append(pair[1].wall / pair[0].wall)
        processors.append(pair[1].processor / pair[0].processor)
    print(f"\napply / cp: wall {spread(walls)}, processor {spread(processors)}")


def spread(ratios: Sequence[float]) -> str:
    """Return the median and the range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def main(arguments: list[str] | None = None) -> None:
    """Do one step, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    for name, value in SHAPE:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer of at most as many tokens as rows")
    parser.add_argument("--remove", type=float, default=0.22)
    parser.add_argument("--kept-layers", type=int, help="by default all, so that no layer is scored")
    parser.add_argument("--refit", default="none")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--step", choices=["model", "plan"], help="only this, in this process")
    given = parser.parse_args(arguments)
    given.kept_layers = given.kept_layers or given.layers
    if given.step == "model":
        make_model(given, given.out / "model")
    elif given.step == "plan":
        make_plan(given)
    else:
        own = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments), "--step"]
        if not (given.out / "model" / "config.json").exists():
            shutil.rmtree(given.out / "model", ignore_errors=True)
            run([*own, "model"])
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
        if not (given.out / "plan.json").exists():
            print(run([*own, "plan"]).row(f"plan, {given.refit}, {given.tokens:,} tokens"), flush=True)
        compare(given)


if __name__ == "__main__":
    main()
