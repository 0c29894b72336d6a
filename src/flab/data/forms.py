"""Recognise the form of a row from any kind of file: a chat, a task, a question with its answer, or plain text.

Chats come in four forms and are converted to one: ``messages`` with role and text (OpenAI's and transformers'), ShareGPT's
``conversations``, TRL's lists of messages under ``prompt`` and ``completion``, and Alpaca's ``instruction`` and ``output``.
It renders no chat template: that is the model's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flab.data.mbpp import is_mbpp
from flab.errors import DataError

# Role and content, and other fields that a template may read: tool_calls, name, ...
Message = dict[str, Any]
ANSWERS = ("completion", "canonical_solution", "answer", "response", "output", "solution", "cot")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"} | {
    "function_call": "assistant", "observation": "tool", "function_response": "tool", "function": "tool"
}  # fmt: skip  # of ShareGPT
TURNS = ("messages", "conversations", "conversation")
KEPT_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
NEEDED = (
    "prompt + completion (or canonical_solution), instruction + output, messages, conversations, MBPP's fields, or text"
)


def has_form(row: Mapping[str, Any]) -> bool:
    """Return whether the fields of a row say what it means."""
    has = {name for name, value in row.items() if value is not None}
    asked = bool(has & {"prompt", "instruction"} and has & set(ANSWERS))
    task = {"prompt", "entry_point", "test"} <= has or {"code", "input", "output"} <= has
    return asked or task or bool(has & {*TURNS, "text"}) or is_mbpp(row)


def is_chat(row: Mapping[str, Any]) -> bool:
    """Return whether the row is a conversation, in any form but Alpaca's, which has a single turn."""
    return any(row.get(name) is not None for name in TURNS) or isinstance(row.get("prompt"), list)


def chat_of(row: Mapping[str, Any], where: str) -> list[Message]:
    """Return the messages of a conversation, oldest first, each with ``role`` and ``content`` as text.

    Raises:
        DataError: there is no list of messages, a message has an unknown part, or there is no message.
    """
    name = next((name for name in TURNS if row.get(name) is not None), "prompt")
    turns = row[name]
    if name == "prompt":  # in TRL's form, prompt and completion are lists of messages
        answer = row.get("completion")
        turns = turns + (answer if isinstance(answer, list) else [] if answer is None else [_answer(answer, where)])
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError(f"{where}: {name} is not a list of objects with role and content")
    messages = [_message(turn, f"{where}: {name}") for turn in turns]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if not any(message["role"] != "assistant" for message in messages):
        raise DataError(f"{where}: {name} holds no question; give at least one turn by the user")
    return messages


def _answer(value: Any, where: str) -> Message:
    if not isinstance(value, str):
        raise DataError(
            f"{where}: completion is a {type(value).__name__}; give a list of messages as in prompt, or text"
        )
    return {"role": "assistant", "content": value}


def _message(turn: Mapping[str, Any], where: str) -> Message:
    """Return one message with its text, and the other fields that a template may read."""
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or not role.strip() or not ({"content", "value", "tool_calls"} & set(turn)):
        raise DataError(f"{where} is not a list of objects with role and content; got {', '.join(map(str, turn))}")
    content = turn.get("content", turn.get("value"))
    if content is None and not turn.get("tool_calls"):
        raise DataError(f"{where} holds a message without content; give it text, or remove the message")
    content = text_of_parts(content, where)
    kept = {name: turn[name] for name in KEPT_FIELDS if turn.get(name)}
    return {"role": ROLES.get(role.strip().lower(), role.strip()), "content": content, **kept}


def text_of_parts(content: Any, where: str) -> str:
    """Return the text of a message, given as text, as a list of content parts, or left out beside a tool call."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{where} holds content that is {type(content).__name__}, not text or a list of parts")
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    if not all(isinstance(part, str) for part in parts):
        kinds = sorted({str(part.get("type")) for part in content if isinstance(part, Mapping)} - {"text"})
        raise DataError(
            f"{where} holds content that is not text ({', '.join(kinds) or 'no type'}); flab reads only text"
        )
    return "".join(map(str, parts))


def spoken(message: Mapping[str, Any]) -> str:
    """Return a message as plain text: its own text, and below it the calls of tools, each as JSON."""
    calls = message.get("tool_calls") or []
    return "\n".join([*filter(None, [message["content"]]), *(json.dumps(call, ensure_ascii=False) for call in calls)])


def alpaca(row: Mapping[str, Any], where: str) -> tuple[str, str | None]:
    """Return the question of an ``instruction`` row (with its ``input`` below), and its answer if it has one.

    Raises:
        DataError: a field is not text.
    """
    name = next((name for name in ANSWERS if row.get(name) is not None), None)
    values = {key: row.get(key) for key in ("instruction", "input", *filter(None, [name]))}
    for key, value in values.items():
        if not isinstance(value, str) and not (key == "input" and value is None):
            raise DataError(f"{where}: {key} is {type(value).__name__}, not text; give text")
    more = str(values["input"] or "")
    asked = f"{row['instruction']}\n\n{more}" if more.strip() else str(row["instruction"])
    return asked, str(row[name]) if name is not None else None
