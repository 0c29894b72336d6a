"""Presets: how an item of a task becomes the text that a model continues, and what ends the answer. :class:`Settings` hold all
that decides how the tasks of a run are asked and answered, and are checked when made. No torch.

``completion`` uses prompts as the file has them. ``chat`` puts one user message into the model's chat template and
opens the answer itself, so that code follows the prompt as in a completion. ``paper`` repeats the convention of the
paper's scripts with its known faults: it strips the prompt, which moves the token boundary before the indentation;
it cuts prompts at 512 tokens, so that the end of a long one, the task itself, is lost; it stops at comments and
conditions in column 0; and its scoring drops all before the first triple quote of an answer. It is for comparing
with published figures only. The store keeps answers as they were made: ``postprocess`` is applied when scoring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flab.errors import OptionError
from flab.models.chat import continued
from flab.models.engines.protocol import Decoding, Generation, Request
from flab.models.options import setting

if TYPE_CHECKING:
    from flab.evaluation.tasks import Explanation, Kind, Prediction, Problem, TaskFile
    from flab.models.engines.store import Key

Message = dict[str, str]
# Turns messages into the text that ends where the assistant's answer begins.
Render = Callable[[Sequence[Message]], str]

CUE = "How to solve:"
# End tokens for models whose settings name none.
END_MARKS = ("<|endoftext|>", "<|im_end|>", "<|file_sep|>", "<|fim_")
# A body ends at the next line that starts in column 0, so a top-level statement can be cut; the generator
# stops at end tokens by itself. Some strings are left out on purpose: "\n#", because a body may hold such a comment;
# "\nif" and "\nfor", because text in docstrings wraps; and "```" in the middle of a line.
COMPLETION_STOP = (
    "\ndef ",
    "\nasync def ",
    "\nclass ",
    "\n@",
    "\nif __name__",
    "\nprint(",
    "\nassert ",
    "\n```",
    *END_MARKS,
)
# Steps hardly ever hold a blank line: two of the 317 references that we have seen do.
STEPS_STOP = ("\n\n", *COMPLETION_STOP)
LINE_STOP = ("\n", *END_MARKS)
FENCE_STOP = ("\n```", *END_MARKS)
PAPER_STOP = ("\nclass", "\ndef", "\nuser", "\n#", "\nif", "\nprint", "'''\n```python", "```")
PAPER_PROMPT_TOKENS = 512


@dataclass(frozen=True)
class Asked:
    """The text that the model continues, its stop strings, and whether the tokenizer adds its special tokens."""

    prompt: str
    stop: tuple[str, ...]
    special_tokens: bool = True


@dataclass(frozen=True)
class Preset:
    """One convention: how to ask for each kind, whether prompts are cut, and how scoring prepares an answer."""

    ask: dict[Kind, Callable[..., Asked]]  # (item, render) -> Asked
    needs_template: bool = False
    max_prompt_tokens: int | None = None
    postprocess: Callable[[str], str] | None = None


def complete_code(item: Problem, render: Render | None) -> Asked:
    """Return the prompt as it is; the answer is the body."""
    return Asked(item.prompt, COMPLETION_STOP)


def complete_steps(item: Explanation, render: Render | None) -> Asked:
    """Return the prompt as it is. If the file's prompts end with a cue, its references begin after it."""
    return Asked(item.prompt, STEPS_STOP)


def complete_output(item: Prediction, render: Render | None) -> Asked:
    """Return the code and the left side of an assertion, without a space at the end, because tokens begin with it."""
    return Asked(f"{item.code}\n\nassert {item.entry_point}({item.input}) ==", LINE_STOP)


def chat_code(item: Problem, render: Render | None) -> Asked:
    """Ask for the function, and open the answer with a fence and the prompt's own code, as EvalPlus does."""
    question = f"Complete this Python function. Answer with the whole function.\n```python\n{item.prompt.rstrip()}\n```"
    return _ask(render, question, f"```python\n{item.prompt}", FENCE_STOP)


def chat_steps(item: Explanation, render: Render | None) -> Asked:
    """Ask for numbered steps under the cue, and open the answer with the cue if the file's prompt ends with it."""
    code = item.prompt.rstrip()
    opening = f"{CUE}\n" if code.endswith(CUE) else ""
    question = (
        "Explain step by step how to write this Python function. Write no code. "
        f'Begin with the line "{CUE}"; begin each further line with its number, as in "Step 1.".\n'
        f"```python\n{code.removesuffix(CUE).rstrip()}\n```"
    )
    return _ask(render, question, opening, FENCE_STOP)


def chat_output(item: Prediction, render: Render | None) -> Asked:
    """Ask for the value, and open the answer with a fence and the left side of the assertion."""
    assertion = f"assert {item.entry_point}({item.input}) =="
    question = (
        "What does this Python function return? Complete the assertion with a literal.\n"
        f"```python\n{item.code}\n\n{assertion}\n```"
    )
    return _ask(render, question, f"```python\n{assertion}", LINE_STOP)


def _ask(render: Render | None, question: str, opening: str, stop: tuple[str, ...]) -> Asked:
    """Render the question and open the answer. If the template opened the thinking, the answer follows its end."""
    assert render is not None
    prompt = render([{"role": "user", "content": question}])
    return Asked(
        prompt + (continued(prompt, opening) if opening else ""), stop, getattr(render, "special_tokens", True)
    )


def paper_text(item: Problem | Explanation, render: Render | None) -> Asked:
    """Return the stripped prompt, and the scripts' stop strings."""
    return Asked(item.prompt.strip(), PAPER_STOP)


def paper_output(item: Prediction, render: Render | None) -> Asked:
    """Return the assertion as ``completion`` asks for it (the scripts' own wording is not known), stripped."""
    return Asked(complete_output(item, render).prompt.strip(), ("\n", *PAPER_STOP))


def after_docstring(text: str) -> str:
    """Drop everything up to and including the first triple quote, so that an answer cannot close a docstring."""
    return text.split('"""', 1)[-1]


PRESETS: dict[str, Preset] = {
    "completion": Preset({"code": complete_code, "cot": complete_steps, "output": complete_output}),
    "chat": Preset({"code": chat_code, "cot": chat_steps, "output": chat_output}, needs_template=True),
    "paper": Preset(
        {"code": paper_text, "cot": paper_text, "output": paper_output},
        max_prompt_tokens=PAPER_PROMPT_TOKENS,
        postprocess=after_docstring,
    ),
}


def requests_for(
    task: TaskFile, preset: str, samples: int = 1, seed: int = 0, render: Render | None = None
) -> list[tuple[Key, Request]]:
    """Return the key in the store and the request, for every sample of every item in the file's order.

    Raises:
        OptionError: ``chat`` is used for a model without a chat template.
    """
    chosen = PRESETS[preset]
    if chosen.needs_template and render is None:
        raise OptionError(
            f"`preset` {preset}: the model has no chat template; use completion, or add chat_template.jinja."
        )
    asked = [(item, chosen.ask[task.kind](item, render)) for item in task.items]
    return [
        (
            (task.name, item.task_id, sample),
            Request(
                prompt=one.prompt,
                stop=one.stop,
                seed=sample_seed(seed, task.name, item.task_id, sample),
                max_prompt_tokens=chosen.max_prompt_tokens,
                special_tokens=one.special_tokens,
            ),
        )
        for item, one in asked
        for sample in range(samples)
    ]


def sample_seed(seed: int, task: str, task_id: str, sample: int) -> int:
    """Return the 63-bit seed of one sample. It does not depend on the machine or on the rest of the file."""
    text = "\0".join((str(seed), task, task_id, str(sample)))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def answer_for(preset: str, made: Generation) -> Generation:
    """Return the answer that scoring reads, made from the stored generation by this preset."""
    postprocess = PRESETS[preset].postprocess
    return made if postprocess is None else replace(made, text=postprocess(made.text))


@dataclass(frozen=True)
class Settings:
    """How every task of a run is asked and answered. Models that are compared need the same settings."""

    preset: str = setting("completion", f"How to prompt the model: {', '.join(PRESETS)}.")
    samples: int = setting(1, "Number of answers per problem.", expert=True)
    temperature: float = setting(0.0, "Sampling temperature; 0 is greedy.", expert=True)
    top_p: float = setting(1.0, "Sample from the most likely tokens with this total probability.", expert=True)
    seed: int = setting(0, "Seed of the samples and perturbations.", expert=True)
    max_new_tokens: int = setting(256, "Maximum new tokens per answer.")
    batch_size: int = setting(64, "Number of prompts to answer together.")

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise OptionError(f"`preset`: got {self.preset}, allowed {', '.join(PRESETS)}.")
        if self.samples < 1:
            raise OptionError(f"`samples`: got {self.samples}, allowed 1 or more.")
        if self.samples > 1 and self.temperature == 0:
            raise OptionError(
                f"`samples` {self.samples}: at `temperature` 0 all samples are equal; give a temperature, or 1 sample."
            )
        assert self.decoding

    @property
    def decoding(self) -> Decoding:
        """The part of the settings that generators use."""
        return Decoding(self.max_new_tokens, self.temperature, self.top_p, self.batch_size)
