"""``--device``: auto is named once, what is not here is one clear line, and what no machine has is refused unloaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flab import Options
from flab.errors import OptionError
from flab.models import options
from flab.models.options import settled


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many CUDA devices; what is said."""
    said: list[str] = []
    monkeypatch.setattr(options, "say_once", said.append)

    def give(count: int) -> list[str]:
        monkeypatch.setattr(options, "cuda_devices", lambda: count)
        return said

    return give


def test_auto_is_the_cpu_where_there_is_no_other_and_says_nothing(machine):
    said = machine(0)
    assert settled(Options(device="auto")).device == "cpu"
    assert said == []


def test_auto_takes_cuda_where_there_is_one_and_says_so(machine):
    said = machine(2)
    assert settled(Options(device="auto")).device == "cuda"
    assert len(said) == 1
    assert said[0].startswith("device: cuda")


@pytest.mark.parametrize("name", ["cpu", "balanced", "cuda", "cuda:1"])
def test_a_named_device_stays_as_it_is(machine, name):
    machine(2)
    assert settled(Options(device=name)).device == name


@pytest.mark.parametrize(
    ("count", "name", "there"), [(0, "cuda", "none"), (0, "cuda:0", "none"), (2, "cuda:2", "cuda:0 to cuda:1")]
)
def test_a_device_that_is_not_here_is_one_line(machine, count, name, there):
    machine(count)
    with pytest.raises(OptionError, match=f"`device` {name}: torch sees {there} here"):
        settled(Options(device=name))


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "CPU", 3, None])
def test_a_name_of_no_device_is_refused(name):
    with pytest.raises(OptionError, match="`device`: got"):
        Options(device=name)


def test_waiting_threads_sleep_soon_and_threads_are_counted_before_torch_loads():
    script = (
        "import os, sys; from flab.cli import app\n"
        "for name in ('GOMP_SPINCOUNT', 'OMP_NUM_THREADS'): os.environ.pop(name, None)\n"
        "sys.argv = ['flab', '--threads', '3', 'info', '/no/such/model']\n"
        "try:\n    app.main()\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "assert os.environ['GOMP_SPINCOUNT'] == '1000' and os.environ['OMP_NUM_THREADS'] == '3'\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "no model folder" in done.stderr


def test_no_threads_are_refused(flab):
    from support.command import assert_refused

    assert_refused(flab("--threads", "0", "info", "x"), "--threads: got 0, allowed 1")
