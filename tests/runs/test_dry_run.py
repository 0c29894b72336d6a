"""``flab info`` and ``--dry-run``: what is said of a model, stage by stage estimates, and nothing begun or written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from flab import assets
from flab.cli.info import show_estimate
from flab.evaluation.prompts import Settings
from flab.models import checkpoint, memory
from flab.models.checkpoint import held_in_memory, load, one_layer_at_a_time
from flab.models.options import Options
from flab.pruning.budget import Pins
from flab.pruning.pipeline import plan
from flab.pruning.planner import Planner
from flab.pruning.recipe import Recipe
from flab.pruning.refit.resume import layers_of_plan
from flab.runs import device_speed
from flab.runs.costs import PROGRAM_BYTES, needs_of, plan_memory, plan_stages, planned, recover_memory
from flab.runs.dry_run import estimate_eval, estimate_plan, estimate_run
from flab.runs.estimate import Size
from flab.runs.facts import model_facts
from flab.runs.info import info, reachable
from flab.runs.recipe_file import read_recipe
from support import pico
from support.command import assert_refused

KINDS = {
    "layer", "step", "gram", "single", "double", "learning", "head", "memory", "read", "write", "hash", "text", "test", "start",
}  # fmt: skip
QUICK = ["--tokens", "4000", "--search-tokens", "1000", "--general", "0"]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch) -> None:
    """Measure the device for moments only: what comes out is not looked at."""
    for name, value in {
        "SECONDS_EACH": 0.001,
        "COPIED_BYTES": 2**16,
        "DISK_BYTES": 2**20,
        "ROWS": 1,
        "ANSWERS": 2,
    }.items():
        monkeypatch.setattr(device_speed, name, value)


@pytest.mark.parametrize("family", pico.FAMILY_SETTINGS)
def test_facts_come_without_the_weights_and_are_those_of_the_loaded_model(pico_folder, family):
    folder = pico_folder(family)
    facts = model_facts(folder)
    model = load(folder).model
    assert facts.shape.total == sum(p.numel() for p in model.parameters())
    assert facts.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert facts.weights_bytes == sum(p.nbytes for p in model.parameters())


def test_info_says_what_each_part_weighs_and_what_a_budget_leaves():
    found = info(assets.model_path())
    assert found["family"] == "qwen2"
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"]) == 4_060_160
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
    for row in found["budgets"]:
        assert row["parameters"] <= (1 - row["remove"]) * found["parameters"]
        assert row["share_vocabulary"] + row["share_layers"] + row["share_width"] == pytest.approx(1)
        assert row["deepest"][0] >= row["shallowest"][0]
    assert found["tokenizer"]["tokens"] == 4096
    assert found["tokenizer"]["chat_template"]
    assert found["memory"]["weights"] == 8_120_320 < found["memory"]["recover"]


def test_with_a_text_the_tokens_are_those_that_planning_keeps(pico_folder, recipe, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "def f(x):", "completion": " return x + 1"}) + "\n" * 4, encoding="utf-8")
    folder = pico_folder("qwen2")
    asked = recipe(remove=0.5, calibration=rows)
    planner = Planner(folder, asked, Options())
    kept, splits = planner._splits(*planner._open(), asked)
    facts = model_facts(folder)
    needs = needs_of(facts, planner.texts, asked)
    assert needs.size(facts.shape, 0.5, Pins()) == len(kept)
    assert reachable(facts.shape, 0.5, needs)["deepest"] == [splits[0].layers, splits[0].width]


def test_the_command_shows_it(flab, pico_folder):
    code, out, err = flab("info", pico_folder())
    assert (code, err) == (0, "")
    assert f"tokenizer: BPE, byte level, {model_facts(pico_folder()).tokenizer.get_vocab_size()} tokens" in out
    code, out, _ = flab("info", pico_folder(), "--json")
    assert (code, json.loads(out)["family"]) == (0, "qwen2")


def test_info_and_the_dry_runs_of_the_same_commands_name_the_same_memory(pico_folder, tmp_path):
    folder = pico_folder("llama")
    memory = info(folder)["memory"]
    planning = estimate_plan(folder, Recipe(), Options(), tmp_path / "plan.json")
    # Info does not read the texts: it assumes that the vocabulary shrinks as the model does.
    assert planning["memory_bytes"] == pytest.approx(memory["plan"], rel=0.02)
    answering = estimate_eval(folder, [assets.problems_path()], Settings(), Options(), limit=1)
    assert answering["memory_bytes"] == memory["eval"]
    assert memory["recover"] == PROGRAM_BYTES + recover_memory(model_facts(folder))


def test_what_is_asked_for_is_held_in_memory_whatever_is_free(pico_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    memory.MEMINFO.write_text("MemAvailable: 20 kB\n")
    said: list[str] = []
    monkeypatch.setattr(checkpoint, "say_once", said.append)
    folder = pico_folder("llama")
    for asked, held in [("auto", "layer"), ("model", "model"), ("layer", "layer")]:
        options = Options(device="cpu", in_memory=asked)
        assert held_in_memory(folder, options).in_memory == held
        assert one_layer_at_a_time(folder, options) == (held == "layer")
        assert info(folder, options)["planning"]["in_memory"] == held
    assert len(said) == 1  # only what was not asked for
    assert "one layer at a time is read from its files" in said[0]


def test_info_of_no_model_is_one_line(flab, tmp_path):
    assert_refused(flab("info", tmp_path), "config.json")


def test_every_kind_of_work_is_measured(pico_folder):
    facts = model_facts(pico_folder())
    speed = device_speed.measure_speed(
        facts.config, facts.shape, "float32", "cpu", pico_folder().parent, facts.tokenizer, 2
    )
    assert set(speed) == KINDS
    assert all(rate > 0 for rate in speed.values())


@pytest.mark.parametrize("family", pico.FAMILY_SETTINGS)
def test_one_layer_of_every_family_runs(pico_folder, family):
    model = device_speed.one_layer(model_facts(pico_folder(family)).config, "float32", torch.device("cpu"))
    assert model(torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 64)


@pytest.mark.parametrize(
    ("command", "stages"),
    [
        ("plan", ["vocabulary", "search", "finalists", "winner"]),
        ("prune", ["vocabulary", "search", "finalists", "winner", "save", "check"]),
    ],
)
def test_a_dry_run_of_planning_names_its_stages_and_writes_nothing(
    flab, command, stages, pico_folder, calibration_file, tmp_path
):
    out = tmp_path / "out"
    code, text, _ = flab(
        command, pico_folder(), "--calibration", calibration_file, *QUICK, "--dry-run", "--json", "-o", out
    )
    report = json.loads(text)
    assert code == 0
    assert [stage["name"] for stage in report["stages"]] == stages
    assert all(stage["seconds"] > 0 and stage["memory_bytes"] > 0 for stage in report["stages"])
    assert report["assumed"]["refit"] == "newton"
    assert list(tmp_path.iterdir()) == []


def told(capsys, assumed: dict, *stages: str) -> str:
    """What the command prints below the table of an estimate."""
    rows = [{"name": name, "seconds": 1.0, "memory_bytes": 1, "disk_bytes": 0, "at_most": False} for name in stages]
    show_estimate({"stages": rows, "seconds": 1.0, "memory_bytes": 1, "disk_bytes": 0, "assumed": assumed}, json_=False)
    return capsys.readouterr().out.partition("in total")[2]


def test_an_estimate_explains_its_stages_and_says_when_no_split_is_built(capsys):
    assumed = {"tokens": 65_536, "split": [17_920, 30, 1312], "refit": "descent", "candidates": 0}
    said = told(capsys, assumed, "vocabulary", "search", "winner")
    assert "winner builds the chosen split on all calibration tokens" in said
    assert "finalists" not in said
    assert (
        "assumed: 65,536 calibration tokens; the winner has 17,920 tokens, 30 layers and an FFN width of 1,312; "
        "refit descent; the search builds no split, because only the winner is left." in said
    )
    assert "the search builds 4 splits" in told(capsys, assumed | {"candidates": 4}, "prune: finalists")
    assert "builds" not in told(capsys, {"rows": 90, "method": "full"}, "training")
    assert "assumed: 90 rows; full training." in told(capsys, {"rows": 90, "method": "full"}, "training")
    assert "assumed: 3 answers." in told(capsys, {"answers": 3}, "answers")


def test_a_dry_run_finds_what_the_run_would_refuse(flab, pico_folder, calibration_file, tmp_path):
    refused = flab(
        "plan", pico_folder(), "--calibration", calibration_file, "--remove", "0.999", "--dry-run", "-o", tmp_path / "p"
    )
    assert_refused(refused, "cannot be reached")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_an_evaluation_counts_answers_and_programs(flab, pico_folder, tmp_path):
    code, text, err = flab(
        "eval", pico_folder(), "--task", assets.problems_path(), "--limit", 3, "--max-new-tokens", 8, "--dry-run",
        "--json", "-o", tmp_path / "run",
    )  # fmt: skip
    report = json.loads(text)
    assert (code, report["assumed"]) == (0, {"answers": 3}), err
    assert [stage["name"] for stage in report["stages"]] == ["answers", "scores"]
    assert report["stages"][0]["at_most"]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_training_counts_its_rows(flab, pruned_folder, trained_folder, data_file, tmp_path):
    code, text, err = flab(
        "recover", pruned_folder, "--teacher", trained_folder, "--data", data_file, "--steps", 4, "--length", 64,
        "--dry-run", "--json", "-o", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(text)
    assert [stage["name"] for stage in report["stages"]] == ["training", "save and check"]
    assert report["assumed"]["rows"] == sum(1 for _ in data_file.open())
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_training_takes_the_plan_of_a_model_that_is_not_cut_yet(
    flab, pruned_folder, trained_folder, pico_folder, data_file, tmp_path
):
    given = ["--teacher", trained_folder, "--data", data_file, "--steps", 4, "--length", 64, "-o", tmp_path / "out"]
    reports = []
    for student in (pruned_folder, pruned_folder / "plan.json"):
        code, text, err = flab("recover", student, *given, "--dry-run", "--json")
        assert code == 0, err
        reports.append(json.loads(text))
    of_folder, of_plan = reports
    assert of_plan["assumed"] == of_folder["assumed"]
    for one, other in zip(of_plan["stages"], of_folder["stages"], strict=True):
        assert [one[name] for name in ("name", "memory_bytes", "disk_bytes")] == [
            other[name] for name in ("name", "memory_bytes", "disk_bytes")
        ]
    # Without --dry-run there is nothing to train yet, and the plan of another model is refused.
    assert_refused(flab("recover", pruned_folder / "plan.json", *given), "no model folder")
    other = ["--teacher", pico_folder("llama", num_hidden_layers=2), *given[2:], "--dry-run"]
    assert_refused(flab("recover", pruned_folder / "plan.json", *other), "was made for a model of")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_recipe_has_every_stage(tmp_path, pico_folder, calibration_file, data_file):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"model: {pico_folder()}\nprune: {{remove: 0.3, calibration: {calibration_file}, general: 0.0, tokens: 4000}}\n"
        f"data: {{instructions: {data_file}, limit: 5}}\nrecover: {{steps: 2, length: 64}}\n"
        f"evaluate: {{tasks: bundled, limit: 2, max_new_tokens: 4}}\nmeasure: {{max_batch: 1}}\n"
    )
    report = estimate_run(read_recipe(recipe), tmp_path / "run")
    parts = {stage["name"].partition(":")[0] for stage in report["stages"]}
    assert parts == {
        "prune",
        "data",
        "recover",
        "evaluate original",
        "evaluate pruned",
        "evaluate recovered",
        "measure",
    }
    assert report["seconds"] == pytest.approx(sum(stage["seconds"] for stage in report["stages"]))
    assert not (tmp_path / "run").exists()


def test_a_smaller_model_needs_less_of_everything():
    from flab.runs.costs import eval_memory

    facts = model_facts(assets.model_path())
    smaller = Size(2048, 7, 256)
    assert eval_memory(facts, Options(), size=smaller) < eval_memory(facts, Options())
    assert recover_memory(facts, smaller) < recover_memory(facts)


@pytest.mark.parametrize(("free_kilobytes", "streamed"), [(20, True), (99_000_000, False)])
def test_info_says_whether_planning_would_hold_one_layer_at_a_time(
    flab, pico_folder, tmp_path, monkeypatch, free_kilobytes, streamed
):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    memory.MEMINFO.write_text(f"MemAvailable: {free_kilobytes} kB\n")
    folder = pico_folder("llama")
    found = info(folder)
    assert found["planning"] == {
        "in_memory": "layer" if streamed else "model",
        "whole_model_bytes": int(1.3 * model_facts(folder).weights_bytes),
        "free_bytes": 1024 * free_kilobytes,
    }
    peaks = [plan_memory(model_facts(folder), Options(device="cpu", in_memory=one)) for one in ("model", "layer")]
    shape = model_facts(folder).shape
    assert peaks[0] - peaks[1] == (shape.layers - 2) * (shape.per_layer + shape.ffn(shape.width)) * 4
    assert found["memory"]["plan"] == PROGRAM_BYTES + peaks[streamed]
    code, out, _ = flab("info", folder)
    assert code == 0
    told = " ".join(out.split())
    assert ("--in-memory model holds the whole model" in told) == streamed
    assert ("Planning would hold the whole model" in told) != streamed


def test_a_streamed_plan_reads_more_needs_less_and_runs_no_tests(pico_folder, calibration_file):
    facts = model_facts(pico_folder("llama"))
    plan = replace(planned(facts, Recipe(remove=0.3, calibration=calibration_file)), problems=5)
    speed = dict.fromkeys(KINDS, 1.0)
    whole, streamed = (
        plan_stages(facts, plan, speed, Options(device="cpu", in_memory=one)) for one in ("model", "layer")
    )
    assert [one.memory_bytes > other.memory_bytes for one, other in zip(whole, streamed, strict=True)] == [True] * 4
    assert streamed[1].seconds - whole[1].seconds == pytest.approx(4 * facts.weights_bytes)
    assert [(one.name, one.at_most) for one in (whole[2], streamed[2])] == [("finalists", True), ("finalists", False)]


@pytest.mark.parametrize("refit", ["none", "residual", "newton", "reconstruction"])
def test_the_disk_of_a_plan_is_that_of_its_layers(refit, pico_folder, recipe, tmp_path):
    model, asked, file = pico_folder("llama"), recipe(remove=0.3, layers=4, refit=refit), tmp_path / "plan.json"
    estimate = estimate_plan(model, asked, Options(), file)
    plan(model, asked, Options(), file)
    written = sum(path.stat().st_size for path in layers_of_plan(file).glob("*.safetensors"))
    # The files also have headers, and the attention before the first cut needs no refit.
    assert 0.9 * estimate["disk_bytes"] <= written <= 1.5 * estimate["disk_bytes"]
