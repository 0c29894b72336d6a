"""What to do (:class:`Recipe`) and how (:class:`Options`): frozen, checked when made, no torch.

Device, dtype, folders and batch sizes never change what is decided on one machine, so they are options.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from flab.errors import OptionError
from flab.files import as_path
from flab.pruning.budget import Pins
from flab.pruning.refits import REFITS

LAYER_CRITERION_NAMES = ("kl", "block-influence", "perplexity", "angular", "last-token", "random")
TOKENS = 65_536
TOKENS_PER_NEURON = 7  # with fewer the closed form fits noise: at 8 per neuron it loses half of what 45 give
DESCENT_PARAMETERS = 100_000_000  # from this on a Gauss-Newton step costs more than many passes of mini-batches
DESCENT_TOKENS_PER_NEURON = 20  # with fewer, mini-batches add nothing to the closed form
NEURON_CRITERION_NAMES = ("elimination", "activation", "fisher", "entropy", "magnitude", "random", "first")


@dataclass(frozen=True)
class Recipe:
    """What to remove, judged on which data, by which criteria.

    Attributes:
        remove: fraction of all parameters to cut, tied ones counted once.
        calibration: JSONL or source file(s) folder; None is the bundled instruction samples.
        corpus: more text that only the token counts read.
        general: share of calibration tokens from general code (the running Python's standard library).
        template: "auto" reads chats in the model's own chat template where it has one, "none" in plain words.
        prompt_weight: weight of prompt tokens in the least squares, where the sample has an answer (1).
        vocabulary, layers, width: sizes pinned by the user; None leaves them to the search.
        width_multiple: the width that the search chooses is a multiple of it; None takes 32, and 64, 128 or 256 where that
            costs no more than a 32nd of the width (see :meth:`flab.models.shape.Shape.rounded_width`).
        drop_layers: the layers to remove, original numbering; None lets the criterion choose.
        tokens: calibration tokens for the statistics of the winner, by default :data:`TOKENS` or
            :data:`TOKENS_PER_NEURON` times the FFN width, whichever is more.
        search_tokens, finalist_tokens: calibration tokens of the search before.
        refit: how what stays is corrected, from cheap to dear: none, simple, residual, descent, newton, reconstruction (which
            wants many tokens). "auto" is newton below :data:`DESCENT_PARAMETERS`; above, descent where
            there are :data:`DESCENT_TOKENS_PER_NEURON` tokens or more for each neuron of a layer, else residual.
        finalists: candidates rebuilt on more tokens and decided by task success, or by KL without tests.
    """

    remove: float = 0.22
    calibration: Path | None = None
    corpus: tuple[Path, ...] = ()
    general: float = 0.25
    template: str = "auto"
    prompt_weight: float = 1.0
    vocabulary: int | None = None
    layers: int | None = None
    width: int | None = None
    width_multiple: int | None = None
    drop_layers: tuple[int, ...] | None = None
    layer_criterion: str = "kl"
    neuron_criterion: str = "elimination"
    refit: str = "auto"
    output_projection: bool = True
    closure: bool = True
    min_count: int = 1
    tokens: int | None = None
    search_tokens: int = 16_384
    finalist_tokens: int = 32_768
    max_length: int = 512
    finalists: int = 3
    judge_problems: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        self._settle_paths()
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.default)
        if not 0 <= self.remove < 1:
            raise OptionError(
                f"--remove is the fraction of all parameters to cut: got {self.remove:g}, allowed 0 <= x < 1."
            )
        if not 0 <= self.general <= 0.9:
            raise OptionError(
                f"--general is a share of the calibration tokens: got {self.general:g}, allowed 0 to 0.9."
            )
        if not 0 < self.prompt_weight <= 1:
            raise OptionError(f"--prompt-weight: got {self.prompt_weight:g}, allowed more than 0, at most 1.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise OptionError(
                    f"--{name.replace('_', '-')}: got {getattr(self, name)!r}, allowed {', '.join(allowed)}."
                )
        if self.refit == "reconstruction" and not self.output_projection:
            raise OptionError(
                "--no-output-projection: --refit reconstruction moves the attention too; leave one of them out."
            )
        for name, least in _LEAST.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise OptionError(f"--{name.replace('_', '-')}: got {getattr(self, name)}, allowed {least} or more.")

    def _settle_paths(self) -> None:
        """Text is as good as a path, and one corpus as good as a list of them."""
        try:
            if self.calibration is not None:
                object.__setattr__(self, "calibration", as_path(self.calibration))
            corpus = (self.corpus,) if isinstance(self.corpus, str | os.PathLike) else self.corpus
            object.__setattr__(self, "corpus", tuple(as_path(path) for path in corpus))
        except TypeError:
            raise OptionError(
                f"--calibration and --corpus are paths: got {self.calibration!r:.60} and {self.corpus!r:.60}."
            ) from None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """All files and folders that the recipe names."""
        return (*((self.calibration,) if self.calibration is not None else ()), *self.corpus)

    def resolved(self, parameters: int, width: int) -> Recipe:
        """The recipe with all that was left to flab decided for a model of this many parameters and this FFN width."""
        tokens = self.tokens if self.tokens is not None else max(TOKENS, TOKENS_PER_NEURON * width)
        refit = self.refit
        if refit == "auto":
            refit = "newton"
            if parameters >= DESCENT_PARAMETERS:
                refit = "descent" if tokens >= DESCENT_TOKENS_PER_NEURON * width else "residual"
        return replace(self, tokens=tokens, refit=refit)

    @property
    def pins(self) -> Pins:
        """The sizes that the user fixed."""
        return Pins(self.vocabulary, self.layers, self.width, self.width_multiple)

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        values = asdict(self)
        values["calibration"] = str(self.calibration) if self.calibration else None
        values["corpus"] = [str(p) for p in self.corpus]
        return values


def _check_type(name: str, value: Any, default: Any) -> None:
    """OptionError where a value is of another kind than the field's default: names the field."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(default, bool) and not isinstance(value, bool):
        raise OptionError(f"{flag}: got {value!r:.60}, expected true or false.")
    whole = isinstance(default, int) and not isinstance(default, bool)
    if whole and (isinstance(value, bool) or not isinstance(value, int)):
        raise OptionError(f"{flag}: got {value!r:.60}, expected a whole number.")
    if isinstance(default, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise OptionError(f"{flag}: got {value!r:.60}, expected a number.")
    if (
        name in ("vocabulary", "layers", "width", "width_multiple", "tokens")
        and value is not None
        and not isinstance(value, int)
    ):
        raise OptionError(f"{flag}: got {value!r:.60}, expected a whole number.")
    if isinstance(default, str) and not isinstance(value, str):
        raise OptionError(f"{flag}: got {value!r:.60}, expected text.")


_CHOICES = {
    "layer_criterion": LAYER_CRITERION_NAMES,
    "neuron_criterion": NEURON_CRITERION_NAMES,
    "refit": (*REFITS, "auto"),
    "template": ("auto", "none"),
}
_LEAST = {
    "min_count": 1,
    "width_multiple": 1,
    "tokens": 256,
    "search_tokens": 256,
    "finalist_tokens": 256,
    "max_length": 16,
    "finalists": 1,
    "judge_problems": 1,
}
