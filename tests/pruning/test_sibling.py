"""A plan on a sibling: choices replayed, weights its own, and what is no sibling refused with what differs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from flab import apply
from flab.errors import PlanError
from flab.models.checkpoint import fingerprint, load
from flab.pruning.pipeline import plan
from flab.pruning.plan import Plan
from flab.pruning.verify import verify
from support import pico


@pytest.fixture(scope="module")
def decided(pico_folder, recipe) -> Plan:
    return plan(pico_folder("qwen2"), recipe(remove=0.3, finalists=1, refit="residual"))


@pytest.fixture(scope="module")
def sibling(tmp_path_factory):
    return pico.build("qwen2", tmp_path_factory.mktemp("sibling") / "instruct", seed=1)


def test_choices_are_the_plans_and_weights_the_siblings(decided, sibling, tmp_path, capsys):
    out = apply(sibling, decided, tmp_path / "out", sibling=True)
    assert "replayed on a sibling" in capsys.readouterr().err
    written = Plan.read(out / "plan.json")
    assert (written.vocabulary, written.layers, written.width) == (decided.vocabulary, decided.layers, decided.width)
    assert written.refit == decided.refit
    assert written.model["sha256"] == fingerprint(sibling)
    assert decided.model["path"] in written.warnings[-1]
    assert written.kl_nats_per_token != decided.kl_nats_per_token
    found = verify(out, sibling)  # every kept row and untouched tensor is the sibling's
    assert found["ok"], found["checks"]


def test_its_kl_is_measured_on_itself(decided, sibling, tmp_path):
    refitted = Plan.read(apply(sibling, decided, tmp_path / "out", sibling=True) / "plan.json")
    assert 0 < refitted.kl_nats_per_token < 20
    cut = Plan.read(apply(sibling, decided, tmp_path / "cut", refit=False, sibling=True) / "plan.json")
    assert cut.kl_nats_per_token == decided.kl_nats_per_token
    assert "so was its KL" in cut.warnings[-1]


def test_the_plans_own_model_is_as_without_it(decided, pico_folder, tmp_path):
    folders = [apply(pico_folder("qwen2"), decided, tmp_path / f"{s}", sibling=s) for s in (False, True)]
    one, other = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert one == other


def test_another_model_is_refused_with_the_option_that_allows_it(decided, sibling, tmp_path):
    with pytest.raises(PlanError, match="`sibling`"):
        apply(sibling, decided, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "settings", "differs"),
    [
        ("qwen2", {"intermediate_size": 48}, "width 48"),
        ("qwen2", {"num_hidden_layers": 4}, "layers 4"),
        ("qwen2", {"tie_word_embeddings": False}, "parameters"),
        ("llama", {"tie_word_embeddings": True}, "model_type llama"),
    ],
)
def test_what_is_no_sibling_is_refused(family, settings, differs, decided, tmp_path):
    other = pico.build(family, tmp_path / "other", **settings)
    with pytest.raises(PlanError, match=differs):
        apply(other, decided, tmp_path / "out", sibling=True)


def swapped(folder, tokens: tuple[str, str]) -> None:
    """Swap the ids of two tokens in a folder's tokenizer."""
    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    one, other = tokens
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(data))


def test_other_tokens_are_refused(decided, sibling, tmp_path):
    other = shutil.copytree(sibling, tmp_path / "other")
    swapped(other, ("a", "b"))
    with pytest.raises(PlanError, match="its tokens are not those of"):
        apply(other, decided, tmp_path / "out", sibling=True)


def test_a_token_that_the_sibling_has_a_role_for_must_be_kept(decided, sibling, tmp_path):
    other = shutil.copytree(sibling, tmp_path / "other")
    gone = next(i for i in range(decided.vocabulary.before) if i not in decided.vocabulary.kept)
    token = load(other).tokenizer.id_to_token(gone)
    data = json.loads((other / "tokenizer.json").read_text())
    data["added_tokens"].append({**data["added_tokens"][-1], "id": gone, "content": token})
    (other / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match="has a role for"):
        apply(other, decided, tmp_path / "out", sibling=True)


def test_the_sibling_keeps_its_own_precision(decided, tmp_path):
    other = pico.build("qwen2", tmp_path / "other", seed=1, dtype=torch.bfloat16)
    out = apply(other, decided, tmp_path / "out", sibling=True)
    assert load(out).model.dtype == torch.bfloat16
