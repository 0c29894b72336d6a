"""Compare a serving engine with transformers: the same ids for the same texts, and the same greedy answers.

The engine runs in a process of its own (:mod:`flab.models.serving.worker`), which may be that of another environment. Then
transformers reads each answer once, in float32: every token must be its first choice after the tokens before it. If it is
not, the two logits tell whether it was a tie, which rounding decides, or a fault.
"""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from flab import assets
from flab.files import scratch_folder
from flab.models.checkpoint import Checkpoint, load
from flab.models.child import run_child
from flab.models.gguf.write import write_gguf
from flab.models.tokenizer import PROBES, text_difference
from flab.progress import say

NUM_TEXTS = 200
NUM_PROMPTS = 30
NEW_TOKENS = 48
LONGEST_PROMPT = 256  # tokens
# Logits closer than this, relative to the largest, are a tie: engines add up in other orders.
TIE = 1e-4
WORKER = Path(__file__).parent / "worker.py"


Answer = list[int] | str  # the text, if the engine gives no ids
Judge = Callable[[list[int], Answer], tuple[str | None, int]]


def run_engines(
    folder: Path,
    engines: Sequence[str],
    python: str | None = None,
    pre: str | None = None,
    written: Mapping[str, list[int]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run each engine on the folder and compare it with transformers; see :func:`compare` for the fields.

    ``python`` is the Python of the environment that has the engines, by default this one. ``written`` holds the ids that
    texts had when the folder was written, if they are known: a tokenizer that was changed since then misleads engine and
    reference alike.
    """
    checkpoint = load(folder, "float32")
    texts = probe_texts()
    prompts = probe_prompts(checkpoint)
    tokens = [(written or {}).get(text) or checkpoint.tokenizer.encode(text).ids for text in texts]
    judge = Reference.of(checkpoint).judge
    found = {}
    for engine in engines:
        say(f"running {engine}")
        made = ask(engine, folder, texts, prompts, python or sys.executable, pre)
        found[engine] = compare(made, texts, tokens, prompts, judge)
    return found


def probe_texts() -> list[str]:
    """:data:`NUM_TEXTS` texts: code, lines of other scripts, spaces, and numbers, all in the composed form (NFC)."""
    lines = [line for probe in PROBES for line in (probe, *probe.splitlines())]
    problems = [json.loads(line) for line in assets.problems_path().read_text(encoding="utf-8").splitlines()]
    code = [text for problem in problems for text in (problem["prompt"], problem["canonical_solution"])]
    sources = [path.read_text(encoding="utf-8", errors="replace")[:400] for path in assets.held_out_stdlib()[:60]]
    texts = [*lines, *sources, *code][:NUM_TEXTS]
    return [unicodedata.normalize("NFC", text) for text in texts]


def probe_prompts(checkpoint: Checkpoint) -> list[list[int]]:
    """Token ids of :data:`NUM_PROMPTS` prompts for code, cut to half of what the model reads."""
    longest = min(LONGEST_PROMPT, checkpoint.model.config.max_position_embeddings // 2)
    lines = assets.problems_path().read_text(encoding="utf-8").splitlines()[:NUM_PROMPTS]
    return [checkpoint.tokenizer.encode(json.loads(line)["prompt"]).ids[:longest] for line in lines]


@dataclass(frozen=True)
class Reference:
    """The model in transformers, and the ids at which an answer may end."""

    model: Any
    ends: frozenset[int]
    tokenizer: Tokenizer

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Reference:
        """Return the reference. Any special token may end an answer, because engines know ends that the config does not name."""
        added = checkpoint.tokenizer.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special}
        return cls(checkpoint.model, frozenset(special | checkpoint.named_ids), checkpoint.tokenizer)

    @torch.no_grad()
    def judge(self, prompt: list[int], answer: Answer) -> tuple[str | None, int]:
        """Return the fault of an answer or None, and the number of places at which it took the other side of a tie.

        Every token must have the largest logit (up to :data:`TIE`) after the prompt and the tokens before it, so an answer
        without ties is the greedy one. A short answer must end where the reference would end it too.
        """
        if isinstance(answer, str):
            return self._judge_text(prompt, answer)
        # One pass over prompt and answer gives the model's choice at every place of the answer, as greedy
        # decoding would have made it.
        logits = self.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :]  # (answer + 1, V)
        best = logits.argmax(-1).tolist()
        ties = 0
        for place, token in enumerate(answer):
            if token == best[place]:
                continue
            lead = float(logits[place, best[place]] - logits[place, token])
            # Relative to the largest logit, because rounding errors grow with the size of the numbers that are
            # added up.
            lead /= max(float(logits[place].abs().max()), 1.0)
            if lead >= TIE:
                return f"token {place} is {token}, not {best[place]} (which leads by {lead:.1e})", ties
            ties += 1
        ended = len(answer) >= NEW_TOKENS or bool(self.ends.intersection(answer[-1:])) or best[-1] in self.ends
        return (None if ended else f"it ends after {len(answer)} tokens, where {best[-1]} should follow"), ties

    def _judge_text(self, prompt: list[int], answer: str) -> tuple[str | None, int]:
        """Compare a text with that of the reference's own answer. After a tie nothing more is compared."""
        given = torch.tensor([prompt])
        made = self.model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = made.sequences[0, len(prompt) :].tolist()
        if self.tokenizer.decode(ids) == answer:
            return None, 0
        # The first token whose text the answer does not have. A character that is not complete yet is left out.
        texts = [self.tokenizer.decode(ids[:end]).rstrip("\ufffd") for end in range(1, len(ids) + 1)]
        place = next((i for i, text in enumerate(texts) if not answer.startswith(text)), len(ids) - 1)
        first, second = made.logits[place][0].topk(2).values.tolist()
        if (first - second) / max(float(made.logits[place].abs().max()), 1.0) < TIE:
            return None, 1
        return f"its text differs from token {place} on: {answer[-40:]!r}, not {texts[-1][-40:]!r}", 0


def ask(
    engine: str, folder: Path, texts: list[str], prompts: list[list[int]], python: str, pre: str | None = None
) -> dict[str, Any]:
    """Run the engine in a fresh process; for llama.cpp the model is first written as GGUF in float32."""
    asked = {
        "texts": texts,
        "prompts": prompts,
        "new_tokens": NEW_TOKENS,
        "threads": torch.get_num_threads(),
        "context": max(map(len, prompts)) + NEW_TOKENS,
    }
    with scratch_folder() as work:
        path = folder
        if engine == "llama.cpp":
            path = write_gguf(folder, work / "model.gguf", "f32", pre).path
        command = [python, "-I", str(WORKER), engine, str(path)]
        done = run_child(command, json.dumps(asked), _environment(work))
    try:
        made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        # An engine that is killed or crashes in native code writes no answer. Its last line says most about it.
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"it ended without an answer (exit {done.returncode}): {last}"}
    if "error" in made and "root cause above" in made["error"]:
        made["error"] = root_cause(done.stderr) or made["error"]
    return made


def root_cause(log: str) -> str | None:
    """Return the first exception in an engine's log. The message of an engine only points to its log."""
    found = re.search(r"\b(?:[A-Z]\w*(?:Error|Exception)): .+", log)
    return found.group(0) if found else None


def _environment(work: Path) -> dict[str, str]:
    """Return the environment of an engine: without downloads, and with all its files in a folder that is removed afterwards."""
    own = {"VLLM_CACHE_ROOT": str(work), "VLLM_CPU_KVCACHE_SPACE": "1", "TMPDIR": str(work)}  # 1 GiB of keys and values
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NO_COLOR": "1", **own}


def compare(
    made: dict[str, Any], texts: list[str], tokens: list[list[int]], prompts: list[list[int]], judge: Judge
) -> dict[str, Any]:
    """Return the verdict on one engine.

    ``ran`` is false if it is not installed; then nothing else is known. ``ok`` says whether all texts have the reference's
    ids and no answer has a fault. An answer that takes the other side of a tie is right, and counted in ``ties``.
    ``first_difference`` describes the first fault.
    """
    if "error" in made:
        return {
            "ran": not made.get("missing", False),
            "ok": None if made.get("missing") else False,
            "why": made["error"],
        }
    differences = []
    same_texts = None
    if made["tokens"] is not None:
        split = [text_difference(*row) for row in zip(texts, tokens, made["tokens"], strict=True)]
        differences += [one for one in split if one]
        same_texts = sum(not one for one in split)
    # The reference judges each answer token by token, because after a tie both continuations are right.
    answers = [
        judge(prompt, answer) for prompt, answer in zip(made.get("prompts", prompts), made["answers"], strict=True)
    ]
    faults = [f"prompt {number}: {one}" for number, (one, _) in enumerate(answers) if one]
    differences += faults
    return {
        "ran": True,
        "ok": not differences,
        "version": made["version"],
        "texts": len(texts),
        "same_texts": same_texts,
        "prompts": len(answers),
        "same_answers": len(answers) - len(faults),
        "ties": sum(ties > 0 for _, ties in answers),
        "first_difference": differences[0] if differences else None,
    }
