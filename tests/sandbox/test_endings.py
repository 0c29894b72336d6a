"""Runs end when they must: with flab, even by SIGKILL, and on an interrupt; nothing stays behind at any level."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from flab.sandbox import Sandbox, jail, probe

TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
LEVELS = [*jail.launchers(), ("rlimits", jail.bare_launcher)]
SLEEPER = "import time\ndef add(a, b):\n    time.sleep(600)\n"
FLAB = """import sys
import flab.sandbox.jail as jail
from flab.sandbox import Job, Sandbox
jail.LAUNCH_ENV["PATH"] = sys.argv[3]
sandbox = Sandbox(sys.argv[1], getattr(jail, sys.argv[2]), workers=3)
print("ready", flush=True)
sandbox.run_many([Job(sys.argv[4], sys.argv[5], "add")] * 6, cpu_seconds=60)
print("done", flush=True)
"""


@pytest.fixture(params=LEVELS, ids=[launcher.__name__ for _, launcher in LEVELS])
def running(request):
    """Another flab that has three sleepers under way, and all processes that belong to it."""
    level, launcher = request.param
    if level != "rlimits" and (problem := probe(Sandbox(level, launcher))) is not None:
        pytest.skip(problem)
    words = [level, launcher.__name__, jail.LAUNCH_ENV["PATH"], SLEEPER, TEST]
    flab = subprocess.Popen(
        [sys.executable, "-c", FLAB, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert flab.stdout.readline() == "ready\n"
    yield flab, inner_processes(flab)
    flab.kill()
    flab.communicate()


def inner_processes(flab):
    """Wait until three interpreters of the sandbox run; return all that flab started."""
    for _ in range(600):
        found = psutil.Process(flab.pid).children(recursive=True)
        names = [one.name() for one in found if one.is_running()]
        if sum(name.startswith("python") for name in names) >= 3:
            return found
        time.sleep(0.05)
    raise AssertionError("the sandbox did not start")


def left_of(processes):
    """Wait until the processes are gone; return those that stay."""
    _, alive = psutil.wait_procs(processes, timeout=20)
    return [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_everything_dies_with_flab(running):
    flab, processes = running
    flab.kill()
    flab.wait()
    assert len(processes) >= 3
    assert left_of(processes) == []


def test_an_interrupt_ends_all_runs(running):
    flab, processes = running
    flab.send_signal(signal.SIGINT)
    out, error = flab.communicate(timeout=120)
    assert "KeyboardInterrupt" in error
    assert "done" not in out
    assert left_of(processes) == []


def test_no_group_stays_behind():
    from flab.sandbox.cgroup import group_home

    sandbox = Sandbox("rlimits", jail.bare_launcher)
    assert sandbox.run("def add(a, b):\n    return a + b\n", TEST, "add").passed
    home = group_home()
    assert home is None or not list(home.glob(f"flab-{os.getpid()}-*"))
