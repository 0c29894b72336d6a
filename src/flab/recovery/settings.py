"""How a recovery is trained: :class:`Training`, frozen and checked when made. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from flab.errors import OptionError
from flab.models.options import setting

METHODS = ("auto", "full", "lora")
TARGETS = ("answers", "all")
# From this many parameters on, ``auto`` means LoRA.
LORA_FROM = 1_000_000_000
# Adapters start from zero and the frozen weights keep the model stable, so the usual 2e-4 suits them. A small pruned model
# that is trained as a whole learns fastest at 1e-3.
LEARNING_RATES = {"full": 1e-3, "lora": 2e-4}
LARGE_FULL_RATE = 2e-5  # full training of a model of a billion parameters and more


@dataclass(frozen=True)
class Training:
    """The objective of a recovery, its budget, and its batches."""

    method: str = setting(
        "auto", "Which weights to train: full (all), lora (low-rank updates) or auto (lora from 1 billion parameters)."
    )
    alpha: float = setting(
        1.0, "Weight of the KL from the teacher: 0 is cross entropy alone, 1 is distillation alone.", expert=True
    )
    temperature: float = setting(1.0, "Temperature that softens both distributions of the KL.", expert=True)
    kl_on: str = setting("answers", f"Tokens on which to measure the KL: {' or '.join(TARGETS)}.", expert=True)
    template: str = setting(
        "auto",
        "How to format chats: auto (with the model's chat template, if it has one) or none (as plain text).",
        expert=True,
    )
    steps: int | None = setting(None, "Budget: number of optimizer steps.")
    tokens: int | None = setting(None, "Budget: number of tokens read.")
    minutes: float | None = setting(None, "Budget: minutes of training and evaluation.")
    epochs: float | None = setting(None, "Budget: passes over the data. Default if no budget is given: 3.")
    length: int = setting(512, "Number of tokens per row. Shorter examples are packed into one row.", expert=True)
    batch: int = setting(8, "Rows per optimizer step, over all devices.")
    micro_batch: int = setting(8, "Rows processed at once on one device. Fewer rows need less memory.")
    packing: bool = setting(True, "Pack several examples into one row.", expert=True)
    learning_rate: float | None = setting(
        None,
        "Highest learning rate, after warm-up. Default: 1e-3 for full, 2e-4 for lora, 2e-5 for full from 1 billion parameters.",
    )
    warmup: float = setting(0.05, "Fraction of the steps during which the learning rate rises.", expert=True)
    weight_decay: float = setting(0.0, "Weight decay of AdamW.", expert=True)
    held_out: float = setting(0.05, "Fraction of prompts held out for validation.", expert=True)
    evaluations: int = setting(8, "Number of validations, each with a checkpoint.", expert=True)
    patience: int = setting(3, "Stop after this many validations without improvement.", expert=True)
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass. This saves memory and takes longer.", expert=True
    )
    lora_rank: int = setting(32, "Rank of the LoRA updates.", expert=True)
    seed: int = setting(0, "Seed of every random choice.", expert=True)

    def __post_init__(self) -> None:
        choices = (
            ("method", self.method, METHODS),
            ("kl_on", self.kl_on, TARGETS),
            ("template", self.template, ("auto", "none")),
        )
        for flag, value, allowed in choices:
            if value not in allowed:
                raise OptionError(f"`{flag}`: got {value!r}, allowed {', '.join(allowed)}.")
        budgets = {
            n: getattr(self, n) for n in ("steps", "tokens", "minutes", "epochs") if getattr(self, n) is not None
        }
        if len(budgets) > 1:
            raise OptionError(
                f"{', '.join(f'`{name}`' for name in budgets)}: only one budget is allowed; give one of them."
            )
        for name, value in budgets.items():
            if not 0 < value < math.inf:
                raise OptionError(f"`{name}`: got {value:g}, allowed more than 0.")
        fits = self.batch >= 1 and self.batch % max(1, self.micro_batch) == 0
        ranges = (
            ("alpha", 0 <= self.alpha <= 1, "0 (cross entropy alone) to 1 (distillation alone)"),
            ("temperature", self.temperature > 0, "more than 0"),
            ("length", self.length >= 16, "16 or more"),
            ("micro_batch", self.micro_batch >= 1, "1 or more"),
            ("batch", fits, f"a multiple of `micro_batch` {self.micro_batch}"),
            ("learning_rate", self.learning_rate is None or 0 < self.learning_rate < math.inf, "more than 0"),
            ("warmup", 0 <= self.warmup < 1, "a share of the steps, 0 <= x < 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("held_out", 0 < self.held_out <= 0.5, "a share of the prompts, more than 0, at most 0.5"),
            ("evaluations", self.evaluations >= 1, "1 or more"),
            ("patience", self.patience >= 1, "1 or more"),
            ("lora_rank", self.lora_rank >= 1, "1 or more"),
        )  # fmt: skip
        for name, good, text in ranges:
            if not good:
                raise OptionError(f"`{name}`: got {getattr(self, name)}, allowed {text}.")

    def method_for(self, parameters: int) -> str:
        """Return ``full`` or ``lora``."""
        return self.method if self.method != "auto" else "lora" if parameters >= LORA_FROM else "full"

    def rate_for(self, parameters: int) -> float:
        """Return the highest learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        method = self.method_for(parameters)
        return LARGE_FULL_RATE if method == "full" and parameters >= LORA_FROM else LEARNING_RATES[method]

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return asdict(self)
