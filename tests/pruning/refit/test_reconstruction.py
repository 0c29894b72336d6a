"""The reconstruction of whole layers: it finds weights that were disturbed, is refused by held-out rows, and is repeatable."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace

import pytest
import torch

from flab import Recipe, apply
from flab.errors import OptionError
from flab.models.checkpoint import load
from flab.pruning.pipeline import build
from flab.pruning.plan import Plan
from flab.pruning.refit import reconstruction
from flab.pruning.refit.reconstruction import Rows, reconstruct
from flab.pruning.verify import verify


def attention(dtype=torch.float32, seed=0):
    """A layer with more than matrices in a row: self-attention, a norm and an FFN."""
    torch.manual_seed(seed)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True, dtype=dtype)
    return layer.eval().requires_grad_(False)


def run(layer, hidden):
    """As a decoder runs: causal."""
    mask = torch.triu(torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool), 1)
    return layer(hidden, src_mask=mask)


def disturbed(layer, size=0.1):
    other = copy.deepcopy(layer)
    for p in other.parameters():
        p += size * torch.randn_like(p) * (p.pow(2).mean().sqrt() + 0.1)
    return other


def rows_for(target, batches=6, held=1):
    """The first batches are fitted, the last ones judge; a token of each weighs nothing."""
    made = []
    for n in range(batches):
        inputs = torch.randn(4, 12, 8)
        weight = torch.ones(4, 12)
        weight[0, -1] = 0
        judged = float(n >= batches - held)
        made.append(Rows(inputs, run(target, inputs), weight * (1 - judged), weight * judged))
    return made


@pytest.fixture
def many_epochs(monkeypatch):
    monkeypatch.setattr(reconstruction, "EPOCHS", 60)


def test_it_finds_its_way_back_to_a_disturbed_layer(many_epochs):
    truth = attention()
    start = disturbed(truth)
    rows = rows_for(truth)
    before = [p.clone() for p in start.parameters()]
    made, rate = reconstruct(start, run, rows, None)
    assert rate == reconstruction.RATES[0]
    assert reconstruction._error(made, run, rows) < 0.1 * reconstruction._error(start, run, rows)
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), made.parameters(), strict=True)]
    assert all(moved)
    assert not any(p.requires_grad or p.grad is not None for p in made.parameters())


def test_tokens_without_weight_are_not_seen(monkeypatch):
    monkeypatch.setattr(reconstruction, "EPOCHS", 2)
    truth = attention()
    start, rows = disturbed(truth), rows_for(truth)
    spoilt = []
    for one in rows:
        targets = one.targets.clone()
        targets[0, -1] = float("nan")
        spoilt.append(replace(one, targets=targets))
    first, second = (reconstruct(start, run, some, None) for some in (rows, spoilt))
    assert first[1] == second[1] > 0
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))


def test_rows_are_split_whole_and_in_order():
    rows = rows_for(attention(), 1, 0)[0]
    parts = list(rows.split(25))
    assert [len(part.inputs) for part in parts] == [2, 2]
    for name in ("inputs", "targets", "fitted", "held_out"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(rows, name))
    assert [len(part.inputs) for part in rows.split(3)] == [1, 1, 1, 1]  # a row longer than a step stays whole


def test_held_out_rows_refuse_what_only_fits():
    """They are what the start puts out already, so every step away is worse; all rates are tried first."""
    start = attention()
    rows = rows_for(start)
    rows = [replace(one, targets=one.targets + torch.randn(8)) if bool(one.fitted.any()) else one for one in rows]
    made, rate = reconstruct(start, run, rows, None)
    assert rate == 0.0
    assert made is start


def test_without_held_out_rows_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(reconstruction, "_fitted", None)
    start = attention()
    assert reconstruct(start, run, rows_for(start, held=0), None) == (start, 0.0)


def test_a_smaller_rate_is_taken_where_the_first_is_refused(monkeypatch):
    monkeypatch.setattr(reconstruction, "RATES", (50.0, 0.02))
    truth = attention()
    _, rate = reconstruct(disturbed(truth), run, rows_for(truth), None)
    assert rate == 0.02


def test_a_replay_gives_the_same_bits_without_held_out_rows():
    truth = attention()
    start, rows = disturbed(truth), rows_for(truth)
    made, rate = reconstruct(start, run, rows, None)
    blind = [replace(one, held_out=torch.zeros_like(one.held_out)) for one in rows]
    again, same = reconstruct(start, run, blind, rate)
    assert rate == same > 0
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("family", ["llama", "qwen2", "starcoder2", "granite", "gemma2"])
def test_apply_repeats_it_and_check_knows_what_it_touches(family, pico_folder, recipe, tmp_path, monkeypatch):
    """Held-out rows are made to agree: a random model has nothing that they would."""
    falling = itertools.count(0, -1)
    monkeypatch.setattr(reconstruction, "_error", lambda *_: next(falling))
    source = pico_folder(family)
    built = tmp_path / "built"
    decided = build(source, built, recipe(remove=0.5, refit="reconstruction"))
    assert len(decided.refit.reconstruction_rates) == decided.layers.after
    assert all(decided.refit.reconstruction_rates)
    assert json.loads((built / "proof.json").read_text())["refit"] == "reconstruction"
    applied = apply(source, decided, tmp_path / "applied")
    assert (built / "model.safetensors").read_bytes() == (applied / "model.safetensors").read_bytes()
    found = verify(built, source)
    assert found["ok"], found["checks"]
    place = next(n for n, rate in enumerate(decided.refit.reconstruction_rates) if rate)
    old = load(source).model.state_dict()[f"model.layers.{decided.layers.kept[place]}.self_attn.q_proj.weight"]
    assert not torch.equal(load(built).model.state_dict()[f"model.layers.{place}.self_attn.q_proj.weight"], old)


def test_check_still_sees_what_no_refit_should_have_touched(pico_folder, recipe, tmp_path):
    """The same plan by --no-refit: then attention is the original's, and a change of it is found."""
    source = pico_folder("qwen2")
    decided = build(source, tmp_path / "built", recipe(remove=0.5, refit="reconstruction"))
    cut = apply(source, decided, tmp_path / "cut", refit=False)
    assert verify(cut, source)["ok"]
    for name in ("model.safetensors", "proof.json"):
        (cut / name).write_bytes((tmp_path / "built" / name).read_bytes())
    proof = json.loads((cut / "proof.json").read_text())
    (cut / "proof.json").write_text(json.dumps(proof | {"refit": "none"}))
    assert not verify(cut, source)["ok"]


def test_check_tells_how_many_layers_it_compared(pico_folder, recipe, tmp_path, monkeypatch):
    """Without its proof a folder is judged by the plan; with every layer reconstructed nothing is left to compare."""
    falling = itertools.count(0, -1)
    monkeypatch.setattr(reconstruction, "_error", lambda *_: next(falling))
    source, built = pico_folder("qwen2"), tmp_path / "built"
    build(source, built, recipe(remove=0.5, refit="reconstruction"))
    (built / "proof.json").unlink()
    line = next(x for x in verify(built, source)["checks"] if x["name"].startswith("tensors that no cut"))
    assert (line["ok"], line["detail"][:11]) == (None, "every layer")
    (built / "proof.json").write_text("{}")
    assert not verify(built, source)["ok"]


def test_it_needs_the_attention():
    with pytest.raises(OptionError, match="`refit` reconstruction moves the attention"):
        Recipe(refit="reconstruction", output_projection=False)


def test_a_plan_of_before_has_no_rates(pico_folder, recipe, tmp_path):
    decided = build(pico_folder("qwen2"), tmp_path / "built", recipe(remove=0.3))
    values = json.loads((tmp_path / "built" / "plan.json").read_text())
    assert set(values["refit"].pop("reconstruction_rates")) == {0.0}
    (tmp_path / "old.json").write_text(json.dumps(values))
    assert Plan.read(tmp_path / "old.json").refit == replace(decided.refit, reconstruction_rates=[])
