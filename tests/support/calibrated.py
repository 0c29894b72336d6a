"""Calibration batches of the pico grammar, and models loaded to be cut."""

from __future__ import annotations

from flab.data.samples import Sample
from flab.models.checkpoint import load
from flab.models.families import family_of
from flab.pruning.calibration import CalibrationSet, calibration_set, windows_of
from support import pico


def data_for(count: int = 30, batch_tokens: int = 512) -> CalibrationSet:
    samples = [Sample(r["prompt"], r["completion"]) for r in pico.calibration_rows(count)]
    return calibration_set(windows_of(samples, pico.tokenizer(), 64, None), batch_tokens)


def fresh(folder):
    model = load(folder).model
    return model, family_of(model.config)
