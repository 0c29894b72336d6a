"""llama.cpp's side of ``quantise.py``: a script for a Python that has xllamacpp and need not have flab.

Run as ``PYTHON -I quantise_worker.py``. It reads one JSON object from stdin: ``models`` (each with ``name``, ``path``, ``like``,
``texts`` as ids, and ``kept``, the original's id of each of its tokens, null for the original's own), ``reference`` (a path),
``top``, ``rounds``, ``new_tokens`` and ``context``. The last line that it prints is one JSON object: for each model its figures.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
TINY = 1e-12  # smallest probability of all that is not among the likeliest tokens


class Engine:
    """One GGUF file in llama.cpp's own server, on one thread."""

    def __init__(self, path: str, context: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = context
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.port = 0
        params.warmup = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(params)

    def ask(self, prompt: list[int], new_tokens: int, **settings: Any) -> Json:
        """Continue a prompt greedily."""
        return self._post(
            "completion", {"prompt": prompt, "n_predict": new_tokens, "temperature": 0.0, "top_k": 1, **settings}
        )

    def _post(self, place: str, body: Json) -> Json:
        request = urllib.request.Request(
            f"{self.server.listening_address}/{place}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            made: Json = json.load(reply)
        return made

    def likeliest(self, texts: list[list[int]], top: int) -> Iterator[dict[int, float]]:
        """Yield the probabilities of the ``top`` likeliest next tokens at each place of each text but its end."""
        # The server leaves the list out if the chosen token is an end or half a character. A bias makes it choose a letter;
        # it changes the choice alone, not the probabilities that are listed.
        letter = self._post("tokenize", {"content": "a", "add_special": False})["tokens"][-1]
        for ids in texts:
            for place in range(1, len(ids)):
                bias = [[letter, 1000.0]]
                made = self.ask(ids[:place], 1, n_probs=top, cache_prompt=True, logit_bias=bias)
                found = made["completion_probabilities"][0]["top_logprobs"]
                yield {one["id"]: math.exp(one["logprob"]) for one in found}


def distance(reference: dict[int, float], kept: set[int] | None, other: dict[int, float]) -> tuple[float, float]:
    """Return the KL in nats of ``other`` from the reference among the kept tokens, and -log of the mass of these.

    Tokens that only one of the two lists are one class, so that the sum is at most the KL over all tokens.
    """
    lost = sum(p for token, p in reference.items() if kept is not None and token not in kept)
    share = max(1.0 - lost, TINY)
    both = [(p / share, other[token]) for token, p in reference.items() if token in other]
    rest = tuple(max(1.0 - sum(side), TINY) for side in zip(*both, strict=True)) if both else (1.0, 1.0)
    return sum(p * math.log(p / max(q, TINY)) for p, q in [*both, rest] if p > 0), -math.log(share)


def compare(reference: list[dict[int, float]], engine: Engine, model: Json, top: int) -> Json:
    """Return the mean figures of one model over all places of its texts."""
    names = model["kept"]
    kept = set(names) if names is not None else None
    followers = [token for ids in model["texts"] for token in ids[1:]]
    rows = []
    for right, own, follower in zip(reference, engine.likeliest(model["texts"], top), followers, strict=True):
        named = own if names is None else {names[token]: p for token, p in own.items()}
        kl, vocabulary = distance(right, kept, named)
        same = max(right, key=right.__getitem__) == max(named, key=named.__getitem__)
        rest = max(1.0 - sum(own.values()), TINY)
        rows.append((kl, vocabulary, float(same), -math.log2(own.get(follower, rest))))
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    spread = math.sqrt(sum((row[0] - mean[0]) ** 2 for row in rows) / max(len(rows) - 1, 1) / len(rows))
    return {
        "places": len(rows),
        "kl": mean[0],
        "kl_standard_error": spread,
        "kl_vocabulary": mean[1],
        "same_first_choice": mean[2],
        "bits": sum(row[3] for row in rows),
    }


def speeds(engines: list[Engine], prompts: list[list[int]], rounds: int, new_tokens: int) -> list[list[float]]:
    """Return tokens per second of processor time, engine by engine in turn, so that all see the same machine."""
    made: list[list[float]] = [[] for _ in engines]
    for turn in range(rounds + 1):
        for number, engine in enumerate(engines):
            began = time.process_time()
            engine.ask(prompts[number], new_tokens, ignore_eos=True, cache_prompt=False)
            if turn:  # the first turn warms up
                made[number].append(new_tokens / (time.process_time() - began))
    return made


def answer(asked: Json) -> Json:
    """Compare every model with the reference, which reads the same tokens under its own ids, then time all."""
    original = Engine(asked["reference"], asked["context"])
    engines = [Engine(model["path"], asked["context"]) for model in asked["models"]]
    references: dict[str, list[dict[int, float]]] = {}
    found = []
    for engine, model in zip(engines, asked["models"], strict=True):
        names = model["kept"]
        texts = model["texts"] if names is None else [[names[token] for token in ids] for ids in model["texts"]]
        if model["like"] not in references:
            references[model["like"]] = list(original.likeliest(texts, asked["top"]))
        found.append(compare(references[model["like"]], engine, model, asked["top"]))
        print(model["name"], found[-1], file=sys.stderr, flush=True)
    prompts = [model["texts"][0][:8] for model in asked["models"]]
    for row, speed in zip(found, speeds(engines, prompts, asked["rounds"], asked["new_tokens"]), strict=True):
        row["tokens_per_cpu_second"] = speed
    return {"rows": found}


if __name__ == "__main__":
    result = answer(json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a server's threads need not be waited for
