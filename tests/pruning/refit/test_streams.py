"""Streams that are kept change nothing."""

from __future__ import annotations

import pytest
import torch

from flab.models.families import head_of
from flab.models.layers import LayerRunner
from flab.pruning.refit.new_layer import Cut
from flab.pruning.refit.streams import Streams
from flab.pruning.refit.walk import Walk
from support.calibrated import fresh


@pytest.mark.parametrize("room", [2**30, 2_000_000, 0], ids=["all", "some", "nothing"])
def test_kept_streams_change_nothing(room, pico_folder, data):
    """Several walks over one model, each with other layers out: as they are without, to the bit."""
    model, family = fresh(pico_folder("qwen2"))
    runner, streams = LayerRunner(model, family), Streams(room)
    for kept in ([0, 1, 3], [0, 2, 4], [1, 2, 3], [0, 1, 3]):
        walks = [Walk(runner, Cut(kept, 32, "newton"), data.fit, data.compare, some) for some in (None, streams)]
        made = [list(walk) for walk in walks]
        assert walks[0].divergence(head_of(model, family)) == walks[1].divergence(head_of(model, family))
        for one, other in zip(*made, strict=True):
            assert one.neurons == other.neurons
            assert torch.equal(one.ffn_out, other.ffn_out)
    assert streams.num_bytes <= room
    assert (streams.num_bytes > 0) == (room > 0)


def test_kept_streams_are_made_once_and_let_go():
    streams, made = Streams(), []

    def make():
        made.append(1)
        return [torch.ones(2, 3, 4)]

    first = streams.get((0, "after"), make)
    first[0] = torch.zeros(1)  # a list of its own: the caller goes on with it
    assert torch.equal(streams.get((0, "after"), make)[0], torch.ones(2, 3, 4))
    assert len(made) == 1
    assert streams.num_bytes == 96
    streams.get((0, "before FFN"), make)
    streams.clear()
    assert streams.num_bytes == 0
    streams.get((0, "after"), make)
    assert len(made) == 3
