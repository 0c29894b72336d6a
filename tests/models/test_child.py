"""Programs that are run for one answer: what goes in, what comes out, and that they end with flab."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flab.models.child import ENDS_WITH_PARENT, run_child


def test_the_input_goes_in_and_the_output_and_the_exit_code_come_out():
    code = "import os, sys; print(sys.stdin.read() + os.environ['WORD']); sys.exit(3)"
    done = run_child([sys.executable, "-c", code], "given ", {"WORD": "word"})
    assert (done.stdout, done.returncode) == ("given word\n", 3)


def test_a_system_without_setpriv_runs_it_all_the_same(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert run_child([sys.executable, "-c", "print(1)"]).stdout == "1\n"


def test_what_a_program_leaves_behind_ends_with_it():
    """A server that outlives its program holds its output open: neither does flab wait for it, nor does it stay."""
    sleeper = "import time; time.sleep(600)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {sleeper!r}]).pid)"
    left = int(run_child([sys.executable, "-c", code]).stdout)
    assert ends(left), "what the program started lives on"


@pytest.mark.skipif(shutil.which(ENDS_WITH_PARENT[0]) is None, reason="no setpriv here")
def test_a_killed_flab_takes_the_program_with_it(tmp_path):
    sleeper = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()) + ' '); time.sleep(600)"
    code = f"import sys; from flab.models.child import run_child; run_child([sys.executable, '-c', {sleeper!r}])"
    flab = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().endswith(" "):
        assert flab.poll() is None
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    flab.send_signal(signal.SIGKILL)
    flab.wait()
    assert ends(child), "the program lives on"


def ends(process: int) -> bool:
    """Wait ten seconds for a process to end; one that does not is killed."""
    for _ in range(200):
        if not is_running(process):
            return True
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    return False


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
