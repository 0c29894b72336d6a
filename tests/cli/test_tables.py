"""The tables that commands print fit a terminal of 80 columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flab import progress
from flab.cli import prune, report

CANDIDATE = {
    "layers": 28,
    "width": 13824,
    "removed_fraction": 0.2201,
    "kl_search": 0.05113,
    "kl": 0.04882,
    "kl_answer": 0.02241,
    "task_passed": 100,
    "task_total": 100,
    "chosen": True,
    "removed": [3, 5, 17],
}
BUDGET = {
    "remove": 0.22,
    "pareto": True,
    "removed_fraction": 0.2201,
    "parameters": 1_204_073_984,
    "vocabulary": {"after": 38_336},
    "layers": {"after": 28},
    "width": {"after": 13_824},
    "kl_nats_per_token": 0.04882,
    "task_passed": 100,
    "task_total": 100,
    "seconds": 3993.2,
    "warnings": [],
}


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns, as text."""
    text = io.StringIO()
    monkeypatch.setattr(progress, "results", Console(file=text, width=80))
    return text


def test_candidates_show_the_removed_layers_within_80_columns(terminal):
    prune.show_candidates([CANDIDATE, CANDIDATE | {"width": 12_288, "chosen": False, "kl": None, "removed": []}])
    rows = [line.split("│")[1:-1] for line in terminal.getvalue().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["28 x 13824 *", "22.0%", "0.0511", "0.0488", "0.0224", "100/100", "3, 5, 17"],
        ["28 x 12288", "22.0%", "0.0511", "-", "0.0224", "100/100", "-"],
    ]


def test_a_split_without_a_rival_has_no_kl_of_a_search(terminal):
    prune.show_candidates([CANDIDATE | {"kl_search": 0.04882}])  # a plan records the KL of the winner there
    (row,) = [line.split("│")[1:-1] for line in terminal.getvalue().splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in row] == ["28 x 13824 *", "22.0%", "-", "0.0488", "0.0224", "100/100", "3, 5, 17"]
    assert "nothing was built to compare it with" in " ".join(terminal.getvalue().split())


def test_budgets_fit_80_columns(terminal):
    report.show_sweep({"budgets": [BUDGET], "seconds": {"now": 1.0}}, "SWEEP")
    rows = [line.split("│")[1:-1] for line in terminal.getvalue().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["22 % *", "22.0%", "38,336", "28 x 13824", "0.0488", "100/100", "3993"]
    ]
