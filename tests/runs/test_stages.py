"""``flab run``: each stage is done once, and again when something that it reads has changed."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from flab import check
from flab.errors import CheckpointError, DataError, FlabError, OptionError, SandboxError
from flab.models.checkpoint import fingerprint
from flab.pruning.planner import Planner
from flab.runs import folder as run_folder
from flab.runs import stages
from flab.runs.folder import Run, known_stages
from flab.runs.recipe_file import read_recipe
from flab.runs.stages import run_prune, run_recipe
from support import pico

EVALUATIONS = ["evaluate original", "evaluate pruned", "evaluate recovered"]
ALL = ["prune", "data", "recover", *EVALUATIONS]
BASE = {
    "model": "model",
    "prune": {"remove": 0.3, "calibration": "calibration.jsonl", "corpus": "corpus"},
    "data": {"instructions": "instructions.jsonl", "against": "against.jsonl", "text": "text.py"},
    "recover": {"steps": 2},
    "evaluate": {"tasks": ["tasks.jsonl", "output:more.jsonl"]},
}
PREDICTION = {"code": "def f(x):\n    return x", "input": "1", "output": "1"}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_model(folder: Path, *content: object) -> Path:
    """A folder with the fingerprint of a model; equal content, equal fingerprint."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "dtype": "float32"}))
    (folder / "tokenizer.json").write_text("{}")
    digest = hashlib.sha256(repr(content).encode()).digest()
    save_file({"w": torch.tensor(list(digest))}, folder / "model.safetensors")
    return folder


class StandIns:
    """The heavy functions of the stages: they write what the real ones would, from what they read, and are counted."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.compared: list[str] = []
        self.reported: list[str] = []
        self.given: dict[str, Any] = {}  # the options and settings of the last call
        self.raises: dict[str, BaseException] = {}  # by stage: before anything is written
        self.stops: dict[str, BaseException] = {}  # by stage: after the output is there
        self.ok = True
        self.salt: object = None  # decides what is written, besides what is read

    def _begin(self, stage: str, **given: Any) -> None:
        self.calls.append(stage)
        self.given[stage] = given
        if stage in self.raises:
            raise self.raises[stage]

    def _end(self, stage: str, report: dict[str, Any]) -> dict[str, Any]:
        if stage in self.stops:
            raise self.stops[stage]
        return report

    def prune(self, model, out, recipe, options):
        self._begin("prune", options=options)
        write_model(out, "pruned", self.salt, fingerprint(model), recipe.remove)
        (out / "plan.json").write_text(json.dumps({"parameters_before": 100, "parameters_after": 60}))
        names = "removed_fraction body_removed_fraction kl_nats_per_token vocabulary layers width generality warnings"
        return self._end("prune", dict.fromkeys(names.split(), 0) | {"check": {"ok": self.ok, "loads_in": {}}})

    def make_data(self, model, instructions, out, making, options, against, text, limit):
        self._begin("data", options=options, limit=limit)
        asked = "".join(Path(path).read_text() for path in instructions)
        write_rows(out, {"strategy": making.strategy, "asked": asked, "salt": repr(self.salt)})
        return self._end("data", {"rows": 1, "kinds": {}, "sources": {}, "steps": [], "making": {}})

    def recover(self, student, teacher, data, out, training, options):
        self._begin("recover", options=options)
        write_model(out, "recovered", self.salt, fingerprint(student), data.read_text(), training)
        names = "method learning_rate steps tokens held_out peak_memory stopped_early chosen_step devices device"
        return self._end("recover", dict.fromkeys(names.split(), 0) | {"check": {"ok": self.ok, "loads_in": {}}})

    def evaluate(self, model, tasks, out, settings, options, limit, perturbations, gold):
        stage = f"evaluate {out.name}"
        self._begin(stage, options=options, settings=settings, limit=limit, gold=gold)
        out.mkdir(parents=True, exist_ok=True)
        summary = {"pass@1": 0.5, "passed": 1, "total": 2, "interval_95": [0.1, 0.9], "failures": {}}
        row = {"num_tokens": 30, "passed": True}
        kinds = {"kind": "code", "perturbation": None, "summary": summary, "rows": [row, {**row, "passed": False}]}
        report = {"tasks": [{"name": Path(task).stem, **kinds} for task in tasks]}
        report |= {"fingerprint": "f", "settings": {}, "identity": {}, "robustness": []}
        (out / "results.json").write_text(json.dumps(report))
        return self._end(stage, report)

    def measure(self, model, against, settings, options, results, against_results):
        self._begin("measure", settings=settings, runs=(results.name, against_results.name))
        speed = {"value": 10.0, "unit": "tokens/s", "method": "measured: here"}
        energy = {"value": None, "unit": "J", "reason": "no power sensor"}
        figures = {"throughput": speed, "energy_per_1000_tokens": energy}
        models = [{"figures": figures}, {"figures": figures | {"throughput": speed | {"value": 20.0}}}]
        return self._end("measure", {"models": models, "gains": {}})

    def make_report(self, run):
        self.reported.append(run.name)
        return {"files": []}

    def compare_runs(self, a, b):
        self.compared.append(f"{a.name} {b.name}")
        report = json.loads((b / "results.json").read_text())
        figures = {"retention": {"ratio": 1.0}, "only_a": 0, "only_b": 0, "mcnemar_p": 1.0}
        return {"tasks": [{"name": task["name"], **figures} for task in report["tasks"]]}


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    made = StandIns()
    monkeypatch.setattr(stages, "generality_of", lambda model, options, size_bytes: 1.5)
    for name in ("prune", "make_data", "recover", "evaluate", "measure", "make_report"):
        monkeypatch.setattr(stages, name, getattr(made, name))
    monkeypatch.setattr(stages, "compare_runs", made.compare_runs)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with all that the recipe names."""
    write_model(tmp_path / "model", "original")
    (tmp_path / "corpus").mkdir()
    for name in ("calibration.jsonl", "instructions.jsonl", "corpus/a.jsonl"):
        write_rows(tmp_path / name, {"prompt": "a", "completion": "b"})
    for name in ("against.jsonl", "tasks.jsonl", "more.jsonl"):
        write_rows(tmp_path / name, PREDICTION)
    problem = {"prompt": "def f(x):\n", "entry_point": "f", "test": "def check(f):\n    assert f(1) == 1\n"}
    write_rows(tmp_path / "code.jsonl", problem)
    (tmp_path / "text.py").write_text("x = 1\n")
    return tmp_path


@pytest.fixture
def go(place: Path, stand_ins: StandIns):
    """Run the recipe with changed sections (None: without it); returns the stages that were done now."""

    def run(**changes: dict[str, Any] | None) -> list[str]:
        recipe = copy.deepcopy(BASE)
        for name, change in changes.items():
            recipe[name] = {**recipe.get(name, {}), **change} if change is not None else None
        left = {name: value for name, value in recipe.items() if value is not None}
        (place / "r.yml").write_text(yaml.safe_dump(left))
        stand_ins.calls, stand_ins.compared = [], []
        run_recipe(read_recipe(place / "r.yml"), place / "run")
        return stand_ins.calls

    return run


def read(path: Path) -> dict[str, Any]:
    """JSON as the standard has it: no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(path.read_text(), parse_constant=refuse)


def recorded(place: Path) -> list[str]:
    return sorted(read(place / "run" / "run.json")["stages"])


# --- what is done, and what is left as it is ---


def test_a_first_run_does_every_stage_in_order(go, stand_ins):
    assert go() == ALL
    assert stand_ins.compared == ["original pruned", "original recovered"]


def test_a_second_run_does_nothing_again(go, place, capsys):
    go()
    before = read(place / "run" / "run.json")
    assert go() == []
    assert read(place / "run" / "run.json") == before
    lines = [line for line in capsys.readouterr().err.splitlines() if "unchanged since" in line]
    assert [line.split(": ")[:2] for line in lines] == [
        [f"stage {number} of {len(ALL)}", name] for number, name in enumerate(ALL, 1)
    ]


def test_the_record_and_the_summary_are_json_with_what_was_measured(go, place):
    go()
    run, summary = (read(place / "run" / name) for name in ("run.json", "summary.json"))
    assert list(run["stages"]) == ALL
    assert summary["stages"] == run["stages"]
    for name, output in zip(ALL, ["pruned", "data.jsonl", "recovered"], strict=False):
        assert run["stages"][name]["output"] == output
        assert run["stages"][name]["peak_resident_bytes"] > 0
        assert run["stages"][name]["peak_device_bytes"] is None
        energy = run["stages"][name]["energy"]
        assert (energy["value"] is None) == bool(energy["reason"])
    assert run["stages"]["evaluate pruned"]["passed"] == {"tasks": 1, "more": 1}
    assert set(summary["seconds"]) == {"now", *ALL}
    assert summary["model"] == str(place / "model")
    rows = {row["name"]: row for row in summary["models"]}
    assert list(rows) == ["original", "pruned", "recovered"]
    assert [row["parameters"] for row in rows.values()] == [100, 60, 60]
    assert rows["original"]["bytes"] == (place / "model" / "model.safetensors").stat().st_size
    assert rows["recovered"]["tasks"]["more"]["only_a"] == 0
    assert "only_a" not in rows["original"]["tasks"]["tasks"]
    assert read(place / "run" / "compare-recovered.json")["tasks"]


def test_only_the_originals_references_are_run(go, stand_ins):
    go()
    assert [stand_ins.given[name]["gold"] for name in EVALUATIONS] == [True, False, False]


def test_the_settings_arrive_where_they_belong(go, stand_ins):
    go(
        data={"limit": 7},
        evaluate={"limit": 3, "samples": 2, "temperature": 0.5, "max_new_tokens": 9},
        options={"dtype": "float32", "batch_tokens": 99},
    )
    given = stand_ins.given
    assert given["data"]["limit"] == 7
    for name in EVALUATIONS:
        settings = given[name]["settings"]
        assert (settings.samples, settings.temperature, settings.max_new_tokens) == (2, 0.5, 9)
        assert given[name]["limit"] == 3
        assert not given[name]["options"].overwrite
    for name in ("prune", "data", "recover"):
        assert (given[name]["options"].dtype, given[name]["options"].batch_tokens) == ("float32", 99)
        assert given[name]["options"].overwrite  # an older output of this run is replaced


CHANGES = {
    "remove": ({"prune": {"remove": 0.4}}, ["prune", "recover", "evaluate pruned", "evaluate recovered"]),
    "a pruning that comes to the same": ({"prune": {"finalists": 5}}, ["prune"]),
    "strategy": ({"data": {"strategy": "reference"}}, ["data", "recover", "evaluate recovered"]),
    "data that comes to the same": ({"data": {"limit": 5}}, ["data"]),
    "learning rate": ({"recover": {"learning_rate": 1e-3}}, ["recover", "evaluate recovered"]),
    "budget": ({"recover": {"steps": 3}}, ["recover", "evaluate recovered"]),
    "limit of problems": ({"evaluate": {"limit": 1}}, EVALUATIONS),
    "decoding": ({"evaluate": {"max_new_tokens": 8}}, EVALUATIONS),
    "tasks": ({"evaluate": {"tasks": ["tasks.jsonl"]}}, EVALUATIONS),
    "precision": ({"options": {"dtype": "bfloat16"}}, ALL),
    "device": ({"options": {"device": "balanced"}}, ALL),
    "batches": ({"options": {"batch_tokens": 128}}, []),
    "sandbox": ({"options": {"unsandboxed": True}}, []),
    "a default, written out": ({"recover": {"alpha": 1}, "prune": {"seed": 0}}, []),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_changed_key_does_again_what_depends_on_it_and_no_more(go, name):
    changes, again = CHANGES[name]
    go()
    assert go(**changes) == again
    assert go(**changes) == []


def test_all_models_are_computed_in_the_originals_precision(go, stand_ins):
    """By itself a small model is computed in float32, a large one as stored: a pair across that size would differ."""
    go()
    assert {stand_ins.given[name]["options"].dtype for name in EVALUATIONS} == {"float32"}
    go(options={"device": "balanced"})
    assert {stand_ins.given[name]["options"].dtype for name in EVALUATIONS} == {"float32"}  # as it is stored


def test_the_number_of_the_device_changes_nothing(go, monkeypatch):
    monkeypatch.setattr("flab.models.options.cuda_devices", lambda: 2)  # the stages here use none
    assert go(options={"device": "cuda:0"}) == ALL
    assert go(options={"device": "cuda:1"}) == []


FILES = {
    "calibration.jsonl": ["prune"],  # what the stand-in writes does not depend on it
    "corpus/a.jsonl": ["prune"],
    "corpus/new.jsonl": ["prune"],
    "instructions.jsonl": ["data", "recover", "evaluate recovered"],
    "against.jsonl": ["data"],
    "text.py": ["data"],
    "tasks.jsonl": EVALUATIONS,
    "more.jsonl": EVALUATIONS,  # named with its kind before it
    "other.jsonl": [],
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_file_does_again_what_reads_it_and_no_more(go, place, name):
    go()
    write_rows(place / name, PREDICTION | {"output": "2", "prompt": "other", "completion": "text"})
    assert go() == FILES[name]
    assert go() == []


def test_files_that_are_written_anew_with_the_same_content_change_nothing(go, place):
    go()
    for name in FILES:
        if (place / name).exists():
            (place / name).write_bytes((place / name).read_bytes())
    write_model(place / "model", "original")
    assert go() == []


def test_another_model_does_everything_again(go, place):
    go()
    write_model(place / "model", "another")
    assert go() == ALL


OUTPUTS = {
    "pruned": ["prune"],
    "data.jsonl": ["data"],
    "recovered": ["recover"],
    "eval/original": ["evaluate original"],
    "eval/pruned/results.json": ["evaluate pruned"],
    "eval": EVALUATIONS,
    "summary.json": [],
    "compare-pruned.json": [],
}


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_an_output_that_is_gone_is_made_again(go, place, name):
    go()
    path = place / "run" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert go() == OUTPUTS[name]
    assert path.exists()
    assert go() == []


FOLLOWING = {
    "pruned": ["prune", "recover", "evaluate pruned", "evaluate recovered"],
    "data.jsonl": ["data", "recover", "evaluate recovered"],
    "recovered": ["recover", "evaluate recovered"],
}


@pytest.mark.parametrize("name", sorted(FOLLOWING))
def test_what_follows_is_done_again_where_an_output_comes_out_otherwise(go, place, stand_ins, name):
    go()
    path = place / "run" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    stand_ins.salt = "another machine"
    assert go() == FOLLOWING[name]


def test_an_output_that_was_changed_by_hand_is_measured_again(go, place):
    go()
    write_model(place / "run" / "recovered", "by hand")
    assert go() == ["evaluate recovered"]
    write_model(place / "run" / "pruned", "by hand")
    assert go() == ["recover", "evaluate pruned", "evaluate recovered"]


def test_another_version_of_flab_does_everything_again(go, monkeypatch):
    go()
    monkeypatch.setattr(run_folder, "__version__", "0.0.0")
    assert go() == ALL


def test_a_run_that_was_moved_and_a_recipe_of_another_name_change_nothing(go, place, stand_ins):
    go()
    (place / "run").rename(place / "moved")
    recipe = (place / "r.yml").rename(place / "renamed.yml")
    stand_ins.calls = []
    run_recipe(read_recipe(recipe), place / "moved")
    assert stand_ins.calls == []


def test_the_folder_that_it_is_started_in_changes_nothing(go, place, stand_ins, monkeypatch):
    go()
    stand_ins.calls = []
    for folder, recipe in ((place, "r.yml"), (place / "model", "../r.yml")):
        monkeypatch.chdir(folder)
        run_recipe(read_recipe(Path(recipe)), place / "run")
        assert stand_ins.calls == []


def test_without_data_and_recover_nothing_is_trained(go, place, stand_ins):
    assert go(data=None, recover=None) == ["prune", "evaluate original", "evaluate pruned"]
    assert stand_ins.compared == ["original pruned"]
    assert [row["name"] for row in read(place / "run" / "summary.json")["models"]] == ["original", "pruned"]
    assert not (place / "run" / "data.jsonl").exists()
    assert go() == ["data", "recover", "evaluate recovered"]


def test_a_recipe_that_trains_no_more_is_summed_up_without_what_was_trained_before(go, place):
    go()
    assert go(data=None, recover=None) == []
    summary = read(place / "run" / "summary.json")
    assert list(summary["stages"]) == ["prune", "evaluate original", "evaluate pruned"]
    assert "recover" not in summary["seconds"]
    assert recorded(place) == sorted(ALL)  # and is not lost
    assert go() == []


# --- what stops ---


@pytest.mark.parametrize(
    "error", [DataError("no"), KeyboardInterrupt(), OSError("disk")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("stage", ALL)
def test_a_stage_that_fails_keeps_what_was_done_and_is_where_the_next_run_goes_on(go, place, stand_ins, stage, error):
    at = ALL.index(stage)
    stand_ins.raises[stage] = error
    with pytest.raises(type(error)):
        go()
    assert stand_ins.calls == ALL[: at + 1]
    assert recorded(place) == sorted(ALL[:at])
    assert not (place / "run" / "summary.json").exists()
    stand_ins.raises.clear()
    assert go() == ALL[at:]
    assert recorded(place) == sorted(ALL)


def test_a_run_that_is_stopped_after_the_training_trains_no_more(go, place, stand_ins, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "generality_of", stop)
        with pytest.raises(KeyboardInterrupt):
            go()
    at = ALL.index("recover") + 1
    assert recorded(place) == sorted(ALL[:at])
    assert go() == ALL[at:]
    assert read(place / "run" / "run.json")["stages"]["recover"]["generality"]["bits_per_byte_after"] == 1.5


@pytest.mark.parametrize("stage", ["prune", "recover"])
def test_a_model_that_fails_its_check_is_no_finished_stage(go, place, stand_ins, stage):
    if stage == "recover":
        stand_ins.raises["recover"] = DataError("not yet")
        with pytest.raises(DataError):
            go()
        stand_ins.raises.clear()
    stand_ins.ok = False
    with pytest.raises(CheckpointError, match="failed its check: see flab check"):
        go()
    assert stage not in recorded(place)
    stand_ins.ok = True
    assert go() == ALL[ALL.index(stage) :]


STOPPED = {
    "prune": {"prune": {"remove": 0.4}},
    "data": {"data": {"strategy": "reference"}},
    "recover": {"recover": {"learning_rate": 1e-3}},
    "evaluate pruned": {"evaluate": {"limit": 1}},
}


@pytest.mark.parametrize("stage", sorted(STOPPED))
def test_an_output_of_a_stopped_change_does_not_pass_for_the_one_before(go, place, stand_ins, stage):
    """Done; then changed, and stopped when the new output was there; then changed back: the old record is of no use."""
    go()
    stand_ins.stops[stage] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        go(**STOPPED[stage])
    stand_ins.stops.clear()
    assert stage in go()
    assert recorded(place) == sorted(ALL)


# --- what is refused before anything is done ---


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOREIGN = {
    "other files": {"mine.txt": "mine"},
    "a hidden file": {".mine": "mine"},
    "a run of flab eval": {"run.json": '{"fingerprint": "0", "settings": {}}', "generations.jsonl": ""},
    "a training": {"run.json": '{"identity": {}}'},
    "stages that are none": {"run.json": '{"stages": []}'},
    "no object": {"run.json": "[1]"},
    "no JSON": {"run.json": "{"},
}


@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_a_folder_that_holds_something_else_is_not_touched(go, place, stand_ins, kind):
    (place / "run").mkdir()
    for name, content in FOREIGN[kind].items():
        (place / "run" / name).write_text(content)
    before = listing(place / "run")
    with pytest.raises(FlabError) as caught:
        go()
    assert str(place / "run") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert stand_ins.calls == []
    assert listing(place / "run") == before


def test_a_file_for_the_output_is_refused(go, place):
    (place / "run").write_text("mine")
    with pytest.raises(OptionError, match="is a file: give a folder for a run"):
        go()
    assert (place / "run").read_text() == "mine"


def test_an_empty_folder_and_one_whose_parent_is_new_will_do(go, place, stand_ins):
    (place / "run").mkdir()
    assert go() == ALL
    stand_ins.calls = []
    run_recipe(read_recipe(place / "r.yml"), place / "a" / "b")
    assert stand_ins.calls == ALL


MISSING = {
    "model": CheckpointError,
    "instructions.jsonl": DataError,
    "against.jsonl": DataError,
    "text.py": DataError,
    "tasks.jsonl": DataError,
    "more.jsonl": DataError,
}


@pytest.mark.parametrize("name", sorted(MISSING))
def test_a_file_that_only_a_later_stage_reads_is_missed_before_the_first(go, place, stand_ins, name):
    path = place / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(MISSING[name], match=name):
        go()
    assert stand_ins.calls == []
    assert not (place / "run").exists()


BAD = {
    "no perturbation": ({"evaluate": {"tasks": "code.jsonl", "perturb": ["vibes"]}}, "vibes"),
    "no code to perturb": ({"evaluate": {"perturb": ["all"]}}, "`perturbations`: none of the tasks is of kind code"),
    "another kind": ({"evaluate": {"tasks": "cot:tasks.jsonl"}}, "tasks.jsonl:1"),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_tasks_that_cannot_be_asked_are_refused_before_the_work(go, place, stand_ins, kind):
    changes, words = BAD[kind]
    with pytest.raises(FlabError, match=words):
        go(**changes)
    assert stand_ins.calls == []
    assert not (place / "run").exists()


def test_a_machine_without_isolation_says_so_before_the_work(go, place, stand_ins, monkeypatch):
    def refuse(allowed: bool) -> None:
        if not allowed:
            raise SandboxError("no isolation here: pass --unsandboxed")

    monkeypatch.setattr("flab.evaluation.evaluate.Sandbox.detect", refuse)
    with pytest.raises(SandboxError):
        go(evaluate={"tasks": "code.jsonl"})
    assert stand_ins.calls == []
    assert not (place / "run").exists()
    assert go(evaluate={"tasks": "code.jsonl"}, options={"unsandboxed": True}) == ALL


# --- costs and the report ---


def test_costs_are_measured_last_on_the_last_model_and_every_run_is_reported(go, place, stand_ins):
    assert go(measure={"rounds": 1}) == [*ALL, "measure"]
    assert stand_ins.given["measure"]["settings"].rounds == 1
    assert stand_ins.given["measure"]["runs"] == ("recovered", "original")
    assert go(measure={"rounds": 1}) == []
    assert go(measure={"rounds": 2}) == ["measure"]
    assert go(recover={"steps": 3}, measure={"rounds": 2}) == ["recover", "evaluate recovered", "measure"]
    assert stand_ins.reported == ["run"] * 4
    assert go(data=None, recover=None, measure={"rounds": 2})[-1] == "measure"
    assert stand_ins.given["measure"]["runs"] == ("pruned", "original")


def test_payback_is_the_cost_of_this_run_over_what_a_token_saves(go, place):
    go(measure={})
    stages_, payback = (read(place / "run" / name) for name in ("run.json", "measure.json"))
    cost = sum(stages_["stages"][name]["seconds"] for name in ("prune", "data", "recover"))
    found = payback["payback"]
    assert found["seconds"]["cost"] == pytest.approx(cost)
    assert found["seconds"]["tokens"]["value"] == pytest.approx(cost / (1 / 10 - 1 / 20))
    assert found["solved_problems"]["value"] == pytest.approx(found["seconds"]["tokens"]["value"] / 60)
    assert found["energy"]["tokens"]["reason"]


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ({"grid": "Mordor"}, "`grid`"),
        ({"text": "nothere.py"}, "nothere"),
        ({"prompt_tokens": 40_000}, "the model reads at most 32768"),
    ],
)
def test_what_only_the_measuring_reads_is_refused_before_the_work(go, place, stand_ins, measure, words):
    with pytest.raises(FlabError, match=words):
        go(measure=measure)
    assert stand_ins.calls == []
    assert not (place / "run").exists()


def test_two_tasks_of_one_name_are_refused_before_the_work(go, place, stand_ins):
    (place / "other").mkdir()
    shutil.copyfile(place / "tasks.jsonl", place / "other" / "tasks.jsonl")
    with pytest.raises(OptionError, match="2 tasks are called tasks"):
        go(evaluate={"tasks": ["tasks.jsonl", "other/tasks.jsonl"]})
    assert stand_ins.calls == []


def test_the_cost_of_a_stopped_try_is_part_of_the_stage(go, place, stand_ins, monkeypatch):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(run_folder.time, "perf_counter", lambda: float(next(clock)))
    stand_ins.raises["recover"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        go()
    stopped = read(place / "run" / "run.json")["stopped"]["recover"]
    assert stopped["seconds"] == 100
    assert "recover" not in recorded(place)
    stand_ins.raises.clear()
    go()
    record = read(place / "run" / "run.json")
    assert record["stopped"] == {}
    assert record["stages"]["recover"]["seconds"] == 200
    assert record["stages"]["data"]["seconds"] == 100


def test_the_cost_of_a_stopped_try_of_something_else_is_not(go, place, stand_ins, monkeypatch):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(run_folder.time, "perf_counter", lambda: float(next(clock)))
    stand_ins.raises["recover"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        go()
    stand_ins.raises.clear()
    go(recover={"steps": 9})
    assert read(place / "run" / "run.json")["stages"]["recover"]["seconds"] == 100


def test_the_record_names_the_stages_of_this_recipe_and_the_models_that_they_made(go, place):
    go()
    assert read(place / "run" / "run.json")["met"] == ALL
    go(data=None, recover=None)
    record = read(place / "run" / "run.json")
    assert record["met"] == ["prune", "evaluate original", "evaluate pruned"]
    assert "recover" in record["stages"]
    assert record["stages"]["prune"]["sha256"] == fingerprint(place / "run" / "pruned")


def test_payback_counts_the_stages_of_this_recipe_alone_and_comes_back_when_it_is_gone(go, place):
    go(measure={})
    go(data=None, recover=None, measure={})
    measured, record = (read(place / "run" / name) for name in ("measure.json", "run.json"))
    assert measured["payback"]["seconds"]["cost"] == record["stages"]["prune"]["seconds"]
    (place / "run" / "measure.json").write_text(json.dumps({**measured, "payback": None}))
    go(data=None, recover=None, measure={})
    assert read(place / "run" / "measure.json")["payback"] == measured["payback"]


def test_energy_is_estimated_only_where_the_recipe_says_so(go, place):
    go()
    assert read(place / "run" / "run.json")["stages"]["prune"]["energy"]["value"] is None
    go(prune={"remove": 0.5}, measure={"estimate": True})
    energy = read(place / "run" / "run.json")["stages"]["prune"]["energy"]
    assert energy["method"] is None or energy["method"].startswith(("estimated: codecarbon", "measured:"))
    assert energy["value"] is None or energy["value"] > 0


# --- the real thing ---


@pytest.fixture
def real_recipe(trained_folder: Path, tmp_path: Path) -> Path:
    """A recipe over rows of the pico grammar that have tests: seconds."""
    test = "def check(candidate):\n    assert candidate([]) == []\n"
    names = [row["prompt"].partition("(")[0].removeprefix("def ") for row in pico.calibration_rows()]
    rows = [
        {**row, "test": test, "entry_point": name} for row, name in zip(pico.calibration_rows(), names, strict=True)
    ]
    write_rows(tmp_path / "rows.jsonl", *rows)
    write_rows(
        tmp_path / "tasks.jsonl",
        *({"task_id": f"t/{n}", "canonical_solution": row.pop("completion"), **row} for n, row in enumerate(rows[:4])),
    )
    recipe = {
        "model": str(trained_folder),
        "prune": {
            **{"remove": 0.4, "calibration": "rows.jsonl", "refit": "none", "output_projection": False},
            **{"finalists": 1, **pico.QUICK},
        },
        "data": {"instructions": "rows.jsonl", "limit": 30, "tries": 1, "max_new_tokens": 48},
        "recover": {
            **{"steps": 2, "length": 64, "batch": 4, "micro_batch": 4, "evaluations": 1},
            **{"held_out": 0.2, "learning_rate": 5e-3},
        },
        "evaluate": {"tasks": "tasks.jsonl", "limit": 3, "max_new_tokens": 48},
        "measure": {"rounds": 1, "prompt_tokens": 8, "new_tokens": 4, "max_batch": 2},
        "options": {"unsandboxed": True},
    }
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "r.yml"


def test_a_run_that_is_killed_between_pruning_and_its_record_plans_no_more(
    real_recipe, trained_folder, verify_here, tmp_path, monkeypatch
):
    recipe, folder = read_recipe(real_recipe), tmp_path / "run"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "_checked", killed)  # the first thing after the pruning
        with pytest.raises(KeyboardInterrupt):
            run_prune(Run(recipe, folder), trained_folder)
    made = (folder / "pruned").stat().st_ino
    monkeypatch.setattr(Planner, "plan", killed)
    run = Run(recipe, folder, *known_stages(folder))
    run_prune(run, trained_folder)
    assert (folder / "pruned").stat().st_ino == made
    assert run.stages["prune"]["sha256"] == fingerprint(folder / "pruned")
    assert read(folder / "run.json")["stages"]["prune"]["removed_fraction"] >= 0.4


def test_a_real_run_ends_with_three_models_and_a_second_one_repeats_nothing(
    flab, real_recipe, trained_folder, verify_here, check_here, tmp_path, monkeypatch
):
    before = fingerprint(trained_folder)
    summary = run_recipe(read_recipe(real_recipe), tmp_path / "run")
    assert summary == read(tmp_path / "run" / "summary.json")
    original, pruned, recovered = summary["models"]
    assert [row["name"] for row in summary["models"]] == ["original", "pruned", "recovered"]
    assert original["parameters"] > pruned["parameters"] == recovered["parameters"]
    assert original["bytes"] > pruned["bytes"] == recovered["bytes"]
    assert all(row["tasks"]["tasks"]["total"] == 3 for row in summary["models"])
    assert all(0 <= row["tasks"]["tasks"]["mcnemar_p"] <= 1 for row in (pruned, recovered))
    held_out = summary["stages"]["recover"]["held_out"]
    assert held_out["after"]["kl"] < held_out["before"]["kl"]
    assert summary["stages"]["data"]["rows"] > 0
    verdict = check(tmp_path / "run" / "recovered", trained_folder)
    assert verdict["ok"], verdict
    assert fingerprint(trained_folder) == before
    assert fingerprint(tmp_path / "run" / "pruned") != fingerprint(tmp_path / "run" / "recovered")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    measured, page = (tmp_path / "run" / name for name in ("measure.json", "report.html"))
    assert read(measured)["payback"]["seconds"]["cost"] > 0
    assert "<h1" in page.read_text()
    assert (tmp_path / "run" / "recovered" / "README.md").is_file()
    for name in ("prune", "make_data", "recover", "evaluate", "measure"):
        monkeypatch.setattr(stages, name, refuse)
    code, out, err = flab("run", real_recipe, "-o", tmp_path / "run", "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    again = json.loads(out)
    assert again["stages"] == summary["stages"]
    assert again["models"] == summary["models"]
    code, out, err = flab("run", real_recipe, "-o", tmp_path / "run")
    assert code == 0, err
    for words in ("Summary of the run", "original", "pruned", "recovered"):
        assert words in out
    assert "unchanged since" in err
    assert "unchanged since" not in out
