"""Presets: what each kind becomes, what ends it, seeds, and a stand-in for vLLM that takes the same requests."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from flab.assets import cot_path, model_path
from flab.errors import CheckpointError, OptionError
from flab.evaluation.prompts import (
    COMPLETION_STOP,
    PAPER_STOP,
    PRESETS,
    Settings,
    after_docstring,
    answer_for,
    requests_for,
    sample_seed,
)
from flab.evaluation.tasks import Explanation, Prediction, Problem, make_task, read_task
from flab.models.chat import chat_template
from flab.models.engines.protocol import Decoding, Generation, Request
from flab.models.engines.vllm import VllmGenerator, plain_tokenizer_folder
from support import pico

CODE = 'def add(a, b):\n    """Add."""\n'
TASKS = {
    "code": make_task("t", "code", [Problem("0", CODE, "add", "def check(f): ...")], "memory"),
    "cot": make_task("t", "cot", [Explanation("0", f"{CODE}How to solve:\n", "Step 1. Add.")], "memory"),
    "output": make_task("t", "output", [Prediction("0", "def g(x):\n    return x", "[1], 2", "1", "g")], "memory"),
}


def render(messages):
    assert [message["role"] for message in messages] == ["user"]
    return f"<user>{messages[0]['content']}<assistant>"


def only(kind, preset):
    ((_, request),) = requests_for(TASKS[kind], preset, render=render)
    return request


def test_completion_uses_prompts_as_the_file_has_them():
    assert only("code", "completion").prompt == CODE
    assert only("code", "completion").stop == COMPLETION_STOP
    assert only("cot", "completion").prompt == f"{CODE}How to solve:\n"
    assert only("output", "completion").prompt == "def g(x):\n    return x\n\nassert g([1], 2) =="
    assert "\n" in only("output", "completion").stop
    assert "\n\n" in only("cot", "completion").stop
    assert {only(kind, "completion").max_prompt_tokens for kind in TASKS} == {None}


def test_chat_asks_and_opens_the_answer():
    code = only("code", "chat")
    assert code.prompt.startswith("<user>Complete this Python function")
    assert code.prompt.endswith(f"<assistant>```python\n{CODE}")
    assert code.stop[0] == "\n```"
    steps = only("cot", "chat")
    assert steps.prompt.endswith("<assistant>How to solve:\n")
    assert steps.prompt.count("How to solve:") == 2  # once asked for, once opened: not in the user's code
    plain = make_task("t", "cot", [Explanation("0", CODE, "How to solve:\nStep 1. Add.")], "memory")
    assert requests_for(plain, "chat", render=render)[0][1].prompt.endswith("```<assistant>")
    assert only("output", "chat").prompt.endswith("<assistant>```python\nassert g([1], 2) ==")


def test_chat_needs_a_template():
    with pytest.raises(OptionError, match="`preset` chat: the model has no chat template; use completion"):
        requests_for(TASKS["code"], "chat")


def test_chat_renders_with_the_bundled_model():
    folder = model_path()
    own = chat_template(folder, Tokenizer.from_file(str(folder / "tokenizer.json")))
    prompt = requests_for(TASKS["code"], "chat", render=own)[0][1].prompt
    assert prompt.startswith("<|im_start|>user\nComplete")
    assert prompt.endswith(f"<|im_end|>\n<|im_start|>assistant\n```python\n{CODE}")


def test_paper_strips_cuts_and_drops():
    code = only("code", "paper")
    assert code.prompt == CODE.strip()
    assert code.stop == PAPER_STOP
    assert code.max_prompt_tokens == 512
    assert only("cot", "paper").prompt == f"{CODE}How to solve:"
    assert only("output", "paper").stop[0] == "\n"
    made = Generation('more."""\n    return """x"""', 5, "eos")
    assert answer_for("paper", made) == Generation('\n    return """x"""', 5, "eos")
    assert answer_for("completion", made) == made
    assert after_docstring("\n    return 1") == "\n    return 1"


def test_every_sample_has_a_key_and_a_seed_of_its_own():
    task = make_task("t", "code", [Problem(str(n), CODE, "add", "x") for n in range(5)], "memory")
    wanted = requests_for(task, "completion", samples=3, seed=7)
    assert [key for key, _ in wanted] == [("t", str(n), sample) for n in range(5) for sample in range(3)]
    seeds = [request.seed for _, request in wanted]
    assert len(set(seeds)) == 15
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds[4] == sample_seed(7, "t", "1", 1)
    assert sample_seed(0, "t", "0", 0) == 7163944482156921913
    assert not set(seeds) & {request.seed for _, request in requests_for(task, "completion", 3, seed=8)}


def test_unknown_presets_and_sample_counts_name_the_flag():
    with pytest.raises(OptionError, match="`preset`: got best, allowed completion, chat, paper"):
        Settings(preset="best")
    with pytest.raises(OptionError, match="`samples`: got 0"):
        Settings(samples=0)
    assert set(PRESETS) == {"completion", "chat", "paper"}


def test_cues_of_the_shipped_files_are_as_the_presets_expect(data_folder):
    bundled = read_task(cot_path())
    assert all(item.prompt.endswith("How to solve:\n") and item.cot.startswith("Step 1.") for item in bundled.items)
    for name in ("humaneval_cot", "codeharmony_cot"):
        items = read_task(data_folder / f"{name}.csv", "cot").items
        assert not any(item.prompt.rstrip().endswith(":") and "How to solve" in item.prompt for item in items)
        assert all(item.cot.startswith("How to solve:\nStep 1.") for item in items)
        assert sum("\n\n" in item.cot.strip() for item in items) == 1


class FakeVllm(ModuleType):
    """Answers with the tokens of one text, and remembers what it was asked."""

    def __init__(self, tokenizer, text, end=()):
        super().__init__("vllm")
        self.asked, self.SamplingParams = [], SimpleNamespace
        self.ids = [*tokenizer.encode(text).ids, *end]

    def LLM(self, **engine):  # noqa: N802
        self.engine = engine
        return self

    def generate(self, prompts, settings, use_tqdm):
        self.asked += zip(prompts, settings, strict=True)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=self.ids[: s.max_tokens])]) for s in settings]


def test_vllm_takes_the_same_requests(monkeypatch, pico_folder):
    tokenizer, folder = pico.tokenizer(), pico_folder("qwen2")
    end = tokenizer.token_to_id("<|im_end|>")
    fake = FakeVllm(tokenizer, "    return a + b\n\nprint(", [end])
    monkeypatch.setitem(sys.modules, "vllm", fake)
    generator = VllmGenerator(folder, dtype="bfloat16")
    assert generator.name == "vllm"
    assert fake.engine["model"] == str(folder)
    assert fake.engine["dtype"] == "bfloat16"
    if not torch.cuda.is_available():  # the CPU's memory is shared with other programs
        assert 0 < fake.engine["gpu_memory_utilization"] < 0.8
    requests = [Request(CODE, ("\nprint(",), seed=3), Request("x", (), seed=4)]
    made = generator.generate(requests, Decoding(temperature=0.5, top_p=0.9))
    assert [one.finish_reason for one in made] == ["stop", "eos"]
    assert [one.text for one in made] == ["    return a + b\n", "    return a + b\n\nprint("]
    (prompt, first), (_, second) = fake.asked
    assert prompt == {"prompt_token_ids": tokenizer.encode(CODE).ids}
    assert (first.seed, second.seed) == (3, 4)
    assert (first.stop, second.stop) == (["\nprint("], [])
    assert (first.temperature, first.top_p, first.max_tokens) == (0.5, 0.9, 128 - len(prompt["prompt_token_ids"]))
    assert set(first.stop_token_ids) == {end, tokenizer.token_to_id("<|endoftext|>")}
    assert generator.generate([Request("x", ())], Decoding(max_new_tokens=2))[0].finish_reason == "length"
    assert generator.generate([], Decoding()) == []


def test_vllm_reads_the_tokenizer_as_it_is(tmp_path, pico_folder):
    plain_tokenizer_folder(pico_folder("qwen2"), tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*pico.CODE[:3], *pico.OTHER[:4], "  a  b\n\t\n"):
        assert auto.encode(text, add_special_tokens=False) == pico.tokenizer().encode(text).ids
        assert auto.decode(pico.tokenizer().encode(text).ids) == text


def test_without_vllm_there_is_one_line_that_says_what_to_install(monkeypatch, pico_folder):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(OptionError, match=r"vLLM is not installed .*; pip install vllm"):
        VllmGenerator(pico_folder("qwen2"))


def test_vllm_wants_a_model_folder(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    with pytest.raises(CheckpointError, match=r"config.json is missing: give the folder of a whole model"):
        VllmGenerator(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json"):
        VllmGenerator(tmp_path)
