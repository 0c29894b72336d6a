"""One gate for every output path, and outputs that appear whole or not at all, whatever kills them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import flab.files
import flab.files.temporary
from flab.errors import FlabError, OptionError, OutputError
from flab.files import (
    check_file,
    check_folder,
    check_place,
    check_result,
    check_space,
    discard,
    foreign_files,
    new_file,
    new_folder,
    read_regular,
    replace_folder,
    scratch_folder,
    sweep,
    write_text,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What looks like a model's folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def own(model: Path) -> Path:
    """The same with the marks of a folder that flab wrote."""
    folder = shutil.copytree(model, model.with_name("own"))
    for name in ("plan.json", "proof.json", "kept_tokens.json", "LICENSE.txt", "chat_template.jinja"):
        (folder / name).write_text("{}")
    return folder


# --- the gate ---


def test_nothing_is_written_onto_or_into_what_is_read(model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(rows)
    os.link(rows, tmp_path / "hard.jsonl")
    for output in (rows, tmp_path / "link.jsonl", tmp_path / "hard.jsonl", tmp_path / "x" / ".." / "rows.jsonl"):
        with pytest.raises(OptionError, match=r"is one of the inputs|no folder"):
            check_file(output, True, [rows])
    for output in (model / "model.safetensors", model / "new.json"):
        with pytest.raises(OptionError, match="is in the source model, which flab never changes"):
            check_file(output, True, [str(model)])
    (tmp_path / "data").mkdir()
    with pytest.raises(OptionError, match="which is an input"):
        check_file(tmp_path / "data" / "plan.json", True, [tmp_path / "data"])
    with pytest.raises(OptionError, match="is in the source model"):
        check_folder(model, True, [model])


def test_nothing_is_written_into_any_models_folder(model, tmp_path):
    for output in (model / "config.json", model / "deep" / "x.json"):
        with pytest.raises(OptionError, match="is in the folder of a model"):
            check_place(output)
    (tmp_path / "into").symlink_to(model)
    with pytest.raises(OptionError, match="is in the folder of a model"):
        check_file(tmp_path / "into" / "x.json", True)
    check_place(tmp_path / "beside.json", [model])


def test_a_folder_that_holds_what_is_read_is_not_replaced(own, model):
    shutil.move(model, own / "additional_chat_templates")
    with pytest.raises(OptionError, match=r"holds .*additional_chat_templates, which is an input"):
        check_folder(own, True, [own / "additional_chat_templates"])


def test_an_existing_file_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "mine.json").write_text("[]")
    with pytest.raises(OptionError, match="exists: pass `overwrite`"):
        check_file(tmp_path / "mine.json")
    check_file(tmp_path / "mine.json", overwrite=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match="is a pipe"):
        check_file(tmp_path / "pipe", overwrite=True)
    with pytest.raises(OptionError, match="is a folder"):
        check_file(tmp_path, overwrite=True)
    with pytest.raises(OptionError, match="no folder"):
        check_file(tmp_path / "none" / "x.json")


@pytest.mark.parametrize(
    ("content", "is_own"),
    [
        ('{"flab": "0.1.0"}', True),
        ('{"versions": {"flab": "0.1.0"}}', True),
        ('{"versions": 3}', False),
        ("[]", False),
        ("{", False),
        ("[" * 100_000, False),
    ],
)
def test_results_replace_older_results_of_flab_alone(content, is_own, tmp_path):
    (tmp_path / "r.json").write_text(content)
    if is_own:
        check_result(tmp_path / "r.json")
    else:
        with pytest.raises(OptionError, match="exists: pass `overwrite`"):
            check_result(tmp_path / "r.json")
    check_result(tmp_path / "r.json", overwrite=True)


def test_overwrite_replaces_what_flab_wrote_and_lists_what_it_did_not(own, model):
    check_folder(own, True)
    (own / "README.md").write_text("---\n---\n<!-- written by flab report, which replaces this file -->\n")
    (own / "model-00001-of-00002.safetensors").write_text("")
    check_folder(own, True)
    for name in ("thesis.tex", "model-Q4_K_M.gguf", "optimizer.pt"):
        (own / name).write_text("hours of work")
    (own / "README.md").write_text("mine")
    assert foreign_files(own) == ["README.md", "model-Q4_K_M.gguf", "optimizer.pt", "thesis.tex"]
    with pytest.raises(OptionError, match=r"did not write \(README.md, model-Q4_K_M.gguf, optimizer.pt, thesis.tex\)"):
        check_folder(own, True)
    with pytest.raises(OptionError, match=r"did not write \(config.json, model.safetensors, tokenizer.json\)"):
        check_folder(model, True)
    with pytest.raises(OptionError, match="exists: pass `overwrite`"):
        check_folder(own, False)


def test_a_folder_that_takes_no_files_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    for check in (check_file, lambda path: check_folder(path / "a" / "b", False)):
        with pytest.raises(OptionError, match="no new files can be created"):
            check(tmp_path / "out")


def test_a_disk_that_is_too_small_is_found_before_the_work(tmp_path):
    check_space(tmp_path / "a" / "b", 1)
    with pytest.raises(OutputError, match=r"needs about 1,152,921,504,606\.8 MB"):
        check_space(tmp_path / "a" / "b", 2**60)


def test_pipes_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "Is a directory")):
        with pytest.raises(OSError, match=words):
            read_regular(path)


# --- writing ---


def test_a_write_that_fails_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("old")

    def fail(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OutputError, match=r"cannot write .*a.json \(No space left on device\).*Free space"):
        write_text(tmp_path / "a.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_new_folder_replaces_the_old_one_in_one_step(own):
    with new_folder(own, overwrite=True) as folder:
        (folder / "config.json").write_text("new")
        assert (own / "config.json").read_text() == "config.json"
    assert [path.name for path in own.iterdir()] == ["config.json"]
    assert sorted(path.name for path in own.parent.iterdir()) == ["model", "own"]


def test_files_that_came_while_it_was_made_are_not_lost(own):
    with pytest.raises(OptionError, match=r"did not write \(notes.txt\)"), new_folder(own, overwrite=True):
        (own / "notes.txt").write_text("mine")
    assert (own / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in own.parent.iterdir()) == ["model", "own"]


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
def test_without_the_exchange_of_names_the_old_folder_is_put_back(fails, own, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EINVAL, "no exchange here")

    rename = Path.rename

    def fail(self, target):
        if self.name == ".own.flab-00000000.tmp" and fails:
            raise OSError(errno.EIO, "broken disk")
        return rename(self, target)

    monkeypatch.setattr(flab.files, "_exchange", refuse)
    monkeypatch.setattr(Path, "rename", fail)
    new = own.with_name(".own.flab-00000000.tmp")
    new.mkdir()
    (new / "config.json").write_text("new")
    if fails:
        with pytest.raises(OSError, match="broken disk"):
            replace_folder(new, own)
        assert (own / "config.json").read_text() == "config.json"
    else:
        replace_folder(new, own)
        assert (own / "config.json").read_text() == "new"
        assert (new / "config.json").read_text() == "config.json"


def test_what_killed_runs_left_goes_and_what_others_write_stays(tmp_path):
    for name in (".out.flab-0123abcd.tmp", ".out.flab-4567cdef.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    (tmp_path / ".out.flab-89abcdef.tmp").write_text("half")
    for name in (".out.backup.tmp", ".other.flab-0123abcd.tmp", "out.flab-0123abcd.tmp"):
        (tmp_path / name).write_text("mine")
    import fcntl

    with (tmp_path / ".out.flab-89abcdef.tmp").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        sweep(tmp_path / "out")
        names = [".other.flab-0123abcd.tmp", ".out.backup.tmp", ".out.flab-89abcdef.tmp", "out.flab-0123abcd.tmp"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
    sweep(tmp_path / "out")
    assert not (tmp_path / ".out.flab-89abcdef.tmp").exists()


def test_an_old_folder_that_a_killed_run_had_moved_is_put_back(tmp_path):
    (tmp_path / ".out.flab-0123abcd.old").mkdir()
    (tmp_path / ".out.flab-0123abcd.old" / "plan.json").write_text("old")
    sweep(tmp_path / "out")
    assert (tmp_path / "out" / "plan.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_scratch_folder_goes_with_its_block_and_what_a_killed_run_left_of_one_goes_too(tmp_path):
    left = tmp_path / ".trial.flab-0123abcd.tmp"
    left.mkdir()
    (left / "config.json").write_text("half")
    with scratch_folder(tmp_path / "trial") as first, scratch_folder(tmp_path / "trial") as second:
        (first / "a").write_text("")
        assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_of_no_place_is_among_the_systems_and_clears_those_of_killed_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder() as killed:
        shutil.copytree(killed, tmp_path / ".scratch.flab-0123abcd.tmp")
    with scratch_folder() as mine:
        assert list(tmp_path.iterdir()) == [mine]
        assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [scratch_folder, new_folder, new_file])
def test_a_name_that_another_process_sweeps_before_it_is_locked_is_made_anew(make, tmp_path, monkeypatch):
    real = fcntl.flock
    swept = []

    def late(file, how):
        # Another process finds each of the first names unlocked, and removes it.
        monkeypatch.setattr(flab.files.temporary.fcntl, "flock", real)
        if how == fcntl.LOCK_EX and len(swept) < 3:
            swept.extend(tmp_path.iterdir())
            sweep(tmp_path / "out")
            monkeypatch.setattr(flab.files.temporary.fcntl, "flock", late)
        real(file, how)

    monkeypatch.setattr(flab.files.temporary.fcntl, "flock", late)
    with make(tmp_path / "out") as temporary:
        assert temporary.exists()
        assert temporary not in swept
    assert len(swept) == 3


def test_where_no_name_can_be_made_the_error_comes_at_once():
    with pytest.raises(FlabError, match="proc"), new_file(Path("/proc/flab.json")):
        pass


def test_a_folder_that_is_discarded_is_never_half_there(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "run.json").write_text("whole")

    def killed(folder, **_):
        assert not (tmp_path / "work").exists()
        assert (folder / "run.json").read_text() == "whole"

    with monkeypatch.context() as patch:
        patch.setattr(flab.files.shutil, "rmtree", killed)
        discard(tmp_path / "work")
    assert [path.name.startswith(".work.flab-") for path in tmp_path.iterdir()] == [True]
    sweep(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from flab.files import new_folder, write_text
out = Path(sys.argv[1])
print("ready", flush=True)
for number in range(10**9):
    text = str(number % 10) * 200_000
    write_text(out / "a.json", text)
    with new_folder(out / "folder", overwrite=True, foreign=lambda _: []) as folder:
        for name in "abc":
            (folder / name).write_text(text)
"""


def test_killed_at_any_moment_everything_is_whole_and_the_next_run_cleans_up(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(flab.files.__file__).parents[1])}
    for round_ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, env=environment, text=True
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.03 + 0.017 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if (tmp_path / "a.json").exists():
            assert len((tmp_path / "a.json").read_text()) == 200_000
        if (tmp_path / "folder").exists():
            texts = {(tmp_path / "folder" / name).read_text() for name in "abc"}
            assert len(texts) == 1
            assert len(texts.pop()) == 200_000
    write_text(tmp_path / "a.json", "end")
    with new_folder(tmp_path / "folder", overwrite=True, foreign=lambda _: []):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]


# --- every command passes it ---


@pytest.fixture
def read_only_model(pico_folder, tmp_path) -> Path:
    return shutil.copytree(pico_folder(), tmp_path / "M")


def flab_command(*arguments: object) -> tuple[int, str]:
    from flab.cli.app import main

    sys.argv = ["flab", *map(str, arguments)]
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0), ""


TASK = {"code": "def f(x):\n    return x\n", "input": "1", "output": "1", "id": "a"}
COMMANDS = {
    "plan": lambda m, d, o: ("plan", m, "--calibration", d, "-o", o, "--overwrite"),
    "prune": lambda m, d, o: ("prune", m, "--calibration", d, "-o", o, "--overwrite"),
    "eval": lambda m, d, o: ("eval", m, "--task", d.with_name("task.jsonl"), "-o", o, "--overwrite"),
    "measure": lambda m, d, o: ("measure", m, "-o", o, "--overwrite"),
    "data": lambda m, d, o: ("data", m, "--instructions", d, "--strategy", "reference", "-o", o, "--overwrite"),
    "sweep": lambda m, d, o: ("sweep", m, "--remove", "0.2", "--calibration", d, "-o", o),
    "text": lambda m, d, o: ("text", m, "-o", o),
    "demo": lambda m, d, o: ("demo", "-o", o),
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_command_writes_into_a_model(command, read_only_model, calibration_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", sys.argv)
    data = shutil.copyfile(calibration_file, tmp_path / "rows.jsonl")
    (tmp_path / "task.jsonl").write_text(json.dumps(TASK) + "\n")
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for name in ("model.safetensors", "config.json", "new.json", "new"):
        code, _ = flab_command(*COMMANDS[command](read_only_model, data, read_only_model / name))
        said = capsys.readouterr().err.strip().splitlines()
        assert code == 2, said
        assert len(said) == 1, said
        assert "is in the source model" in said[0] or "is in the folder of a model" in said[0]
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
