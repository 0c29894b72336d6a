"""A measured model in its own process, which gets one order at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from flab import errors
from flab.errors import FlabError
from flab.footprint.figures import Figure, MeteredAnswers, Timing
from flab.footprint.settings import Measuring
from flab.models.options import Options


class OutOfMemoryError(FlabError):
    """The model, or this many answers at once, do not fit into memory."""


@dataclass
class Subject:
    """A model in its own process, which ends with the context."""

    name: str
    folder: Path
    settings: Measuring
    options: Options

    def __enter__(self) -> Self:
        # Answers come through a separate pipe, because libraries print to stdout.
        here, there = os.pipe()
        command = [sys.executable, "-P", "-m", "flab.footprint.worker", str(there)]
        # The process has its own session, so that Ctrl-C reaches only this one, which then ends the other.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            pass_fds=[there],
        )
        os.close(there)
        self.answers = os.fdopen(here, encoding="utf-8")
        settings = self.settings
        try:
            self.facts = self._ask(
                folder=str(self.folder.resolve()),
                options=asdict(self.options),
                prompt_tokens=settings.prompt_tokens,
                new_tokens=settings.new_tokens,
                text=str(settings.text) if settings.text is not None else None,
                estimate=settings.estimate,
            )
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.answers.close()

    def _ask(self, **order: Any) -> dict[str, Any]:
        """Send one order and wait for its answer.

        Raises:
            FlabError: the process raised it, or ended.
            OutOfMemoryError: the order did not fit into memory.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            said: dict[str, Any] = json.loads(self.answers.readline())
        except (BrokenPipeError, ValueError):
            self.process.kill()
            code = self.process.wait()
            raise FlabError(
                f"the process that measures {self.folder} ended (exit {code}): see above, or try a smaller `max_batch`."
            ) from None
        if "error" in said:
            raise getattr(errors, said["kind"], FlabError)(said["error"])
        if "out_of_memory" in said:
            raise OutOfMemoryError(
                f"{self.folder} does not fit in memory here: use shorter prompts, or another `device`."
            )
        return said

    def time(self, batch: int) -> Timing:
        """Time one answer, or ``batch`` of them at once."""
        return Timing(**self._ask(**{"do": "time", "with": {"batch": batch}}))

    def energy(self, batch: int, seconds: float) -> MeteredAnswers:
        """Meter answers for at least ``seconds`` seconds."""
        said = self._ask(**{"do": "energy", "with": {"batch": batch, "seconds": seconds}})
        return MeteredAnswers(Figure(**said["energy"]), said["tokens"])
