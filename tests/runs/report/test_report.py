"""What is gathered of a run: right numbers, reasons for what is missing, one line for what is damaged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flab.errors import DataError
from flab.runs.report import make_report
from flab.runs.report.gather import gather
from support import made_run


def test_models_have_their_sizes(run):
    original, pruned, recovered = gather(run)["models"]
    assert [original[n] for n in ("parameters", "parameters_body", "parameters_embedding", "bytes")] == [
        1000,
        700,
        300,
        2000,
    ]
    assert (recovered["parameters"], recovered["vocabulary"], recovered["layers"], recovered["width"]) == (
        600,
        60,
        2,
        8,
    )
    assert (original["bits_per_byte"], pruned["bits_per_byte"], recovered["bits_per_byte"]) == (1.885, 1.91, None)
    assert pruned["kl_nats_per_token"] == 0.0212
    assert pruned["removed_fraction"] == pytest.approx(0.4)


def test_cuts_budget_and_recovery_are_there(run):
    report = gather(run)
    assert report["cuts"]["layers"]["kept"] == [0, 2]
    assert [one["chosen"] for one in report["cuts"]["candidates"]] == [True, False]
    assert [one["kl"] for one in report["cuts"]["layer_path"]] == [0.06, 0.31]
    assert [one["remove"] for one in report["budget"]["sweep"]] == [0.1, 0.2]
    assert report["budget"]["points"][1]["retention"] == 1.005
    assert [one["retention"] for one in report["budget"]["published"]["points"]] == [0.97, 1.0]
    assert [one["kl"] for one in report["recovery"]["curve"]] == pytest.approx([0.08, 0.08 / 11, 0.08 / 21])
    assert [one["step"] for one in report["recovery"]["training_curve"]] == [5]


def test_scores_are_paired(run):
    (task,) = gather(run)["tasks"]
    recovered = task["models"][2]
    assert (recovered["passed"], recovered["total"], recovered["failures"]) == (2, 4, {"assertion": 2})
    assert (recovered["paired"]["lost"], recovered["paired"]["won"]) == (1, 2)
    assert task["models"][0]["paired"] is None


def test_robustness_is_shown_for_each_model(changed):
    row = {"clean": "problems", "perturbed": "problems~dead-code", "shared": 4, "pass@1_clean": 0.5, "pass@1_perturbed": 0.25,
           "drop": 0.25, "relative_drop": 0.5, "only_clean": 1, "only_perturbed": 0, "mcnemar_p": 1.0}  # fmt: skip
    run = changed("eval/recovered/results.json", lambda value: value["robustness"].append(row))
    (entry,) = gather(run)["robustness"]
    assert entry["models"][0]["name"] == "recovered"
    assert entry["models"][0]["drop"] == 0.25


def test_examples_are_the_first_of_each_outcome(run):
    found = gather(run)["examples"]
    assert [(one["task_id"], one["outcome"]) for one in found["problems"]] == [
        ("t/0", "lost"), ("t/1", "won"), ("t/2", "both"), ("t/3", "neither")]  # fmt: skip
    lost = found["problems"][0]
    assert lost["prompt"] == "def f0():\n"
    assert lost["original"]["text"] == "    return 'original 0'\n"
    assert (lost["original"]["passed"], lost["smaller"]["passed"]) == (True, False)


def test_prompts_are_shown_only_from_the_file_that_was_asked(run, tmp_path):
    other = tmp_path / "problems.jsonl"
    other.write_text("".join(json.dumps(row | {"test": "assert 0"}) + "\n" for row in made_run.PROBLEMS))
    for source, reason in ((other, "has changed"), (tmp_path / "gone.jsonl", "is no longer in its place")):
        for name in ("original", "recovered"):
            file = run / "eval" / name / "results.json"
            value = json.loads(file.read_text())
            value["tasks"][0]["source"] = str(source)
            made_run.write(file, value)
        found = gather(run)["examples"]
        assert reason in found["prompts_missing"]
        assert [one["prompt"] for one in found["problems"]] == [None] * 4


def test_measurements_and_payback_are_passed_on(run):
    report = gather(run)
    figures = report["measured"]["models"][1]["figures"]
    assert figures["time_per_output_token"]["value"] == 0.002
    assert figures["made_up_figure"]["value"] == 7.0
    assert report["footprint"]["seconds"] == 120.0
    assert report["footprint"]["payback"]["seconds"]["tokens"]["value"] == 291300.0
    assert report["missing"]["energy"] == f"energy was not measured: {made_run.NO_SENSOR}"


def test_provenance_names_digests_seeds_and_commands(run):
    found = gather(run)["provenance"]
    assert found["sha256"]["original, config, weights and tokenizer"] == "abc123"
    assert found["sha256"]["training rows"] == "fed321"
    assert found["training"]["seed"] == 3
    assert found["commands"][0] == f"flab run recipes/mine.yml -o {run}"
    assert found["commands_by_name"][-1] == "flab report RUN"
    assert f"flab sweep org/base --remove 0.2 --remove 0.1 -o {run}/sweep" in found["commands"]


MISSING = [  # what is taken away, the part that has no data then, and what its reason says
    ("summary.json", "summary", "flab run"),
    ("pruned", "models", "flab run"),
    ("recovered", "recovery", "flab recover"),
    ("measure.json", "measured", "flab measure"),
    ("sweep", "sweep", "flab sweep"),
    ("compare-recovered.json", "paired", "recovered was not paired"),
    ("eval/recovered", "examples", "flab run"),
    ("eval", "tasks", "flab run"),
    ("data.meta.json", "robustness", "--perturb all"),
]


@pytest.mark.parametrize(("name", "part", "reason"), MISSING, ids=[row[0] for row in MISSING])
def test_what_is_missing_has_a_reason_and_a_command(run, name, part, reason):
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = make_report(run)
    assert reason in report["missing"][part]
    assert (
        report["missing"][part].split("`")[0] in (run / "report.md").read_text().replace("\\", "") or part == "summary"
    )


def test_a_run_that_has_only_begun_gives_a_report(tmp_path):
    run = tmp_path / "RUN"
    made_run.write(run / "run.json", {"format": 1, "stages": {}})
    report = make_report(run)
    assert {"models", "cuts", "tasks", "budget", "recovery", "examples", "measured", "footprint"} <= set(
        report["missing"]
    )
    assert report["verdict"]["sentence"] == "Nothing has been cut yet; how much the model keeps was not measured."
    assert report["files"] == ["report.html", "report.md", "report.json"]


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"holds no run.json.*flab run wrote"):
        make_report(tmp_path)
    with pytest.raises(DataError, match=r"holds no run.json"):
        make_report(tmp_path / "nowhere")


FILES = ["run.json", "summary.json", "pruned/plan.json", "recovered/recovery.json", "eval/pruned/results.json",
         "compare-pruned.json", "measure.json", "sweep/sweep.json", "data.meta.json"]  # fmt: skip
DAMAGE = [(name, text) for name in FILES for text in ('{"format": 1, "stages', "[]", "{}")]


@pytest.mark.parametrize(("name", "text"), [*DAMAGE, ("eval/original/run.json", "{")])
def test_damage_is_one_line_that_names_the_file(run, name, text):
    (run / name).write_text(text)
    with pytest.raises(DataError) as caught:
        make_report(run)
    message = str(caught.value)
    assert name.rpartition("/")[2] in message
    assert "\n" not in message


def test_damage_deep_inside_is_one_line(changed):
    run = changed(
        "pruned/plan.json", lambda value: value["candidates"][0].pop("chosen") and value["layers"].pop("kept")
    )
    with pytest.raises(DataError, match="not as flab writes them") as caught:
        make_report(run)
    assert "\n" not in str(caught.value)


def test_a_word_for_a_number_is_one_line(changed):
    run = changed("measure.json", lambda value: value["models"][0]["figures"]["storage_bytes"].update(value="many"))
    with pytest.raises(DataError, match="not as flab writes them"):
        make_report(run)
    assert not (run / "report.html").exists()


def test_what_is_no_number_is_left_out(changed):
    run = changed("pruned/plan.json", lambda value: value["candidates"][1].update(kl_search=float("nan")))
    report = make_report(run)
    assert report["cuts"]["candidates"][1]["kl_search"] is None
    assert "NaN" not in (run / "report.json").read_text()


def test_a_run_without_training_is_about_the_cut_model(run):
    for name in ("recovered", "eval/recovered", "sweep"):
        shutil.rmtree(run / name)
    for name in ("compare-recovered.json", "measure.json"):
        (run / name).unlink()
    report = make_report(run)
    assert "the original solves 2 and the smaller model 1, 50.0 % of that" in report["verdict"]["sentence"]
    assert report["verdict"]["remarks"][0].startswith("The loss is significant")
    assert "measure RUN/pruned" in report["missing"]["measured"]
    assert "problems: significantly worse than the original." in (run / "pruned/README.md").read_text()


def test_a_format_of_the_future_is_refused(changed):
    run = changed("measure.json", lambda value: value.update(format=2))
    with pytest.raises(DataError, match="format 2, but this flab reads 1"):
        make_report(run)


def test_another_sweep_can_be_given(run, tmp_path):
    made_run.write(tmp_path / "other/sweep.json", made_run.sweep() | {"budgets": made_run.sweep()["budgets"][:1]})
    assert len(gather(run, tmp_path / "other")["budget"]["sweep"]) == 1
    with pytest.raises(DataError, match=r"holds no sweep.json"):
        gather(run, tmp_path)


EMISSIONS = re.compile(
    r"co2|co₂|carbon|grams_per_kwh|g/kwh|emission|0\.000124|0\.000062|6\.2e-05|\b56\.0\b", re.IGNORECASE
)


def outputs(run: Path) -> dict[str, str]:
    names = ("report.html", "report.md", "report.json", "recovered/README.md", "pruned/README.md")
    return {name: (run / name).read_text(encoding="utf-8") for name in names}


def test_without_energy_nothing_speaks_of_emissions(run):
    make_report(run)
    for name, text in outputs(run).items():
        assert not EMISSIONS.search(text), name
        assert made_run.NO_SENSOR in text or name.endswith("README.md")


def test_with_energy_emissions_are_shown(run):
    made_run.write(run / "measure.json", made_run.measured(with_energy=True))
    make_report(run)
    found = outputs(run)
    assert "CO₂ per 1,000 tokens" in found["report.html"]
    assert "grams per kwh" in found["report.html"]
    assert '"co2_per_1000_tokens"' in found["report.json"]


@pytest.mark.parametrize("unmetered", [0, 1])
def test_energy_of_one_model_alone_is_no_ground_for_emissions(changed, unmetered):
    def forget(value):
        value.update(made_run.measured(with_energy=True))
        gap = made_run.figure(None, "J", reason=made_run.NO_SENSOR)
        value["models"][unmetered]["figures"]["energy_per_1000_tokens"] = gap

    run = changed("measure.json", forget)
    models = make_report(run)["measured"]["models"]
    assert all("co2_per_1000_tokens" not in model["figures"] for model in models)
    assert models[1 - unmetered]["figures"]["energy_per_1000_tokens"]["value"] is not None
    assert not [name for name, text in outputs(run).items() if EMISSIONS.search(text)]


def test_the_same_run_gives_the_same_bytes(run):
    make_report(run)
    first = outputs(run)
    make_report(run)
    assert outputs(run) == first


def test_the_report_on_disk_is_what_is_returned(run):
    report = make_report(run)
    assert json.loads((run / "report.json").read_text()) == json.loads(json.dumps(report))
    assert all((run / name).is_file() for name in report["files"])
    assert not list(run.rglob("*.tmp"))


def test_the_home_folder_is_not_named(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    make_report(run)
    assert all(str(run.parent) not in text for text in outputs(run).values())


def test_the_command_that_measures_leaves_the_runs_file_and_has_its_settings(run):
    wanted = f"flab measure {run}/recovered --against org/base{{}} -o {run}/measured-again.json"
    settings = " --prompt-tokens 128 --new-tokens 64 --device cpu"
    assert wanted.format(settings) in gather(run)["provenance"]["commands"]
    (run / "measure.json").unlink()
    report = gather(run)
    assert wanted.format("") in report["provenance"]["commands"]
    assert "measure.json" not in report["missing"]["measured"]
    made_run.write(run / "measure.json", made_run.measured() | {"settings": {"rounds": 3, "window_seconds": 10.0}})
    assert " --rounds 3 --window-seconds 10 --device cpu -o" in gather(run)["provenance"]["commands"][-3]


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", "transformers", "matplotlib", "numpy")
    code = f"import sys, flab.runs.report; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
