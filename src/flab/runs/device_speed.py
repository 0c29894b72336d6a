"""Measure within ten seconds how fast this device does each kind of work that :mod:`flab.runs.estimate` counts.

One layer with the model's sizes and random weights reads and generates tokens. Products, factorisations, memory and the
disk are timed with matrices of the same sizes. Each figure is the best of a few repetitions after one warm-up.
"""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

from flab.models.options import BALANCED
from flab.models.shape import Shape
from flab.models.tokenizer import quiet
from flab.pruning.refit.curvature import product_dtype

SECONDS_EACH = 0.6  # the time for the repetitions of each figure
# The rows of the batch that times a forward pass, and the tokens in each row.
ROWS = 8
LENGTH = 512
STEP_TOKENS = 1024
# The number of answers in the batch that times generation, and the tokens that precede each.
ANSWERS = 64
CONTEXT = 256
LARGEST = 2048  # features of the matrices that are factored
COPIED_BYTES = 2**27
DISK_BYTES = 2**26
# Programs run in the sandbox per second, measured on two cores.
TESTS_A_SECOND = 8.0
# The start-up of a process that imports torch and transformers, measured on two cores.
SECONDS_TO_START = 6.0


def measure_speed(
    config: Any, shape: Shape, precision: str, device: str, folder: Path, tokenizer: Any = None, batch: int = ANSWERS
) -> dict[str, float]:
    """Return the amount of each kind of work per second.

    Args:
        precision: "float32", "bfloat16", "float16" or "mixed".
        device: a torch device, or "balanced", of which the first device is timed.
        folder: the folder that will hold the output; its disk is timed.
        tokenizer: the tokenizer to time, if the rate of text is needed.
        batch: the number of answers that are generated together.
    """
    one = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(one if device == BALANCED else device)
    speed = {"test": TESTS_A_SECOND, "start": 1 / SECONDS_TO_START}
    with torch.no_grad():
        speed |= _layer_speeds(config, precision, place, batch)
        speed |= _product_speeds(shape, precision, place)
    speed["learning"] = _learning_speed(shape, place)
    speed["memory"] = _memory_speed(place)
    speed |= _disk_speeds(folder)
    if tokenizer is not None:
        speed["text"] = _text_speed(tokenizer)
    return speed


def _seconds(once: Callable[[], object], place: torch.device) -> float:
    """Return the shortest of the repetitions that fit into :data:`SECONDS_EACH`. At least one follows the warm-up."""
    taken = []
    for _ in range(50):
        start = time.perf_counter()
        once()
        # A GPU works on after the call returns; the clock must wait for it.
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        taken.append(time.perf_counter() - start)
        if len(taken) > 1 and sum(taken) > SECONDS_EACH:
            break
    # The shortest repetition counts, because other work on the machine can only add time. The first one is the warm-up.
    return min(taken[1:])


def one_layer(config: Any, precision: str, place: torch.device) -> nn.Module:
    """Return a model with one layer of the config's sizes, a small vocabulary, and random weights in this precision."""
    small = copy.deepcopy(config)
    small.num_hidden_layers = 1
    small.vocab_size = 64
    kinds = getattr(small, "layer_types", None)
    if kinds:
        # For a hybrid this is a layer with full attention, because a cache of linear attention alone does not know its length.
        small.layer_types = ["full_attention"] if "linear_attention" in kinds else kinds[:1]
    # The special ids of the real vocabulary are not among the 64 tokens of this model.
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(small, name, None)
    dtype = {"mixed": torch.bfloat16, "auto": torch.float32}.get(precision) or getattr(torch, precision)
    with quiet():
        model = AutoModelForCausalLM.from_config(small)
    return model.to(place, dtype).eval().requires_grad_(False)  # type: ignore[no-any-return]


def _layer_speeds(config: Any, precision: str, place: torch.device, batch: int) -> dict[str, float]:
    """Return the tokens that a layer reads per second, and the steps it makes per second for a whole batch of answers."""
    model = one_layer(config, precision, place)
    length = min(LENGTH, int(getattr(config, "max_position_embeddings", None) or LENGTH))
    ids = torch.zeros(ROWS, length, dtype=torch.long, device=place)
    reading = _seconds(lambda: model(ids, use_cache=False, logits_to_keep=1), place)
    context = min(CONTEXT, length - 1)
    cache = DynamicCache(config=model.config)
    model(torch.zeros(batch, context, dtype=torch.long, device=place), past_key_values=cache, logits_to_keep=1)
    token = torch.zeros(batch, 1, dtype=torch.long, device=place)

    def step() -> None:
        model(token, past_key_values=cache, use_cache=True)

    return {"layer": ids.numel() / reading, "step": 1 / _seconds(step, place)}


def _product_speeds(shape: Shape, precision: str, place: torch.device) -> dict[str, float]:
    """Return the FLOP per second of Gram matrices, of factorisations in both precisions, and of the head."""
    features = min(shape.width, 2 * LARGEST)
    # The Gram matrices use the precision in which the refit sums its statistics.
    statistics = torch.bfloat16 if precision in ("mixed", "bfloat16") else torch.float32
    x = torch.randn(1024, features, device=place).to(statistics)
    found = {"gram": 2 * x.numel() * features / _seconds(lambda: x.T @ x, place)}
    size = min(shape.width, LARGEST)
    for name, dtype in (("single", torch.float32), ("double", torch.float64)):
        # A diagonally dominant matrix like this one is positive definite, so it has a Cholesky factor.
        matrix = torch.eye(size, dtype=dtype, device=place) * size + 1
        work = torch.empty_like(matrix).T

        def factor(matrix: torch.Tensor = matrix, work: torch.Tensor = work) -> None:
            work.copy_(matrix)
            torch.linalg.cholesky(work, out=work)

        found[name] = size**3 / 3 / _seconds(factor, place)
    dtype = torch.float32 if precision in ("mixed", "auto") else getattr(torch, precision)
    head = torch.randn(min(shape.vocabulary, 16384), shape.hidden, device=place, dtype=dtype)
    states = torch.randn(256, shape.hidden, device=place, dtype=dtype)
    found["head"] = 2 * len(states) * head.numel() / _seconds(lambda: states @ head.T, place)
    return found


def _learning_speed(shape: Shape, place: torch.device) -> float:
    """Return the FLOP per second of a forward and backward pass through two FFN matrices in the precision of the refits."""
    matrices = [torch.randn(shape.width, shape.hidden, device=place) * 0.02 for _ in range(2)]
    for matrix in matrices:
        matrix.requires_grad_()
    x = torch.randn(STEP_TOKENS, shape.hidden, device=place)
    products = product_dtype(matrices[0])

    def step() -> None:
        with torch.autocast(place.type, products, enabled=products != torch.float32):
            out = nn.functional.silu(x @ matrices[0].T) @ matrices[1]
        out.float().pow(2).sum().backward()  # type: ignore[no-untyped-call]

    # Each entry of a matrix takes ten operations: four for the forward pass, four for the gradients of both matrices, and
    # two to pass the gradient through the second matrix. The gradient of the first matrix's input is not needed.
    return 10 * STEP_TOKENS * matrices[0].numel() / _seconds(step, place)


def _memory_speed(place: torch.device) -> float:
    """Return the bytes per second, read plus written, of copying a tensor that is larger than any cache."""
    source = torch.ones(COPIED_BYTES // 4, device=place)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / _seconds(lambda: target.copy_(source), place)


def _disk_speeds(folder: Path) -> dict[str, float]:
    """Return the bytes per second of writing through to the disk, of reading without the system's cache, and of hashing."""
    # The bytes are random, because a disk or file system with compression would write zeros almost instantly.
    data = os.urandom(2**20) * (DISK_BYTES // 2**20)
    with tempfile.TemporaryFile(dir=folder if os.access(folder, os.W_OK) else None) as file:
        start = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - start
        # Otherwise the file would be read back from memory.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        file.seek(0)
        file.read()
        read = time.perf_counter() - start
    start = time.perf_counter()
    hashlib.sha256(data).digest()
    hashed = time.perf_counter() - start
    return {"write": DISK_BYTES / written, "read": DISK_BYTES / read, "hash": DISK_BYTES / hashed}


def _text_speed(tokenizer: Any) -> float:
    """Return the bytes of Python source that are tokenised per second."""
    text = Path(copy.__file__).read_text(encoding="utf-8")
    start = time.perf_counter()
    tokenizer.encode_batch([text] * 4, add_special_tokens=False)
    return 4 * len(text.encode()) / (time.perf_counter() - start)
