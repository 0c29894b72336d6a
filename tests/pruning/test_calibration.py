"""Packing calibration windows into batches."""

from __future__ import annotations

import pytest
import torch

from flab.pruning.calibration import Window, calibration_set, thinned


@pytest.mark.parametrize(("wanted", "least", "most"), [(300, 150, 600), (10**9, 8000, 10**9), (1, 1, 120)])
def test_thinning_keeps_whole_rows_of_all_lengths(wanted, least, most):
    windows = [Window(list(range(1, 2 + n)), 0, n) for n in range(120) for _ in range(2)]
    data = calibration_set(windows, batch_tokens=1024)
    few = thinned(data, wanted)
    tokens = sum(batch.num_tokens for batch in few.fit)
    assert least <= tokens <= most
    assert not few.compare
    whole = {
        tuple(row[valid].tolist()) for batch in data.fit for row, valid in zip(batch.ids, batch.valid, strict=True)
    }
    for batch in few.fit:
        assert batch.ids.shape == batch.valid.shape == batch.answer.shape == batch.weight.shape
        for row, valid in zip(batch.ids, batch.valid, strict=True):
            assert tuple(row[valid].tolist()) in whole


def test_thinning_a_part_reaches_short_and_long_rows():
    windows = [Window(list(range(1, 2 + n)), 0, n) for n in range(120)]
    lengths = torch.cat([b.valid.sum(1) for b in thinned(calibration_set(windows, batch_tokens=1024), 600).fit])
    assert int(lengths.min()) < 40
    assert int(lengths.max()) > 80
