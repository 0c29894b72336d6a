"""Verify a saved folder in a fresh process: does it load as stock, and is it what the plan says?

:func:`check` starts ``python -m flab.pruning.verify`` and reads its verdict, so nothing left over in memory can help the folder
pass. It repairs nothing; what is verified stands
in :mod:`flab.pruning.verify`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flab.errors import CheckpointError, OptionError

PROOF = "proof.json"


def check(
    folder: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    oldest: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """The verdict ``{ok, checks, loads_in}`` on a folder, reached in a fresh Python process.

    ``against`` is the original model: with it (and the folder's plan.json) the kept rows and untouched tensors are
    compared bit for bit. ``oldest`` is the Python of an environment with the oldest transformers that is to load the folder
    (4.57): its logits are compared with the proof; without it that check is not made, and the verdict says so.

    Raises:
        OptionError: ``oldest`` is no program.
        CheckpointError: the folder is no model folder, or the process ended without a verdict.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is no model folder (no config.json): give what `flab apply` or `flab prune` wrote."
        )
    if oldest is not None and shutil.which(oldest) is None:
        raise OptionError(
            f"--oldest-python {oldest} is no program: give the python of an environment with transformers 4.57."
        )
    command = [sys.executable, "-P", "-m", "flab.pruning.verify", str(path), str(against or ""), str(oldest or "")]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    try:
        verdict: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckpointError(f"checking {path} ended without a verdict (exit {done.returncode}): {last}") from None
    if "error" in verdict:
        raise CheckpointError(verdict["error"])
    return verdict


def write_proof(model: Any, folder: Path, refit: str, trained: bool = False) -> None:
    """Logits of the model in memory on fixed token ids, for the fresh process to compare with."""
    ids = probe_ids(model.config.vocab_size)
    proof = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "refit": refit,
        "trained": trained,
        "ids": ids,
        "logits": last_logits(model, ids),
    }
    (folder / PROOF).write_text(json.dumps(proof) + "\n")


def probe_ids(vocabulary: int) -> list[list[int]]:
    chooser = random.Random(0)
    return [[chooser.randrange(vocabulary) for _ in range(length)] for length in (3, 12, 24)]


def last_logits(model: Any, ids: list[list[int]]) -> list[list[float]]:
    """The first 64 logits after each probe."""
    import torch

    with torch.no_grad():
        device = model.get_input_embeddings().weight.device
        return [model(torch.tensor([row], device=device)).logits[0, -1, :64].float().tolist() for row in ids]


def ask_oldest(python: str, folder: Path, ids: list[list[int]], texts: Sequence[str]) -> dict[str, Any]:
    """What another interpreter's transformers makes of the folder, see :mod:`flab.models.oldest`; ``error`` if nothing."""
    command = [python, "-I", str(Path(__file__).parent / "models" / "oldest.py"), str(folder)]
    asked = json.dumps({"ids": ids, "texts": list(texts)})
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    try:
        made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return made
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"no answer (exit {done.returncode}): {last}"}
