"""The benchmark of a real model, whole, on a pico model: every stage, resumed and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import real_model  # noqa: E402
import real_table  # noqa: E402
import sittings  # noqa: E402

from support import pico  # noqa: E402

TEST = "def check(f):\n    assert f(0) == 1\n"
RECIPE = """
model: some/model
prune: {tokens: 2000, search_tokens: 1000, general: 0.0, refit: none, finalists: 1}
data: {instructions: rows.jsonl, max_new_tokens: 8, tries: 0, own_texts: 8, batch_size: 16}
recover: {steps: 6, length: 64, batch: 4, micro_batch: 4, evaluations: 3, held_out: 0.2}
evaluate: {tasks: [tasks.jsonl], max_new_tokens: 8}
"""


def problem(number: int) -> dict[str, str]:
    """A problem that a model solves as long as what it writes is a comment."""
    prompt = f"def f{number}(x):\n    return 1\n#"
    return {"prompt": prompt, "entry_point": f"f{number}", "test": TEST, "canonical_solution": " a\n"}


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def given(tmp_path, trained_folder, sandbox) -> list[str]:
    """The command's arguments: recipe, model, output; six problems, of which the calibration rows hold two."""
    rows = [row | {"task_id": f"row/{n}"} for n, row in enumerate(pico.calibration_rows())]
    known = [problem(n) | {"completion": " a\n"} for n in (0, 1)]
    write_rows(tmp_path / "rows.jsonl", [*known, *rows])
    write_rows(tmp_path / "tasks.jsonl", [problem(n) for n in range(6)])
    (tmp_path / "recipe.yml").write_text(RECIPE)
    names = [str(tmp_path / "recipe.yml"), str(trained_folder), "-o", str(tmp_path / "out")]
    return [*names, "--calibration", "rows.jsonl", "--data", str(tmp_path), "--kl-tokens", "64"]


def here(given: list[str]):
    """Run a stage in this process: a fresh one takes seconds."""
    job = real_model.read_job(real_model.arguments(given))
    ran: list[str] = []

    def start(stage: sittings.Stage) -> int:
        ran.append(stage.name)
        return sittings.work(stage, job.out, "cpu")

    return start, ran


def test_all_models_are_made_measured_and_put_in_one_table(given, tmp_path, verify_here, check_here, capsys):
    given += ["--remove", "0.4", "--recover", "0.4"]
    start, ran = here(given)
    assert real_model.main(given, start) == 0
    out = tmp_path / "out"
    report = json.loads((out / "real_model.json").read_text())
    names = ["original", "flab-40", *(f"{name}-40" for name in real_model.METHODS), "recovered-40"]
    assert [row["name"] for row in report["models"]] == names
    assert report["excluded"] == {"tasks": 2}
    for row in report["models"]:
        figures = row["tasks"]["tasks"]
        assert figures["total"] == 4
        assert sittings.found(out, f"eval {row['name']}")["result"] == {"passed": {"tasks": figures["passed"]}}
        assert 0 < figures["mean_tokens"] <= 8
        assert row["stages"]["eval"]["peak_bytes"] > 0
    for row in report["models"][1:]:
        assert row["sizes"]["removed_fraction"] >= 0.4
        assert row["kl"]["kl"] > 0
        assert row["kl"]["kl_back"] > 0
        figures = row["tasks"]["tasks"]
        before = report["models"][0]["tasks"]["tasks"]["passed"]
        assert figures["passed"] == before - figures["lost"] + figures["won"]
    sizes = {row["name"]: row["sizes"] for row in report["models"][1:]}
    assert len({size["vocabulary"] for name, size in sizes.items() if name != "authors-40"}) == 1
    assert sizes["block-influence-40"]["layers"] < sizes["static-40"]["layers"] == sizes["activation-40"]["layers"] == 5
    shown = (out / "real_model.md").read_text()
    assert shown in capsys.readouterr().out
    assert all(f"| {name} |" in shown for name in names)
    assert real_model.main(given, start) == 0
    assert len(ran) == len(set(ran)) == len(real_model.stages_of(real_model.read_job(real_model.arguments(given))))


def test_the_other_methods_only_select(recipe):
    """None refits; all but the authors' keep flab's vocabulary, and either the width or the depth."""
    ours = SimpleNamespace(
        vocabulary=SimpleNamespace(after=300),
        layers=SimpleNamespace(before=5, after=4),
        width=SimpleNamespace(before=64),
    )
    made = {name: method(recipe(), ours) for name, method in real_model.METHODS.items()}
    assert {one.refit for one in made.values()} == {"none"}
    assert not any(one.output_projection for one in made.values())
    assert {name: one.vocabulary for name, one in made.items()} == dict.fromkeys(made, 300) | {"authors": None}
    pinned = {name: (one.layers, one.width) for name, one in made.items()}
    wide, narrow = (None, 64), (5, None)
    assert pinned == {"authors": (4, None), "block-influence": wide, "static": narrow, "activation": narrow}
    assert [made[name].neuron_criterion for name in ("static", "activation")] == ["magnitude", "activation"]
    assert made["block-influence"].layer_criterion == "block-influence"


def test_a_part_is_run_and_the_rest_is_listed(given, tmp_path, verify_here, capsys):
    start, ran = here(given)
    assert real_model.main([*given, "--only", "eval original", "--only", "cut flab", "--limit", "3"], start) == 0
    assert ran == ["eval original", "cut flab-22"]
    assert real_model.main([*given, "--limit", "3", "--only", "kl authors"], start) == 1  # nothing to measure yet
    capsys.readouterr()
    assert real_model.main([*given, "--limit", "3", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines if " done in " in line] == ran
    assert sum("to do" in line for line in lines) == len(lines) - 2
    assert json.loads((tmp_path / "out" / "real_model.json").read_text())["models"][0]["tasks"]["tasks"]["total"] == 3


def test_a_stage_is_done_by_its_name(given, tmp_path, monkeypatch):
    """What the process of a stage is given: the same command and ``--work``."""
    monkeypatch.setattr(sittings, "end_with_parent", lambda: None)
    assert real_model.main([*given, "--limit", "1"], lambda stage: 0) == 1
    assert real_model.main([*given, "--limit", "1", "--work", "eval original"]) == 0
    assert sittings.found(tmp_path / "out", "eval original")["result"]["passed"]["tasks"] in (0, 1)


def test_stages_that_need_nothing_of_each_other_run_at_once(tmp_path):
    together = threading.Barrier(2, timeout=60)  # raises unless both stages are running

    def start(stage: sittings.Stage) -> int:
        ran.append(stage.name)
        return sittings.work(stage, tmp_path, "cpu")

    ran: list[str] = []
    meet = lambda: (together.wait() and {}) or {}  # noqa: E731
    stages = [
        sittings.Stage("one", meet),
        sittings.Stage("after one", dict, ("one",)),
        sittings.Stage("two", meet),
        sittings.Stage("after none", dict, ("one", "nothing")),
    ]
    assert sittings.run_all(stages, tmp_path, start, jobs=2) == 1
    assert sorted(ran[:2]) == ["one", "two"]
    assert ran[2:] == ["after one"]
    assert sittings.found(tmp_path, "after none") is None


def test_a_stage_that_fails_does_not_stop_the_others(tmp_path):
    def start(stage: sittings.Stage) -> int:
        return 3 if stage.name == "one" else sittings.work(stage, tmp_path, "cpu")

    stages = [sittings.Stage("one", dict), sittings.Stage("two", dict), sittings.Stage("three", dict, ("one",))]
    assert sittings.run_all(stages, tmp_path, start) == 1
    assert [sittings.found(tmp_path, stage.name) is not None for stage in stages] == [False, True, False]
    assert sittings.run_all(stages, tmp_path, lambda stage: sittings.work(stage, tmp_path, "cpu")) == 0


SITTING = """
import sys, time
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import sittings

out = Path({out!r})
stages = [sittings.Stage("quick", lambda: {{"n": 1}}), sittings.Stage("slow", lambda: time.sleep({sleep}) or {{"n": 2}})]
if "--work" in sys.argv:
    sittings.end_with_parent()
    sys.exit(sittings.work(next(s for s in stages if s.name == sys.argv[-1]), out, "cpu"))
sittings.claim(out, {{}})
with sittings.alone(out):
    sys.exit(sittings.run_all(stages, out, sittings.in_a_process))
"""


def test_a_stage_that_is_killed_is_run_again_and_its_process_ends_with_the_command(tmp_path):
    """A list of two stages is killed within its second one; the same command then runs the second alone."""
    out, script = tmp_path / "out", tmp_path / "sitting.py"
    script.write_text(SITTING.format(benchmarks=str(BENCHMARKS), out=str(out), sleep=600))
    command = [sys.executable, str(script)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "slow: begins" not in running.stderr.readline():
        assert running.poll() is None
    child = children(running.pid)[0]
    running.kill()
    running.wait()
    for _ in range(1200):
        if not is_running(child):
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the stage's process went on")
    first = sittings.found(out, "quick")
    assert first["result"] == {"n": 1}
    assert sittings.found(out, "slow") is None
    script.write_text(SITTING.format(benchmarks=str(BENCHMARKS), out=str(out), sleep=0))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert sittings.found(out, "quick") == first
    assert sittings.found(out, "slow")["result"] == {"n": 2}


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that a process has started; waits until there is one."""
    for _ in range(200):
        found = [one for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()]
        if found:
            return [int(one) for one in found]
        time.sleep(0.05)
    return []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--only", "nothing"], "--only nothing: no such stage; allowed are eval original, cut flab-22"),
        (["--calibration", "rows.jsonl:0"], "rows.jsonl:0: got 0 rows, allowed 1 or more"),
        (["--calibration", "tasks.jsonl"], "hold all of its problems: calibrate on fewer, with FILE:N"),
        (["--task", "gone.jsonl"], "gone.jsonl"),
    ],
)
def test_mistakes_are_one_line(given, more, says, capsys):
    assert real_model.main([*given, *more]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def test_a_folder_of_other_settings_is_refused(given, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert real_model.main(given) == 2
    assert "holds no benchmark" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    sittings.claim(tmp_path / "out", {"tokens": 1, "seed": 0})
    with pytest.raises(real_model.OptionError, match="made with another tokens: give a new folder"):
        sittings.claim(tmp_path / "out", {"tokens": 2, "seed": 0})
    with sittings.alone(tmp_path / "out"), pytest.raises(real_model.OptionError, match="in use"):  # noqa: SIM117
        with sittings.alone(tmp_path / "out"):
            pass


def test_the_first_rows_of_a_file_are_taken_and_a_name_may_hold_a_colon(tmp_path):
    write_rows(tmp_path / "a.jsonl", [problem(n) for n in range(3)])
    write_rows(tmp_path / "b:c.jsonl", [problem(7)])
    assert len(real_model.rows_of("a.jsonl:2", tmp_path)) == 2
    assert real_model.rows_of("b:c.jsonl", tmp_path)[0]["entry_point"] == "f7"


def test_what_is_not_measured_is_left_blank(tmp_path):
    report = real_table.collect(tmp_path, ["original", "flab-20"])
    assert report["models"][1]["tasks"] == {}
    assert "pass@1" in real_table.markdown(report)
    assert real_table.cells(report["models"][1], None) == ["flab-20", *[""] * 12]


def test_both_directions_of_the_divergence_are_those_of_the_distributions():
    """Two models over three tokens that say the same of every token: the KL is that of two known distributions."""
    import torch

    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    checkpoints = [constant_model(one) for one in (p, q)]
    found = real_model.both_ways(*checkpoints, ["abcd", "ef"], 100)
    assert found["tokens"] == 6
    assert found["kl"] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert found["kl_back"] == pytest.approx(float((q * (q / p).log()).sum()), rel=1e-5)


def constant_model(probabilities):
    """A checkpoint whose every next token has these probabilities, and a tokenizer of one token for each character."""
    import torch

    class Model:
        def get_input_embeddings(self):
            return SimpleNamespace(weight=torch.zeros(1))

        def __call__(self, batch):
            return SimpleNamespace(logits=probabilities.log().expand(*batch.shape, -1))

    tokenizer = SimpleNamespace(encode=lambda text: SimpleNamespace(ids=[0] * len(text)))
    return SimpleNamespace(model=Model(), tokenizer=tokenizer)
