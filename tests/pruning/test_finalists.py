"""The tests that decide between finalists."""

from __future__ import annotations

from flab import Options
from flab.evaluation.tasks import Problem
from flab.models.checkpoint import open_model
from flab.pruning.finalists import BATCH, judge_batch


def test_the_finalists_cache_is_bounded(pico_folder, monkeypatch):
    checkpoint, _ = open_model(pico_folder("qwen2"), Options())
    problems = [Problem("0", "def f(x):\n", "f", "", None)]
    assert judge_batch(checkpoint, problems, 5) == BATCH
    monkeypatch.setattr("flab.pruning.finalists.CACHE_BYTES", 2**20)
    some = judge_batch(checkpoint, problems, 5)
    assert 1 < some < BATCH
    longer = [*problems, Problem("1", "x = 1\n" * 200, "f", "", None)]
    assert judge_batch(checkpoint, longer, 5) < some
    monkeypatch.setattr("flab.pruning.finalists.CACHE_BYTES", 0)
    assert judge_batch(checkpoint, problems, 5) == 1
