"""The script that kills flab sees every process that a killed command leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
# The command starts a process with a session of its own, is killed, and leaves it behind.
CHILD = f"""
import os, signal, subprocess, sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
import kill
kill.GRACE_SECONDS = 0.1
kill.adopt_orphans()
ready, told = os.pipe()
command = os.fork()
if not command:
    os.setsid()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    os.write(told, b"1")
    time.sleep(600)
os.read(ready, 1)
os.kill(command, signal.SIGKILL)
os.waitpid(command, 0)
found = kill.outliving()
while kill.living():
    time.sleep(0.01)
print(len(found), "time.sleep(600)" in found[0])
"""


def test_an_orphan_with_a_session_of_its_own_is_seen_and_ended():
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["1", "True"], done.stderr
