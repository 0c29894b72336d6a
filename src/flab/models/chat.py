"""Chats as text: the model's own template, rendered as a server renders it.

Calibration, recovery and evaluation take their texts from here and use the same tokenizer, so all three see the ids that
``transformers serve`` makes from a request. They could differ only in the start token (BOS), because a server encodes the
template's text and adds nothing. The renderer therefore leaves out a start token that the tokenizer will add. If the
template writes none, ``special_tokens`` says that the tokenizer must not add one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flab.errors import OptionError
from flab.models.folder import read_if_there

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OPEN = "<think>"
CLOSE = "</think>"
PROBE = "flab-probe"


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template. Calling it returns the prompt of the assistant's answer."""

    folder: Path  # the model's, for messages
    template: str  # jinja source
    named: Mapping[str, str] = field(default_factory=dict)  # special tokens by the names that templates use
    start: str = ""  # what the tokenizer puts before every text by itself

    def __call__(self, messages: Sequence[Mapping[str, Any]], thinking: bool = False) -> str:
        # The tokenizer puts its start token before the text again, so the template's own is taken off.
        return self._text(messages, thinking, add_generation_prompt=True).removeprefix(self.start)

    @property
    def special_tokens(self) -> bool:
        """Whether the tokenizer must add its own special tokens to a rendered text."""
        probe = self._text([{"role": "user", "content": PROBE}], False, add_generation_prompt=True)
        return probe.startswith(self.start)

    @property
    def ending(self) -> str:
        """Return what the template writes after an answer, such as ``<|im_end|>``, or nothing if that is unclear."""
        # Two different contents: the answer's end is looked for, and the question must not be taken for it.
        turns = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": 2 * PROBE}]
        try:
            text = self._text(turns, False, add_generation_prompt=False)
        except OptionError:
            return ""
        return text.rpartition(2 * PROBE)[2].rstrip() if 2 * PROBE in text else ""

    def _text(self, messages: Sequence[Mapping[str, Any]], thinking: bool, add_generation_prompt: bool) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template(
                [list(messages)],
                chat_template=self.template,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=thinking,
                **self.named,
            )
        except Exception as error:  # jinja raises many kinds; all mean the same to the user
            raise OptionError(
                f"the chat template of {self.folder} does not render ({error}): use `template` none, or another `preset`."
            ) from None
        return str(texts[0])


def chat_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Read ``chat_template.jinja`` or ``tokenizer_config.json`` of a model's folder. Return None without a template."""
    template = template_of(folder)
    if not template:
        return None
    settings = read_if_there(folder / "tokenizer_config.json")
    return ChatTemplate(
        folder=folder,
        template=template,
        # A special token is given as text, or as an object with ``content``.
        named={
            name: str(value.get("content", "") if isinstance(value, dict) else value)
            for name, value in settings.items()
            if name.endswith("_token") and value
        },
        start=tokenizer.decode(tokenizer.encode("").ids, skip_special_tokens=False),
    )


def template_of(folder: Path) -> str | None:
    """Return the jinja source of a model's chat template. If the tokenizer's config has several, take the one named default."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    value = read_if_there(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(value, list):
        value = next((entry["template"] for entry in value if entry.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def continued(prompt: str, answer: str) -> str:
    """Return an answer as it continues a prompt. If the prompt opened the thinking, the answer must close it once."""
    if not prompt.rstrip().endswith(OPEN):
        return answer
    if CLOSE in answer:
        return answer.lstrip().removeprefix(OPEN).lstrip("\n")
    return f"\n{CLOSE}\n\n{answer}"
