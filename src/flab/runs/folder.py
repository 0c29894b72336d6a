"""Record in a run's folder which stages are done, from which inputs, and what they cost.

A stage runs once, and again only if something that it reads has changed. The cost of a stopped attempt is added to the cost
of the next attempt at the same work. This module does not know the stages themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flab.errors import OptionError
from flab.files import PathLike, check_place, read_json, write_json
from flab.footprint.figures import Figure
from flab.footprint.power import Energy, metered
from flab.models.engines.store import fingerprint
from flab.models.memory import is_gpu, peak, reset_peak, resident_peak
from flab.progress import say_stage
from flab.runs.recipe_file import RecipeFile
from flab.version import __version__

RUN = "run.json"
SWEEP = "sweep.json"


@dataclass
class Run:
    """The folder of one run and the record of its stages."""

    recipe: RecipeFile
    folder: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    spent: dict[str, dict[str, Any]] = field(default_factory=dict)  # the cost of stopped attempts, by stage
    met: list[str] = field(default_factory=list)  # the stages of this recipe; the folder may have a record of others

    def stage(self, name: str, reads: Mapping[str, Any], output: Path, work: Callable[[], Mapping[str, Any]]) -> bool:
        """Do the work unless it has already been done on the same inputs. Return whether it was done now."""
        options = self.recipe.options
        where = {"dtype": options.dtype, "device": options.device.partition(":")[0]}
        digest = fingerprint({"flab": __version__, "stage": name, "options": where, "reads": _plain(reads)})
        self.met.append(name)
        before = self.stages.get(name)
        if before is not None and before.get("fingerprint") == digest and output.exists():
            say_stage(len(self.met), self.count, f"{name}: unchanged since {before['finished']}; {output} is kept")
            return False
        say_stage(len(self.met), self.count, f"{name}: {output}")
        if self.stages.pop(name, None) is not None:
            # The old record is removed first. Otherwise, if the run stopped right after it replaced the output, the old record
            # would describe the new output.
            self.save()
        reset_peak(options.device)
        report = self._metered(name, digest, work)
        used, how = resident_peak()
        self.stages[name] = {
            "fingerprint": digest,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **{key: value for key, value in self.spent.pop(name).items() if key != "fingerprint"},
            "peak_resident_bytes": used,
            "peak_memory_method": how,
            "peak_device_bytes": peak(options.device)[0] if is_gpu(options.device) else None,
            "output": str(output.relative_to(self.folder)),
            **report,
        }
        self.save()
        return True

    def _metered(self, name: str, digest: str, work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Do the work and add its cost to that of earlier stopped attempts. If this attempt stops too, keep the sum."""
        before = self.spent.get(name, {})
        # Only attempts with the same inputs count. Attempts with other settings contributed nothing to this output.
        before = before if before.get("fingerprint") == digest else {}
        start = time.perf_counter()
        energy = Energy()
        try:
            with metered(self.recipe.options.device, self.estimate) as energy:
                return work()
        finally:
            seconds = round(before.get("seconds", 0.0) + time.perf_counter() - start, 2)
            joules = energy.figure.plus(Figure(**before["energy"])) if before else energy.figure
            self.spent[name] = {"fingerprint": digest, "seconds": seconds, "energy": joules.to_json()}
            self.save()

    @property
    def count(self) -> int:
        """The number of stages in the recipe."""
        trains = self.recipe.data is not None and self.recipe.recover is not None
        models = 3 if trains else 2
        return 1 + 2 * trains + models + (self.recipe.measure is not None)

    @property
    def estimate(self) -> bool:
        """Whether energy may be estimated without a sensor."""
        return self.recipe.measure is not None and self.recipe.measure.estimate

    def save(self) -> None:
        """Replace ``run.json`` in one step, and create the folder if needed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = {"stages": self.stages, "met": self.met, "stopped": self.spent}
        write_json(self.folder / RUN, {"format": 1, "flab": __version__, **known})


def earlier(folder: Path, name: str, what: str) -> dict[str, Any] | None:
    """Return the record ``name`` of an earlier run in ``folder``, or None if it is new or empty.

    Raises:
        OptionError: ``folder`` is a file, contains something else, or lies in a model's folder.
    """
    check_place(folder)
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"-o {folder} is a file: give a folder for {what}.")
    if (folder / name).is_file():
        return read_json(folder / name, "give a new folder")
    if folder.is_dir() and any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise OptionError(f"-o {folder} is a folder but does not hold {what}: give a new one.")
    return None


def check_limit(limit: int | None, tasks: Sequence[PathLike]) -> None:
    """Raise OptionError if problems are limited but there is no task."""
    if limit is not None and not tasks:
        raise OptionError("`limit` limits the problems of a `task`: give a task, or leave it out.")


def known_stages(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the finished and stopped stages in a run's folder. Raise OptionError if it contains something else."""
    record = earlier(folder, RUN, "a run of a recipe") or {"stages": {}}
    if not isinstance(record.get("stages"), dict):
        raise OptionError(f"-o {folder} is a folder but does not hold a run of a recipe: give a new one.")
    return record["stages"], record.get("stopped", {})


def _plain(value: Any) -> Any:
    """Return the value as JSON would read it back, so that its digest is the same in a later process."""
    return json.loads(json.dumps(value, default=str))
