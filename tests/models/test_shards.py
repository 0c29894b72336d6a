"""Files written tensor by tensor are those that safetensors and transformers write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flab.models import shards
from flab.models.checkpoint import load_model
from flab.models.families import family_of
from flab.models.shards import ShardWriter, layout
from support import pico


def test_a_file_is_the_one_of_safetensors_whatever_the_order(tmp_path):
    tensors = {
        "b": torch.randn(3, 5),
        "a.x": torch.randn(4).bfloat16(),
        "c": torch.randn(2, 2).half(),
        "é": torch.randn(7, 1),
    }
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    with ShardWriter(tmp_path, {name: tensor.to("meta") for name, tensor in tensors.items()}) as writer:
        for name in ("é", "c", "b", "a.x"):
            writer.write(name, tensors[name])
    assert not writer.missing
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [60_000, 10**9])
def test_shards_and_index_are_those_of_transformers(size, tied, tmp_path, monkeypatch):
    model = load_model(pico.build("qwen2", tmp_path / "model", dtype=torch.bfloat16, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    monkeypatch.setattr(shards, "SHARD_BYTES", size)
    (tmp_path / "ours").mkdir()
    with ShardWriter(tmp_path / "ours", layout(model, family_of(model.config))) as writer:
        writer.finish(model)
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / who).glob("*model*")} for who in ("ours", "theirs"))
    assert len(ours) == (1 if size == 10**9 else 4)
    assert ours == theirs


def test_a_tensor_of_another_shape_is_not_written(tmp_path):
    laid_out = {"a": torch.empty(2, 3, device="meta")}
    message = r"a: \(3, 2\), laid out as \(2, 3\)"
    with ShardWriter(tmp_path, laid_out) as writer, pytest.raises(AssertionError, match=message):
        writer.write("a", torch.ones(3, 2))


def test_files_are_readable_by_all_and_closed_at_the_end(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ShardWriter(tmp_path, {"a": torch.empty(1, device="meta")}):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644
