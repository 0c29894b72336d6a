"""Each kind of damage is found by the check it concerns; one run in a real fresh process."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from flab import apply, check
from flab.errors import CheckpointError
from flab.models.folder import INDEX
from flab.models.probes import machine_of
from flab.models.tokenizer import PROBES
from flab.pruning.pipeline import plan
from flab.pruning.verify import SAME_TOKENS, verify

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def source(pico_folder):
    return pico_folder("llama")


@pytest.fixture(scope="module")
def good(source, recipe, tmp_path_factory):
    decided = plan(source, recipe(remove=0.35, layers=4, finalists=1))
    return apply(source, decided, tmp_path_factory.mktemp("checked") / "good")


@pytest.fixture
def folder(good, tmp_path):
    """A copy to damage."""
    return shutil.copytree(good, tmp_path / "damaged")


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def failed(verdict) -> set[str]:
    return {line["name"] for line in verdict["checks"] if line["ok"] is False}


def test_a_good_folder_passes_in_a_fresh_process(good, source):
    verdict = check(good, source)
    assert verdict["ok"], verdict
    names = {line["name"] for line in verdict["checks"]}
    assert len(names) >= 10
    loads = verdict["loads_in"]
    assert set(loads) == {"transformers", "vllm", "llama.cpp", "k-quants", "quantised"}
    assert loads["transformers"]["ok"] is True
    assert loads["vllm"]["tensor_parallel_sizes"][0] == 1
    assert not loads["k-quants"]["ok"]
    assert "ids, which are new" in loads["llama.cpp"]["needs"]
    assert "ids are its own" in verify(source, None)["loads_in"]["llama.cpp"]["needs"]
    assert "hidden_size 32" in loads["k-quants"]["why"]


def test_weights_that_are_cut_off_are_found_without_a_process(folder, monkeypatch):
    monkeypatch.setattr("flab.pruning.check.run_child", lambda *_: pytest.fail("a process was started"))
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        check(folder)


def test_the_same_verdict_in_this_process(good, source):
    verdict = verify(good, source)
    assert verdict["ok"]
    assert not failed(verdict)


def test_a_missing_layer_is_found(folder):
    edit_json(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(CheckpointError, match=r"missing keys in the weights.*layers\.4"):
        verify(folder, None)


def test_a_surplus_layer_is_found(folder):
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="unexpected keys"):
        verify(folder, None)


@pytest.mark.parametrize(("file", "value"), [("generation_config.json", [2, 99_999]), ("config.json", 99_999)])
def test_an_eos_id_out_of_range_is_found(folder, file, value):
    edit_json(folder / file, eos_token_id=value)
    verdict = verify(folder, None)
    assert not verdict["ok"]
    assert "token ids lie inside the vocabulary" in failed(verdict)


def test_a_changed_weight_is_found_by_the_proof(folder):
    edit_weights(folder, lambda t: t["model.layers.1.mlp.down_proj.weight"].mul_(1.5))
    assert "logits equal those before saving" in failed(verify(folder, None))


def test_a_changed_weight_is_found_by_the_original(folder, source):
    (folder / "proof.json").unlink()
    edit_weights(folder, lambda t: t["model.layers.1.self_attn.q_proj.weight"].add_(1e-6))
    assert failed(verify(folder, source)) == {"tensors that no cut touches are the original's"}


def test_changed_embedding_rows_are_found(folder, source):
    edit_weights(folder, lambda t: t["lm_head.weight"].copy_(t["lm_head.weight"].roll(1, 0)))
    assert "kept embedding and head rows are the original's" in failed(verify(folder, source))


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "pytorch_model.bin", "modeling.py", INDEX])
def test_stale_and_pickled_files_are_found(folder, name):
    (folder / name).write_text("{}" if name.endswith("json") else "stale")
    verdict = verify(folder, None)
    assert failed(verdict) == {"only safetensors, no stale tokenizer files"}
    assert name in next(line["detail"] for line in verdict["checks"] if line["ok"] is False)


@pytest.mark.parametrize("damage", ["{", "[]", "[0, 1, 2]"])
def test_a_damaged_list_of_kept_tokens_is_found(folder, damage):
    (folder / "kept_tokens.json").write_text(damage)
    assert failed(verify(folder, None)) == {"kept tokens are those of the plan"}


@pytest.mark.parametrize("damage", ["{", "[]", '{"ids": 1}', '{"logits": [], "ids": []}'])
def test_a_damaged_proof_is_found(folder, source, damage):
    (folder / "proof.json").write_text(damage)
    unread = {SAME_TOKENS} if damage in ("{", "[]") else set()
    assert failed(verify(folder, None)) == {"logits equal those before saving"} | unread
    if damage in ("{", "[]"):
        with pytest.raises(CheckpointError, match=r"proof\.json (cannot be read as JSON|holds a list)"):
            verify(folder, source)


@pytest.mark.parametrize(
    ("machine", "moved", "ok"), [("cuda H200", 1e-4, True), ("cuda H200", 0.1, False), (None, 1e-4, False)]
)
def test_another_machine_may_round_otherwise(folder, machine, moved, ok):
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["machine"] == machine_of(torch.device("cpu"))
    largest = max(abs(x) for row in proof["logits"] for x in row)
    proof["machine"] = machine or proof["machine"]
    proof["logits"][0][0] += moved * max(largest, 1.0)
    (folder / "proof.json").write_text(json.dumps(proof))
    assert failed(verify(folder, None)) == (set() if ok else {"logits equal those before saving"})


@pytest.mark.parametrize("damage", ["", "[]", '{"tokenizer_class": "NoSuchTokenizer"'])
def test_a_tokenizer_that_only_autotokenizer_cannot_read_is_found(folder, source, damage):
    (folder / "tokenizer_config.json").write_text(damage)
    assert failed(verify(folder, source)) == {"AutoTokenizer is as true as the original's"}


def drop_token(folder, wanted) -> None:
    """Take one token and its merges out, and close the gap in the ids."""
    data = json.loads((folder / "tokenizer.json").read_text())
    vocab, added = data["model"]["vocab"], {t["content"] for t in data["added_tokens"]}
    gone = next(t for t in vocab if wanted(t) and t not in added)
    number = vocab.pop(gone)
    data["model"]["vocab"] = {t: i - (i > number) for t, i in vocab.items()}
    merges = data["model"]["merges"]
    data["model"]["merges"] = [m for m in merges if gone not in m and "".join(m) != gone]
    for token in data["added_tokens"]:
        token["id"] -= token["id"] > number
    (folder / "tokenizer.json").write_text(json.dumps(data))


def test_a_dropped_token_is_found(folder, source):
    drop_token(folder, lambda t: len(t) > 3)
    assert "kept tokens have the same text, probes the same split" in failed(verify(folder, source))


def test_a_dropped_byte_symbol_loses_text(folder, source):
    drop_token(folder, lambda t: len(t) == 1 and not t.isascii())
    assert "any text survives encode -> decode as before" in failed(verify(folder, source))


def test_a_changed_chat_template_is_found(folder, source):
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    assert failed(verify(folder, source)) == {"special ids and chat template are intact"}


def test_a_swapped_special_id_is_found(folder, source):
    ids = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    edit_json(folder / "generation_config.json", eos_token_id=ids[::-1])
    assert failed(verify(folder, source)) == {"special ids and chat template are intact"}


def test_sizes_other_than_planned_are_found(folder):
    made = json.loads((folder / "plan.json").read_text())
    edit_json(folder / "plan.json", parameters_after=made["parameters_after"] + 1)
    assert failed(verify(folder, None)) == {"sizes are those of the plan"}


def test_truncated_weights_are_found(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        verify(folder, None)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a model folder"):
        check(tmp_path)


def edit_tokenizer(folder, change) -> None:
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def split_as_gpt_2(data):
    data["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }


def lose_a_merge(data):
    first = data["model"]["merges"][0]
    data["model"]["merges"] = [merge for merge in data["model"]["merges"] if merge != first]


def swap(one, other):
    def change(data):
        vocabulary = data["model"]["vocab"]
        names = {index: token for token, index in vocabulary.items()}
        vocabulary[names[one]], vocabulary[names[other]] = other, one

    return change


def line_of(verdict, name) -> dict:
    return next(line for line in verdict["checks"] if line["name"] == name)


@pytest.mark.parametrize("damage", [split_as_gpt_2, swap(60, 61)])
def test_a_tokenizer_that_was_changed_after_writing_is_found_without_the_original(folder, damage):
    """Every engine reads the folder's tokenizer, so this fault is the same in all of them and in the reference."""
    edit_tokenizer(folder, damage)
    line = line_of(verify(folder, None), SAME_TOKENS)
    assert line["ok"] is False
    assert "is split differently from token" in line["detail"]


def swap_unused(data):
    """Exchange two tokens that no recorded text contains."""
    tokenizer = Tokenizer.from_str(json.dumps(data))
    used = {index for text in PROBES for index in tokenizer.encode(text).ids}
    rare = [index for index in data["model"]["vocab"].values() if index not in used]
    swap(*rare[-2:])(data)


@pytest.mark.parametrize("damage", [lose_a_merge, swap_unused])
def test_a_change_that_no_recorded_text_shows_is_found(folder, damage):
    edit_tokenizer(folder, damage)
    line = line_of(verify(folder, None), SAME_TOKENS)
    assert (line["ok"], line["detail"]) == (False, "its tokens or merges are not those that were written")


def test_a_folder_without_a_record_of_its_tokens_is_not_called_ok(folder):
    edit_tokenizer(folder, split_as_gpt_2)
    proof = json.loads((folder / "proof.json").read_text())
    del proof["tokens"]
    (folder / "proof.json").write_text(json.dumps(proof))
    line = line_of(verify(folder, None), SAME_TOKENS)
    assert line["ok"] is None
    assert "no record of it in proof.json" in line["detail"]


def test_a_tokenizer_that_transformers_wrote_again_is_still_the_same(folder):
    """Another order of keys and other defaults are no fault."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(folder)
    assert line_of(verify(folder, None), SAME_TOKENS)["ok"] is True


def test_an_error_of_the_fresh_process_is_one_line(folder):
    edit_json(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(CheckpointError, match="missing keys") as caught:
        check(folder)
    assert "\n" not in str(caught.value)


def test_a_foreign_folder_is_noted_not_failed(source):
    """A stock folder that flab did not write passes what can be said of it."""
    verdict = verify(source, source)
    assert verdict["ok"], failed(verdict)
    notes = [line["detail"] for line in verdict["checks"] if line["ok"] is None]
    assert any("no plan.json" in note for note in notes)
    assert any("no proof.json" in note for note in notes)


def test_a_check_that_was_not_made_is_not_called_ok(good):
    from flab.cli.prune import show_check
    from flab.progress import results

    verdict = verify(good, None)
    (line,) = [one for one in verdict["checks"] if one["name"] == "the oldest transformers gives the same"]
    assert line["ok"] is None
    assert "`oldest`" in line["detail"]
    with results.capture() as captured:
        show_check(verdict)
    shown = next(row for row in captured.get().splitlines() if "the oldest transformers" in row)
    assert "not checked" in shown
    assert "ok" not in shown.split()


FAKE = """#!{python}
import json, sys
asked = json.load(sys.stdin)
assert sys.argv[1] == "-I" and len(asked["texts"]) == 4
proof = json.load(open(sys.argv[3] + "/proof.json"))
made = {{"version": "4", "logits": proof["logits"], "tokens": {tokens}, "lost": []}}
{change}
print(json.dumps(made))
"""
ANSWERS = {
    "the same": ("", True),
    "other logits": ("made['logits'] = [[x + 1 for x in row] for row in proof['logits']]", False),
    "a lost weight": ("made['lost'] = ['lm_head.weight']", False),
    "other tokens": ("made['tokens'] = [[]] * 4", False),
    "an error": ("made = {'error': 'KeyError'}", False),
    "no answer": ("sys.exit('no transformers here')", False),
}


@pytest.mark.parametrize("kind", sorted(ANSWERS))
def test_what_the_oldest_transformers_says_is_compared(kind, good, tmp_path):
    change, ok = ANSWERS[kind]
    truth = Tokenizer.from_file(str(good / "tokenizer.json"))
    tokens = json.dumps([truth.encode(text, add_special_tokens=False).ids for text in PROBES])
    python = tmp_path / "python"
    python.write_text(FAKE.format(python=sys.executable, change=change, tokens=tokens))
    python.chmod(0o755)
    line = next(one for one in verify(good, None, str(python))["checks"] if one["name"].startswith("the oldest"))
    assert line["ok"] is ok, line


def test_the_script_for_another_interpreter_runs_as_a_program(good):
    """Here with this interpreter's own transformers, so the outcome must be the proof's."""
    line = next(one for one in verify(good, None, sys.executable)["checks"] if one["name"].startswith("the oldest"))
    assert line["ok"] is True, line


def test_untied_rows_of_a_tied_model_are_found(pico_folder, recipe, tmp_path):
    tied = pico_folder("qwen2")
    out = apply(tied, plan(tied, recipe(remove=0.3, finalists=1)), tmp_path / "out")
    edit_json(out / "config.json", tie_word_embeddings=False)
    edit_weights(out, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert {"kept embedding and head rows are the original's", "sizes are those of the plan"} <= failed(
        verify(out, tied)
    )


def test_a_model_with_nans_does_not_pass(folder):
    edit_weights(folder, lambda t: t["model.norm.weight"].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds NaN or infinite numbers"):
        verify(folder, None)
