"""The sandbox: verdicts, limits, what a program can reach at each level, refusal, and what is left behind.

Each test runs at every isolating level there is here. Attacks are in ``test_attacks``, correct programs in
``test_correct``; both aim only at canaries that they make themselves. No test asserts a wall-clock time.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from flab.errors import SandboxError
from flab.sandbox import Job, Sandbox, Verdict, jail, probe
from flab.sandbox import runner as sandbox_module
from support.escapes import in_child

GOOD = "def add(a, b):\n    return a + b\n"
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4\n"
WRONG = "\ndef add(a, b):\n    return 0\n"


@pytest.fixture(scope="module", params=jail.launchers(), ids=lambda pair: pair[1].__name__)
def sandbox(request):
    found = Sandbox(*request.param)
    if (problem := probe(found)) is not None:
        pytest.skip(problem)
    return found


@pytest.fixture
def canary(tmp_path):
    """A file of ours that no program may read, change or find."""
    file = tmp_path / "canary.txt"
    file.write_text("intact")
    file.chmod(0o666)
    tmp_path.chmod(0o777)
    yield file
    assert file.read_text() == "intact"
    assert sorted(tmp_path.iterdir()) == [file]


def run(sandbox, program, test=TEST, **options):
    return sandbox.run(program, test, "add", **options)


@pytest.mark.parametrize(
    ("program", "outcome", "detail"),
    [
        (GOOD, "passed", ""),
        ("def add(a, b) return a", "syntax", "SyntaxError"),
        ("def add(a, b):\n    return 0\0", "syntax", "null bytes"),
        ('def add(a, b):\n    """unterminated', "syntax", "SyntaxError"),
        (
            "def add(a, b):\n    return a + c\n",
            "name",
            "NameError: name 'c' is not defined at: assert candidate(1",
        ),
        ("def sub(a, b):\n    return a - b\n", "name", "does not define add"),
        ("def add(a, b):\n    return a * b + 1\n", "assertion", "at: assert candidate(2, 2) == 4"),
        ("def add(a, b):\n    return a / 0\n", "exception", "ZeroDivisionError"),
        ("def add(a, b):\n    return add(a, b)\n", "exception", "RecursionError"),
        ("import no_such_module\n" + GOOD, "exception", "ModuleNotFoundError"),
        ("def add(a, b):\n    return int(input())\n", "exception", "EOFError"),
        ("def add(a, b):\n    raise SystemExit(0)\n", "exit", "SystemExit: 0"),
        (" \n", "empty", "empty"),
    ],
)
def test_verdicts(sandbox, program, outcome, detail):
    verdict = run(sandbox, program)
    assert verdict.outcome == outcome
    assert verdict.passed == (outcome == "passed")
    assert detail in verdict.detail
    assert verdict.cpu_seconds > 0 or outcome == "empty"


def test_all_levels_agree():
    programs = [GOOD, GOOD + WRONG, "def add(a, b):\n    import os\n    os._exit(0)\n"]
    jobs = [Job(program, TEST, "add") for program in programs]
    for level, launcher in [*jail.launchers(), ("rlimits", jail.bare_launcher)]:
        tried = Sandbox(level, launcher)
        if level == "rlimits" or probe(tried) is None:
            assert [one.outcome for one in tried.run_many(jobs)] == ["passed", "assertion", "exit"]


def test_programs_keep_what_honest_code_needs(sandbox):
    program = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport tempfile\n"
        "from concurrent.futures import ThreadPoolExecutor\n\n\n"
        "@dataclass\nclass Pair:\n    a: int\n    b: int\n\n\n"
        "def add(a, b):\n    print('working', 'é')\n    with tempfile.TemporaryFile() as file:\n"
        "        file.write(b'x')\n    with ThreadPoolExecutor(2) as pool:\n"
        "        return list(pool.map(lambda p: p.a + p.b, [Pair(a, b)]))[0]\n"
    )
    assert run(sandbox, program).passed


def test_the_tests_see_helpers_of_the_program(sandbox):
    program = "def helper(x):\n    return x\n\n" + GOOD
    assert run(sandbox, program, "def check(f):\n    assert helper(f(1, 1)) == 2\n").passed


def test_tests_without_check_run_as_they_are(sandbox):
    assert run(sandbox, GOOD, "assert add(1, 1) == 2").passed
    assert run(sandbox, GOOD + "check = print\n", "assert add(1, 1) == 3").outcome == "assertion"


def test_a_name_that_nobody_defines(sandbox):
    verdict = run(sandbox, GOOD, "def check(candidate):\n    assert candidate(1, 2) == helper(3)\n")
    assert (verdict.outcome, "helper" in verdict.detail) == ("name", True)


def test_chance_is_the_same_in_every_run(sandbox):
    program = "import random\ndef add(a, b):\n    raise ValueError(random.random())\n"
    test = "import random\ndef check(candidate):\n    candidate(random.random(), 0)\n"
    assert len({run(sandbox, program, test).detail for _ in range(3)}) == 1


def test_set_order_is_fixed(sandbox):
    program = "def add(a, b):\n    raise ValueError(list({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}))\n"
    assert len({run(sandbox, program).detail for _ in range(4)}) == 1


TOUCHES = {
    "read": "open({path!r}).read()",
    "write": "open({path!r}, 'w').write('broken')",
    "remove": "__import__('os').remove({path!r})",
    "list": "__import__('os').listdir({folder!r})",
    "create next to it": "open({folder!r} + '/new', 'w').close()",
    "symlink": "__import__('os').symlink({path!r}, '/tmp/s'); open('/tmp/s').read()",
    "project": "open({project!r}).read()",
    "process list": "__import__('os').listdir('/proc/1')",
    "old root": "open('/old' + {path!r}).read()",
    "etc": "open('/etc/passwd').read()",
}


@pytest.mark.parametrize("attack", TOUCHES.values(), ids=TOUCHES.keys())
def test_files_are_out_of_reach(sandbox, canary, attack):
    names = {"path": str(canary), "folder": str(canary.parent), "project": __file__}
    verdict = run(sandbox, f"{attack.format(**names)}\n{GOOD}")
    assert verdict.outcome == "exception"
    assert "No such file or directory" in verdict.detail


@pytest.mark.parametrize("folder", ["/", "/usr", "/usr/bin", "/dev", str(jail.interpreter().parent)])
def test_the_system_is_read_only(sandbox, folder):
    verdict = run(sandbox, f"open({folder!r} + '/flab-test-canary', 'w')\n{GOOD}")
    assert verdict.outcome == "exception"
    assert "Read-only file system" in verdict.detail or "Permission denied" in verdict.detail
    assert not Path(folder, "flab-test-canary").exists()


def test_the_home_shows_at_most_the_way_to_the_interpreter(sandbox):
    home = str(Path.home())
    test = f"import os\ntry:\n    found = os.listdir({home!r})\nexcept (FileNotFoundError, PermissionError):\n    found = []\n"
    interpreter = [part for part in jail.interpreter().parts if part not in Path(home).parts]
    test += f"assert add(1, 2) == 3\nassert set(found) <= set({interpreter!r}), found"
    assert run(sandbox, GOOD, test).passed


def test_mounts_cannot_be_undone(sandbox):
    """Neither at once nor from a namespace that the program opens: the filter refuses both."""
    attack = (
        "libc.unshare(0x10000000 | 0x20000)\n    done = [libc.mount(b'none', b'/usr', None, 32 | 4096, None),"
        " libc.umount2(b'/usr', 2), libc.chroot(b'/usr')]\n    print(*done)\n"
        "    open('/usr/flab-test-canary', 'w')\n    won = True"
    )
    program = (
        in_child(attack) + "\ndef add(a, b):\n    return a + b if done.stdout.split() == REFUSED else done.stdout\n"
    )
    assert run(sandbox, "REFUSED = ['-1', '-1', '-1', 'lost']\n" + program).outcome == "passed"


def test_the_temporary_folder_is_private_and_small(sandbox):
    program = (
        "import os\ndef add(a, b):\n    assert os.listdir('.') == [] and os.getcwd() == '/tmp'\n    at = 0\n"
        "    while True:\n        at += 1\n        open(f'file{at}', 'wb').write(bytes(8 * 2**20))\n"
    )
    for _ in range(2):  # the second run finds nothing of the first
        verdict = run(sandbox, program)
        assert verdict.outcome == "exception"
        assert "No space left" in verdict.detail


def test_a_file_cannot_outgrow_its_limit(sandbox):
    verdict = run(sandbox, "open('big', 'wb').write(bytes(20 * 2**20))\n" + GOOD)
    assert verdict.outcome in ("exception", "exit")


@pytest.mark.parametrize("address", ["('127.0.0.1', 9)", "('192.0.2.1', 80)"])
def test_the_network_is_out_of_reach(sandbox, address):
    verdict = run(sandbox, f"import socket\nsocket.create_connection({address}, 2)\n{GOOD}")
    assert verdict.outcome == "exception"
    assert "unreachable" in verdict.detail or "refused" in verdict.detail  # bubblewrap has a loopback of its own


def test_the_environment_is_empty(sandbox, monkeypatch):
    monkeypatch.setenv("FLAB_TEST_SECRET", "canary")
    assert run(sandbox, GOOD, "import os\nassert add(1, 2) == 3\nassert dict(os.environ) == {}").passed
    assert "FLAB_TEST_SECRET" not in jail.LAUNCH_ENV


def test_no_descriptor_of_ours_is_open(sandbox, canary):
    with canary.open("rb") as file:
        inherited = fcntl.fcntl(file, fcntl.F_DUPFD, 40)
        try:
            verdict = run(sandbox, f"import os\nos.read({inherited}, 1)\n{GOOD}")
        finally:
            os.close(inherited)
    assert "Bad file descriptor" in verdict.detail


def test_no_privileges(sandbox):
    program = (
        "import os\ndef add(a, b):\n    for act in (lambda: os.setgroups([1]), lambda: os.chroot('/usr'),\n"
        "                lambda: os.mknod('/tmp/disk', 0o60660, os.makedev(8, 0)), lambda: os.nice(-5)):\n"
        "        try:\n            act()\n        except OSError:\n            continue\n        return act\n"
        "    return a + b\n"
    )
    assert run(sandbox, program).passed


def test_endless_loops_meet_the_cpu_limit(sandbox):
    plain = "def add(a, b):\n    while True:\n        pass\n"
    deaf = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n" + plain
    patient = replace(sandbox, wall_factor=60.0)  # on a busy machine a second of CPU time takes long
    for program, place in ((plain, " at: assert candidate(1, 2) == 3"), (deaf, "")):
        verdict = run(patient, program, cpu_seconds=1)
        assert verdict.outcome == "timeout"
        assert verdict.detail == "more than 1 s of CPU time" + place
        assert verdict.cpu_seconds >= 0.9


def test_sleepers_meet_the_wall_limit_and_get_one_more_try(sandbox, monkeypatch):
    tried = []
    attempt = Sandbox._attempt

    def counting(self, job, *more):
        tried.append(job.program)
        return attempt(self, job, *more)

    monkeypatch.setattr(Sandbox, "_attempt", counting)
    sleeper = "import time\ndef add(a, b):\n    time.sleep(10**6)\n"
    jobs = [Job(program, TEST, "add") for program in (GOOD, sleeper, GOOD + WRONG)]
    quick = replace(sandbox, wall_factor=0.5)
    verdicts = quick.run_many(jobs, cpu_seconds=1)
    assert [one.outcome for one in verdicts] == ["passed", "timeout", "assertion"]
    assert "wall time" in verdicts[1].detail
    assert tried.count(sleeper) == 2
    assert len(tried) == 4


def test_memory_bombs(sandbox):
    sandbox = replace(sandbox, memory_bytes=2**28)
    verdict = run(sandbox, "def add(a, b):\n    return [bytearray(2**20) for _ in range(10**6)]\n")
    assert verdict.outcome == "memory"
    verdict = run(sandbox, "def add(a, b):\n    return 'x' * 2**40\n")
    assert verdict.outcome == "memory"


def test_fork_bombs(sandbox):
    program = (
        "import os\ndef add(a, b):\n    made = 0\n    while made < 200:\n"
        "        try:\n            child = os.fork()\n"
        "        except BlockingIOError:\n            raise ValueError('limit')\n        if not child:\n"
        "            import time\n            time.sleep(10**6)\n        made += 1\n"
    )
    verdict = run(sandbox, program)
    assert verdict.outcome in ("exception", "assertion")
    if os.geteuid() != 0 or sandbox.launcher.__name__.endswith("as_root"):
        assert verdict.detail.startswith("ValueError: limit")


def test_output_floods(sandbox):
    program = (
        "import os\ndef add(a, b):\n    for _ in range(200):\n        os.write(1, b'x' * 2**20)\n    return a + b\n"
    )
    assert run(sandbox, program).passed
    flood = (
        "import os\nfor fd in range(3, 64):\n    try:\n"
        "        os.write(fd, b'x' * 2**17)\n    except OSError:\n        pass\n"
    )
    assert not run(sandbox, flood + GOOD).passed


def test_details_are_safe_to_print(sandbox):
    verdict = run(sandbox, "def add(a, b):\n    raise ValueError('\\x1b[2J\\n\\r\\u202e' + 'y' * 10**6)\n")
    assert verdict.outcome == "exception"
    assert verdict.detail.isprintable()
    assert len(verdict.detail) < 1000


def processes_named(mark):
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if mark in line]


@pytest.mark.parametrize("ending", ["os._exit(0)", "pass", "time.sleep(10**6)"])
def test_daemons_die_with_the_run(sandbox, ending):
    mark = f"flab-daemon-{os.urandom(6).hex()}"
    program = (
        "import ctypes, os, signal, sys, time\n"
        "for number in (1, 2, 15):\n    signal.signal(number, signal.SIG_IGN)\n"
        "ctypes.CDLL(None).prctl(1, 0)\n"
        "if not os.fork():\n    os.setsid()\n    if os.fork():\n        os._exit(0)\n"
        f"    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(10**6)', {mark!r}])\n"
        f"os.wait()\ntry:\n    os.setsid()\nexcept OSError:\n    pass\ntime.sleep(0.2)\n{ending}\n"
    )
    run(replace(sandbox, wall_factor=1.0), program + GOOD, cpu_seconds=1)
    for _ in range(100):
        if not processes_named(mark):
            break
        subprocess.run(["sleep", "0.05"], check=True)
    assert processes_named(mark) == []


def test_nothing_is_left_in_our_temporary_folder(sandbox, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run(sandbox, GOOD)
    assert list(tmp_path.iterdir()) == []


def test_no_descriptors_leak_here(sandbox):
    run(sandbox, GOOD)
    before = len(list(Path("/proc/self/fd").iterdir()))
    sandbox.run_many([Job(program, TEST, "add") for program in (GOOD, WRONG, "import os; os._exit(0)")])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_refuses_without_namespaces(monkeypatch):
    monkeypatch.setattr(sandbox_module, "probe", lambda sandbox: "unshare: Operation not permitted")
    with pytest.raises(SandboxError, match=r"cannot be isolated.*Operation not permitted.*`unsandboxed`") as caught:
        Sandbox.detect()
    assert "\n" not in str(caught.value)
    weaker = Sandbox.detect(allow_unsandboxed=True)
    assert weaker.level == "rlimits"
    assert weaker.run(GOOD, TEST, "add").passed
    assert not weaker.run(WRONG, TEST, "add").passed


def test_refuses_off_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="Linux only"):
        Sandbox.detect()


def test_a_launcher_that_fails_is_no_failure_of_the_model():
    for command in (["sh", "-c", "echo no room >&2; exit 1", "sh"], ["/no/such/launcher"]):
        broken = Sandbox("namespaces", lambda packages, command=command: command)
        with pytest.raises(SandboxError, match=r"did not start: .*(no room|No such file|not found)"):
            broken.run(GOOD, TEST, "add")
        assert "did not start" in probe(broken)


def test_a_sandbox_that_does_not_isolate_fails_its_probe():
    assert "visible" in probe(Sandbox("namespaces", jail.bare_launcher))


def test_detects_the_best_level():
    works = [level for level, launcher in jail.launchers() if probe(Sandbox(level, launcher)) is None]
    if not works:
        pytest.skip("nothing isolates here")
    found = Sandbox.detect()
    assert found.level == works[0]
    assert found.run_many([]) == []
    assert Verdict(True, "passed") == Verdict(True, "passed", "", 0.0)


def test_mounts_below_bound_folders_are_sealed(monkeypatch):
    table = "1 0 0:1 / /usr/a\\040b rw - x x rw\n2 0 0:1 / /usrx rw - x x rw\n3 0 0:1 / /usr rw - x x rw\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **options: table)
    assert jail.mounts_below([Path("/usr")]) == [Path("/usr/a b")]
