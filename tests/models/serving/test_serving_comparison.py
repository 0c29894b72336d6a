"""The verdict on an engine from what it answered; no engine is run here."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from flab.errors import OptionError
from flab.models.checkpoint import load
from flab.models.serving import check_names, compare
from flab.models.serving.compare import NEW_TOKENS, NUM_PROMPTS, NUM_TEXTS, Reference, probe_prompts, probe_texts

TEXTS, TOKENS, PROMPTS = ["a", "b"], [[1], [2, 3]], [[4], [5]]


def judged(tokens=TOKENS, faults=(None, None), ties=(0, 0)):
    made = {"version": "1", "tokens": tokens, "answers": [[0], [1]]}
    verdicts = list(zip(faults, ties, strict=True))
    return compare.compare(made, TEXTS, TOKENS, PROMPTS, lambda prompt, answer: verdicts[answer[0]])


def test_the_same_is_right():
    verdict = judged()
    assert verdict["ok"]
    assert (verdict["same_texts"], verdict["same_answers"], verdict["ties"]) == (2, 2, 0)
    assert verdict["first_difference"] is None


def test_a_text_that_is_split_otherwise_is_named():
    verdict = judged(tokens=[[1], [2, 4]])
    assert not verdict["ok"]
    assert verdict["same_texts"] == 1
    assert verdict["first_difference"].startswith("'b' is split differently from token 1 on")


def test_an_answer_with_ties_is_right_and_counted_once():
    verdict = judged(ties=(3, 0))
    assert verdict["ok"]
    assert (verdict["same_answers"], verdict["ties"]) == (2, 1)


def test_a_fault_in_an_answer_is_named():
    verdict = judged(faults=(None, "token 3 is 1, not 2"))
    assert not verdict["ok"]
    assert verdict["same_answers"] == 1
    assert verdict["first_difference"] == "prompt 1: token 3 is 1, not 2"


def test_an_engine_without_a_tokeniser_is_judged_by_its_answers():
    verdict = judged(tokens=None)
    assert verdict["ok"]
    assert verdict["same_texts"] is None


def test_what_is_not_installed_was_not_run_and_what_broke_is_a_fault():
    missing, broken = (
        compare.compare(made, TEXTS, TOKENS, PROMPTS, lambda *_: (None, 0))
        for made in ({"error": "No module", "missing": True}, {"error": "bad file"})
    )
    assert (missing["ran"], missing["ok"]) == (False, None)
    assert (broken["ran"], broken["ok"], broken["why"]) == (True, False, "bad file")


def test_an_engine_that_is_not_installed_says_so(pico_folder):
    made = compare.ask("vllm", pico_folder(), ["a"], [[1, 2]], sys.executable)
    assert made["missing"]


def test_an_unknown_engine_is_refused():
    with pytest.raises(OptionError, match=r"got .sglang., allowed llama\.cpp"):
        check_names(["llama.cpp", "sglang"])


@pytest.fixture(scope="module")
def greedy(pico_folder):
    """A reference, a prompt, and the greedy answer that transformers itself gives."""
    checkpoint = load(pico_folder("llama"), "float32")
    prompt = probe_prompts(checkpoint)[0]
    made = checkpoint.model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return Reference.of(checkpoint), prompt, made[0, len(prompt) :].tolist()


def test_the_greedy_answer_is_right(greedy):
    reference, prompt, answer = greedy
    assert len(answer) == NEW_TOKENS
    assert reference.judge(prompt, answer) == (None, 0)


@pytest.mark.parametrize("place", [0, 5, NEW_TOKENS - 1])
def test_another_token_is_a_fault_where_the_reference_is_sure(greedy, place):
    reference, prompt, answer = greedy
    wrong = [*answer[:place], (answer[place] + 7) % 400, *answer[place + 1 :]]
    fault, _ = reference.judge(prompt, wrong)
    assert fault.startswith(f"token {place} is {wrong[place]}, not {answer[place]}")


def test_a_near_tie_is_no_fault_and_the_rest_is_still_judged(greedy, monkeypatch):
    reference, prompt, answer = greedy
    wrong = [(answer[0] + 7) % 400, *answer[1:]]
    monkeypatch.setattr(compare, "TIE", 10.0)
    assert reference.judge(prompt, wrong)[0] is None
    assert reference.judge(prompt, wrong)[1] >= 1


def test_an_answer_may_end_early_only_where_an_end_follows(greedy):
    reference, prompt, answer = greedy
    fault, _ = reference.judge(prompt, answer[:5])
    assert fault == f"it ends after 5 tokens, where {answer[5]} should follow"
    lenient = replace(reference, ends=frozenset({answer[5]}))
    assert lenient.judge(prompt, answer[:5]) == (None, 0)
    assert lenient.judge(prompt, answer[:6]) == (None, 0)
    assert reference.judge(prompt, [])[0] is not None


def test_a_text_is_judged_by_the_text_of_the_greedy_answer(greedy, monkeypatch):
    """For a server that gives no ids."""
    reference, prompt, _ = greedy
    made = reference.model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    ids = made[0, len(prompt) :].tolist()
    text = reference.tokenizer.decode(ids)
    assert reference.judge(prompt, text) == (None, 0)
    start = reference.tokenizer.decode(ids[:9]).rstrip("\ufffd")
    fault, ties = reference.judge(prompt, start + "~~~")
    assert ties == 0
    assert fault.startswith("its text differs from token ")
    assert int(fault.split()[5]) in range(8, 12)
    assert reference.judge(prompt, "")[0].startswith("its text differs from token ")
    monkeypatch.setattr(compare, "TIE", 10.0)
    assert reference.judge(prompt, start + "~~~") == (None, 1)


def test_the_ids_that_texts_had_when_the_folder_was_written_are_the_right_ones(pico_folder, monkeypatch):
    """A tokenizer that was changed since then misleads the engine and transformers alike."""
    folder = pico_folder("llama")
    texts = probe_texts()
    tokenizer = load(folder).tokenizer

    def agree(engine, folder, texts, *rest):
        return {"version": "1", "tokens": [tokenizer.encode(text).ids for text in texts], "answers": []}

    monkeypatch.setattr(compare, "ask", agree)
    monkeypatch.setattr(compare, "probe_prompts", lambda checkpoint: [])
    assert compare.run_engines(folder, ["vllm"])["vllm"]["ok"]
    found = compare.run_engines(folder, ["vllm"], written={texts[0]: [1, 2, 3]})["vllm"]
    assert found["same_texts"] == NUM_TEXTS - 1
    assert found["first_difference"].endswith("not [1, 2, 3]")


def test_there_are_as_many_probes_as_promised(pico_folder):
    texts = probe_texts()
    assert len(texts) == NUM_TEXTS
    assert len(set(texts)) > 0.9 * NUM_TEXTS
    prompts = probe_prompts(load(pico_folder("llama")))
    assert len(prompts) == NUM_PROMPTS
    assert all(0 < len(prompt) <= 64 for prompt in prompts)
