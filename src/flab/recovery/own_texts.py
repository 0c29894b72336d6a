"""Texts that the original writes on its own: it gets the first words of an instruction and continues freely.

They cover more of what the model knows than the instructions do: data-free distillation as in LLM-QAT (Liu et al. 2023,
arXiv 2305.17888, section 2.1). A chat model gets the beginning of its template instead, writes a question, and answers it
(Magpie, Xu et al. 2024, arXiv 2406.08464). Texts are sampled at temperature 1 from the whole distribution, and only those
that the model ended itself are kept. Nothing verifies them.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flab.errors import DataError
from flab.evaluation.prompts import END_MARKS, Render, sample_seed
from flab.models.engines.protocol import Decoding, Generation, Generator, Request
from flab.models.engines.store import Key, Shard, Store, fill, fingerprint, stored
from flab.recovery.instructions import Instruction
from flab.recovery.strategies import Making

TEXTS = "own texts"
ANSWERS = "own questions"
PIECE = re.compile(r"\w+|\s+|[^\w\s]")
MOST_PIECES = 6  # the pieces of an opening: words, runs of white space, single symbols


def write_texts(
    generator: Generator,
    asked: Sequence[Instruction],
    making: Making,
    file: Path,
    facts: Mapping[str, Any],
    render: Render | None,
    shard: Shard | None = None,
) -> list[dict[str, Any]]:
    """Write ``making.own_texts`` texts and return those that ended, as rows. With a shard only its part is written.

    Raises:
        DataError: there is no instruction to take the first words from.
    """
    if not asked:
        raise DataError(
            "own texts begin with the first words of an instruction: give at least one with `instructions`."
        )
    names = ("max_new_tokens", "batch_size", "seed")
    settings = {name: getattr(making, name) for name in names}
    with Store(file, fingerprint({**facts, "own_texts": settings}), shard) as store:
        starts = list(enumerate(openings(asked, making.own_texts, making.seed)))
        mine = list(shard.part(starts)) if shard is not None else starts
        texts = _complete(store, generator, TEXTS, [(at, opening) for at, (_, opening) in mine], making)
        chats = [(at, text) for (at, (is_chat, _)), text in zip(mine, texts, strict=True) if is_chat and text.strip()]
        assert render is not None or not chats, "chats were read, so there is a template"
        asked_again = {at: [{"role": "user", "content": text.strip()}] for at, text in chats}
        questions = {at: render(messages) for at, messages in asked_again.items() if render is not None}
        answers = dict(
            zip(questions, _complete(store, generator, ANSWERS, list(questions.items()), making), strict=True)
        )
    # In a chat the model wrote the question first and then the answer. Any other text is one piece, and its opening is the
    # prompt.
    pairs = [
        (questions[at], answers[at]) if at in questions else (opening, text)
        for (at, (is_chat, opening)), text in zip(mine, texts, strict=True)
        if at in questions or not is_chat
    ]
    return [_row(at, prompt, text) for at, (prompt, text) in enumerate(pairs) if text.strip()]


def openings(asked: Sequence[Instruction], count: int, seed: int) -> list[tuple[bool, str]]:
    """Return for each text whether it is a chat, and the opening that the model continues."""
    found = []
    for number in range(count):
        # Each text has its own random generator, so existing texts do not change if more are requested.
        chooser = random.Random(f"{seed}/{number}")
        one = chooser.choice(asked)
        if one.messages:
            found.append((True, _head(one)))
        else:
            pieces = PIECE.findall(one.prompt)
            found.append((False, "".join(pieces[: chooser.randint(1, min(MOST_PIECES, len(pieces)))])))
    return found


def _head(chat: Instruction) -> str:
    """Return a chat's prompt up to the user's first words, including system text; the whole prompt if they are not found."""
    asked = next((content.strip() for role, content in chat.messages if role == "user" and content.strip()), None)
    return chat.prompt.partition(asked)[0] if asked else chat.prompt


def _complete(
    store: Store, generator: Generator, task: str, starts: Sequence[tuple[int, str]], making: Making
) -> list[str]:
    """Return what the model writes after each start; nothing if it did not end by itself."""
    wanted = [
        (_key(task, at, start), Request(start, END_MARKS, sample_seed(making.seed, task, str(at), 0)))
        for at, start in starts
    ]
    # Temperature 1 and the whole distribution give texts in the model's own proportions.
    fill(store, generator, wanted, Decoding(making.max_new_tokens, 1.0, 1.0, making.batch_size))
    return [_ended(made) for made in stored(store, [key for key, _ in wanted])]


def _key(task: str, at: int, start: str) -> Key:
    return task, f"{at}-{hashlib.sha256(start.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}", 0


def _ended(made: Generation) -> str:
    return "" if made.finish_reason == "length" else made.text


def _row(at: int, prompt: str, text: str) -> dict[str, Any]:
    row = {"task_id": f"own/{at}", "kind": "own", "prompt": prompt, "completion": text}
    return row | {"source": "self", "verified": None}
