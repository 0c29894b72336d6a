"""Progress: a line every so many seconds where stderr is no terminal, with what is done and the time that is left."""

from __future__ import annotations

import threading

import pytest

from flab import progress
from flab.progress import Meter, duration, say_stage, track


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


def test_a_line_says_what_is_done_of_how_much_and_how_long_the_rest_takes():
    meter = Meter("Cutting", 30, "layers")
    meter.start = 100.0
    meter.set(10)
    assert meter.line(160.0) == "  Cutting: 10/30 layers, about 2 min left"


def test_what_was_done_before_does_not_count_for_the_pace():
    meter = Meter("Training", 100, "steps", done=50)
    meter.start = 0.0
    meter.set(60)
    assert meter.line(20.0) == "  Training: 60/100 steps, about 80 s left"


def test_before_the_first_is_done_or_without_a_total_the_line_says_how_long_it_took():
    meter = Meter("Reading", 8)
    meter.start = 0.0
    assert meter.line(31.0) == "  Reading: 0/8, after 31 s"
    endless = Meter("Reading")
    endless.start = 0.0
    endless.set(5)
    assert endless.line(31.0) == "  Reading: 5, after 31 s"


def test_a_long_loop_writes_lines_where_stderr_is_no_terminal(monkeypatch, said):
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0.01)
    spoken = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        spoken.set()

    monkeypatch.setattr(progress, "say", say)
    for _ in track(range(2), "Generating", unit="batches"):
        spoken.clear()
        assert spoken.wait(30)
    assert said[0].startswith("  Generating: 0/2 batches, after ")
    assert said[-1].startswith("  Generating: 1/2 batches, about ")


def test_a_short_loop_writes_nothing_and_leaves_no_thread(said):
    assert list(track([1, 2, 3], "Counting")) == [1, 2, 3]
    assert said == []
    with Meter("Counting", shown=False) as meter:
        before = threading.active_count()
    assert meter.done == 0
    assert threading.active_count() <= before


def test_durations_are_in_the_unit_that_reads_best():
    assert [duration(seconds) for seconds in (0.4, 119, 121, 7199, 7201)] == [
        "0 s",
        "119 s",
        "2 min",
        "120 min",
        "2.0 h",
    ]


def test_a_stage_says_its_place(said):
    say_stage(2, 4, "search")
    assert said == ["stage 2 of 4: search"]
