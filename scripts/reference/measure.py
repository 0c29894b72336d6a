"""Greedy scores of a model folder on the bundled problems, or on a calibration file of the same kinds."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Row = dict[str, Any]
BATCH = 50
SECONDS = 5
MEMORY = 512 << 20
NEW_TOKENS = 110


class Greedy:
    """A loaded model that completes prompts in batches."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def complete(self, prompts: list[str], new_tokens: int = NEW_TOKENS) -> list[str]:
        """The greedy continuation of every prompt, in the order given."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = {}
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            inputs = self.tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True)
            made = self.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
            texts = self.tokenizer.batch_decode(made[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
            answers |= dict(zip(chosen, texts, strict=True))
        return [answers[i] for i in range(len(prompts))]


def function_body(completion: str) -> str:
    """Cuts a completion before the first line that starts at column 0."""
    return re.split(r"\n(?=\S)", completion)[0] + "\n"


def passes(program: str) -> bool:
    """Runs a program in a bare interpreter with limits; True where it ends without an error."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program],
            capture_output=True,
            timeout=SECONDS,
            preexec_fn=_limit,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def check_program(row: Row, solution: str) -> str:
    """The program that runs a row's test on a function body."""
    return f"{row['prompt']}{solution}\n{row['test']}\ncheck({row['entry_point']})\n"


def code_results(model: Greedy, rows: list[Row]) -> list[bool]:
    """Whether the first answer to each problem passes its test."""
    bodies = map(function_body, model.complete([row["prompt"] for row in rows]))
    programs = [check_program(row, body) for row, body in zip(rows, bodies, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(passes, programs))


def thought_results(model: Greedy, rows: list[Row]) -> list[bool]:
    """Whether the steps are word for word the canonical ones."""
    answers = model.complete([row["prompt"] for row in rows], 60)
    return [answer.strip() == row["cot"].strip() for answer, row in zip(answers, rows, strict=True)]


def output_prompt(row: Row) -> str:
    """The prompt of an output-prediction row."""
    return f"{row['code']}\n\nassert f({row['input']}) =="


def output_results(model: Greedy, rows: list[Row]) -> list[bool]:
    """Whether the rest of the assert line is the right output."""
    answers = model.complete([output_prompt(row) for row in rows], 60)
    return [answer.split("\n")[0].strip() == row["output"] for answer, row in zip(answers, rows, strict=True)]


KINDS = {"problems": code_results, "cot_test": thought_results, "output_test": output_results}


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scores(folder: Path, assets: Path) -> dict[str, float]:
    """The share of right answers on each bundled test file."""
    model, found = Greedy(folder), {}
    for name, results in KINDS.items():
        right = results(model, read_rows(assets / f"{name}.jsonl"))
        found[name] = sum(right) / len(right)
    return found
