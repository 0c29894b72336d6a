"""Freed memory is given back."""

from __future__ import annotations

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
