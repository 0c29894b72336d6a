"""What to remove, and by which criteria: :class:`Recipe`, frozen and checked when made. No torch.

Device, dtype, folders and batch sizes say how to run it; they are :class:`flab.models.options.Options`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from flab.errors import OptionError
from flab.files import as_path
from flab.models.options import setting
from flab.models.shape import Shape
from flab.pruning.budget import Pins
from flab.pruning.refits import REFITS

# These names repeat those in ``LAYER_CRITERIA`` and ``NEURON_CRITERIA`` of ``flab.pruning.cuts``, because the command line
# shows them without importing torch. A test compares the two.
LAYER_CRITERION_NAMES = ("kl", "block-influence", "perplexity", "angular", "last-token", "random")
EXPERT_CRITERION_NAMES = ("reap", "frequency", "error", "random")
TOKENS = 65_536
# With fewer tokens the closed form fits noise. At 8 per neuron it gains half of what it gains at 45.
TOKENS_PER_NEURON = 7
# From this size on, one Gauss-Newton step costs more than many passes of mini-batches.
DESCENT_PARAMETERS = 100_000_000
# With fewer tokens, mini-batches add nothing to the closed form.
DESCENT_TOKENS_PER_NEURON = 20
NEURON_CRITERION_NAMES = ("elimination", "activation", "fisher", "entropy", "magnitude", "random", "first")
GRADIENT_CRITERIA = ("fisher", "entropy")  # of a dense FFN alone


@dataclass(frozen=True)
class Recipe:
    """What to remove, judged on which data, by which criteria."""

    remove: float = setting(0.22, "Fraction of all parameters to remove; tied weights count once.")
    calibration: Path | None = setting(
        None, "File or folder to calibrate on: rows, chats, text or source code. Default: the bundled rows."
    )
    corpus: tuple[Path, ...] = setting((), "Further text whose tokens are kept in the vocabulary. Repeatable.")
    general: float = setting(
        0.25, "Fraction of the calibration tokens to take from Python's standard library.", expert=True
    )
    template: str = setting(
        "auto",
        "How to format chats: auto (with the model's chat template, if it has one) or none (as plain text).",
        expert=True,
    )
    prompt_weight: float = setting(1.0, "Weight of a prompt token in the refit; an answer token weighs 1.", expert=True)
    vocabulary: int | None = setting(None, "Number of tokens to keep. Default: the search decides.", expert=True)
    layers: int | None = setting(None, "Number of layers to keep. Default: the search decides.", expert=True)
    width: int | None = setting(
        None,
        "Number of FFN neurons to keep in each layer, or in each expert of a mixture. Default: the search decides, but leaves "
        "experts as wide as they are.",
        expert=True,
    )
    experts: int | None = setting(
        None, "Number of experts to keep in each layer of a mixture. Default: the search decides.", expert=True
    )
    width_multiple: int | None = setting(
        None, "Keep a width that is a multiple of N. Default: 32, or up to 256 if that costs little.", expert=True
    )
    drop_layers: tuple[int, ...] | None = setting(
        None, "Layers to remove, counted from 0, such as 3,5. Default: the criterion decides.", expert=True
    )
    layer_criterion: str = setting("kl", f"How to rank layers: {', '.join(LAYER_CRITERION_NAMES)}.", expert=True)
    neuron_criterion: str = setting(
        "elimination", f"How to rank neurons: {', '.join(NEURON_CRITERION_NAMES)}.", expert=True
    )
    expert_criterion: str = setting("reap", f"How to rank experts: {', '.join(EXPERT_CRITERION_NAMES)}.", expert=True)
    refit: str = setting(  # see :meth:`resolved` for auto
        "auto",
        f"How to correct the remaining weights: {', '.join(REFITS)}, or auto. Auto is newton below 100 million "
        "parameters. Above that, and for mixtures of experts, it is descent if there are many tokens, and residual if not.",
    )
    output_projection: bool = setting(True, "Refit the output projection of the attention.", expert=True)
    closure: bool = True
    min_count: int = setting(1, "Keep tokens that occur at least this often in the text.", expert=True)
    tokens: int | None = setting(
        None,
        "Number of calibration tokens. A fifth of them only compares, and the rest is fitted. Default: "
        f"{TOKENS:,}, or {TOKENS_PER_NEURON} per neuron of a layer if that is more.",
    )
    search_tokens: int = setting(
        16_384, "Number of calibration tokens on which the search measures candidates.", expert=True
    )
    finalist_tokens: int = setting(
        32_768, "Number of calibration tokens on which the finalists are built.", expert=True
    )
    max_length: int = setting(512, "Maximum number of tokens of one calibration sequence.", expert=True)
    finalists: int = setting(3, "Number of candidates to build again and compare by their tests.", expert=True)
    judge_problems: int = 100
    seed: int = setting(0, "Seed of every random choice.", expert=True)

    def __post_init__(self) -> None:
        self._settle_paths()
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.default)
        if not 0 <= self.remove < 1:
            raise OptionError(
                f"`remove` is the fraction of all parameters to cut: got {self.remove:g}, allowed 0 <= x < 1, e.g. 0.22."
            )
        if not 0 <= self.general <= 0.9:
            raise OptionError(
                f"`general` is a share of the calibration tokens: got {self.general:g}, allowed 0 to 0.9."
            )
        if not 0 < self.prompt_weight <= 1:
            raise OptionError(f"`prompt_weight`: got {self.prompt_weight:g}, allowed more than 0, at most 1.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise OptionError(f"`{name}`: got {getattr(self, name)!r}, allowed {', '.join(allowed)}.")
        if self.refit == "reconstruction" and not self.output_projection:
            raise OptionError(
                "`output_projection` is off, but `refit` reconstruction moves the attention too; leave one of them out."
            )
        for name, least in _LEAST.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise OptionError(f"`{name}`: got {getattr(self, name)}, allowed {least} or more.")

    def _settle_paths(self) -> None:
        """Convert text to paths, and a single corpus to a tuple."""
        try:
            if self.calibration is not None:
                object.__setattr__(self, "calibration", as_path(self.calibration))
            corpus = (self.corpus,) if isinstance(self.corpus, str | os.PathLike) else self.corpus
            object.__setattr__(self, "corpus", tuple(as_path(path) for path in corpus))
        except TypeError:
            raise OptionError(
                f"`calibration` and `corpus` are paths: got {self.calibration!r:.60} and {self.corpus!r:.60}."
            ) from None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """All files and folders that the recipe names."""
        return (*((self.calibration,) if self.calibration is not None else ()), *self.corpus)

    def resolved(self, shape: Shape) -> Recipe:
        """Return the recipe with every default settled for a model of this shape."""
        # The number of tokens that gives each neuron one; an expert sees only those that pass through it.
        one_each = shape.fitted * shape.width // shape.passed
        tokens = self.tokens if self.tokens is not None else max(TOKENS, TOKENS_PER_NEURON * one_each)
        refit = self.refit
        if shape.experts and refit == "newton":
            raise OptionError(
                "`refit` newton moves the neurons of a dense FFN: for a mixture give residual, descent or reconstruction."
            )
        if shape.experts and self.width is not None and self.neuron_criterion in GRADIENT_CRITERIA:
            raise OptionError(
                f"`neuron_criterion` {self.neuron_criterion} reads gradients of a dense FFN: for the experts of a mixture give "
                f"{', '.join(name for name in NEURON_CRITERION_NAMES if name not in GRADIENT_CRITERIA)}."
            )
        if refit == "auto":
            refit = "newton"
            if shape.total >= DESCENT_PARAMETERS or shape.experts:
                refit = "descent" if tokens >= DESCENT_TOKENS_PER_NEURON * one_each else "residual"
        return replace(self, tokens=tokens, refit=refit)

    def pins(self, shape: Shape) -> Pins:
        """Return the sizes that the user fixed, checked. A list of layers to drop also pins their number."""
        layers = self.layers
        if self.drop_layers is not None:
            if shape.is_hybrid:
                raise OptionError(
                    "`drop_layers`: this model's layers differ in size, so all of them stay; leave it out."
                )
            dropped = set(self.drop_layers)
            if not dropped <= set(range(shape.layers)) or len(dropped) == shape.layers:
                raise OptionError(
                    f"`drop_layers`: got {sorted(dropped)}, allowed some but not all of 0 to {shape.layers - 1}."
                )
            layers = shape.layers - len(dropped)
            if self.layers not in (None, layers):
                raise OptionError(
                    f"`layers`: got {self.layers}, and `drop_layers` {sorted(dropped)} leaves {layers} of {shape.layers}: give "
                    "one of the two."
                )
        pins = Pins(self.vocabulary, layers, self.width, self.width_multiple, self.experts)
        return pins.settled(shape)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        values = asdict(self)
        values["calibration"] = str(self.calibration) if self.calibration else None
        values["corpus"] = [str(p) for p in self.corpus]
        return values


def _check_type(name: str, value: Any, default: Any) -> None:
    """Raise OptionError, which names the field, if a value is of another kind than the field's default."""
    flag = f"`{name}`"
    if isinstance(default, bool) and not isinstance(value, bool):
        raise OptionError(f"{flag}: got {value!r:.60}, expected true or false.")
    # ``True`` is an int in Python, but as a number of layers or tokens it can only be a mistake.
    whole = isinstance(default, int) and not isinstance(default, bool)
    if whole and (isinstance(value, bool) or not isinstance(value, int)):
        raise OptionError(f"{flag}: got {value!r:.60}, expected a whole number.")
    if isinstance(default, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise OptionError(f"{flag}: got {value!r:.60}, expected a number.")
    if (
        name in ("vocabulary", "layers", "width", "width_multiple", "experts", "tokens")
        and value is not None
        and not isinstance(value, int)
    ):
        raise OptionError(f"{flag}: got {value!r:.60}, expected a whole number.")
    if isinstance(default, str) and not isinstance(value, str):
        raise OptionError(f"{flag}: got {value!r:.60}, expected text.")


_CHOICES = {
    "layer_criterion": LAYER_CRITERION_NAMES,
    "neuron_criterion": NEURON_CRITERION_NAMES,
    "expert_criterion": EXPERT_CRITERION_NAMES,
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
