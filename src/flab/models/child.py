"""Run another program for one answer: a fresh Python that verifies, an older transformers, an engine, llama-quantize."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

ENDS_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")  # of util-linux


def run_child(
    command: Sequence[str], given: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with ``given`` as its input. It ends with this process, even if that is killed.

    Processes that it started end with it. On systems without ``setpriv`` it keeps running after a kill.
    """
    bound = ENDS_WITH_PARENT if shutil.which(ENDS_WITH_PARENT[0]) else ()
    # Its output goes into files, because a pipe would stay open as long as any process that it left behind.
    with (
        tempfile.TemporaryFile("w+") as source,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        source.write(given)
        source.seek(0)
        child = subprocess.Popen(
            [*bound, *command], stdin=source, stdout=out, stderr=err, env=environment, start_new_session=True
        )
        try:
            child.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(child.args, child.returncode, out.read(), err.read())
