"""Planning that is stopped: what it leaves, what a resumed one does not do again, and that it ends at the same bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from flab import Options, prune
from flab.errors import BudgetError, OptionError
from flab.pruning import pipeline, planner, search
from flab.pruning.journal import Journal, is_uncleared, read_steps, working_folder
from flab.pruning.refit import resume
from flab.pruning.refit.walk import Walk

pytestmark = pytest.mark.usefixtures("check_here")


class Stop(BaseException):
    """Something that ends the process from outside."""


@pytest.fixture
def check_here(monkeypatch):
    """Leave out the check and the held-out text, which have their own tests."""
    monkeypatch.setattr(pipeline, "check", lambda folder, against: {"ok": True})
    monkeypatch.setattr(pipeline, "compare_generality", lambda *_: {})


def weights(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def decisions(folder):
    plan = json.loads((folder / "plan.json").read_text())
    return {name: value for name, value in plan.items() if name != "seconds"}


# --- the journal itself ---


def test_a_step_is_done_once_and_its_value_survives(tmp_path):
    done = []
    for _ in range(2):
        journal = Journal(tmp_path / "out.planning", "mine")
        assert journal.recall("KL", lambda: done.append("KL") or [0.1, float("inf")]) == [0.1, float("inf")]
    assert done == ["KL"]


def test_steps_of_another_planning_are_replaced_by_the_first_of_this_one(tmp_path):
    folder = tmp_path / "out.planning"
    Journal(folder, "theirs").keep("KL", 1)
    mine = Journal(folder, "mine")
    assert mine.get("KL") is None
    assert read_steps(folder) == ("theirs", {"KL": 1})
    mine.keep("probe", 2)
    assert read_steps(folder) == ("mine", {"probe": 2})


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_a_kill_left_half_written_is_no_step(tmp_path, cut):
    folder = tmp_path / "out.planning"
    journal = Journal(folder, "mine")
    journal.keep("first", 1)
    journal.keep("second", 2)
    text = (folder / "steps.jsonl").read_text()
    (folder / "steps.jsonl").write_text(text[: -1 - cut])
    again = Journal(folder, "mine")
    again.keep("third", 3)
    assert read_steps(folder) == ("mine", {"first": 1, "third": 3})


@pytest.mark.parametrize("text", ["", "{", "[]\n", "5\n", '{"a": 1}\n', '{"identity": "mine"}\n[1]\n'])
def test_a_damaged_journal_knows_nothing(tmp_path, text):
    folder = tmp_path / "out.planning"
    folder.mkdir()
    (folder / "steps.jsonl").write_text(text)
    assert read_steps(folder)[1] == {}
    Journal(folder, "mine").keep("first", 1)
    assert read_steps(folder) == ("mine", {"first": 1})


def test_without_a_folder_nothing_is_known(tmp_path):
    journal = Journal()
    assert [journal.recall("KL", lambda: 1), journal.recall("KL", lambda: 2)] == [1, 2]
    assert journal.files("winner") is None
    journal.clear()


# --- planning that goes on ---


def stopped_after(monkeypatch, steps):
    """Stop once so many steps are kept; layers of the winner count."""
    count = []

    def counted(real):
        def keep(*given):
            real(*given)
            count.append(1)
            if len(count) >= steps:
                raise Stop

        return keep

    monkeypatch.setattr(Journal, "keep", counted(Journal.keep))
    monkeypatch.setattr(resume, "write_layer", counted(resume.write_layer))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"refit": "newton"}),
        ("starcoder2", {"refit": "residual"}),
        ("llama", {"refit": "reconstruction", "layers": 4}),
        ("gemma2", {"refit": "residual", "layers": 4}),
        ("phi3", {"refit": "descent"}),
    ],
)
def test_a_resumed_planning_ends_at_the_same_bytes(family, changes, pico_folder, recipe, tmp_path, monkeypatch):
    model, asked = pico_folder(family), recipe(remove=0.35, **changes)
    prune(model, tmp_path / "whole", asked)
    out = tmp_path / "out"
    # It is stopped after 2 steps, goes on and is stopped 3 later, and so on, each time a little further.
    for steps in range(2, 40):
        with monkeypatch.context() as patch:
            stopped_after(patch, steps)
            try:
                prune(model, out, asked)
            except Stop:
                assert working_folder(out).is_dir()
                continue
        break
    assert steps > 4, "it was hardly ever stopped"
    assert weights(out) == weights(tmp_path / "whole")
    assert decisions(out) == decisions(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_what_is_finished_is_not_done_again(trained_folder, recipe, tmp_path, monkeypatch):
    asked, out = recipe(remove=0.35, refit="residual"), tmp_path / "out"

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_save", stop)
        with pytest.raises(Stop):
            prune(trained_folder, out, asked)
    assert not out.exists()

    def again(*_, **__):
        raise AssertionError("done again")

    monkeypatch.setattr(search.Search, "_divergence", again)
    monkeypatch.setattr(planner.Bench, "try_tests", again)
    monkeypatch.setattr(Walk, "_layer", again)
    monkeypatch.setattr("flab.pruning.cuts.layers.score_removals", again)
    monkeypatch.setattr("flab.pruning.material.vocabulary_kl", again)
    prune(trained_folder, out, asked)
    assert (out / "model.safetensors").is_file()
    assert not working_folder(out).exists()


def test_another_recipe_starts_anew(trained_folder, recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        with pytest.raises(Stop):
            prune(trained_folder, out, recipe(remove=0.35))
    prune(trained_folder, out, recipe(remove=0.2))
    prune(trained_folder, tmp_path / "whole", recipe(remove=0.2))
    assert weights(out) == weights(tmp_path / "whole")
    assert not working_folder(out).exists()


def test_a_kill_between_saving_and_clearing_is_finished_by_the_same_command_alone(
    trained_folder, recipe, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "clear", lambda journal: None)
        prune(trained_folder, out, recipe(remove=0.35))
    before = weights(out)
    assert is_uncleared(out)
    with pytest.raises(OptionError, match="exists"):
        prune(trained_folder, out, recipe(remove=0.2))
    assert weights(out) == before
    prune(trained_folder, out, recipe(remove=0.35))
    assert weights(out) == before
    assert not working_folder(out).exists()
    with pytest.raises(OptionError, match="exists"):
        prune(trained_folder, out, recipe(remove=0.35))


def test_a_folder_that_this_very_command_has_written_is_kept(trained_folder, recipe, tmp_path, monkeypatch, capsys):
    """A run may be killed after its pruned model is whole and before that is on record. The remark says what to do."""
    out, again = tmp_path / "out", Options(overwrite=True)
    first = prune(trained_folder, out, recipe(remove=0.35))
    left = tmp_path / ".out.flab-0123abcd.tmp"
    left.mkdir()
    written = out.stat().st_ino

    def planned(*_):
        raise Stop

    monkeypatch.setattr(planner.Planner, "plan", planned)
    second = prune(trained_folder, out, recipe(remove=0.35), again)
    assert second | {"seconds": 0} == first | {"seconds": 0}
    assert out.stat().st_ino == written
    assert "so it is kept; remove it to plan again" in capsys.readouterr().err
    assert not left.exists()
    with pytest.raises(Stop):
        prune(trained_folder, out, recipe(remove=0.2), again)
    with pytest.raises(Stop):
        prune(trained_folder, out, recipe(remove=0.35), replace(again, dtype="float32"))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "check", lambda *_: {"ok": False})
        with pytest.raises(Stop):
            prune(trained_folder, out, recipe(remove=0.35), again)
    # The same plan without its refit is another model, and so is what training made of it.
    for changes in ({"refit": "none"}, {"trained": True}):
        proof = json.loads((out / "proof.json").read_text())
        (out / "proof.json").write_text(json.dumps(proof | changes))
        with pytest.raises(Stop):
            prune(trained_folder, out, recipe(remove=0.35), again)
        (out / "proof.json").write_text(json.dumps(proof))
    assert prune(trained_folder, out, recipe(remove=0.35), again)["check"] == {"ok": True}


def test_a_plan_alone_resumes_too(trained_folder, recipe, tmp_path, monkeypatch):
    file = tmp_path / "plan.json"
    with monkeypatch.context() as patch:
        stopped_after(patch, 4)
        with pytest.raises(Stop):
            pipeline.plan(trained_folder, recipe(remove=0.35), Options(), file)
    assert working_folder(file).is_dir()
    found = pipeline.plan(trained_folder, recipe(remove=0.35), Options(), file)
    whole = pipeline.plan(trained_folder, recipe(remove=0.35))
    assert found.to_json() | {"seconds": 0} == whole.to_json() | {"seconds": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "plan.json.layers"]


def test_a_planning_that_cannot_succeed_leaves_nothing(trained_folder, recipe, tmp_path, monkeypatch):
    def failing(*_):
        raise BudgetError("no split")

    monkeypatch.setattr(planner, "decide", failing)
    with pytest.raises(BudgetError):
        prune(trained_folder, tmp_path / "out", recipe(remove=0.35))
    assert not list(tmp_path.iterdir())
