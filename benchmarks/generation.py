"""Ways to generate, on the bundled model and its 200 problems: python benchmarks/generation.py

One process, greedy, the ``completion`` preset; each way is one line: seconds and CPU seconds (best of ``--repeats``),
tokens a second, how many times one prompt at a time by ``model.generate`` that is (by the clock, and in CPU time, which
other work on the machine hardly moves), texts equal to those of one prompt at a time, problems passed. Prints Markdown
(and writes it where --output says). ``--threads 1`` where other work keeps the cores busy.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, StoppingCriteriaList

from flab import assets
from flab.evaluation.code import score_code
from flab.evaluation.prompts import requests_for
from flab.evaluation.tasks import read_task
from flab.models.engines.protocol import (
    Decoding,
    Generation,
    Generator,
    Request,
    encode_requests,
    finish_rows,
    generate_all,
)
from flab.models.engines.transformers import StopWatch, TransformersGenerator, model_eos_ids
from flab.sandbox import Sandbox

CACHE_SHARE = 0.05  # of the free memory, for continuous batching: 90 % is its default


class ModelGenerate:
    """``model.generate`` with a stopping criterion for each row; finished rows stay in the batch."""

    name = "model.generate"

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer, self.eos_ids = model, tokenizer, model_eos_ids(model)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        rows = encode_requests(self.tokenizer, requests, decoding.max_new_tokens, None)
        width = max(len(row.ids) for row in rows)
        padding = [width - len(row.ids) for row in rows]
        ids = [[self.eos_ids[0]] * pad + row.ids for pad, row in zip(padding, rows, strict=True)]
        mask = [[0] * pad + [1] * len(row.ids) for pad, row in zip(padding, rows, strict=True)]
        watch, ends = StopWatch(self.tokenizer, rows), [0] * len(rows)

        def stopped(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            running = [row for row, end in enumerate(ends) if not end]
            made = input_ids[:, width:].tolist()
            for row, stop in zip(running, watch.stopped([(row, made[row]) for row in running]), strict=True):
                ends[row] = len(made[row]) * stop
            return torch.tensor([end > 0 for end in ends])

        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=decoding.max_new_tokens,
            pad_token_id=self.eos_ids[0],
            eos_token_id=self.eos_ids,
        )
        output = self.model.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([stopped]),
        )
        made = [row[: end or None] for row, end in zip(output[:, width:].tolist(), ends, strict=True)]
        return finish_rows(self.tokenizer, rows, made, self.eos_ids)


class Continuous:
    """transformers' continuous batching over all requests; it knows no stop strings, so rows run to their end token."""

    name = "generate_batch"

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer, self.eos_ids = model, tokenizer, model_eos_ids(model)

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        rows = encode_requests(self.tokenizer, requests, decoding.max_new_tokens, None)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=self.eos_ids,
            pad_token_id=self.eos_ids[0],
        )
        outputs = self.model.generate_batch(
            [row.ids for row in rows],
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=CACHE_SHARE),
        )
        by_number = sorted(outputs.values(), key=lambda output: int(output.request_id.rpartition("_")[2]))
        return finish_rows(self.tokenizer, rows, [list(output.generated_tokens) for output in by_number], self.eos_ids)


@dataclass
class Way:
    """One line of the table."""

    title: str
    generator: Generator
    batch_size: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    made: list[Generation] = field(default_factory=list)

    def run(self, requests: Sequence[Request], max_new_tokens: int) -> None:
        start, cpu = time.perf_counter(), time.process_time()
        self.made = generate_all(self.generator, requests, Decoding(max_new_tokens, batch_size=self.batch_size))
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu)

    @property
    def num_tokens(self) -> int:
        return sum(one.num_tokens for one in self.made)

    @property
    def speed(self) -> float:
        return self.num_tokens / min(self.seconds)


def ways(model: Any, tokenizer: Tokenizer, sizes: Sequence[int]) -> list[Way]:
    """``model.generate`` one at a time comes first: the others are compared with it."""
    stock, own = ModelGenerate(model, tokenizer), TransformersGenerator(model, tokenizer)
    found = [Way(stock.name, stock, size) for size in (1, *sizes)]
    found += [Way("flab, transformers", own, size) for size in (1, *sizes)]
    return [*found, Way(Continuous.name, Continuous(model, tokenizer), 10**6)]


def table(found: Sequence[Way], problems: Path, limit: int | None) -> list[str]:
    """Markdown lines, the sandbox's verdicts included."""
    task, sandbox, first = read_task(problems, "code", limit), Sandbox.detect(), found[0]
    columns = ("way", "batch", "s", "CPU s", "tokens", "tokens/s", "times", "times, CPU", "same texts", "passed")
    lines = [_line(columns), _line(["---"] * len(columns))]
    for way in found:
        score = score_code(task, [[one] for one in way.made], sandbox)
        same = sum(one.text == alone.text for one, alone in zip(way.made, first.made, strict=True))
        size = way.batch_size if way.batch_size <= len(way.made) else "all"
        times, cpu_times = way.speed / first.speed, min(first.cpu_seconds) / min(way.cpu_seconds)
        time_cells = (f"{min(way.seconds):.2f}", f"{min(way.cpu_seconds):.2f}", way.num_tokens, f"{way.speed:.0f}")
        result_cells = (f"{times:.1f}", f"{cpu_times:.1f}", f"{same}/{len(way.made)}", sum(score.passed))
        lines.append(_line((way.title, size, *time_cells, *result_cells)))
    return lines


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="also write the Markdown here")
    parser.add_argument("--model", type=Path, default=assets.model_path())
    parser.add_argument("--problems", type=Path, default=assets.problems_path())
    parser.add_argument("--limit", type=int, help="only the first problems")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--max-new-tokens", type=int, default=256)
    return parser.parse_args()


def main() -> None:
    """Measure all ways in turn, and again; print the table."""
    given, start = arguments(), time.time()
    torch.set_num_threads(given.threads)
    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).eval()
    tokenizer = Tokenizer.from_file(str(given.model / "tokenizer.json"))
    requests = [one for _, one in requests_for(read_task(given.problems, "code", given.limit), "completion")]
    found = ways(model, tokenizer, given.sizes)
    for _ in range(given.repeats):
        for way in found:
            way.run(requests, given.max_new_tokens)
            print(f"{way.title}, {way.batch_size}: {way.seconds[-1]:.2f} s", flush=True)
    lines = table(found, given.problems, given.limit)
    lines += ["", f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {given.threads} threads, {given.dtype}, "]
    lines[-1] += (
        f"torch {torch.__version__}, transformers {transformers.__version__}, {time.time() - start:.0f} s in all"
    )
    print("\n".join(lines))
    if given.output:
        given.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
