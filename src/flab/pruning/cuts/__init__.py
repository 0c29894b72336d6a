"""The cuts: one file for each kind of unit, with the criteria that choose its units and the function that cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flab.models.layers import Batch, LayerRunner


@dataclass(frozen=True)
class CriterionInput:
    """The input of every criterion: the model layer by layer, the calibration batches, and a seed."""

    runner: LayerRunner
    batches: Sequence[Batch]
    seed: int = 0
