"""Samples whose chats are put into the model's own template, for calibration and for recovery. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flab.data.samples import Sample
from flab.models.chat import CLOSE, ChatTemplate, chat_template, continued
from flab.progress import say_once

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def in_template(samples: Sequence[Sample], folder: Path, tokenizer: Tokenizer, choice: str = "auto") -> list[Sample]:
    """Return the samples with every chat in the model's template. All others, or all if it has none, stay as they are.

    ``choice`` is ``auto`` or ``none``, which leaves chats in the plain words of :mod:`flab.data.samples`.

    Raises:
        OptionError: the template does not render.
    """
    if choice == "none" or not any(sample.messages for sample in samples):
        return list(samples)
    template = chat_template(folder, tokenizer)
    if template is None:
        say_once(f"{folder} has no chat template: chats are read as plain text")
        return list(samples)
    special_tokens, ending = template.special_tokens, template.ending
    say_once(f"chats are read in the chat template of {folder} (`template` none reads them as plain text)")
    return [
        replace(_rendered(sample, template, ending), special_tokens=special_tokens) if sample.messages else sample
        for sample in samples
    ]


def _rendered(sample: Sample, template: ChatTemplate, ending: str) -> Sample:
    """Render one chat. Its completion is the last answer, followed by what the template writes after an answer."""
    messages = list(sample.messages)
    if messages[-1]["role"] != "assistant":
        return replace(sample, prompt="", completion=template(messages))
    answer = sample.completion
    prompt = template(messages[:-1], thinking=CLOSE in answer)
    return replace(sample, prompt=prompt, completion=continued(prompt, answer) + ending, is_ended=bool(ending))
