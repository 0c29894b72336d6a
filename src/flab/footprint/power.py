"""Measure joules with a hardware counter if one can be read, or with an estimate if the user asks for it.

Counters include everything on their device, including idle power and other processes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flab.footprint.figures import Figure, unknown
from flab.footprint.settings import CODECARBON
from flab.models.memory import is_gpu

RAPL = Path("/sys/class/powercap")
# A RAPL counter wraps after 2^32 microjoules or more, at 70 W after a minute at the earliest.
POLL_SECONDS = 60.0


class Meter(Protocol):
    """Measures the joules between ``start`` and ``stop``. ``method`` describes how."""

    method: str

    def start(self) -> None: ...

    def stop(self) -> float: ...


class NvmlMeter:
    """The energy counters of the given GPUs (Volta or newer), by NVML."""

    def __init__(self, handles: list[Any]) -> None:
        import pynvml

        # In millijoules since the driver was loaded.
        self.read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        self.handles = handles
        self.method = f"measured: NVML energy counter of {len(handles)} GPU(s), without the rest of the machine"
        self.start()

    def start(self) -> None:
        self.before = [self.read(handle) for handle in self.handles]

    def stop(self) -> float:
        return float(sum(self.read(h) - b for h, b in zip(self.handles, self.before, strict=True))) / 1000.0


class RaplMeter:
    """The processor packages' energy counters in ``/sys/class/powercap``; overflows are handled."""

    method = "measured: RAPL counters of the processor packages, without memory, disks and fans"

    def __init__(self, domains: list[Path]) -> None:
        self.domains = domains
        self.ranges = [int((d / "max_energy_range_uj").read_text()) for d in domains]
        self._read()

    def _read(self) -> list[int]:
        return [int((d / "energy_uj").read_text()) for d in self.domains]

    def start(self) -> None:
        self.last = self._read()
        self.joules = 0.0
        self.ended = threading.Event()
        # A thread keeps reading the counters, because a window of several minutes could hide more than one wrap.
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def stop(self) -> float:
        self.ended.set()
        self.watcher.join()
        self._poll()
        return self.joules

    def _watch(self) -> None:
        while not self.ended.wait(POLL_SECONDS):
            try:
                self._poll()
            except OSError:
                self.joules = float("nan")
                return

    def _poll(self) -> None:
        now = self._read()
        # The counter starts at 0 again after its largest value; modulo its range the difference is right if it
        # wrapped once at most.
        gone = [(n - b) % (r + 1) for n, b, r in zip(now, self.last, self.ranges, strict=True)]
        self.joules = self.joules + sum(gone) / 1e6
        self.last = now


class EstimateMeter:
    """codecarbon's estimate: processor load times its design power, plus a fixed power for the memory."""

    method = "estimated: codecarbon, machine mode"

    def start(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        # codecarbon logs before it reads its log level.
        logging.getLogger("codecarbon").disabled = True
        self.tracker = OfflineEmissionsTracker(
            country_iso_code="FRA",  # a country is required, but its emissions are not used
            measure_power_secs=1,
            tracking_mode="machine",
            output_methods=[],
            log_level="critical",
            allow_multiple_runs=True,
            pue=1.0,
        )
        self.tracker.start()
        self.began = time.perf_counter()

    def stop(self) -> float:
        seconds = time.perf_counter() - self.began
        self.tracker.stop()
        data = self.tracker.final_emissions_data
        self.method = (
            f"estimated: codecarbon, machine mode ({data.cpu_model}, load x design power: {data.cpu_power:.1f} W; memory by "
            f"its size: {data.ram_power:.1f} W; GPUs: {data.gpu_power:.1f} W)"
        )
        # From the power and our own clock, because codecarbon's own sum may bill a second too much.
        power = float(data.cpu_power + data.ram_power + data.gpu_power)
        return power * seconds


@dataclass
class Energy:
    """The joules of a window; ``figure`` is set at its end."""

    figure: Figure = field(default_factory=lambda: unknown("J", "the window is not over"))


@contextmanager
def metered(device: str, estimate: bool) -> Iterator[Energy]:
    """Meter the block. Without a meter the figure has no value and gives the reason."""
    meter, why = find_meter(device, estimate)
    energy = Energy()
    if meter is None:
        energy.figure = unknown("J", why)
        yield energy
        return
    meter.start()
    try:
        yield energy
    finally:
        joules = meter.stop()
        still = "the counter did not move, or could not be read throughout"
        energy.figure = Figure(joules, "J", meter.method) if joules > 0 else unknown("J", still)


def find_meter(device: str, estimate: bool, rapl: Path = RAPL) -> tuple[Meter | None, str]:
    """Return the meter for a device, or None and the reason: NVML on CUDA, else RAPL, else codecarbon if ``estimate``."""
    meter, why = _nvml(device) if is_gpu(device) else _rapl(rapl)
    if meter is not None or not estimate:
        hint = "" if meter is not None else "; --estimate (in a recipe: `estimate: true`) lets codecarbon estimate it"
        return meter, why + hint
    try:
        import codecarbon  # noqa: F401
    except ImportError:
        return None, f"{why}; `estimate` needs codecarbon: {CODECARBON}"
    return EstimateMeter(), ""


def _nvml(device: str) -> tuple[Meter | None, str]:
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        index = device.partition(":")[2]
        used = [int(index)] if index else list(range(torch.cuda.device_count() if device == "balanced" else 1))
        uuids = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in used]
        return NvmlMeter([pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]), ""
    except (pynvml.NVMLError, RuntimeError, AssertionError, AttributeError) as error:
        return None, f"no energy counter of the GPU can be read ({error})"


def _rapl(root: Path) -> tuple[Meter | None, str]:
    domains = sorted(d for d in root.glob("intel-rapl:*") if d.name.count(":") == 1 and _name(d).startswith("package"))
    if not domains:
        return None, f"no power sensor: {root} has no energy counter of a processor"
    try:
        return RaplMeter(domains), ""
    except (OSError, ValueError) as error:
        return None, f"no power sensor can be read ({error})"


def _name(domain: Path) -> str:
    try:
        return (domain / "name").read_text().strip()
    except OSError:
        return ""
