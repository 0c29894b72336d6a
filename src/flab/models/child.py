"""Another program for one answer: a fresh Python that verifies, an older transformers, an engine, llama-quantize."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence

ENDS_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")  # of util-linux


def run_child(
    command: Sequence[str], given: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with ``given`` as its input; it does not outlive this process, not even a killed one.

    Systems without ``setpriv`` leave it running.
    """
    bound = ENDS_WITH_PARENT if shutil.which(ENDS_WITH_PARENT[0]) else ()
    return subprocess.run([*bound, *command], input=given, capture_output=True, text=True, check=False, env=environment)
