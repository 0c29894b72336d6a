"""The sizes of a model and what they cost in parameters. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

WIDTH_MULTIPLES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
# Formats such as q8_0 and q4_0 quantise this many numbers together. Rows that are not a multiple stay in 16 bits.
BLOCK = 32
# The same for the k-quants.
LARGE_BLOCK = 256


@dataclass(frozen=True)
class Units:
    """One kind of unit that can be cut: how many there are, what one costs in parameters, and where they are."""

    count: int
    parameters: int
    in_layers: bool = False  # there are ``count`` in each layer
    least: int = 1
    why: str = "the model's own"  # the reason for these limits


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only model, and what one unit of each size costs in parameters.

    ``per_token`` counts an embedding row and, when the head is untied, a head row (and its bias);
    ``per_layer`` is a layer without its FFN neurons; ``fixed`` is all the rest (final norm, ...). The ``products`` are
    the weights among them that stand in matrix products; ``attention`` is the width that enters the attention's
    output projection (heads x head size).

    The FFN of a mixture of experts counts as one of ``width`` neurons. Each expert is a block of ``block`` neurons, with
    ``per_block`` more parameters for its row of the router (0 in a dense model). A token passes through ``active`` neurons.

    In a hybrid only ``attending`` layers have full attention, and all layers stay: the others differ from them in size.
    ``per_layer`` and ``products_per_layer`` are then those of the smallest, and ``fixed`` and ``products_fixed`` hold the rest.
    """

    vocabulary: int
    layers: int
    width: int
    per_token: int
    per_layer: int
    per_neuron: int
    fixed: int
    hidden: int
    products_per_layer: int
    products_per_neuron: int
    attention: int
    block: int = 1
    per_block: int = 0
    active: int = 0  # all, if 0
    products_fixed: int = 0
    attending: int = -1  # all, if below 0

    @property
    def experts(self) -> int:
        """Experts in each layer, 0 in a dense model."""
        return self.width // self.block if self.per_block else 0

    def narrowed(self, width: int | None) -> Shape:
        """Return a mixture's shape with ``width`` neurons in each expert; the same shape without one, or for a dense model."""
        if width is None or not self.experts:
            return self
        return replace(self, width=self.experts * width, block=width, active=self.active // self.block * width)

    @property
    def fitted(self) -> int:
        """Neurons that are fitted together: those of one expert, or all of a dense FFN."""
        return self.block if self.experts else self.width

    @property
    def passed(self) -> int:
        """Neurons that a token passes through."""
        return self.active or self.width

    @property
    def inner(self) -> str:
        """The name of the units inside the layers."""
        return "experts" if self.experts else "width"

    @property
    def is_hybrid(self) -> bool:
        """Whether some of the layers have no full attention."""
        return 0 <= self.attending < self.layers

    @property
    def fewest_layers(self) -> int:
        """The fewest layers that can be kept."""
        return self.layers if self.is_hybrid else 1

    @property
    def units(self) -> dict[str, Units]:
        """What can be cut, by the names that pins and plans use."""
        layers = Units(self.layers, self.per_layer)
        if self.is_hybrid:
            layers = replace(layers, least=self.layers, why="its layers differ in size, so all of them stay")
        whole = {"vocabulary": Units(self.vocabulary, self.per_token), "layers": layers}
        if self.experts:
            each = self.block * self.per_neuron + self.per_block
            least = self.active // self.block
            why = f"each token passes through {least}" if least > 1 else Units.why
            return whole | {
                "experts": Units(self.experts, each, in_layers=True, least=least, why=why),
                "width": Units(self.block, self.experts * self.per_neuron, in_layers=True),
            }
        return whole | {"width": Units(self.width, self.per_neuron, in_layers=True)}

    def counts(self, names: Iterable[str]) -> list[int]:
        """Return how many units of each name there are; 0 if there are none, as experts in a dense model."""
        units = self.units
        return [units[name].count if name in units else 0 for name in names]

    def parameters(self, vocabulary: int, layers: int, width: int) -> int:
        """Count all parameters of a model of these sizes, tied ones once."""
        return self.fixed + vocabulary * self.per_token + layers * (self.per_layer + self.ffn(width))

    def ffn(self, width: int) -> int:
        """Count the parameters of one FFN of this many neurons, with the router's rows for its experts."""
        return width * self.per_neuron + width // self.block * self.per_block

    def body(self, layers: int, width: int) -> int:
        """Return parameters without embeddings and head."""
        return self.parameters(0, layers, width)

    def flops_per_token(self, vocabulary: int, layers: int, width: int, context: int = 0) -> int:
        """Return the floating-point operations of one decoded token that sees ``context`` tokens, including itself.

        That is 2 for each weight in a matrix product, and in each layer 2 for each product of scores and of values over the
        context.
        """
        # An embedding lookup is not a product and costs nothing here. The head, vocabulary x hidden, is one even if tied.
        neurons = min(width, self.passed) * self.products_per_neuron + width // self.block * self.per_block
        weights = layers * (self.products_per_layer + neurons) + self.products_fixed + vocabulary * self.hidden
        attending = layers if self.attending < 0 else min(layers, self.attending)
        return 2 * weights + 4 * attending * context * self.attention

    def flops_of_prompt(self, vocabulary: int, layers: int, width: int, tokens: int) -> int:
        """Return the floating-point operations of reading ``tokens`` at once, with logits for the last one only.

        Scores are computed for all pairs, as in eager attention.
        """
        return tokens * self.flops_per_token(0, layers, width, tokens) + 2 * vocabulary * self.hidden

    @property
    def total(self) -> int:
        """Parameters of the uncut model."""
        return self.parameters(self.vocabulary, self.layers, self.width)

    def width_multiple(self) -> int:
        """Return the step of widths: an expert, or :data:`BLOCK`, or less if that leaves fewer than 16 steps."""
        if self.experts:
            return self.block
        if self.width >= 16 * BLOCK:
            return BLOCK
        return next(m for m in WIDTH_MULTIPLES if m * 32 <= self.width or m == 1)

    def narrowest(self) -> int:
        """Return the smallest width that a layer can have: one step, or as many experts as a token passes through."""
        return self.active or self.width_multiple()

    def rounded_width(self, width: int) -> int:
        """Return the width to choose if at most ``width`` is affordable: a multiple of 256, 128, 64 or 32.

        It takes the coarsest step that gives away at most a 64th of the model's width, because more formats quantise such a
        width and more devices share it evenly. A model too narrow for blocks of 32 is cut in finer steps.
        """
        step = self.width_multiple()
        finest = width // step * step
        if self.experts:
            return finest if finest >= self.active else 0
        if step < BLOCK:
            return finest
        coarser = (width // multiple * multiple for multiple in WIDTH_MULTIPLES if multiple > step)
        return next((made for made in coarser if made > 0 and finest - made <= self.width // 64), finest)
