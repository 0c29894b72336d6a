"""What the original model is asked when training data is made: one :class:`Instruction` for each row of a file.

It reads task files (functions with tests, chain of thought, output prediction, MBPP), ``prompt`` + ``completion`` rows,
``instruction`` + ``answer`` rows, chats in every form of :mod:`flab.data.forms`, and plain ``text``. The fields decide the
kind.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flab.data.forms import alpaca, chat_of, is_chat, spoken
from flab.data.rows import Row, read_rows
from flab.errors import DataError, OptionError
from flab.evaluation.final_code import final_code
from flab.evaluation.output import prediction_of, read_literal
from flab.evaluation.prompts import (
    COMPLETION_STOP,
    CUE,
    END_MARKS,
    LINE_STOP,
    STEPS_STOP,
    Message,
    Render,
    complete_output,
)
from flab.evaluation.tasks import READERS, Explanation, Prediction, Problem, check_text, kinds_of
from flab.sandbox import Job

STOPS = {"code": COMPLETION_STOP, "cot": STEPS_STOP, "output": LINE_STOP}
FORMATS = (
    "prompt + completion (optional test + entry_point), instruction + answer, messages, conversations, text, or a task's fields "
    "(code, input, output; prompt, cot)"
)
# The last assertion of a prompt, without its right side.
CALL = re.compile(r"(?P<code>.*)\nassert (?P<entry>[A-Za-z_]\w*)\((?P<input>.*)\) ==\s*\Z", re.DOTALL)
TYPED = """def typed(value):
    kind = type(value)
    if kind in (list, tuple):
        return kind, tuple(map(typed, value))
    if kind is dict:
        return kind, frozenset((typed(key), typed(one)) for key, one in value.items())
    return kind, frozenset(map(typed, value)) if kind is set else value
"""  # equal only if the types are, at every depth, as flab.evaluation.output compares


@dataclass(frozen=True)
class Instruction:
    """One instruction, with the data set's own answer and the test of an answer, if there are any.

    ``prompt`` is the text that the model continues; for a chat it is made by the model's template from ``messages``.
    """

    task_id: str
    kind: str
    prompt: str
    reference: str | None = None
    test: str | None = None
    entry_point: str = ""
    code: str = ""  # of output prediction: the function, and below the arguments of the call
    call: str = ""
    messages: tuple[tuple[str, str], ...] = ()  # (role, content)
    where: str = field(default="", compare=False)  # file and line, for messages; ``task_id`` counts rows from 0

    @property
    def is_testable(self) -> bool:
        """Whether an answer can be verified by running it, or by running the code that it is about."""
        return self.test is not None or self.kind == "output"

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end the model's answer."""
        return STOPS.get(self.kind, END_MARKS)

    def job(self, answer: str) -> Job | None:
        """Return what the sandbox runs to verify the answer; None if the answer cannot be right (no literal, no code)."""
        if self.kind == "output":
            return self._prediction_job(answer)
        assert self.test is not None
        program = self.prompt + answer if self.kind == "code" else final_code(answer, self.entry_point)
        return Job(program, self.test, self.entry_point) if program.strip() else None

    def _prediction_job(self, answer: str) -> Job | None:
        """Return a job that runs the given code. Only the value of the answer's literal is used, never its text."""
        predicted = prediction_of(answer)
        if read_literal(predicted) is None:
            return None
        try:
            # The answer is read as a literal and written anew, so none of the model's text gets into the program.
            value = repr(ast.literal_eval(predicted))
        except ValueError:  # a hexadecimal number of more digits than Python writes
            return None
        test = f"{TYPED}def check(candidate):\n    assert typed(candidate({self.call})) == typed({value})\n"
        return Job(self.code + "\n", test, self.entry_point)

    def text(self) -> str:
        """The question and the reference, for comparison with evaluation files."""
        asked = self.prompt or "\n".join(content for _, content in self.messages)
        return asked + (self.reference or "")


Asked = tuple[Row, str, str]  # a row, where it is, and its id


def read_asked(paths: Sequence[str | Path], limit: int | None = None) -> list[Asked]:
    """Read all rows of the files, in order; ids are the file's name, numbered if two have it, and the row's number.

    Raises:
        DataError: a file is missing, empty or malformed; names file and line.
        OptionError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"`limit`: got {limit}, allowed 1 or more.")
    found: list[Asked] = []
    for at, path in enumerate(paths):
        before = sum(Path(other).name == Path(path).name for other in paths[:at])
        name = Path(path).name + (f"#{before + 1}" if before else "")
        rows = read_rows(str(path), "train", limit)
        found += [(row, where, f"{name}:{n}") for n, (where, row) in enumerate(rows)]
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no instructions found; give rows with {FORMATS}")
    return found


def instructions_of(asked: Sequence[Asked], render: Render | None) -> list[Instruction]:
    """Turn rows into instructions; ``render`` is the model's chat template.

    Raises:
        DataError: the fields fit no format; names file and line.
        OptionError: there are chats, but the model has no chat template.
    """
    return [instruction_of(row, where, task_id, render) for row, where, task_id in asked]


def instruction_of(row: Row, where: str, task_id: str, render: Render | None) -> Instruction:
    """Read one row; the first format that fits decides."""
    for fits, read in FORMS:
        if fits(row):
            return replace(read(row, where, task_id, render), where=where)
    raise DataError(f"{where}: the fields {', '.join(map(str, row)) or '(none)'} fit no instruction; needed: {FORMATS}")


def _chat(row: Row, where: str, task_id: str, render: Render | None) -> Instruction:
    """Read a conversation. If the last message is the assistant's, it is the reference."""
    turns = [(one["role"], check_text(spoken(one), "content", where, blank=True)) for one in chat_of(row, where)]
    reference = turns.pop()[1] if turns[-1][0] == "assistant" else None
    return _rendered(turns, reference, row, where, task_id, render)


def _instruction(row: Row, where: str, task_id: str, render: Render | None) -> Instruction:
    """Read ``instruction`` (and ``input``) with an answer, as one turn of a chat if the model has a template."""
    asked, reference = alpaca(row, where)
    asked = check_text(asked, "instruction", where)
    reference = check_text(reference, "answer", where, blank=True) if reference is not None else None
    return _rendered([("user", asked)], reference, row, where, task_id, render)


def _rendered(
    turns: list[tuple[str, str]], reference: str | None, row: Row, where: str, task_id: str, render: Render | None
) -> Instruction:
    if render is None:
        raise OptionError(
            f"{where}: this is a chat, but the model has no chat template; add chat_template.jinja, or give prompt + completion."
        )
    messages: list[Message] = [{"role": role, "content": content} for role, content in turns]
    test, entry = _test(row, where)
    return Instruction(task_id, "chat", render(messages), reference, test, entry, messages=tuple(turns))


def _completion(row: Row, where: str, task_id: str, render: Render | None) -> Instruction:
    """Read ``prompt`` + ``completion``. With a test it is code; otherwise the end of the prompt decides the kind."""
    prompt = check_text(row["prompt"], "prompt", where)
    name = "completion" if row.get("completion") is not None else "canonical_solution"
    reference = check_text(row[name], name, where, blank=True) if row.get(name) is not None else None
    test, entry = _test(row, where)
    if test is not None:
        return Instruction(task_id, "code", prompt, reference, test, entry)
    called = CALL.match(prompt)
    if called:
        return Instruction(task_id, "output", prompt, reference, None, called["entry"], called["code"], called["input"])
    return Instruction(task_id, "cot" if prompt.rstrip().endswith(CUE) else "instruction", prompt, reference)


def _test(row: Row, where: str) -> tuple[str | None, str]:
    """Return the row's test and the entry point that it needs."""
    if row.get("test") is None:
        return None, ""
    if row.get("entry_point") is None:
        raise DataError(f"{where}: test without entry_point; name the function that the test calls")
    return check_text(row["test"], "test", where), check_text(row["entry_point"], "entry_point", where)


def _task(row: Row, where: str, task_id: str, render: Render | None) -> Instruction:
    """Read a row of a task file."""
    item = READERS[kinds_of(row)[0]](row, where)
    if isinstance(item, Problem):
        return Instruction(task_id, "code", item.prompt, item.canonical_solution, item.test, item.entry_point)
    if isinstance(item, Explanation):
        return Instruction(task_id, "cot", item.prompt, item.cot)
    assert isinstance(item, Prediction)
    prompt = complete_output(item, None).prompt
    return Instruction(task_id, "output", prompt, f" {item.output}\n", None, item.entry_point, item.code, item.input)


def _text(row: Row, where: str, task_id: str, render: Render | None) -> Instruction:
    return Instruction(task_id, "text", check_text(row["text"], "text", where))


Reader = Callable[[Row, str, str, Render | None], Instruction]
FORMS: tuple[tuple[Callable[[Row], Any], Reader], ...] = (
    (is_chat, _chat),
    (lambda row: row.get("instruction") is not None, _instruction),
    (lambda row: row.get("prompt") is not None and row.get("completion") is not None, _completion),
    (kinds_of, _task),
    (lambda row: row.get("prompt") is not None and row.get("canonical_solution") is not None, _completion),
    (lambda row: row.get("text") is not None, _text),
)
