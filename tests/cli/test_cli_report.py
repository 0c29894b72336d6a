"""``flab measure``, ``flab sweep``, ``flab report``: tables for people, JSON for machines, one line for bad input."""

from __future__ import annotations

import json

import pytest

import flab.cli.report
from flab.cli.report import _cell, _ratio
from flab.footprint.figures import measured

QUICK = ["--tokens", "4000", "--search-tokens", "1000", "--general", "0"]
LITTLE = ["--rounds", "1", "--prompt-tokens", "4", "--new-tokens", "2", "--max-batch", "1"]


def test_measure_prints_a_table_writes_json_and_names_the_methods(flab, pico_folder, tmp_path):
    small = pico_folder("qwen2", num_hidden_layers=2)
    code, out, err = flab("measure", small, "--against", pico_folder(), *LITTLE, "-o", tmp_path / "m.json")
    assert code == 0, err
    report = json.loads((tmp_path / "m.json").read_text())
    assert [model["name"] for model in report["models"]] == ["original", "smaller"]
    for words in (
        "time per output token",
        "Tokens per second",
        "one round shows no difference",
        "*: one round has no range, so no difference was shown",
        "predicted",
        "formula: ",
        "not measured: energy",
    ):
        assert words in out
        assert words not in err
    assert "CO2" not in out


def test_measure_json_is_one_object_on_stdout(flab, pico_folder):
    code, out, err = flab("measure", pico_folder(), *LITTLE, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    assert json.loads(out)["gains"] == {}


def test_sweep_takes_several_budgets_after_one_option(flab, trained_folder, calibration_file, tmp_path):
    out_folder = tmp_path / "sweep"
    command = ["sweep", trained_folder, "--remove", "0.1", "0.4", "--calibration", calibration_file, *QUICK]
    code, out, err = flab(*command, "-o", out_folder)
    assert code == 0, err
    assert {p.name for p in out_folder.iterdir()} == {
        *("plan-10.json", "plan-40.json", "sweep.json", "sweep.md", "kept.svg", "kl.svg")
    }
    assert "Budgets" in out
    assert "Budgets" not in err
    assert "40 %" in (out_folder / "sweep.md").read_text()
    code, out, err = flab(*command, "-o", out_folder, "--json")
    assert code == 0, err
    assert [row["remove"] for row in json.loads(out)["budgets"]] == [0.1, 0.4]
    assert err.count("already planned") == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["measure", "nowhere"], "no model folder at nowhere"),
        (["measure", "nowhere", "--grid", "Mordor"], "--grid: got MORDOR"),
        (["measure", "nowhere", "--rounds", "0"], "--rounds: got 0"),
        (["measure", "nowhere", "-o", "no/folder/m.json"], "no folder no/folder"),
        (["sweep", "nowhere", "-o", "out"], "no model folder at nowhere"),
        (["sweep", "nowhere", "--remove", "0.1", "1.5", "-o", "out"], "got 1.5, allowed 0 <= x < 1"),
        (["sweep", "nowhere", "--remove", "0.1", "x", "-o", "out"], "BUDGET: got 'x', expected a number"),
        (["report", "nowhere"], "nowhere"),
        (["report", "."], "run"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flab, command, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = flab(*command)
    lines = [line for line in err.splitlines() if line.startswith("flab: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert words in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "unit", "spread", "words"),
    [
        (0.0363, "s", (0.025, 0.0477), "36.3 ms (25-47.7)"),
        (8_120_320, "B", None, "8.12 MB"),
        (2738.4, "tokens/s", (2600, 2800), "2,738 tokens/s (2,600-2,800)"),
        (0.327, "", None, "0.327"),
        (4_060_160, "", None, "4.06 M"),
        (0.000293, "g", None, "293 µg"),
        (0, "J", None, "0 J"),
        (8_803_584, "FLOP", (8_803_584, 8_803_584), "8.804 MFLOP"),
    ],
)
def test_a_cell_has_its_extremes_at_the_scale_of_its_value(value, unit, spread, words):
    low, high = spread or (None, None)
    assert _cell({"value": value, "unit": unit, "low": low, "high": high}) == words
    assert _cell({"value": None, "unit": unit, "low": None, "high": None}) == "-"


@pytest.mark.parametrize(
    ("low", "high", "rounds", "said"),
    [
        (
            0.91,
            1.44,
            5,
            "time per output token: no difference was shown (0.91-1.44 times better); predicted 1.60 (bytes)",
        ),
        (1.05, 1.44, 5, "time per output token: 1.19 times better (1.05-1.44); predicted 1.60 (bytes)"),
        (
            *(1.19, 1.19, 1),
            "time per output token: one round shows no difference (1.19 times better in it); predicted 1.60 (bytes)",
        ),
    ],
)
def test_a_gain_whose_range_contains_1_is_no_claim(monkeypatch, low, high, rounds, said):
    lines = []
    monkeypatch.setattr(flab.cli.report, "reply", lines.append)
    gain = {"value": 1.19, "low": low, "high": high, "rounds": rounds}
    gain |= {"predicted": 1.6, "of_predicted": 0.74, "prediction": "bytes"}
    flab.cli.report.show_gains({"time_per_output_token": gain})
    assert lines == [f"{said}; measured over predicted 0.74"]


@pytest.mark.parametrize(("values", "shown"), [((1.0, 1.2), "0.550"), ((1.0, 2.1), "0.775 *"), ((1.0,), "0.500 *")])
def test_a_ratio_whose_ranges_overlap_is_marked(values, shown):
    assert _ratio(measured([2.0, 2.0, 2.5], "s", "x").to_json(), measured(values, "s", "x").to_json()) == shown
