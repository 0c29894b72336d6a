"""The comparison with the paper's scripts: every recipe beside theirs, each paired with the original."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flab import Recipe, assets
from flab.errors import CheckpointError, SandboxError
from flab.sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import authors


@pytest.fixture
def small(monkeypatch, trained_folder, calibration_file, tmp_path):
    """A pico model and two problems in the place of the bundled ones."""
    test = "def check(f):\n    assert f(0) == 1\n"
    rows = [
        {"prompt": f"def f{n}(x):\n    return 1\n#", "entry_point": f"f{n}", "test": test, "canonical_solution": " a\n"}
        for n in range(2)
    ]
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(assets, "model_path", lambda: trained_folder)
    monkeypatch.setattr(assets, "problems_path", lambda: problems)
    monkeypatch.setattr(assets, "calibration_path", lambda: calibration_file)
    try:
        Sandbox.detect()
    except SandboxError as error:
        pytest.skip(f"no namespaces on this machine: {error}")


def test_every_recipe_is_measured_beside_the_authors(small, tmp_path, capsys):
    recipes = [Recipe(remove=r, refit="residual", tokens=2000, search_tokens=1000) for r in (0.2, 0.4)]
    report = authors.compare(tmp_path / "out", recipes, limit=2)
    assert [row["name"] for row in report["rows"]] == [
        "original", "flab -20 %", "authors -20 %", "flab -40 %", "authors -40 %",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "authors.json").read_text())["rows"] == report["rows"]
    original, *others = report["rows"]
    assert original["retention"] is None
    for row in others:
        plan = json.loads((tmp_path / "out" / row["name"].split(" %")[0].replace(" -", "-") / "plan.json").read_text())
        ours = row["name"].startswith("flab")
        assert plan["refit"]["kind"] == ("residual" if ours else "none")
        assert plan["parameters_after"] == row["parameters"] < original["parameters"]
        assert row["removed_fraction"] >= plan["remove"]
        assert row["both"] + row["only_original"] + row["only_pruned"] + row["neither"] == 2
        assert row["bits_per_byte"] > 0
    texts = [
        json.loads((tmp_path / "out" / f"{n}-40" / "plan.json").read_text())["calibration"] for n in ("flab", "authors")
    ]
    assert texts[0]["tokens"] == texts[1]["tokens"] == 2000
    assert [row["layers"] for row in others[::2]] == [row["layers"] for row in others[1::2]]
    capsys.readouterr()
    authors.show(report)
    shown = capsys.readouterr().err
    assert all(row["name"] in shown for row in report["rows"])


def test_without_the_bundled_model_it_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "model_path", lambda: tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"scripts/train_reference\.py"):
        authors.compare(tmp_path / "out", [Recipe()])
