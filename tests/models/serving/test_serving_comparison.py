"""The verdict on an engine from what it answered; no engine is run here."""

from __future__ import annotations

import sys

import pytest

from flab.errors import OptionError
from flab.models.checkpoint import load
from flab.models.serving import check_names, compare
from flab.models.serving.compare import NEW_TOKENS, NUM_PROMPTS, NUM_TEXTS, Step, greedy, probe_prompts, probe_texts

TEXTS, TOKENS = ["a", "b"], [[1], [2, 3]]
REFERENCE = [[Step(5, 6, 0.3), Step(7, 8, 1e-5), Step(9, 1, 0.2)], [Step(4, 2, 0.5)]]


def judged(tokens=TOKENS, answers=((5, 7, 9), (4,))):
    made = {"version": "1", "tokens": tokens, "answers": [list(answer) for answer in answers]}
    return compare.compare(made, TEXTS, TOKENS, REFERENCE)


def test_the_same_is_right():
    verdict = judged()
    assert verdict["ok"]
    assert (verdict["same_texts"], verdict["same_answers"], verdict["ties"]) == (2, 2, 0)
    assert verdict["first_difference"] is None


def test_a_text_that_is_split_otherwise_is_named():
    verdict = judged(tokens=[[1], [2, 4]])
    assert not verdict["ok"]
    assert verdict["same_texts"] == 1
    assert verdict["first_difference"].startswith("'b' is split otherwise from token 1 on")


def test_a_tie_is_right_and_counted_and_what_follows_it_is_not_compared():
    verdict = judged(answers=((5, 8, 0), (4,)))
    assert verdict["ok"]
    assert (verdict["same_answers"], verdict["ties"]) == (2, 1)


@pytest.mark.parametrize("answer", [(6, 7, 9), (5, 3, 9), (5, 7, 1)])
def test_another_token_is_a_fault_where_the_reference_is_sure(answer):
    verdict = judged(answers=(answer, (4,)))
    assert not verdict["ok"]
    assert verdict["same_answers"] == 1
    assert verdict["first_difference"].startswith("prompt 0: token")


def test_an_answer_may_end_early_but_not_be_empty():
    assert judged(answers=((5,), (4,)))["ok"]
    assert judged(answers=((), (4,)))["first_difference"] == "prompt 0: no answer"


def test_an_engine_without_a_tokeniser_is_judged_by_its_answers():
    verdict = judged(tokens=None)
    assert verdict["ok"]
    assert verdict["same_texts"] is None


def test_what_is_not_installed_was_not_run_and_what_broke_is_a_fault():
    missing = compare.compare({"error": "No module", "missing": True}, TEXTS, TOKENS, REFERENCE)
    assert (missing["ran"], missing["ok"]) == (False, None)
    broken = compare.compare({"error": "bad file"}, TEXTS, TOKENS, REFERENCE)
    assert (broken["ran"], broken["ok"], broken["why"]) == (True, False, "bad file")


def test_an_engine_that_is_not_installed_says_so(pico_folder):
    made = compare.ask("vllm", pico_folder(), ["a"], [[1, 2]], sys.executable)
    assert made["missing"]


def test_an_unknown_engine_is_refused():
    with pytest.raises(OptionError, match=r"got .sglang., allowed llama\.cpp"):
        check_names(["llama.cpp", "sglang"])


def test_the_reference_is_what_generate_gives(pico_folder):
    checkpoint = load(pico_folder("llama"), "float32")
    prompt = probe_prompts(checkpoint)[0]
    steps = greedy(checkpoint.model, prompt)
    import torch

    made = checkpoint.model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert [step.best for step in steps] == made[0, len(prompt) :].tolist()
    assert all(step.second != step.best and step.lead >= 0 for step in steps)


def test_there_are_as_many_probes_as_promised(pico_folder):
    texts = probe_texts()
    assert len(texts) == NUM_TEXTS
    assert len(set(texts)) > 0.9 * NUM_TEXTS
    prompts = probe_prompts(load(pico_folder("llama")))
    assert len(prompts) == NUM_PROMPTS
    assert all(0 < len(prompt) <= 64 for prompt in prompts)
