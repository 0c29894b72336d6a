"""The curve of a sweep as files: drawings that stand alone, in both colour schemes, and a table."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from flab.runs.report.curve import write_curve
from flab.runs.report.svg import COLOURS


def row(remove, **more):
    sizes = {name: {"before": 8, "after": 4} for name in ("vocabulary", "layers", "width")}
    base = {
        "remove": remove,
        "removed_fraction": remove + 0.004,
        "parameters": 1000,
        **sizes,
        "kl_nats_per_token": remove**2,
    }
    return base | {"task_passed": 9, "task_total": 10, "retention": None, "pareto": True} | more


SCORED = {"retention": 0.9, "scores": {"a|b <i>": {"passed": 9, "total": 10, "original": 10}}, "pareto": False}


@pytest.fixture
def written(tmp_path):
    names = write_curve({"budgets": [row(0.2), row(0.4, **SCORED)]}, tmp_path)
    return {name: (tmp_path / name).read_text() for name in names}


def test_drawings_stand_alone_and_follow_the_colour_scheme(written):
    for name in ("kept.svg", "kl.svg"):
        root = ElementTree.fromstring(written[name])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in written[name]
        assert not any(placeholder in written[name] for placeholder in COLOURS)
        for used in ("--accent", "--line"):
            assert f"{used}:" in written[name]


def test_the_table_has_every_budget_and_what_others_wrote_is_inert(written):
    lines = written["sweep.md"].splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == 4
    assert "| 40 % | 40.4% | 1,000 | 4 | 4 x 4 | 0.1600 | 9/10 | 9/10 (original 10) |  |" in lines
    assert lines[0].count(" | ") == 8
    assert "<i>" not in written["sweep.md"]
    assert "for scale only" in written["sweep.md"]


def test_a_budget_is_not_rounded(tmp_path):
    write_curve({"budgets": [row(0.225), row(0.07)]}, tmp_path)
    budgets = [line.split(" | ")[0] for line in (tmp_path / "sweep.md").read_text().splitlines()[2:4]]
    assert budgets == ["| 22.5 %", "| 7 %"]


def test_the_same_sweep_gives_the_same_bytes(written, tmp_path):
    write_curve({"budgets": [row(0.2), row(0.4, **SCORED)]}, tmp_path)
    assert {name: (tmp_path / name).read_text() for name in written} == written


def test_without_tests_and_tasks_there_is_still_a_curve(tmp_path):
    write_curve({"budgets": [row(0.2, task_passed=None, task_total=None)]}, tmp_path)
    assert "| – |" in (tmp_path / "sweep.md").read_text()
