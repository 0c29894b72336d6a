"""Calibration batches that the tests of the cuts and refits share."""

from __future__ import annotations

import pytest

from flab.pruning.calibration import CalibrationSet
from support.calibrated import data_for


@pytest.fixture(scope="module")
def data() -> CalibrationSet:
    return data_for()
