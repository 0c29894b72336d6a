"""One model in its own process, so that its memory can be measured: ``python -m flab.footprint.worker`` reads orders.

Each line of JSON on stdin gets one line of JSON on a separate pipe, which keeps out whatever a library prints. The first
line in is the setup (folder, options, settings), and its answer the sizes. Then follow ``time``, ``energy`` and the end of
the input.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flab.data.samples import read_samples
from flab.errors import FlabError
from flab.evaluation.bits_per_byte import GENERAL_TEXT, general_texts
from flab.footprint.power import find_meter, metered
from flab.footprint.settings import check_context
from flab.footprint.sizes import answer_flops, bytes_per_step, count_flops, size_figures, storage
from flab.models.checkpoint import fingerprint, open_model
from flab.models.engines.protocol import Encoded
from flab.models.engines.transformers import Batch
from flab.models.families import shape_of
from flab.models.memory import is_gpu, peak, reset_peak
from flab.models.options import Options

PR_SET_PDEATHSIG = 1


class Workbench:
    """A loaded model and its measurements."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.folder = Path(order["folder"])
        self.options = Options(**order["options"])
        self.prompt = int(order["prompt_tokens"])
        self.new = int(order["new_tokens"])
        self.text = order["text"]
        self.estimate = bool(order["estimate"])
        self.batch = 0
        reset_peak(self.options.device)
        # Python and torch take hundreds of megabytes before any model. They are measured separately.
        self.before = peak(self.options.device)[0]
        self.checkpoint, self.family = open_model(self.folder, self.options)
        self.loaded = peak(self.options.device)
        self.model = self.checkpoint.model
        check_context(self.model.config, self.prompt + self.new)

    def describe(self) -> dict[str, Any]:
        """Return the figures that need no clock."""
        import torch

        shape = shape_of(self.model, self.family)
        figures = {"storage_bytes": storage(self.folder)} | size_figures(self.model, self.family, shape, self.prompt)
        counted = count_flops(self.model, self.prompt)
        cuda = torch.cuda.get_device_name() if is_gpu(self.options.device) else None
        return {
            "sha256": fingerprint(self.folder),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "gpu": cuda,
            "no_meter": find_meter(self.options.device, self.estimate)[1],
            "figures": {name: figure.to_json() for name, figure in figures.items()},
            "flops_counted": counted,
            "step_bytes": bytes_per_step(self.model, self.family, self.prompt + self.new // 2),
            "answer_flops": answer_flops(self.model.config, shape, self.prompt, self.new),
            "before_bytes": self.before,
            "load_bytes": self.loaded[0],
            "memory_method": self.loaded[1],
            "text": self._characters(),
        }

    def _characters(self) -> dict[str, Any]:
        """Return tokens and characters of the sample of code."""
        path = self.text
        texts = [sample.text for sample in read_samples(Path(path))] if path else general_texts()
        tokens = sum(len(one.ids) for one in self.checkpoint.tokenizer.encode_batch(texts, add_special_tokens=False))
        return {"name": path or GENERAL_TEXT, "tokens": tokens, "characters": sum(map(len, texts))}

    def time(self, batch: int) -> dict[str, Any]:
        """Return the seconds to the first token and for the others, and the peak memory of both phases."""
        import torch

        device = self.options.device
        if batch != self.batch and is_gpu(device):
            torch.cuda.empty_cache()  # frees the memory of the last size, for the other model too
        self.batch = batch
        chooser = random.Random(0)
        # Random ids from a fixed seed. No end token is looked for, so every answer has its full length.
        rows = [
            Encoded([chooser.randrange(self.model.config.vocab_size) for _ in range(self.prompt)], self.new, (), 0)
            for _ in range(batch)
        ]
        with torch.inference_mode():
            work = Batch(self.model, rows, pad_id=0)
            everyone = list(range(batch))
            # The clock stops only when the device is idle. A reset in between separates the peaks of the two phases.
            reset_peak(device)
            self._wait()
            start = time.perf_counter()
            tokens_B = work.read_prompts().argmax(dim=-1)
            self._wait()
            first = time.perf_counter()
            prefill = peak(device)[0]
            reset_peak(device)
            resumed = time.perf_counter()
            for _ in range(self.new - 1):
                tokens_B = work.read_tokens(tokens_B, everyone).argmax(dim=-1)
            self._wait()
            end = time.perf_counter()
        return {
            "first": first - start,
            "rest": end - resumed,
            "prefill_bytes": prefill,
            "decode_bytes": peak(device)[0],
        }

    def _wait(self) -> None:
        import torch

        if is_gpu(self.options.device):
            for index in range(torch.cuda.device_count()):
                torch.cuda.synchronize(index)

    def energy(self, batch: int, seconds: float) -> dict[str, Any]:
        """Return the joules of answering for at least ``seconds`` seconds, and the tokens generated."""
        with metered(self.options.device, self.estimate) as energy:
            tokens = 0
            start = time.perf_counter()
            # Whole answers are repeated until the window is long enough for the counter to move evenly.
            while not tokens or time.perf_counter() - start < seconds:
                self.time(batch)
                tokens += batch * self.new
        return {"energy": energy.figure.to_json(), "tokens": tokens}


def answer(bench: Workbench | None, order: Mapping[str, Any]) -> tuple[Workbench | None, dict[str, Any]]:
    """Carry one order out."""
    import torch

    try:
        if bench is None:
            bench = Workbench(order)
            return bench, bench.describe()
        given = order["with"]
        return bench, bench.time(**given) if order["do"] == "time" else bench.energy(**given)
    except (torch.OutOfMemoryError, MemoryError):
        return bench, {"out_of_memory": True}
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return bench, {"out_of_memory": True}


def main() -> int:
    """Serve until the input or the parent process ends; answers go to the given file descriptor."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    out = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    bench: Workbench | None = None
    for line in sys.stdin:
        try:
            bench, said = answer(bench, json.loads(line))
        except FlabError as error:
            said = {"error": str(error), "kind": type(error).__name__}
        out.write(json.dumps(said) + "\n")
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
