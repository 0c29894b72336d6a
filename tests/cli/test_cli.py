"""The command line: one line and exit code 2 for bad input, nothing left behind, one JSON object on stdout."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoConfig

from flab import __version__, assets
from flab.progress import say_once
from support import pico
from support.command import assert_refused

QUICK = ["--tokens", "4000", "--search-tokens", "1000", "--general", "0", "--finalists", "1"]
FIELDS = {
    "parameters_before",
    "parameters_after",
    "removed_fraction",
    "body_removed_fraction",
    "vocabulary",
    "layers",
    "width",
    "kl_nats_per_token",
    "kl_vocabulary",
    "candidates",
    "check",
    "seconds",
}


@pytest.fixture
def place(tmp_path) -> Path:
    """An empty folder that stays empty when a command fails."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def copy_of(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


# --- bad models ---


def truncated(source: Path, folder: Path) -> Path:
    weights = copy_of(source, folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def pickled(source: Path, folder: Path) -> Path:
    (copy_of(source, folder) / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def without(name: str):
    def make(source: Path, folder: Path) -> Path:
        (copy_of(source, folder) / name).unlink()
        return folder

    return make


def foreign(source: Path, folder: Path) -> Path:
    small = json.loads((copy_of(source, folder) / "config.json").read_text())
    sizes = {name: small[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    AutoConfig.for_model("olmoe", num_experts=4, **sizes).save_pretrained(folder)
    return folder


def with_own_code(source: Path, folder: Path) -> Path:
    config = json.loads((copy_of(source, folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.Evil"}}))
    return folder


def broken_json(source: Path, folder: Path) -> Path:
    (copy_of(source, folder) / "config.json").write_text("{")
    return folder


def missing_shard(source: Path, folder: Path) -> Path:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copy_of(source, folder) / "model.safetensors").unlink()  # beside it the index would not be read
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def bad_tokenizer(source: Path, folder: Path) -> Path:
    (copy_of(source, folder) / "tokenizer.json").write_text("{}")
    return folder


BAD_MODELS = {
    "missing": (lambda source, folder: folder, "no model folder at"),
    "truncated": (truncated, "model.safetensors is truncated or damaged"),
    "pickled": (pickled, "only pickled weights (pytorch_model.bin)"),
    "no weights": (without("model.safetensors"), "no *.safetensors weights"),
    "no config": (without("config.json"), "config.json is missing"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer.json"),
    "bad tokenizer": (bad_tokenizer, "tokenizer.json is damaged"),
    "another family": (foreign, "model_type 'olmoe' cannot be cut: flab lacks a row and a contract test"),
    "own code": (with_own_code, "--trust-remote-code"),
    "broken config": (broken_json, "cannot be read as JSON"),
    "missing shard": (missing_shard, "model-00001-of-00002.safetensors"),
}


@pytest.mark.parametrize("kind", sorted(BAD_MODELS))
def test_bad_models(kind, flab, pico_folder, calibration_file, tmp_path, place):
    make, words = BAD_MODELS[kind]
    model = make(pico_folder("qwen2"), tmp_path / "model")
    result = flab("prune", model, "--calibration", calibration_file, "-o", place / "out", *QUICK)
    assert_refused(result, words)
    assert not list(place.iterdir())


# --- bad data and options ---

BAD_ROWS = {
    "empty": ("", ["rows.jsonl is empty"]),
    "no JSON": ('{"text": "a"}\n{"text": "b"}\n{oops\n', ["rows.jsonl:3: not JSON"]),
    "no answer": ('{"prompt": "a"}\n', ["rows.jsonl:1", "canonical_solution"]),
    "number": ('{"text": "a"}\n{"text": 5}\n', ["rows.jsonl:2: field 'text' is 5"]),
}


@pytest.mark.parametrize("kind", sorted(BAD_ROWS))
def test_bad_calibration(kind, flab, pico_folder, tmp_path, place):
    text, words = BAD_ROWS[kind]
    (tmp_path / "rows.jsonl").write_text(text)
    result = flab("prune", pico_folder(), "--calibration", tmp_path / "rows.jsonl", "-o", place / "out", *QUICK)
    assert_refused(result, *words)
    assert not list(place.iterdir())


def test_calibration_that_is_not_text(flab, pico_folder, tmp_path, place):
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "\xff"}\n')
    result = flab("plan", pico_folder(), "--calibration", tmp_path / "rows.jsonl", "-o", place / "plan.json", *QUICK)
    assert_refused(result, "is not UTF-8 text (byte 10)")
    assert not list(place.iterdir())


def test_missing_calibration(flab, pico_folder, tmp_path, place):
    result = flab("prune", pico_folder(), "--calibration", tmp_path / "none.jsonl", "-o", place / "out", *QUICK)
    assert_refused(result, "none.jsonl does not exist")
    assert not list(place.iterdir())


BAD_OPTIONS = {
    "negative": (["--remove", "-0.1"], ["--remove", "got -0.1", "0 <= x < 1"]),
    "one": (["--remove", "1"], ["--remove", "got 1,"]),
    "above": (["--remove", "1.5"], ["--remove", "got 1.5"]),
    "no number": (["--remove", "abc"], ["--remove", "number"]),
    "not a number": (["--remove", "nan"], ["--remove", "nan"]),
    "unreachable": (["--remove", "0.95"], ["cannot be reached: the floor is 384 tokens", "at most 0."]),
    "vocabulary floor": (["--vocabulary", "100"], ["below the floor of"]),
    "pinned layers": (["--layers", "9"], ["--layers is the size to keep: got 9, allowed 1 to 5"]),
    "pinned width": (["--width", "0"], ["--width", "allowed 1 to 64"]),
    "unknown": (["--frobnicate"], ["--frobnicate"]),
    "layers rubbish": (["--drop-layers", "1,x"], ["--drop-layers: got '1,x'", "e.g. 3,5"]),
    "layers outside": (["--drop-layers", "9"], ["--drop-layers: got [9]"]),
    "criterion": (["--neuron-criterion", "vibes"], ["--neuron-criterion: got 'vibes', allowed elimination"]),
    "refit": (["--refit", "magic"], ["--refit: got 'magic'"]),
    "tokens": (["--tokens", "3"], ["--tokens: got 3, allowed 256 or more"]),
    "dtype": (["--dtype", "int4"], ["--dtype: got 'int4', allowed auto"]),
}


@pytest.mark.parametrize("kind", sorted(BAD_OPTIONS))
def test_bad_options(kind, flab, pico_folder, calibration_file, place):
    options, words = BAD_OPTIONS[kind]
    fixed = ["prune", pico_folder(), "--calibration", calibration_file, "-o", place / "out"]
    assert_refused(flab(*fixed, *QUICK, *options), *words)
    assert not list(place.iterdir())


def test_nothing_but_what_was_asked_is_needed(flab):
    assert_refused(flab("prune"), "Missing argument 'MODEL'. See flab prune --help.")
    assert_refused(flab("frobnicate"), "frobnicate")


def test_an_existing_output_is_not_touched(flab, pico_folder, calibration_file, place):
    (place / "out").mkdir()
    (place / "out" / "config.json").write_text("mine")
    result = flab("prune", pico_folder(), "--calibration", calibration_file, "-o", place / "out", *QUICK)
    assert_refused(result, "out exists: pass --overwrite")
    assert (place / "out" / "config.json").read_text() == "mine"
    assert [p.name for p in place.iterdir()] == ["out"]


def test_a_plan_has_somewhere_to_go_before_the_work(flab, pico_folder, place):
    assert_refused(flab("plan", pico_folder(), "-o", place), "is a folder")
    assert_refused(flab("plan", pico_folder(), "-o", place / "no" / "plan.json"), "no folder")
    assert not list(place.iterdir())


def test_a_plan_is_not_written_over_another_unasked(flab, pico_folder, place):
    (place / "plan.json").write_text("hours of work")
    assert_refused(flab("plan", pico_folder(), "-o", place / "plan.json"), "plan.json exists: pass --overwrite")
    assert (place / "plan.json").read_text() == "hours of work"


@pytest.mark.parametrize("command", ["plan", "prune"])
def test_nothing_is_written_into_the_source_model(flab, pico_folder, calibration_file, command):
    model = pico_folder()
    before = {p: p.read_bytes() for p in model.iterdir()}
    for name in ("config.json", "new"):
        result = flab(command, model, "--calibration", calibration_file, "-o", model / name, "--overwrite", *QUICK)
        assert_refused(result, "is in the source model, which flab never changes")
    assert {p: p.read_bytes() for p in model.iterdir()} == before


def test_bad_plans(flab, pico_folder, place, tmp_path):
    assert_refused(flab("apply", pico_folder(), tmp_path / "plan.json", "-o", place / "out"), "cannot read the plan")
    (tmp_path / "plan.json").write_text("[1, 2]")
    assert_refused(flab("apply", pico_folder(), tmp_path / "plan.json", "-o", place / "out"), "plan format 'list'")
    assert not list(place.iterdir())


def test_bad_problems(flab, pico_folder, place, tmp_path):
    (tmp_path / "problems.jsonl").write_text('{"prompt": "x"}\n')
    result = flab("eval", pico_folder(), "--problems", tmp_path / "problems.jsonl", "-o", place / "results.json")
    assert_refused(result, "problems.jsonl")
    result = flab("eval", pico_folder(), "--problems", tmp_path / "none.jsonl", "-o", place / "results.json")
    assert_refused(result, "none.jsonl")
    assert not list(place.iterdir())


def test_checking_no_folder(flab, place):
    assert_refused(flab("check", place), "not a model folder")


def test_debug_shows_the_trace(flab, place):
    code, _, err = flab("--debug", "check", place)
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("flab: ")


# --- disk and interrupts ---


@pytest.fixture(scope="module")
def plan_file(pico_folder, recipe, tmp_path_factory) -> Path:
    from flab.pruning.pipeline import plan

    path = tmp_path_factory.mktemp("plans") / "plan.json"
    plan(pico_folder(), recipe(remove=0.3, finalists=1)).write(path)
    return path


DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])  # where room is reserved, and where tensors are written
def test_a_full_disk(call, flab, pico_folder, plan_file, place, monkeypatch):
    def fail(*_, **__):
        raise DISK_FULL

    monkeypatch.setattr(os, call, fail)
    result = flab("apply", pico_folder(), plan_file, "-o", place / "out")
    assert_refused(result, "No space left", "nothing was left behind")
    assert not list(place.iterdir())


def test_a_full_disk_for_the_plan(flab, pico_folder, calibration_file, place, monkeypatch):
    def fail(self, text, *_, **__):
        self.touch()
        raise DISK_FULL

    model = pico_folder()
    monkeypatch.setattr(Path, "write_text", fail)
    result = flab("plan", model, "--calibration", calibration_file, "-o", place / "plan.json", *QUICK)
    assert result[0] == 2
    said = result[2].splitlines()[-1]
    assert said.startswith(f"flab: cannot write {place / 'plan.json'}")
    assert "(No space left on device)" in said
    assert "Free space on its disk" in said
    assert not list(place.iterdir())


def written_by_flab(folder: Path) -> Path:
    """The folder with the marks of one that flab wrote, and may replace."""
    for name in ("plan.json", "proof.json"):
        (folder / name).write_text("{}")
    return folder


STAGES = {
    "reading": "flab.pruning.planner.read_texts",
    "vocabulary": "flab.pruning.planner.plan_vocabulary",
    "search": "flab.pruning.planner.search_splits",
    "finalists": "flab.pruning.planner.decide",
    "winner": "flab.pruning.planner.carve",
    "newton": "flab.pruning.refit.walk.newton_refit",
    "saving": "flab.pruning.pipeline.save",
    "proof": "flab.pruning.pipeline.write_proof",
    "renaming": "flab.files.replace_folder",
}


@pytest.mark.parametrize("stage", sorted(STAGES))
@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
def test_an_interrupt_leaves_nothing_unfinished_and_names_what_a_repetition_needs(
    stage, old, flab, pico_folder, calibration_file, place, monkeypatch
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(STAGES[stage], interrupt)
    if old:
        written_by_flab(copy_of(pico_folder(), place / "out"))
    arguments = ["--calibration", calibration_file, "-o", place / "out", *QUICK, *(["--overwrite"] if old else [])]
    code, out, err = flab("prune", pico_folder(), "--width", 32, "--layers", 4, *arguments)
    assert code == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("flab: interrupted")
    left = {p.name for p in place.iterdir()}
    assert left - {"out.planning"} == ({"out"} if old else set())
    assert ("out.planning; the same command resumes" in err) == ("out.planning" in left)
    if old:
        names = {p.name for p in pico_folder().iterdir()} | {"plan.json", "proof.json"}
        assert {p.name for p in (place / "out").iterdir()} == names


def test_an_interrupt_while_checking_leaves_the_whole_output(flab, pico_folder, calibration_file, place, monkeypatch):
    """The folder is whole by then: it stays, and the message may not claim that nothing did."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("flab.pruning.check.run_child", interrupt)
    code, out, err = flab("prune", pico_folder(), "--calibration", calibration_file, "-o", place / "out", *QUICK)
    assert code == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("flab: interrupted")
    assert sorted(p.name for p in place.iterdir()) == ["out", "out.planning"]
    assert (place / "out" / "model.safetensors").is_file()
    assert "the same command resumes" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_ends_a_real_process(number, pico_folder, calibration_file, place):
    command = [sys.executable, "-m", "flab", "prune", str(pico_folder()), "--calibration", str(calibration_file)]
    process = subprocess.Popen(
        [*command, "-o", str(place / "out"), "--layers", "4"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert "standard library" in process.stderr.readline()  # it is past its imports and has begun
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, err
    assert out == ""
    assert [p.name for p in place.iterdir()] in ([], ["out.planning"])
    assert err.splitlines()[-1].startswith("flab: interrupted")
    assert "Traceback" not in err


# --- what works ---


def test_prune_prints_one_json_object(flab, pico_folder, calibration_file, place):
    arguments = ["--calibration", calibration_file, "-o", place / "out", "--remove", "0.3", "--json", *QUICK]
    code, out, err = flab("prune", pico_folder(), *arguments)
    assert code == 0, err
    assert out.count("\n") == 1
    report = json.loads(out)
    assert set(report) >= FIELDS
    assert report["check"]["ok"] is True
    assert "loads_in" in report["check"]
    for name in ("vocabulary", "layers", "width"):
        assert set(report[name]) >= {"before", "after"}
    assert report["removed_fraction"] == pytest.approx(1 - report["parameters_after"] / report["parameters_before"])
    assert report["removed_fraction"] >= 0.3
    assert [p.name for p in place.iterdir()] == ["out"]
    assert report["candidates"]


def test_plan_then_apply(flab, pico_folder, calibration_file, place):
    arguments = ["--calibration", calibration_file, "-o", place / "plan.json", "--remove", "0.3", *QUICK]
    code, out, err = flab("plan", pico_folder(), *arguments)
    assert code == 0, err
    assert "chosen" in out
    assert "chosen" not in err
    code, _, err = flab("plan", pico_folder(), *arguments, "--overwrite")
    assert code == 0, err
    code, out, err = flab("apply", pico_folder(), place / "plan.json", "-o", place / "out", "--json")
    assert code == 0, err
    assert json.loads(out)["output"] == str(place / "out")
    code, out, err = flab("apply", pico_folder(), place / "plan.json", "-o", place / "out")
    assert_refused((code, out, err), "--overwrite")
    code, out, err = flab("apply", pico_folder(), place / "plan.json", "-o", place / "out", "--overwrite", "--no-refit")
    assert code == 0, err
    assert out == f"saved {place / 'out'}: run flab check to verify it\n"
    assert json.loads((place / "out" / "proof.json").read_text())["refit"] == "none"


def test_a_failed_check_is_exit_code_1(flab, pico_folder, plan_file, place, monkeypatch):
    verdict = {"ok": False, "checks": [{"name": "x", "ok": False, "detail": "y"}], "loads_in": {}}
    monkeypatch.setattr("flab.pruning.check.check", lambda *_: verdict)
    code, out, _ = flab("check", pico_folder(), "--json")
    assert code == 1
    assert json.loads(out) == verdict


# --- eval and compare ---


@pytest.fixture
def problems(place) -> Path:
    """Three problems with references: one right, one wrong, one without."""
    test = "def check(f):\n    assert f(0) == 1\n"
    rows = [
        {"prompt": f"def f{n}(x):\n    return 1\n#", "entry_point": f"f{n}", "test": test, "canonical_solution": end}
        for n, end in enumerate([" a\n", " b\n    return )\n", None])
    ]
    path = place / "problems.jsonl"
    path.write_text("".join(json.dumps({"task_id": f"t/{n}"} | row) + "\n" for n, row in enumerate(rows)))
    return path


@pytest.fixture
def predictions(place) -> Path:
    """Many predictions of outputs, which need no sandbox."""
    path = place / "outputs.jsonl"
    rows = [{"code": f"def f(x):\n    return x + {n}", "input": f"{n}", "output": f"{2 * n}"} for n in range(24)]
    path.write_text("".join(json.dumps({"id": n} | row) + "\n" for n, row in enumerate(rows)))
    return path


def skip_without_sandbox(result: tuple[int, str, str]) -> None:
    if result[0] == 2 and "--unsandboxed" in result[2]:
        pytest.skip("no namespaces on this machine")


SHORT = ["--max-new-tokens", "4"]


def test_eval_prints_one_json_object(flab, pico_folder, problems, place):
    arguments = ["--problems", problems, "-o", place / "results.json", *SHORT]
    code, out, err = flab("eval", pico_folder(), *arguments, "--json")
    skip_without_sandbox((code, out, err))
    assert code == 0, err
    assert out.count("\n") == 1
    summary = json.loads(out)
    assert {"pass@1", "interval_95", "passed", "total", "sandbox_level"} <= set(summary)
    assert summary["total"] == 3
    assert "rows" not in summary["tasks"][0]
    results = json.loads((place / "results.json").read_text())
    assert len(results["tasks"][0]["rows"]) == 3
    assert {path.name for path in place.iterdir()} == {"problems.jsonl", "results.json"}


def test_eval_writes_a_run_with_perturbations_exports_and_a_table(flab, pico_folder, problems, place):
    arguments = ["--task", problems, "--perturb", "rename-function", "--export", "-o", place / "run", *SHORT]
    code, out, err = flab("eval", pico_folder(), *arguments)
    skip_without_sandbox((code, out, err))
    assert code == 0, err
    assert "problems~rename-function" in out
    assert "Robustness" in out
    assert "Robustness" not in err
    exports = place / "run" / "exports"
    assert {path.name for path in exports.iterdir()} == {"lm_eval", "problems.samples.jsonl"}
    assert (exports / "lm_eval" / "problems.yaml").is_file()
    results = json.loads((place / "run" / "results.json").read_text())
    assert [task["name"] for task in results["tasks"]] == ["problems", "problems~rename-function"]
    assert results["tasks"][0]["gold"]["passed"] == 1
    assert flab("eval", pico_folder(), *arguments)[0] == 0
    code, out, err = flab("compare", place / "run", place / "run", "--json")
    assert code == 0, err
    assert [task["mcnemar_p"] for task in json.loads(out)["tasks"]] == [1.0, 1.0]
    assert "Drop under perturbation" in flab("compare", place / "run", place / "run")[1]


def test_gold_needs_no_model(flab, problems):
    result = code, out, err = flab("eval", "--gold", "--task", problems, "--json")
    skip_without_sandbox(result)
    assert code == 0, err
    report = json.loads(out)
    assert (report["passed"], report["total"]) == (1, 3)
    assert report["failures"] == {"t/1": "syntax", "t/2": "no reference"}
    assert "1/3 references pass" in flab("eval", "--gold", "--task", problems)[1]


def test_contamination_is_shown(flab, pico_folder, predictions, place, tmp_path):
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    (tmp_path / "seen.jsonl").write_text(json.dumps({"text": rows[3]["code"]}) + "\n")
    model = copy_of(pico_folder(), tmp_path / "model")
    arguments = [model, "--task", predictions, "-o", place / "r.json", *SHORT]
    code, _, err = flab("eval", *arguments, "--against-data", tmp_path / "seen.jsonl")
    assert code == 0, err
    assert "warning: outputs and" in err
    assert "1 of 24 problems share text" in err
    (model / "plan.json").write_text(json.dumps({"calibration": {"path": str(tmp_path / "seen.jsonl")}}))
    code, _, err = flab("eval", *arguments)
    assert code == 0, err
    assert "1 of 24 problems share text" in err
    found = json.loads((place / "r.json").read_text())["contamination"]
    assert [(row["task"], row["flagged"]) for row in found] == [("outputs", ["3"])]
    (tmp_path / "seen.jsonl").unlink()
    assert "name it with --against-data" in flab("eval", *arguments)[2]


def test_a_killed_run_goes_on_to_the_same_results(flab, pico_folder, predictions, place):
    arguments = ["eval", pico_folder(), "--task", predictions, "--samples", "2", "--temperature", "1"]
    arguments = [*map(str, arguments), "--batch-size", "4", "--max-new-tokens", "40"]
    assert flab(*arguments, "-o", place / "whole")[0] == 0
    lines = place / "run" / "generations.jsonl"
    for wanted in (1, 17):
        command = [sys.executable, "-m", "flab", *arguments, "-o", str(place / "run")]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not lines.exists() or lines.read_bytes().count(b"\n") < wanted):
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not (place / "run" / "results.json").exists()
    assert flab(*arguments, "-o", place / "run")[0] == 0
    for name in ("results.json", "generations.jsonl"):
        assert (place / "run" / name).read_bytes() == (place / "whole" / name).read_bytes()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(place):
    """The bundled model, code with tests and predictions: killed anywhere, imports, generation and scoring included."""
    tasks = [str(arg) for path in (assets.problems_path(), assets.outputs_path()) for arg in ("--task", path)]
    command = [
        sys.executable,
        "-m",
        "flab",
        "eval",
        str(assets.model_path()),
        *tasks,
        "--limit",
        "48",
        "--batch-size",
        "8",
    ]
    start = time.perf_counter()
    subprocess.run([*command, "-o", str(place / "whole")], check=True, stderr=subprocess.DEVNULL)
    whole_seconds, rng = time.perf_counter() - start, random.Random(0)
    for _ in range(20):
        process = subprocess.Popen([*command, "-o", str(place / "run")], stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, whole_seconds))
        process.kill()
        process.wait()
    subprocess.run([*command, "-o", str(place / "run")], check=True, stderr=subprocess.DEVNULL)
    assert (place / "run" / "results.json").read_bytes() == (place / "whole" / "results.json").read_bytes()
    resumed, whole = (
        sorted((place / name / "generations.jsonl").read_text().splitlines()) for name in ("run", "whole")
    )
    assert resumed == whole


def test_a_changed_setting_is_said_and_keeps_the_lines(flab, pico_folder, predictions, place):
    arguments = ["eval", pico_folder(), "--task", predictions, "--limit", "2", "-o", place / "run"]
    assert flab(*arguments, *SHORT)[0] == 0
    before = (place / "run" / "generations.jsonl").read_text()
    code, _, err = flab(*arguments, "--max-new-tokens", "5")
    assert code == 0
    assert "differs in max_new_tokens" in err
    assert (place / "run" / "generations.jsonl").read_text().startswith(before)


def test_an_interrupted_eval_says_how_to_go_on(flab, pico_folder, predictions, place, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("flab.evaluation.evaluate.run_tasks", interrupt)
    arguments = ["eval", pico_folder(), "--task", predictions]
    assert_refused(
        flab(*arguments, "-o", place / "run"), "interrupted", "the answers so far are in", "the same command resumes"
    )
    assert_refused(flab(*arguments, "-o", place / "r.json"), "interrupted: no unfinished output is left")


def test_names_with_markup_are_shown_as_they_are(flab, pico_folder, predictions, place):
    odd = predictions.rename(place / "[bold]x[y].jsonl")
    code, out, err = flab("eval", pico_folder(), "--task", odd, "--limit", "2", *SHORT)
    assert code == 0, err
    assert "[bold]x[y]" in out


BAD_EVALS = {
    "no task": ([], ["--task: got none"]),
    "no model": (["--task", "P"], ["no MODEL", "--gold"]),
    "two of a name": (["M", "--task", "P", "--task", "P"], ["2 tasks are called outputs"]),
    "missing file": (["M", "--task", "none.jsonl"], ["none.jsonl"]),
    "bad kind": (["M", "--task", "code:P"], ["prompt"]),
    "perturbed output": (["M", "--task", "P", "--perturb", "all"], ["--perturb", "kind code"]),
    "gold output": (["--gold", "--task", "P"], ["references to run", "outputs"]),
    "gold with a folder": (["--gold", "--task", "P", "-o", "run"], ["--gold writes no run folder"]),
    "samples": (["M", "--task", "P", "--samples", "3"], ["--temperature 0"]),
    "preset": (["M", "--task", "P", "--preset", "x"], ["--preset: got x"]),
    "backend": (["M", "--task", "P", "--backend", "x"], ["--backend: got x"]),
    "export to a file": (["M", "--task", "P", "--export", "-o", "r.json"], ["--export needs a folder"]),
    "foreign folder": (["M", "--task", "P", "-o", "."], ["holds no run"]),
    "missing data": (["M", "--task", "P", "--against-data", "none"], ["none does not exist"]),
}


@pytest.mark.parametrize("kind", sorted(BAD_EVALS))
def test_bad_evals(kind, flab, pico_folder, predictions, place, monkeypatch):
    monkeypatch.chdir(place)
    arguments, words = BAD_EVALS[kind]
    given = [a.replace("P", "outputs.jsonl") if a in ("P", "code:P") else a for a in arguments]
    given = [str(pico_folder()) if a == "M" else a for a in given or [str(pico_folder())]]
    assert_refused(flab("eval", *given), *words)
    assert [path.name for path in place.iterdir()] == ["outputs.jsonl"]


def test_compare_refuses_what_is_no_run(flab, place):
    assert_refused(flab("compare", place, place), "results.json does not exist")


def test_version(flab):
    code, out, err = flab("--version")
    assert (code, out, err) == (0, f"flab {__version__}\n", "")


@pytest.mark.parametrize("command", ["demo", "plan", "apply", "prune", "check", "eval", "compare"])
def test_every_command_has_help_with_an_example(command, flab):
    code, out, _ = flab(command, "--help")
    assert code == 0
    assert f"Example: flab {command}" in out


def test_no_command_shows_help(flab):
    code, out, err = flab()
    assert code in (0, 2)
    assert "prune" in out + err
    assert "Traceback" not in err


def test_the_bundled_samples_are_announced(flab, pico_folder, place, monkeypatch):
    say_once.cache_clear()
    monkeypatch.setattr("flab.pruning.planner.search_splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    _, _, err = flab("plan", pico_folder(), "-o", place / "plan.json")
    assert "bundled instruction samples" in err
    assert "standard library" in err


@pytest.mark.parametrize("command", ["plan", "prune", "sweep"])
def test_without_a_calibration_file_too_an_error_is_one_line(flab, pico_folder, place, command):
    say_once.cache_clear()
    code, _, err = flab(command, pico_folder(), "--remove", "0.97", "-o", place / "out")
    assert code == 2
    assert err.strip().count("\n") == 0
    assert "cannot be reached" in err


def test_pico_helper_rows_are_valid_calibration(calibration_file):
    rows = [json.loads(line) for line in calibration_file.read_text().splitlines()]
    assert rows == pico.calibration_rows()
