"""One budget: how many parameters may stay, and which (vocabulary, layers, width) splits meet it.

Pure arithmetic on a :class:`Shape`; no torch, no model. It says which splits are *feasible*. Which one is
*best* is measured elsewhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction

from flab.errors import BudgetError, OptionError
from flab.models.shape import Shape

# Matrix products over the vocabulary are fastest where its size is a multiple of 64.
VOCABULARY_MULTIPLE = 64
# torch's grouped matrix products, by which transformers runs the experts of a mixture, need rows of whole 16 bytes: 8 numbers
# of 16 bits.
EXPERT_MULTIPLE = 8


@dataclass(frozen=True)
class Split:
    """One way to meet the budget: how many units of each kind stay, and the parameters that they add up to."""

    sizes: dict[str, int]  # by the names of a shape's units
    parameters: int

    @property
    def vocabulary(self) -> int:
        """Tokens that stay."""
        return self.sizes["vocabulary"]

    @property
    def layers(self) -> int:
        """Layers that stay."""
        return self.sizes["layers"]

    @property
    def width(self) -> int:
        """FFN neurons that stay in each layer, summed over all experts."""
        return self.sizes["width"]

    @property
    def inside(self) -> int:
        """Neurons that stay in each expert, or in the FFN of a dense model."""
        return self.width // self.sizes.get("experts", 1)

    def __str__(self) -> str:
        experts = self.sizes.get("experts")
        return f"{self.layers} layers x {f'{experts} experts of {self.inside}' if experts else self.width}"

    def to_json(self) -> dict[str, int]:
        """Return all numbers in one flat object, as plans hold them."""
        return {**self.sizes, "parameters": self.parameters}


@dataclass(frozen=True)
class Pins:
    """Sizes that the user fixed; ``None`` leaves them to the search.

    In a mixture the user fixes the ``width`` of one expert. :meth:`settled` moves it to ``expert_width``, and ``width`` is
    then that of all experts together, as in a :class:`Shape`.
    """

    vocabulary: int | None = None
    layers: int | None = None
    width: int | None = None
    width_multiple: int | None = None
    experts: int | None = None
    expert_width: int | None = None

    def check(self, shape: Shape) -> None:
        """Raise :class:`OptionError` if a pinned size is outside the model's."""
        for name, got in asdict(self).items():
            if got is None:
                continue
            units = shape.units.get("width" if name == "width_multiple" else name)
            if units is None:
                raise OptionError("`experts`: this model has none, its FFN is dense; give `width`.")
            if name == "width_multiple" and shape.experts:
                raise OptionError(
                    "`width_multiple`: the search does not choose the width of experts; give `width`, the neurons to keep in "
                    "each expert."
                )
            if not units.least <= got <= units.count:
                raise OptionError(
                    f"`{name}` is the size to keep: got {got}, allowed {units.least} to {units.count} ({units.why})."
                )
            if name == "width" and shape.experts and got % EXPERT_MULTIPLE and got != units.count:
                raise OptionError(
                    f"`width` of an expert: got {got}, allowed multiples of {EXPERT_MULTIPLE}. transformers multiplies all "
                    "experts at once, and that takes no other row lengths."
                )

    def settled(self, shape: Shape) -> Pins:
        """Check the pins, and return them in the terms of a shape."""
        self.check(shape)
        if not shape.experts:
            return self
        each = self.width or shape.block
        return replace(self, width=self.experts * each if self.experts else None, expert_width=self.width)

    def narrowed(self, shape: Shape) -> Shape:
        """Return the shape that the search chooses layers and experts of."""
        return shape.narrowed(self.expert_width)


def allowed_parameters(shape: Shape, remove: float) -> int:
    """Return how many parameters may stay if the fraction ``remove`` is removed (rounded down)."""
    if not 0 <= remove < 1:
        raise OptionError(
            f"`remove` is the fraction of all parameters to cut: got {remove:g}, allowed 0 <= x < 1, e.g. 0.22."
        )
    # Built from the decimal text: 0.22 has no exact binary form, and its rounding error could move the budget by one
    # parameter.
    return int(shape.total * (1 - Fraction(str(remove))))


def vocabulary_for(shape: Shape, remove: float, floor: int, pins: Pins) -> int:
    """Return the vocabulary size to keep: the covered ``floor``, or more if the budget allows it.

    Further tokens come in steps of :data:`VOCABULARY_MULTIPLE`. They keep other text covered when little has to be removed.
    """
    if pins.vocabulary is not None:
        return pins.vocabulary
    # With depth and width at their full or pinned sizes, the rest of the budget can be spent on tokens.
    whole = pins.narrowed(shape)
    body = whole.parameters(0, pins.layers or whole.layers, pins.width or whole.width)
    affordable = (allowed_parameters(shape, remove) - body) // shape.per_token
    if affordable >= shape.vocabulary:
        return shape.vocabulary
    return max(floor, min(affordable // VOCABULARY_MULTIPLE * VOCABULARY_MULTIPLE, shape.vocabulary))


def spare_tokens(shape: Shape, remove: float, vocabulary: int, pins: Pins) -> int:
    """Return how many more tokens the budget allows at full depth, because widths change in coarse steps; 0 if pinned."""
    layers = pins.layers or shape.layers
    allowed = allowed_parameters(shape, remove)
    shape = pins.narrowed(shape)
    width = pins.width or widest(shape, vocabulary, layers, allowed, pins.width_multiple)
    if pins.vocabulary is not None or width == 0:
        return 0
    left = (allowed - shape.parameters(vocabulary, layers, width)) // shape.per_token
    return max(0, left // VOCABULARY_MULTIPLE * VOCABULARY_MULTIPLE)


def rounded_up(tokens: int) -> int:
    """Return the next multiple of :data:`VOCABULARY_MULTIPLE`."""
    return -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def widest(shape: Shape, vocabulary: int, layers: int, allowed: int, multiple: int | None = None) -> int:
    """Return the widest FFN, in neurons, at this depth that stays within ``allowed`` parameters; 0 if none does.

    It is a multiple of ``multiple``, or of what :meth:`Shape.rounded_width` chooses.
    """
    # Layers without neurons are paid for first. The rest of the budget buys neurons, one in every layer at a time.
    left = allowed - shape.parameters(vocabulary, layers, 0)
    block = shape.block * shape.per_neuron + shape.per_block
    width = left // (layers * block) * shape.block
    if width >= shape.width:
        return shape.width
    if multiple is None:
        return shape.rounded_width(max(0, width))
    return max(0, width // multiple * multiple)


def feasible_splits(shape: Shape, remove: float, vocabulary: int, pins: Pins) -> list[Split]:
    """Return every split that meets the budget, deepest first: one width for each number of layers.

    Raises:
        BudgetError: if no split does; names the floor that prevents it and what can be reached.
    """
    allowed = allowed_parameters(shape, remove)
    total = shape.total
    shape = pins.narrowed(shape)
    # A hybrid's layers differ in size, so its only depth is all of them.
    depths = [pins.layers] if pins.layers is not None else range(shape.layers, shape.fewest_layers - 1, -1)
    splits = []
    for layers in depths:
        width = pins.width
        if width is None:
            width = widest(shape, vocabulary, layers, allowed, pins.width_multiple)
        sizes = {"vocabulary": vocabulary, "layers": layers, "width": width}
        if shape.experts:
            sizes["experts"] = width // shape.block
        parameters = shape.parameters(vocabulary, layers, width)
        # A pinned width may be too large for this depth; then only shallower models can meet the budget.
        if width > 0 and parameters <= allowed:
            splits.append(Split(sizes, parameters))
            if width == shape.width:
                break  # a shallower model would only be smaller than asked
    if not splits:
        raise BudgetError(_unreachable(shape, total, remove, vocabulary, pins))
    return splits


def _unreachable(shape: Shape, total: int, remove: float, vocabulary: int, pins: Pins) -> str:
    layers = pins.layers or shape.fewest_layers
    width = pins.width or pins.width_multiple or shape.narrowest()
    # The smallest model that the pins and the covered text allow: one layer with one step of neurons.
    smallest = shape.parameters(vocabulary, layers, width)
    reachable = max(0.0, 1 - smallest / total)
    inside = f"{width // shape.block} experts of {shape.block}" if shape.experts else f"width {width}"
    floor = (
        f"{vocabulary} tokens{' (pinned)' if pins.vocabulary else ' (covered text and special tokens)'}, "
        f"{layers} layer{'s' * (layers > 1)}{' (pinned)' if pins.layers else ''}, "
        f"{inside}{' (pinned)' if pins.width else ''}"
    )
    return (
        f"`remove` {remove:g} cannot be reached: the floor is {floor} = {smallest:,} of {total:,} parameters; "
        f"at most {int(reachable * 1000) / 1000:g} can be removed. Ask for less or loosen a pin."
    )
