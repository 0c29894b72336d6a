"""Freed memory is given back, and peaks are reset."""

from __future__ import annotations

import torch

from flab.models import memory


def test_freed_memory_is_given_back_where_the_system_can(monkeypatch):
    given = []
    monkeypatch.setattr(memory, "_malloc_trim", lambda: given.append)
    monkeypatch.setattr(memory, "LARGE_BYTES", 2**50)
    memory.trim()
    assert given == []  # a small process gains nothing from it
    monkeypatch.setattr(memory, "LARGE_BYTES", 2**20)
    memory.trim()
    assert given == [0]
    monkeypatch.undo()
    monkeypatch.setattr(memory, "LARGE_BYTES", 0)
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    memory._malloc_trim.cache_clear()
    memory.trim()  # a C library without it: nothing happens
    memory._malloc_trim.cache_clear()


def test_cuda_is_started_before_its_peak_is_reset(monkeypatch):
    """Its allocator raises an error in a process that has not used CUDA yet."""
    done = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: done.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", done.append)
    memory.reset_peak("cpu")
    assert done == []
    memory.reset_peak("cuda")
    assert done == ["init", 0, 1]
