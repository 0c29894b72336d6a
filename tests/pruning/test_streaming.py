"""A model whose layers lie in files is cut to the same bytes as one in memory, and never is in memory whole."""

from __future__ import annotations

import errno
import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flab import Options, apply
from flab.errors import CheckpointError, OutputError
from flab.models import checkpoint, memory, shards
from flab.models.checkpoint import cast_parameters, load_model, one_layer_at_a_time, open_to_cut, save, torch_dtypes
from flab.models.families import FAMILIES, layers_of
from flab.models.folder import header_of
from flab.models.layers import LayerRunner
from flab.models.probes import ProbeWalk
from flab.models.shards import ShardWriter, layout
from flab.models.weights import Place, check_finite, filed, in_memory, pieces_of, place_of
from flab.pruning.cuts.layers import LayerSearch, by_kl
from flab.pruning.cuts.neurons import NEURON_CRITERIA, NeuronSearch
from flab.pruning.cuts.vocabulary import cut_vocabulary
from flab.pruning.pipeline import build, plan
from flab.pruning.refit.new_layer import Cut, Narrowing, cut_inside
from flab.pruning.surgeon import carve, layers_after, slice_layers
from support import pico
from support.calibrated import data_for

KEPT = [0, 1, 3, 4]


def cut_of(kind: str, experts: bool = False) -> Cut:
    before, after = (8, 5) if experts else (64, 40)
    inner = [sorted(random.Random(place).sample(range(before), after)) for place in range(len(KEPT))]
    # The experts that stay become narrower too.
    inside = [[sorted(random.Random(expert).sample(range(24), 16)) for expert in range(after)] for _ in KEPT]
    return Cut(KEPT, after, kind, neurons=inner, narrowing=Narrowing(16, neurons=inside) if experts else None)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def opened(source: Path, kind: str, in_files: bool):
    """Open a model; without a refit, which needs text of whole tokens, half of its vocabulary goes."""
    checkpoint, family = open_to_cut(source, Options(), "bfloat16" if kind == "none" else None, in_files=in_files)
    cut_vocabulary(
        checkpoint.model, family, list(range(0, pico.tokenizer().get_vocab_size(), 2 if kind == "none" else 1))
    )
    return checkpoint, family


def written_from_memory(source: Path, kind: str, folder: Path, dtype: str) -> dict[str, bytes]:
    """Cut a model in memory, and let transformers write it."""
    checkpoint, family = opened(source, kind, in_files=False)
    data = data_for(10)
    fit, compare = ([], []) if kind == "none" else (data.fit, data.compare)
    carve(checkpoint.model, family, cut_of(kind, bool(family.experts)), fit, compare)
    cast_parameters(checkpoint.model, dtype)
    checkpoint.model.save_pretrained(folder)
    return files_of(folder)


def written_from_files(source: Path, kind: str, folder: Path, dtype: str) -> dict[str, bytes]:
    checkpoint, family = opened(source, kind, in_files=True)
    model, cut = checkpoint.model, cut_of(kind, bool(family.experts))
    folder.mkdir()
    shapes = layout(model, family, torch_dtypes[dtype], layers_after(model, family, cut))
    walk = ProbeWalk(model)
    with ShardWriter(folder, shapes) as writer:

        def store(place, layer):
            if kind == "none":
                walk.through(cut.kept_layers[place], layer)
            writer.take(model, f"{family.layers}.{place}", layer, torch.device("cpu"))
            assert all(place_of(parameter) is not None for parameter in layer.parameters())

        if kind == "none":
            slice_layers(model, family, cut, store)
        else:
            data = data_for(10)
            carve(model, family, cut, data.fit, data.compare, done=store)
        cast_parameters(model, dtype)
        save(checkpoint, folder, None, writer)
    # The proof of a cut alone comes from the layers on their way to the files, and must be what the files give.
    assert kind != "none" or walk.logits() == ProbeWalk(model).through_all().logits()
    return files_of(folder)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_cut_from_files_is_the_cut_in_memory(family, tmp_path):
    source = pico.build(family, tmp_path / "model", dtype=torch.bfloat16)
    kind = "none"
    whole = written_from_memory(source, kind, tmp_path / "whole", "bfloat16")
    streamed = written_from_files(source, kind, tmp_path / "streamed", "bfloat16")
    assert streamed["model.safetensors"] == whole["model.safetensors"]
    assert streamed["generation_config.json"] == whole["generation_config.json"]
    theirs, ours = json.loads(whole["config.json"]), json.loads(streamed["config.json"])
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["simple", "residual", "newton", "reconstruction"])
def test_a_refit_from_files_is_the_refit_in_memory(kind, dtype, tmp_path):
    source = pico.build("llama", tmp_path / "model", dtype=torch_dtypes[dtype])
    whole = written_from_memory(source, kind, tmp_path / "whole", dtype)
    streamed = written_from_files(source, kind, tmp_path / "streamed", dtype)
    assert streamed["model.safetensors"] == whole["model.safetensors"]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixture_from_files_is_refitted_as_in_memory(family, tmp_path):
    source = pico.build(family, tmp_path / "model", dtype=torch.bfloat16)
    whole = written_from_memory(source, "residual", tmp_path / "whole", "bfloat16")
    streamed = written_from_files(source, "residual", tmp_path / "streamed", "bfloat16")
    assert streamed["model.safetensors"] == whole["model.safetensors"]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"drop_layers": (1,), "neuron_criterion": "activation"}),
        ("llama", {"neuron_criterion": "magnitude"}),
        ("qwen3_moe", {}),
        ("qwen2_moe", {"drop_layers": (1,), "expert_criterion": "frequency"}),
        ("qwen3_moe", {"width": 16}),
    ],
    ids=["residual", "activation", "magnitude", "experts", "shared experts", "narrower experts"],
)
def test_planning_with_one_layer_in_memory_decides_the_same(family, changes, pico_folder, recipe, tmp_path):
    source = pico_folder(family, dtype=torch.bfloat16)
    wanted = recipe(remove=0.3, refit="residual", **changes)
    plans = [build(source, tmp_path / str(one), wanted, Options(in_memory=one)) for one in ("model", "layer")]
    assert replace(plans[0], seconds={}) == replace(plans[1], seconds={})
    whole, streamed = (files_of(tmp_path / str(one)) for one in ("model", "layer"))
    assert [name for name in whole if name != "plan.json" and whole[name] != streamed.get(name)] == []


def test_planning_in_mixed_precision_with_one_layer_in_memory_decides_the_same(
    pico_folder, recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "cutting_dtype", lambda *_: checkpoint.MIXED)
    source = pico_folder("llama", dtype=torch.bfloat16)
    wanted = recipe(remove=0.3, refit="residual", layers=4)
    plans = [plan(source, wanted, Options(in_memory=one)) for one in ("model", "layer")]
    assert replace(plans[0], seconds={}) == replace(plans[1], seconds={})


def test_a_model_larger_than_memory_is_said_once(pico_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    memory.MEMINFO.write_text("MemTotal: 99 kB\nMemAvailable:  20 kB\n")
    assert one_layer_at_a_time(pico_folder("llama"), Options(device="cpu"))
    assert "0.0 GB are free: one layer at a time is read" in capsys.readouterr().err
    memory.MEMINFO.write_text("MemAvailable: 99000000 kB\n")
    assert not one_layer_at_a_time(pico_folder("llama"), Options(device="cpu"))
    assert one_layer_at_a_time(pico_folder("llama"), Options(device="cpu", in_memory="layer"))
    memory.MEMINFO.unlink()
    assert not one_layer_at_a_time(pico_folder("llama"), Options(device="cpu"))


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe", "qwen2_moe", "mixtral"])
def test_a_layer_is_in_memory_only_while_it_works(family, pico_folder):
    checkpoint, family = open_to_cut(pico_folder(family), Options(), in_files=True)
    layers = layers_of(checkpoint.model, family)
    assert len(list(filed(layers))) == len(list(layers.parameters()))
    runner = LayerRunner(checkpoint.model, family)
    with runner.at_work(2) as layer:
        assert not any(parameter.is_meta for parameter in layer.parameters())
        assert all(parameter.is_meta for parameter in layers[1].parameters())
    assert all(place_of(parameter) is not None for parameter in layers.parameters())


def test_damaged_weights_are_found_when_they_are_read(tmp_path):
    source = pico.build("llama", tmp_path / "model")
    model = load_model(source)
    model.model.layers[3].mlp.up_proj.weight[1, 2] = float("nan")
    model.save_pretrained(tmp_path / "damaged")
    name = "model.layers.3.mlp.up_proj.weight"
    file = tmp_path / "damaged" / "model.safetensors"
    shape = tuple(model.get_parameter(name).shape)
    place = Place(header_of(file), pieces_of(model, name, shape), shape, torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.up_proj\.weight holds NaN or infinite"):
        place.read(torch.float32)
    os.truncate(file, place.stored[name].start + 5)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight cannot be read \(the file has become shorter\)"):
        place.read(torch.float32)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        place.read(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_numbers_are_no_damage_and_infinite_ones_are(dtype):
    tensor = torch.full((3, 40), torch.finfo(dtype).max, dtype=dtype)  # their sum overflows
    check_finite(Path("model"), "w", tensor)
    for bad in (float("nan"), float("inf"), float("-inf")):
        tensor[1, 7] = bad
        with pytest.raises(CheckpointError, match="model: w holds NaN or infinite numbers"):
            check_finite(Path("model"), "w", tensor)


@pytest.mark.parametrize("criterion", ["fisher", "entropy"])
def test_a_criterion_that_reads_the_whole_model_says_so(criterion, pico_folder, capsys):
    checkpoint, family = open_to_cut(pico_folder("llama"), Options(), in_files=True)
    search = NeuronSearch(LayerRunner(checkpoint.model, family), data_for(10).fit, 0)
    NEURON_CRITERIA[criterion](search)
    assert "needs gradients through all layers: the whole model is read" in capsys.readouterr().err
    NEURON_CRITERIA[criterion](search)
    assert "is read" not in capsys.readouterr().err


def test_scoring_layers_reads_each_once_and_scores_as_in_memory(pico_folder, monkeypatch):
    batches = data_for(10).fit
    paths, read = [], []
    reading = Place.read
    monkeypatch.setattr(Place, "read", lambda place, dtype: read.append(id(place)) or reading(place, dtype))
    for in_files in (False, True):
        checkpoint, family = open_to_cut(pico_folder("llama"), Options(), in_files=in_files)
        search = LayerSearch(LayerRunner(checkpoint.model, family), batches)
        next(by_kl(search))
        paths.append(search.path)
    assert paths[0] == paths[1]
    # Once for the reference of all batches, and once for the scores of each.
    assert set(Counter(read).values()) == {1 + len(batches)}


def test_experts_that_go_are_not_read(pico_folder):
    checkpoint, family = open_to_cut(pico_folder("qwen3_moe"), Options(), in_files=True)
    layer = layers_of(checkpoint.model, family)[1]
    whole = in_memory(layer.mlp.experts.gate_up_proj)
    cut_inside(layer, family, [2, 5, 6])
    place = place_of(layer.mlp.experts.gate_up_proj)
    stored = [f"model.layers.1.mlp.experts.{e}.{name}_proj.weight" for name in ("gate", "up") for e in (2, 5, 6)]
    assert [piece.name for piece in place.pieces] == stored
    assert torch.equal(in_memory(layer.mlp.experts.gate_up_proj), whole[[2, 5, 6]])
    assert place_of(layer.mlp.gate.weight) is None  # one tensor holds the router's rows for all experts


@pytest.fixture(scope="module")
def decided(pico_folder, recipe):
    return plan(pico_folder("llama"), recipe(remove=0.3, refit="residual"))


@pytest.mark.parametrize("refit", [True, False])
def test_apply_writes_shards_that_hold_the_same_tensors(refit, decided, pico_folder, tmp_path, monkeypatch):
    source = pico_folder("llama")
    whole = files_of(apply(source, decided, tmp_path / "whole", refit=refit))
    monkeypatch.setattr(shards, "SHARD_BYTES", 60_000)
    parts = apply(source, decided, tmp_path / "parts", refit=refit)
    assert len(list(parts.glob("model-*-of-*.safetensors"))) > 2
    load_model(parts).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == whole["model.safetensors"]
    others = {name for name in whole if "safetensors" not in name}
    assert {name: whole[name] for name in others} == {name: files_of(parts)[name] for name in others}


def test_a_full_disk_is_one_error_and_leaves_nothing(decided, pico_folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"No space left on device\): nothing was left behind"):
        apply(pico_folder("llama"), decided, tmp_path / "out", refit=False)
    assert list(tmp_path.iterdir()) == []
