"""flab: make code LLMs smaller under one parameter budget, and prove what was kept.

>>> import flab
>>> report = flab.prune("path/to/model", "path/to/smaller", flab.Recipe(remove=0.22))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flab.version import __version__

if TYPE_CHECKING:
    from flab.evaluation.compare import compare_runs as compare
    from flab.evaluation.evaluate import evaluate
    from flab.evaluation.prompts import Settings
    from flab.footprint.measure import measure
    from flab.footprint.settings import Measuring
    from flab.models.options import Options
    from flab.pruning.check import check
    from flab.pruning.pipeline import apply, plan, prune
    from flab.pruning.plan import Plan
    from flab.pruning.recipe import Recipe
    from flab.recovery.data import make_data
    from flab.recovery.settings import Training
    from flab.recovery.strategies import Making
    from flab.recovery.train import recover
    from flab.runs.info import info
    from flab.runs.report import make_report
    from flab.runs.report import make_report as report
    from flab.runs.stages import run
    from flab.runs.sweep import sweep

# Where each public name lives. ``__getattr__`` below imports it on first use, because torch takes five seconds
# to import.
_HOMES = {
    "check": "flab.pruning.check",
    "compare": "flab.evaluation.compare:compare_runs",
    "info": "flab.runs.info",
    "report": "flab.runs.report:make_report",
    "run": "flab.runs.stages",
    "Settings": "flab.evaluation.prompts",
    "apply": "flab.pruning.pipeline",
    "evaluate": "flab.evaluation.evaluate",
    "measure": "flab.footprint.measure",
    "plan": "flab.pruning.pipeline",
    "prune": "flab.pruning.pipeline",
    "Plan": "flab.pruning.plan",
    "Options": "flab.models.options",
    "Recipe": "flab.pruning.recipe",
    "Measuring": "flab.footprint.settings",
    "make_report": "flab.runs.report",
    "make_data": "flab.recovery.data",
    "Making": "flab.recovery.strategies",
    "Training": "flab.recovery.settings",
    "recover": "flab.recovery.train",
    "sweep": "flab.runs.sweep",
}
__all__ = [
    "Making",
    "Measuring",
    "Options",
    "Plan",
    "Recipe",
    "Settings",
    "Training",
    "__version__",
    "apply",
    "check",
    "compare",
    "evaluate",
    "info",
    "make_data",
    "make_report",
    "measure",
    "plan",
    "prune",
    "recover",
    "report",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that ``import flab`` costs no torch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'flab' has no attribute {name!r}")
    module, _, other = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), other or name)
