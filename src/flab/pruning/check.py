"""Check a saved folder in a fresh process: whether it loads as a stock model, and whether it is what the plan says.

:func:`check` starts ``python -m flab.pruning.verify``, which holds the checks, and reads its verdict. In a fresh process
nothing left over in memory can help the folder pass. Nothing is repaired. This module does not import torch, so a wrong
path is reported at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flab.errors import CheckpointError, OptionError
from flab.models.child import run_child
from flab.models.folder import read_if_there
from flab.models.probes import ProbeWalk
from flab.models.source import ModelFolder

PROOF = "proof.json"


def check(
    folder: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    oldest: str | os.PathLike[str] | None = None,
    engines: Sequence[str] = (),
    engines_python: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Return the verdict ``{ok, checks, loads_in}`` on a folder, reached in a fresh Python process.

    Args:
        against: the original model. With it (and the folder's plan.json) the kept rows and untouched tensors are compared
            bit for bit.
        oldest: the Python of an environment with the oldest supported transformers (4.57), whose logits are compared with
            the proof. Without it that check is skipped, and the verdict says so.
        engines: engines to run on the folder and compare with transformers. The verdict then has ``engines`` too, see
            :func:`flab.models.serving.compare.run_engines`.
        engines_python: the Python that runs the engines.

    Raises:
        OptionError: ``oldest`` or ``engines_python`` is not a program, or an engine is not known.
        CheckpointError: the folder is not a model folder, or the process ended without a verdict.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is not a model folder (no config.json): give one that `flab apply` or `flab prune` wrote."
        )
    # A weight file that is missing or cut off is found before a process is started.
    _ = ModelFolder.open(path).stored
    if oldest is not None and shutil.which(oldest) is None:
        raise OptionError(f"`oldest` {oldest} is not a program: name a Python that has transformers 4.57.")
    if engines:
        from flab.models.serving import check_names

        check_names(engines)
    if engines_python is not None and shutil.which(engines_python) is None:
        raise OptionError(f"`engines_python` {engines_python} is not a program: name a Python that has the engines.")
    # ``-P`` keeps the current folder out of the module path. A file there that is named like a library would be
    # imported instead of the library.
    command = [sys.executable, "-P", "-m", "flab.pruning.verify", str(path), str(against or ""), str(oldest or "")]
    done = run_child(command)
    try:
        # The verdict is the last line; libraries may print warnings before it.
        verdict: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckpointError(f"checking {path} ended without a verdict (exit {done.returncode}): {last}") from None
    if "error" in verdict:
        raise CheckpointError(verdict["error"])
    if engines:
        from flab.models.serving.compare import run_engines

        written = {one["text"]: one["ids"] for one in read_proof(path).get("tokens", {}).get("texts", [])}
        python = os.fspath(engines_python) if engines_python else None
        verdict["engines"] = run_engines(path, engines, python, written=written)
        verdict["ok"] = verdict["ok"] and all(found["ok"] is not False for found in verdict["engines"].values())
    return verdict


def write_proof(model: Any, folder: Path, refit: str, trained: bool = False, walk: ProbeWalk | None = None) -> None:
    """Write the saved model's logits on fixed token ids, and how its tokenizer splits fixed texts.

    A fresh process compares its own with both, on the day of writing or years later. ``walk`` has passed through all layers
    already. Without it the model is walked layer by layer, because its weights may lie in the files that were just written.
    """
    from tokenizers import Tokenizer

    from flab.models.tokenizer import record_tokens

    walk = walk or ProbeWalk(model).through_all()
    proof = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "refit": refit,
        "trained": trained,
        "ids": walk.ids,
        "logits": walk.logits(),
        "machine": walk.machine,
        "tokens": record_tokens(Tokenizer.from_file(str(folder / "tokenizer.json"))),
    }
    (folder / PROOF).write_text(json.dumps(proof) + "\n")


def read_proof(folder: Path) -> dict[str, Any]:
    """Return what :func:`write_proof` wrote, or an empty dict if flab did not write the folder."""
    return read_if_there(folder / PROOF)
