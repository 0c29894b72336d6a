"""Of a folder that several recipes were run in, the report takes what the last one made, and says what it left out."""

from __future__ import annotations

import json

import pytest

from flab.errors import DataError
from flab.runs.report import make_report
from flab.runs.report.card import MARK
from flab.runs.report.gather import gather
from support import made_run

CUT = ["prune", "evaluate original", "evaluate pruned"]
TRAINED = ["prune", "data", "recover", "evaluate original", "evaluate pruned", "evaluate recovered"]
AGAIN = "from an earlier run; `flab run RECIPE -o RUN` makes it again"


def edit(run, name, by):
    value = json.loads((run / name).read_text(encoding="utf-8"))
    by(value)
    made_run.write(run / name, value)


@pytest.fixture
def last(run):
    """Make it a run of a flab that writes ``met`` and fingerprints; returns what says which stages the last recipe had."""
    edit(run, "measure.json", lambda value: value["models"][-1].update(sha256="recovered" * 4))
    edit(run, "recovered/recovery.json", lambda value: value["identity"].update(student="pruned" * 4))

    def change(*met):
        def mark(value):
            value["stages"]["measure"] = value["stages"]["recover"] | {"fingerprint": "print of measure"}
            value["stages"]["prune"]["sha256"], value["stages"]["recover"]["sha256"] = "pruned" * 4, "recovered" * 4
            value["met"] = list(met)

        edit(run, "run.json", mark)
        stages = json.loads((run / "run.json").read_text())["stages"]
        done = {name: stages[name] for name in met if name in stages}
        edit(run, "summary.json", lambda value: value.update(stages=done))
        return run

    return change


def test_a_run_that_is_whole_is_taken_whole(last):
    report = gather(last(*TRAINED, "measure"))
    assert [row["name"] for row in report["models"]] == ["original", "pruned", "recovered"]
    assert [row["name"] for row in report["footprint"]["stages"]] == [*TRAINED, "measure"]
    assert not [reason for reason in report["missing"].values() if "earlier run" in reason]
    assert report["measured"]
    assert report["models"][0]["bytes"] == 2000
    assert report["tasks"][0]["models"][2]["paired"]


def test_a_run_without_the_list_is_taken_whole(run):
    report = gather(run)
    assert [row["name"] for row in report["models"]] == ["original", "pruned", "recovered"]
    assert not [reason for reason in report["missing"].values() if "earlier run" in reason]


def test_what_an_earlier_recipe_trained_and_measured_is_left_out(last):
    """First a recipe that trains and measures, then in the same folder one that only cuts."""
    run = last(*TRAINED, "measure")
    make_report(run)
    card = (run / "recovered/README.md").read_bytes()
    assert MARK.encode() in card
    last(*CUT)
    edit(run, "pruned/plan.json", lambda value: value.update(parameters_after=800))
    report = make_report(run)
    assert [row["name"] for row in report["models"]] == ["original", "pruned"]
    assert [row["name"] for row in report["footprint"]["stages"]] == CUT
    assert report["footprint"]["seconds"] == 60.0
    assert report["footprint"]["payback"] is None
    assert set(report["provenance"]["stages"]) == set(CUT)
    assert [model["name"] for model in report["tasks"][0]["models"]] == ["original", "pruned"]
    assert report["recovery"] is None
    assert report["measured"] is None
    assert report["missing"]["recovery"] == f"recovered/recovery.json is {AGAIN} if the recipe has `recover:`"
    assert report["missing"]["measured"] == f"measure.json is {AGAIN} if the recipe has `measure:`"
    assert "eval/recovered/results.json is from an earlier run" in report["missing"]["results"]
    assert "20.0 % of the parameters were removed" in report["verdict"]["sentence"]
    assert "the smaller model 1" in report["verdict"]["sentence"]
    assert "recovered/README.md" not in report["files"]
    assert (run / "recovered/README.md").read_bytes() == card
    assert report["warnings"] == []
    assert "measure.json is from an earlier run" in (run / "report.md").read_text()
    assert f"{run}/recovered" not in " ".join(report["provenance"]["commands"])


@pytest.mark.parametrize("name", ["original", "pruned", "recovered"])
def test_scores_that_this_recipe_did_not_ask_for_are_left_out(last, name):
    run = last(*(stage for stage in TRAINED if stage != f"evaluate {name}"))
    report = gather(run)
    assert f"eval/{name}/results.json is from an earlier run" in report["missing"]["results"]
    assert name not in [model["name"] for model in report["tasks"][0]["models"]]
    pairs = {model["name"]: model["paired"] for model in report["tasks"][0]["models"]}
    if name == "original":
        assert list(pairs.values()) == [None, None]
        assert "compare-pruned.json and compare-recovered.json are from an earlier run" in report["missing"]["paired"]
        assert report["provenance"]["hardware"] is None


@pytest.mark.parametrize("name", ["pruned", "recovered"])
def test_scores_of_another_model_are_left_out(last, name):
    run = last(*TRAINED, "measure")
    edit(run, f"eval/{name}/results.json", lambda value: value["identity"].update(sha256="other"))
    report = gather(run)
    assert report["missing"]["results"] == f"eval/{name}/results.json is {AGAIN}"
    assert report["missing"]["paired"] == f"compare-{name}.json is {AGAIN}"
    assert name not in [model["name"] for model in report["tasks"][0]["models"]]
    assert any("earlier run" in remark for remark in report["verdict"]["remarks"])


def test_scores_whose_model_is_not_known_are_taken(last):
    run = last(*TRAINED, "measure")
    edit(run, "eval/pruned/results.json", lambda value: value["identity"].pop("sha256"))
    edit(run, "run.json", lambda value: value["stages"]["recover"].pop("sha256"))
    edit(run, "measure.json", lambda value: value["models"][-1].update(sha256="whatever"))
    report = gather(run)
    assert not {"results", "paired", "measured"} & set(report["missing"])


def test_measurements_of_another_model_are_left_out(last):
    run = last(*TRAINED, "measure")
    edit(run, "measure.json", lambda value: value["models"][-1].update(sha256="other"))
    report = gather(run)
    assert report["missing"]["measured"] == f"measure.json is {AGAIN}"
    assert report["missing"]["payback"] == f"the break-even is not known: measure.json is {AGAIN}"
    assert report["measured"] is None


def test_without_training_the_measured_model_is_the_cut_one(last):
    assert gather(last(*CUT, "measure"))["measured"] is None
    run = last(*CUT, "measure")
    edit(run, "measure.json", lambda value: value["models"][-1].update(sha256="pruned" * 4))
    assert gather(run)["measured"]


def test_a_pair_is_of_the_two_results_that_lie_there(last):
    run = last(*TRAINED, "measure")
    for prints, is_taken in (("original", True), ("older", False)):
        sides = {"a": {"fingerprint": prints}, "b": {"fingerprint": "recovered"}}
        edit(run, "compare-recovered.json", lambda value, sides=sides: value.update(sides))
        report = gather(run)
        assert (report["tasks"][0]["models"][2]["paired"] is not None) == is_taken
        assert (report["missing"].get("paired") == f"compare-recovered.json is {AGAIN}") != is_taken


def test_training_of_another_cut_is_left_out_with_its_scores(last):
    run = last(*TRAINED, "measure")
    edit(run, "recovered/recovery.json", lambda value: value["identity"].update(student="other"))
    report = gather(run)
    assert [row["name"] for row in report["models"]] == ["original", "pruned"]
    assert report["missing"]["recovery"] == f"recovered/recovery.json is {AGAIN}"
    assert "eval/recovered/results.json" in report["missing"]["results"]


def test_a_stopped_run_shows_what_it_has_done(last):
    """``met`` ends with the stage that is not done: its record is gone, what it left is not of this run."""
    run = last(*TRAINED, "measure")
    edit(
        run, "run.json", lambda value: value.update(met=["prune", "data", "recover"]) or value["stages"].pop("recover")
    )
    report = make_report(run)
    assert [row["name"] for row in report["models"]] == ["original", "pruned"]
    assert [row["bytes"] for row in report["models"]] == [None, None]
    assert report["missing"]["summary"] == f"summary.json is {AGAIN}"
    assert report["missing"]["recovery"] == f"recovered/recovery.json is {AGAIN}"
    assert report["tasks"] is None
    assert report["missing"]["tasks"].startswith("eval/original/results.json and eval/pruned/results.json and")
    assert "eval/original/results.json and" in report["missing"]["examples"]


def test_before_the_first_stage_nothing_is_of_this_run(last):
    run = last()
    report = make_report(run)
    for part in ("models", "cuts", "budget"):
        assert report["missing"][part] == f"pruned/plan.json is {AGAIN}"
    assert "no stage of the run is finished" in report["missing"]["footprint"]
    assert report["verdict"]["sentence"] == "Nothing has been cut yet; how much the model keeps was not measured."
    assert report["files"] == ["report.html", "report.md", "report.json"]


def test_training_rows_of_an_earlier_recipe_are_left_out(last):
    run = last(*(stage for stage in TRAINED if stage != "data"))
    report = make_report(run)
    assert report["recovery"]["data"] is None
    assert report["missing"]["data"] == f"data.meta.json is {AGAIN} if the recipe has `data:`"
    assert "data.meta.json is from an earlier run" in (run / "report.md").read_text()


@pytest.mark.parametrize(
    "damage", [{"met": 3}, {"stages": [1], "met": [1]}, {"stages": {"prune": 1}, "met": ["prune"]}]
)
def test_a_damaged_list_is_one_line(run, damage):
    edit(run, "run.json", lambda value: value.update(damage))
    with pytest.raises(DataError, match="not as flab writes them"):
        make_report(run)


def test_a_sweep_of_another_model_is_left_out(last, tmp_path):
    run = last(*TRAINED, "measure")
    for digest, is_taken in ((None, True), ("abc123", True), ("other", False)):
        swept = made_run.sweep() | {"model": "/somewhere/else/stranger"} | ({"model_sha256": digest} if digest else {})
        made_run.write(tmp_path / "other/sweep.json", swept)
        report = gather(run, tmp_path / "other")
        assert (report["budget"]["sweep"] is not None) == is_taken
        assert ("sweep" in report["missing"]) != is_taken
    assert report["missing"]["sweep"].startswith("the sweep is of another model (stranger): `flab sweep MODEL")
    assert "--remove 0.2 --remove 0.1" not in " ".join(report["provenance"]["commands"])
    make_report(run, tmp_path / "other")
    assert "the sweep is of another model" in (run / "report.md").read_text()
