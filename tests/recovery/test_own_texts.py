"""Texts that the original writes on its own: how they begin, which are kept, and that chats get a question and an answer."""

from __future__ import annotations

import pytest

from flab.errors import DataError
from flab.models.engines.protocol import FakeGenerator
from flab.recovery.instructions import Instruction
from flab.recovery.own_texts import MOST_PIECES, PIECE, openings, write_texts
from flab.recovery.strategies import Making

PROMPT = 'def solve_4(table):\n    """Drop the entries."""\n'
CODE = [Instruction("a", "code", PROMPT, test="assert True", entry_point="solve_4")]
CHAT = [Instruction("b", "chat", "<s>system\n<user>Hello there<bot>", messages=(("user", "Hello there"),))]


def render(messages):
    return f"<s>system\n<user>{messages[0]['content']}<bot>"


def write(answers, asked, tmp_path, count=4, **changes):
    made = FakeGenerator(answers)
    making = Making(own_texts=count, max_new_tokens=40, batch_size=2, **changes)
    return write_texts(made, asked, making, tmp_path / "g.jsonl", {"model": "m"}, render), made


def test_openings_are_the_first_words_of_a_prompt_and_the_same_every_time():
    found = openings(CODE, 50, seed=3)
    assert all(PROMPT.startswith(text) and 1 <= len(PIECE.findall(text)) <= MOST_PIECES for _, text in found)
    assert len({text for _, text in found}) == MOST_PIECES
    assert found == openings(CODE, 50, seed=3)
    assert found[:10] == openings(CODE, 10, seed=3), "more texts leave the first ones as they are"
    assert found != openings(CODE, 50, seed=4)


def test_a_row_is_the_opening_and_what_the_model_wrote_after_it(tmp_path):
    rows, made = write(lambda request: "and so on", CODE, tmp_path)
    assert [row["prompt"] for row in rows] == [text for _, text in openings(CODE, 4, 0)]
    assert {row["completion"] for row in rows} == {"and so on"}
    assert {(row["kind"], row["source"], row["verified"]) for row in rows} == {("own", "self", None)}
    assert len({row["task_id"] for row in rows}) == 4
    assert len({request.seed for request in made.requests}) == 4


def test_texts_that_did_not_end_or_are_empty_are_left_out(tmp_path):
    answers = iter(["", "x" * 50, "good", "also good"])
    rows, _ = write(lambda request: next(answers), CODE, tmp_path)
    assert sorted(row["completion"] for row in rows) == ["also good", "good"]


def test_a_chat_writes_the_question_and_then_the_answer(tmp_path):
    rows, made = write(lambda r: " What is 2? " if r.prompt == "<s>system\n<user>" else "Two.", CHAT, tmp_path, 2)
    assert [row["prompt"] for row in rows] == ["<s>system\n<user>What is 2?<bot>"] * 2
    assert [row["completion"] for row in rows] == ["Two."] * 2
    assert made.prompts[0] == "<s>system\n<user>"


def test_nothing_is_written_twice_and_more_texts_keep_the_first_ones(tmp_path):
    first, made = write(lambda request: f"text {request.seed}", CODE, tmp_path, 4)
    assert len(made.requests) == 4
    more, made = write(lambda request: f"text {request.seed}", CODE, tmp_path, 6)
    assert len(made.requests) <= 4, "only the batches of the new ones"
    assert more[:4] == first


def test_without_an_instruction_there_is_nothing_to_begin_with(tmp_path):
    with pytest.raises(DataError, match="give at least one"):
        write(lambda request: "x", [], tmp_path)
