"""A finished run answers from its folder; whatever its results depend on, once changed, is measured again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flab import Options, assets
from flab.evaluation.evaluate import evaluate
from flab.evaluation.prompts import Settings
from flab.evaluation.record import asked, finished_run, remember

MORE = {"limit": 2, "perturbations": [], "backend": "transformers", "gold": False, "export": False}


@pytest.fixture
def model(tmp_path, pico_folder) -> Path:
    return Path(shutil.copytree(pico_folder(), tmp_path / "model"))


@pytest.fixture
def task(tmp_path) -> Path:
    return Path(shutil.copyfile(assets.cot_path(), tmp_path / "cot.jsonl"))


def digest(model: Path, task: Path, settings: Settings | None = None, **changes: object) -> str | None:
    return asked(model, [task], settings or Settings(), Options(), (), **{**MORE, **changes})


def test_the_same_question_has_the_same_digest_and_any_other_another(model, task):
    same = digest(model, task)
    assert same == digest(model, task)
    others = [digest(model, task, Settings(max_new_tokens=3)), digest(model, task, limit=3)]
    os.utime(task, (1, 1))
    others.append(digest(model, task))
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    others.append(digest(model, task))
    assert len({same, *others}) == 5


def test_the_data_that_a_model_was_fitted_to_is_part_of_the_question(model, task, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    (model / "plan.json").write_text(json.dumps({"calibration": {"path": str(data)}}))
    before = digest(model, task)
    data.write_text("{} \n")
    assert digest(model, task) != before


def test_hub_ids_are_never_known(model, task):
    assert digest(Path("owner/name"), task) is None
    assert asked(model, ["owner/data"], Settings(), Options(), (), **MORE) is None


def test_results_that_were_changed_are_not_believed(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "results.json").write_text('{"a": 1}')
    remember(tmp_path, "x")
    assert finished_run(tmp_path, "x") == {"a": 1}
    assert finished_run(tmp_path, "y") is None
    assert finished_run(tmp_path, None) is None
    (tmp_path / "results.json").write_text('{"a": 2}')
    assert finished_run(tmp_path, "x") is None


def test_a_finished_evaluation_is_not_done_again(model, task, tmp_path, monkeypatch, capsys):
    settings = Settings(max_new_tokens=4)
    first = evaluate(model, task, tmp_path / "run", settings, limit=2)
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()}
    monkeypatch.setattr("flab.evaluation.evaluate.open_subject", lambda *_: pytest.fail("the model was loaded"))
    assert evaluate(model, task, tmp_path / "run", settings, limit=2) == first
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()} == stamps
    assert "is finished" in capsys.readouterr().err


def test_the_command_answers_without_torch(model, task, tmp_path):
    settings = Settings(max_new_tokens=4)
    evaluate(model, str(task), tmp_path / "run", settings, limit=2)
    script = (
        "import sys; from flab.cli.app import main\n"
        f"sys.argv = ['flab', 'eval', {str(model)!r}, '--task', {str(task)!r}, '-o', {str(tmp_path / 'run')!r}, "
        "'--limit', '2', '--max-new-tokens', '4', '--json']\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "is finished" in done.stderr
    assert json.loads(done.stdout)["tasks"][0]["count"] == 2
