"""The program in a chat reply: every form that models use, with the answer it must give."""

import json
from pathlib import Path

import pytest

from flab.evaluation.final_code import final_code

RIGHT = "def inc(x):\n    return x + 1\n"
DRAFT = "def inc(x):\n    return x\n"
FORMS = {
    "a fence": f"```python\n{RIGHT}```\n",
    "a fence without a language": f"Here:\n```\n{RIGHT}```\nDone.",
    "a language in capitals": f"```Python3\n{RIGHT}```",
    "words after the language": f'```python title="inc.py"\n{RIGHT}```',
    "a fence that nothing closes": f"```python\n{RIGHT}",
    "tildes": f"~~~python\n{RIGHT}~~~",
    "four marks": f"````python\n{RIGHT}````",
    "carriage returns": f"```python\n{RIGHT}```\n".replace("\n", "\r\n"),
    "a list item": "1. Do:\n\n   ```python\n   def inc(x):\n       return x + 1\n   ```\n",
    "a quotation": "> ```python\n> def inc(x):\n>     return x + 1\n> ```\n",
    "thinking": f"<think>\n```python\n{DRAFT}```\n</think>\n```python\n{RIGHT}```",
    "thinking that the template opened": f"```python\n{DRAFT}```\nwrong </think>\n```python\n{RIGHT}```",
    "a draft first": f"First try:\n```python\n{DRAFT}```\nBetter:\n```python\n{RIGHT}```",
    "an import in a fence of its own": (
        "```python\nimport operator\n```\n```python\ndef inc(x):\n    return operator.add(x, 1)\n```"
    ),
    "a helper after the function": (
        "```python\ndef inc(x):\n    return plus(x)\n```\nThe helper:\n```python\ndef plus(x):\n    return x + 1\n```"
    ),
    "a helper beside the draft": (
        "```python\ndef plus(x):\n    return x + 1\ndef inc(x):\n    return 0\n```\n"
        "Final:\n```python\ndef inc(x):\n    return plus(x)\n```"
    ),
    "a constant": "```python\nSTEP = 1\n```\n```python\ndef inc(x):\n    return x + STEP\n```",
    "usage before": f"```python\nprint(inc(1))\n```\n```python\n{RIGHT}```",
    "usage after": f"```python\n{RIGHT}```\nUse:\n```python\nassert inc(1) == 3\nx = inc(input())\n```",
    "a shell command": f"```bash\npip install x\n```\n```python\n{RIGHT}```",
    "output shown": f"```python\n{RIGHT}```\nprints\n```text\n2\n```",
    "a fence that is no Python": f"```\nTraceback: oops\n```\n```python\n{RIGHT}```",
    "prose": f"Sure! Here it is:\n\n{RIGHT}",
    "prose on both sides": f"Sure.\n\n{RIGHT}\nThis adds one to x, and returns it.\nEnjoy",
    "prose with an import": "Use:\n\nimport operator\n\ndef inc(x):\n    return operator.add(x, 1)\n\nThat is all.",
    "indented prose": "So:\n\n    def inc(x):\n        return x + 1\n\nwhich is right.",
    "nothing but code": RIGHT,
    "a name for a lambda": "```python\ninc = lambda x: x + 1\n```",
}
WRONG = {
    "a right draft and a wrong answer": f"<think>\n```python\n{RIGHT}```\n</think>\n```python\n{DRAFT}```",
    "a right fence and a wrong one last": f"```python\n{RIGHT}```\nNo:\n```python\n{DRAFT}```",
    "thinking without an end": f"<think>\n```python\n{RIGHT}```\n",
}


def answer_of(code):
    names = {}
    exec(code, names)
    return names["inc"](41) if "inc" in names else None


@pytest.mark.parametrize("form", FORMS)
def test_the_answer_is_found(form):
    assert answer_of(final_code(FORMS[form], "inc")) == 42


@pytest.mark.parametrize("form", WRONG)
def test_drafts_do_not_count(form):
    assert answer_of(final_code(WRONG[form], "inc")) != 42


@pytest.mark.parametrize("text", ["", "I cannot do that.", "```python\nnot python at all(\n```"])
def test_a_reply_without_an_answer_defines_nothing(text):
    assert "def " not in final_code(text, "inc")


def test_a_method_is_found_by_its_class():
    reply = "```python\nclass Solution:\n    def inc(self, x):\n        return x + 1\n```"
    names = {}
    exec(final_code(reply, "Solution().inc"), names)
    assert names["Solution"]().inc(1) == 2


def test_forms_from_reports():
    path = Path(__file__).parents[3] / "shared" / "cases" / "bugs" / "chat-answer-forms" / "chat.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = {row["id"]: answer_of(final_code(row["messages"][-1]["content"], row["entry_point"])) for row in rows}
    assert answers == dict.fromkeys(answers, 42)
    assert len(answers) == 11
