"""flab: make code LLMs smaller under one parameter budget, and prove what was kept.

>>> import flab
>>> report = flab.prune("path/to/model", "path/to/smaller", flab.Recipe(remove=0.22))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flab.version import __version__

if TYPE_CHECKING:
    from flab.evaluation.evaluate import evaluate
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
    from flab.runs.report import make_report
    from flab.runs.sweep import sweep

_HOMES = {
    "check": "flab.pruning.check",
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
    "Training",
    "__version__",
    "apply",
    "check",
    "evaluate",
    "make_data",
    "make_report",
    "measure",
    "plan",
    "prune",
    "recover",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that ``import flab`` costs no torch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'flab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
