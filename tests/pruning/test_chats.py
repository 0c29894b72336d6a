"""Chats in a model's own template: every stage sees the ids that a server makes of the request."""

from __future__ import annotations

import json

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from flab.data.samples import Sample, sample_of
from flab.errors import OptionError
from flab.evaluation.prompts import requests_for
from flab.evaluation.tasks import Problem, make_task
from flab.models.chat import chat_template, continued
from flab.models.engines.protocol import Request, encode_requests
from flab.pruning.calibration import in_template, special_prefix, windows_of
from flab.recovery.examples import make_examples
from support import pico

BOS = "<|endoftext|>"
TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
)
PLAIN = TURNS + "{% endif %}"
OPENS = TURNS + "{{ '<think>\n' }}{% endif %}"
CHOOSES = TURNS + "{% if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Sort items."},
    {"role": "assistant", "content": "Which?"},
    {"role": "user", "content": "These words."},
    {"role": "assistant", "content": "return sorted(values)"},
]


def made(folder, template, has_bos):
    """A folder with a template, its tokenizer, and the tokenizer as transformers has it."""
    own = pico.tokenizer()
    tokenizer = type(own).from_str(own.to_str())
    if has_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=None, special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS, "eos_token": "<|im_end|>"}))
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token="<|im_end|>")
    theirs.chat_template = template
    return tokenizer, theirs


@pytest.mark.parametrize("template", [PLAIN, "{{ bos_token }}" + PLAIN], ids=["no start written", "start written"])
@pytest.mark.parametrize("has_bos", [False, True], ids=["no BOS", "BOS"])
def test_every_stage_sees_what_a_server_sends(tmp_path, template, has_bos):
    tokenizer, theirs = made(tmp_path, template, has_bos)
    served = theirs.apply_chat_template(MESSAGES[:-1], add_generation_prompt=True, return_dict=False)
    whole = theirs.apply_chat_template(MESSAGES, return_dict=False)
    whole = whole[: len(whole) - 1 - whole[::-1].index(tokenizer.token_to_id("<|im_end|>")) + 1]
    assert whole[: len(served)] == served

    row = sample_of({"messages": MESSAGES}, "rows.jsonl:1")
    samples = in_template([row], tmp_path, tokenizer)
    prefix, eos = special_prefix(tokenizer), tokenizer.token_to_id(BOS)
    (window,) = windows_of(samples, tokenizer, 4096, eos, prefix)
    assert window.ids == whole
    assert window.answer_from == len(served)

    others = [Sample(f"Say {n}. ", f"{n}") for n in range(20)]
    examples = make_examples([*samples, *others], tokenizer, eos, 512, 0.05, packing=False)
    assert whole in [row["input_ids"] for data in (examples.train, examples.held_out) for row in data]

    render = chat_template(tmp_path, tokenizer)
    request = Request(render(MESSAGES[:-1]), (), special_tokens=render.special_tokens)
    (encoded,) = encode_requests(tokenizer, [request], 8, None)
    assert encoded.ids == served


def test_the_chat_preset_asks_as_a_server_does(tmp_path):
    tokenizer, theirs = made(tmp_path, PLAIN, True)
    problem = Problem("a", "def add_items(values):\n", "add_items", "assert add_items")
    ((_, request),) = requests_for(
        make_task("t", "code", [problem], "t"), "chat", render=chat_template(tmp_path, tokenizer)
    )
    (encoded,) = encode_requests(tokenizer, [request], 8, None)
    question = request.prompt.partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    served = theirs.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    assert encoded.ids[: len(served)] == served
    assert BOS not in tokenizer.decode(encoded.ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        (PLAIN, "4", "assistant\n4<|im_end|>"),
        (PLAIN, "<think>\n2+2\n</think>\n\n4", "assistant\n<think>\n2+2\n</think>\n\n4<|im_end|>"),
        (OPENS, "4", "assistant\n<think>\n\n</think>\n\n4<|im_end|>"),
        (OPENS, "<think>\n2+2\n</think>\n\n4", "assistant\n<think>\n2+2\n</think>\n\n4<|im_end|>"),
        (OPENS, "2+2\n</think>\n\n4", "assistant\n<think>\n2+2\n</think>\n\n4<|im_end|>"),
        (CHOOSES, "4", "assistant\n<think>\n\n</think>\n\n4<|im_end|>"),
        (CHOOSES, "<think>\n2+2\n</think>\n\n4", "assistant\n<think>\n2+2\n</think>\n\n4<|im_end|>"),
    ],
)
def test_thinking_is_opened_once_and_closed_once(tmp_path, template, answer, expected):
    tokenizer, _ = made(tmp_path, template, False)
    row = sample_of({"instruction": "2+2?", "output": answer}, "rows.jsonl:1")
    (sample,) = in_template([row], tmp_path, tokenizer)
    assert sample.text.endswith(expected)
    assert sample.completion.endswith("4<|im_end|>")


def test_code_is_opened_behind_the_thinking():
    assert continued("<think>\n", "```python\n") == "\n</think>\n\n```python\n"
    assert continued("<|im_start|>assistant\n", "```python\n") == "```python\n"


def test_a_chat_without_an_answer_is_text(tmp_path):
    tokenizer, _ = made(tmp_path, PLAIN, False)
    row = sample_of({"messages": MESSAGES[:2]}, "rows.jsonl:1")
    (sample,) = in_template([row], tmp_path, tokenizer)
    assert (sample.prompt, sample.completion[-22:]) == ("", "<|im_start|>assistant\n")


def test_what_is_no_chat_stays_as_it_is(tmp_path):
    tokenizer, _ = made(tmp_path, PLAIN, False)
    plain, chat = Sample("a", "b"), sample_of({"messages": MESSAGES}, "rows.jsonl:1")
    assert in_template([plain, chat], tmp_path, tokenizer)[0] == plain
    assert in_template([plain, chat], tmp_path, tokenizer, "none") == [plain, chat]
    (tmp_path / "chat_template.jinja").unlink()
    assert in_template([plain, chat], tmp_path, tokenizer) == [plain, chat]


def test_a_template_that_does_not_render_is_one_line(tmp_path):
    tokenizer, _ = made(tmp_path, "{{ raise_exception('no system role') }}", False)
    with pytest.raises(OptionError, match=r"no system role.*`template` none"):
        in_template([sample_of({"messages": MESSAGES}, "rows.jsonl:1")], tmp_path, tokenizer)
