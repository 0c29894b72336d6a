"""How a recovery is trained: :class:`Training`, frozen and checked when made. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from flab.errors import OptionError

METHODS = ("auto", "full", "lora")
TARGETS = ("answers", "all")
LORA_FROM = 1_000_000_000  # parameters from which ``auto`` means LoRA
LEARNING_RATES = {"full": 1e-3, "lora": 2e-4}
LARGE_FULL_RATE = 2e-5  # full training of a model of a billion parameters and more


@dataclass(frozen=True)
class Training:
    """What is minimised, for how long, in which batches.

    Attributes:
        method: ``full`` trains every weight, ``lora`` low-rank updates that are merged at the end; ``auto`` is LoRA
            from a billion parameters.
        alpha: weight of the KL against the teacher; 0 is cross entropy alone, 1 distillation alone.
        temperature: both distributions are softened by it; the KL counts its square.
        kl_on: the tokens that the KL is taken on, ``answers`` or ``all``.
        template: ``auto`` reads chats in the model's own chat template where it has one, ``none`` in plain words.
        steps, tokens, minutes, epochs: the budget; at most one may be given, 3 epochs where none is.
        length: tokens of one row; shorter examples are packed into it.
        batch: rows of one step, over all devices; micro_batch: rows at once on one device.
        learning_rate: the highest, after warm-up; it then falls as a cosine. None chooses by method and size.
        held_out: share of the prompts that only measure.
        evaluations: how often the held-out rows are measured; patience: stop after so many without a better one.
    """

    method: str = "auto"
    alpha: float = 1.0
    temperature: float = 1.0
    kl_on: str = "answers"
    template: str = "auto"
    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = None
    epochs: float | None = None
    length: int = 512
    batch: int = 8
    micro_batch: int = 8
    packing: bool = True
    learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.0
    held_out: float = 0.05
    evaluations: int = 8
    patience: int = 3
    gradient_checkpointing: bool = False
    lora_rank: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        choices = (
            ("method", self.method, METHODS),
            ("kl-on", self.kl_on, TARGETS),
            ("template", self.template, ("auto", "none")),
        )
        for flag, value, allowed in choices:
            if value not in allowed:
                raise OptionError(f"--{flag}: got {value!r}, allowed {', '.join(allowed)}.")
        budgets = {
            n: getattr(self, n) for n in ("steps", "tokens", "minutes", "epochs") if getattr(self, n) is not None
        }
        if len(budgets) > 1:
            raise OptionError(f"--{', --'.join(budgets)}: one budget at a time; give one of them.")
        for name, value in budgets.items():
            if not 0 < value < math.inf:
                raise OptionError(f"--{name}: got {value:g}, allowed more than 0.")
        fits = self.batch >= 1 and self.batch % max(1, self.micro_batch) == 0
        ranges = (
            ("alpha", 0 <= self.alpha <= 1, "0 (cross entropy alone) to 1 (distillation alone)"),
            ("temperature", self.temperature > 0, "more than 0"),
            ("length", self.length >= 16, "16 or more"),
            ("micro_batch", self.micro_batch >= 1, "1 or more"),
            ("batch", fits, f"a multiple of --micro-batch {self.micro_batch}"),
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
                raise OptionError(f"--{name.replace('_', '-')}: got {getattr(self, name)}, allowed {text}.")

    def method_for(self, parameters: int) -> str:
        """``full`` or ``lora``."""
        return self.method if self.method != "auto" else "lora" if parameters >= LORA_FROM else "full"

    def rate_for(self, parameters: int) -> float:
        """The highest learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        method = self.method_for(parameters)
        return LARGE_FULL_RATE if method == "full" and parameters >= LORA_FROM else LEARNING_RATES[method]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
