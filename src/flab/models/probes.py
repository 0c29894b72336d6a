"""Logits on fixed token ids, which compare a folder with the model in memory and with an older transformers.

No torch at import: the script for the older transformers is started as a program of its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flab.models.child import run_child

# Differences of logits that count as rounding, relative to the largest logit: on the same kind of machine, and on another.
# In bfloat16 a model of 28 layers differs by 0.09 between two ways to compute its attention on the same CPU.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3, "float16": 1e-3}
TOLERANCE_ELSEWHERE = {"float32": 1e-3, "bfloat16": 0.2, "float16": 2e-2}


def probe_ids(vocabulary: int) -> list[list[int]]:
    """Return three fixed rows of token ids, of 3, 12 and 24 tokens."""
    chooser = random.Random(0)
    return [[chooser.randrange(vocabulary) for _ in range(length)] for length in (3, 12, 24)]


def last_logits(model: Any, ids: list[list[int]]) -> list[list[float]]:
    """Return the first 64 logits after each row of ids."""
    import torch

    with torch.no_grad():
        device = model.get_input_embeddings().weight.device
        return [model(torch.tensor([row], device=device)).logits[0, -1, :64].float().tolist() for row in ids]


def machine_of(device: Any) -> str:
    """Return what decides how sums are rounded: the kind of device, and the version of PyTorch."""
    import torch

    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{device.type} {kind}, torch {torch.__version__}"


class ProbeWalk:
    """Rows of token ids on their way through a model's layers, which are in memory one at a time."""

    def __init__(self, model: Any) -> None:
        """Embed the fixed rows of ids."""
        import torch

        from flab.models.families import family_of
        from flab.models.layers import LayerRunner

        self.ids = probe_ids(model.config.vocab_size)
        self.runner = LayerRunner(model, family_of(model.config))
        # One text at a time: texts of one batch would be padded, and padding can move the last bits of the logits.
        self.states = [self.runner.embed_ids(torch.tensor([row])) for row in self.ids]

    def through(self, index: int, layer: Any) -> None:
        """Pass all rows through a layer that is in memory; ``index`` is its place in the model that the walk began with."""
        self.states = [self.runner.run(index, hidden, layer) for hidden in self.states]

    def through_all(self) -> ProbeWalk:
        """Pass all rows through all layers. Their weights may lie in files; each is read once."""
        import torch

        with torch.no_grad():
            for index in range(len(self.runner.layers)):
                with self.runner.at_work(index) as layer:
                    self.through(index, layer)
        return self

    @property
    def machine(self) -> str:
        """The kind of machine that computes the logits."""
        return machine_of(self.states[0].device)

    def logits(self) -> list[list[float]]:
        """Return the first 64 logits after each row."""
        import torch

        from flab.models.scorer import scorer_of

        head = scorer_of(self.runner.model)
        with torch.no_grad():
            return [head(self.runner.finish(hidden))[0, -1, :64].float().tolist() for hidden in self.states]


def same_logits(
    now: list[list[float]], then: list[list[float]], dtype: str, same_machine: bool = True
) -> tuple[bool, str]:
    """Compare logits within the rounding error of the dtype. Returns whether they agree, and the largest difference.

    Another kind of device, or another PyTorch, adds up in another order and therefore rounds differently.
    """
    tolerance = (TOLERANCE if same_machine else TOLERANCE_ELSEWHERE)[dtype]
    largest = max(abs(x) for row in then for x in row)
    error = max(abs(a - b) for row, old in zip(now, then, strict=True) for a, b in zip(row, old, strict=True))
    where = "" if same_machine else ", computed on another kind of machine"
    return error <= tolerance * max(largest, 1.0), f"largest difference {error:.2g}{where}"


def ask_oldest(python: str, folder: Path, ids: list[list[int]], texts: Sequence[str]) -> dict[str, Any]:
    """Load the folder with another interpreter's transformers, by the script :mod:`flab.models.oldest`.

    Returns what the script prints: ``version``, ``logits``, ``tokens`` and ``lost``, or ``error`` alone.
    """
    # ``-I``: the other interpreter must not see this one's PYTHONPATH, or it would import the transformers that
    # runs here.
    command = [python, "-I", str(Path(__file__).with_name("oldest.py")), str(folder)]
    asked = json.dumps({"ids": ids, "texts": list(texts)})
    done = run_child(command, asked)
    try:
        made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return made
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"no answer (exit {done.returncode}): {last}"}
