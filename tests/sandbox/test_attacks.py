"""Attacks on the sandbox: none passes, and nothing outside is touched.

``FORGERIES`` want a pass without solving the problem; ``ESCAPES`` want something outside, and solve the problem only
if they got it, so that a pass would be an escape; ``BOMBS`` want to use up the machine or to outstay the limits. All
aim only at canaries that the test makes: a file, a listener on loopback, two Unix sockets, a variable of the
environment and a child process. At level ``rlimits`` only the forgeries run: there it promises nothing else.
"""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from flab.sandbox import OUTCOMES, Sandbox, jail, probe
from support.escapes import BOMBS, ESCAPES, in_child
from support.forgeries import AT_THE_PARENT, FORGERIES, GOOD, LEFT_OUT, TEST
from support.liars import LEFT_OUT_LIARS, LIARS

LEVELS = {level: [pair for pair in jail.launchers() if pair[0] == level] for level in ("bubblewrap", "namespaces")}


def sandbox_at(level):
    if level == "rlimits":
        return Sandbox("rlimits", jail.bare_launcher)
    for name, launcher in LEVELS[level]:
        if probe(sandbox := Sandbox(name, launcher)) is None:
            return sandbox
    pytest.skip(f"{level} does not work here")


@pytest.fixture(scope="module", params=["bubblewrap", "namespaces"])
def isolated(request):
    return sandbox_at(request.param)


@pytest.fixture(scope="module", params=["bubblewrap", "namespaces", "rlimits"])
def sandbox(request):
    return sandbox_at(request.param)


@pytest.fixture
def canaries(tmp_path, monkeypatch, socket_enabled):
    """Make the canaries, hand out how to find them, and see afterwards that nothing touched them."""
    file = tmp_path / "canary.txt"
    file.write_text("intact")
    file.chmod(0o666)
    tmp_path.chmod(0o777)
    monkeypatch.setenv("FLAB_CANARY", "intact")
    mark = f"flab-{os.urandom(6).hex()}"
    addresses = [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, f"\0{mark}"), (socket.AF_UNIX, f"{tmp_path}/s")]
    listeners = [socket.socket(family) for family, _ in addresses]
    for listener, (_, address) in zip(listeners, addresses, strict=True):
        listener.bind(address)
        listener.listen()
        listener.setblocking(False)
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    yield {
        "path": str(file),
        "folder": str(tmp_path),
        "port": listeners[0].getsockname()[1],
        "mark": mark,
        "pid": child.pid,
        "own_pid": os.getpid(),
    }
    assert child.poll() is None
    child.kill()
    child.wait()
    for listener in listeners:
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.close()
    (tmp_path / "s").unlink()
    assert file.read_text() == "intact"
    assert list(tmp_path.iterdir()) == [file]


def attack(sandbox, program, test=TEST, **options):
    """Run an attack under small limits; it must fail, in a known way, and the sandbox must work afterwards."""
    small = replace(sandbox, memory_bytes=2**29, wall_factor=1.0)
    verdict = small.run(program, test, "add", cpu_seconds=1, **options)
    assert not verdict.passed
    assert verdict.outcome in OUTCOMES
    assert len(verdict.detail) < 1000
    assert verdict.detail.isprintable()
    return verdict


def parts(entry):
    return entry if isinstance(entry, tuple) else (entry, TEST)


def test_there_are_many_attacks():
    assert len(FORGERIES) + len(BOMBS) + len(ESCAPES) >= 40


@pytest.mark.parametrize("name", FORGERIES | LIARS)
def test_no_forgery_passes(sandbox, name):
    attack(sandbox, *parts((FORGERIES | LIARS)[name]))


@pytest.mark.parametrize("name", AT_THE_PARENT)
def test_nothing_reaches_the_parent(isolated, name):
    attack(isolated, AT_THE_PARENT[name])


@pytest.mark.parametrize("name", LEFT_OUT | LEFT_OUT_LIARS)
def test_what_is_not_promised_is_known(name):
    """These pass, as they do in plain Python; where one fails one day, the promise may grow."""
    assert sandbox_at("rlimits").run(*parts((LEFT_OUT | LEFT_OUT_LIARS)[name]), "add").passed


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_escapes(isolated, canaries, name):
    attack(isolated, in_child(ESCAPES[name].format(**canaries)))


@pytest.fixture(scope="module")
def bombed(isolated):
    """All bombs, many at once: most of them only wait for their limit."""
    with ThreadPoolExecutor(6) as pool:
        return {name: pool.submit(attack, isolated, *parts(entry)) for name, entry in BOMBS.items()}


@pytest.mark.parametrize("name", BOMBS)
def test_no_bomb_passes_or_hangs(bombed, name):
    bombed[name].result(timeout=60)


def test_the_sandbox_works_after_all_that(sandbox):
    assert sandbox.run(GOOD, TEST, "add").passed


def test_the_escapes_can_succeed(tmp_path):
    """Shows that the canaries can sing: outside, reading one gives the pass that an escape would give."""
    file = tmp_path / "canary.txt"
    file.write_text("intact")
    program = in_child(ESCAPES["read"].format(path=str(file)))
    assert sandbox_at("rlimits").run(program, TEST, "add").passed


def test_the_forgeries_can_succeed():
    """Shows that the forgeries are real: in plain Python most of those that equal everything do pass."""
    for name in ("always equal", "always near", "holds everything", "always equal list", "swallowing the assert"):
        program, test = parts(FORGERIES[name])
        names = {}
        exec(program, names)
        exec(test, names)
        names["check"](names["add"])


def test_the_pipes_end_with_the_program(isolated):
    """A child that outlives its parent does not keep the judge waiting."""
    program = "import os, time\nif not os.fork():\n    time.sleep(600)\nos._exit(0)\n"
    assert attack(isolated, program).outcome == "exit"
