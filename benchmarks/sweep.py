"""A sweep of eight budgets against eight separate plans of the same budgets, in one run: seconds of processor and of clock,
their ratios, and the KLs. Processor time says more where other work shares the cores.

    python benchmarks/sweep.py

Both read the same bundled model and calibration. A plan lets three finalists be decided by their tests; a sweep decides by
KL and tries the winner on the tests, so the splits may differ: both are printed.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import flab
from flab import assets

BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def clocks() -> tuple[float, float]:
    """Seconds of processor, those of finished children included, and of clock."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used), time.perf_counter()


def main() -> int:
    """Run both and print one line for each budget."""
    model = assets.model_path()
    with tempfile.TemporaryDirectory() as folder:
        start = clocks()
        swept = flab.sweep(model, BUDGETS, Path(folder) / "sweep")
        together = [now - then for now, then in zip(clocks(), start, strict=True)]
    alone = [0.0, 0.0]
    for row in swept["budgets"]:
        start = clocks()
        plan = flab.plan(model, flab.Recipe(remove=row["remove"]))
        taken = [now - then for now, then in zip(clocks(), start, strict=True)]
        alone = [a + b for a, b in zip(alone, taken, strict=True)]
        print(
            f"{row['remove']:.0%}: sweep {row['layers']['after']} x {row['width']['after']}, KL {row['kl_nats_per_token']:.4f}, "
            f"tests {row['task_passed']}/{row['task_total']}; plan {plan.layers.after} x {plan.width.after}, KL "
            f"{plan.kl_nats_per_token:.4f}, {taken[1]:.0f} s",
            flush=True,
        )
    for name, one, other in zip(("processor", "clock"), together, alone, strict=True):
        print(f"{name}: sweep {one:.0f} s, eight plans {other:.0f} s: {one / other:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
