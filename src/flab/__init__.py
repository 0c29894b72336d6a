"""flab: make code LLMs smaller under one parameter budget, and prove what was kept.

>>> import flab
>>> report = flab.prune("path/to/model", "path/to/smaller", flab.Recipe(remove=0.22))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flab.checking import check
    from flab.footprint.measure import measure
    from flab.footprint.settings import Measuring
    from flab.pipeline import apply, evaluate, plan, prune
    from flab.plans import Plan
    from flab.recipe import Options, Recipe
    from flab.recovery.data import make_data
    from flab.recovery.settings import Training
    from flab.recovery.strategies import Making
    from flab.recovery.train import recover
    from flab.reporting import make_report
    from flab.sweeping import sweep

_HOMES = {
    "check": "flab.checking",
    "apply": "flab.pipeline",
    "evaluate": "flab.pipeline",
    "measure": "flab.footprint.measure",
    "plan": "flab.pipeline",
    "prune": "flab.pipeline",
    "Plan": "flab.plans",
    "Options": "flab.recipe",
    "Recipe": "flab.recipe",
    "Measuring": "flab.footprint.settings",
    "make_report": "flab.reporting",
    "make_data": "flab.recovery.data",
    "Making": "flab.recovery.strategies",
    "Training": "flab.recovery.settings",
    "recover": "flab.recovery.train",
    "sweep": "flab.sweeping",
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
