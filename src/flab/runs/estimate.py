"""What planning, training and answering cost, counted before they begin: operations, bytes in memory, bytes on disk.

A :data:`Work` says how much of each kind of work a stage does; divided by the device's :data:`Speed`
(:mod:`flab.runs.device_speed`) it gives seconds. The counts follow the code of :mod:`flab.pruning.search`,
:mod:`flab.pruning.refit` and :mod:`flab.recovery`; what depends on the data (the number of splits,
the length of answers) is assumed as each function states. Nothing is loaded or measured here.

Legend: N tokens (Nf to fit on, Nc to compare on), L layers, K kept ones, D hidden size, F FFN width, A attention width, V tokens
of the vocabulary; a stroke marks the cut model's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flab.models.options import Options
from flab.models.shape import Shape
from flab.pruning.calibration import COMPARE_EVERY, HELD_OUT_EVERY
from flab.pruning.refit import descent, newton, reconstruction
from flab.pruning.refit.gram import (
    ALL_RIDGES,
    BLOCK_ROWS,
    ELIMINATION_ROUNDS,
    FAST_FEATURES,
    FAST_ROUNDS,
    RIDGES,
    SKETCH,
)
from flab.pruning.refits import REFITS
from flab.pruning.search import PATIENCE, PROBE_TOKENS, PROBED_PARAMETERS

# How many of each kind of work: tokens through one uncut layer ("layer"), FLOP of the refit's statistics ("gram"), of
# factorisations ("single", "double"), of forward and backward passes ("learning") and of the head ("head"), bytes moved in
# memory ("memory"), read, written and hashed ("read", "write", "hash"), text split into tokens ("text"), steps of one layer
# that makes one token for each row of a batch ("step"), programs tried in the sandbox ("test"), processes started ("start").
Work = Counter[str]
Speed = Mapping[str, float]  # the amount of each kind of work per second

# Ridges tried for a wide layer: the one where the neighbouring layer ended, and one step to either side.
RIDGES_TRIED = 3
RECONSTRUCTIONS = 1.5  # rates tried per layer: the second where the first does not help
# The fraction of the layers that a race scores to the end.
RACED = 0.5
# Bytes moved per number and step: weight, gradient and both moments are read and written, and the gradient cleared.
ADAM_BYTES = 36
NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Size:
    """One model, or what a cut leaves of it."""

    vocabulary: int
    layers: int
    width: int


@dataclass(frozen=True)
class Stage:
    """One stage of a command: its work, and its needs at the peak.

    ``at_most`` marks a time that is reached only if every answer has its maximum length.
    """

    name: str
    seconds: float
    memory_bytes: int
    disk_bytes: int = 0
    at_most: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


def work(**amounts: float) -> Work:
    """Return work from the amount of each kind."""
    return Counter(amounts)


def seconds(amounts: Work, speed: Speed) -> float:
    """Return how long the work takes, one kind after the other."""
    return float(sum(amount / speed[kind] for kind, amount in amounts.items() if amount))


def times(amounts: Work, factor: float) -> Work:
    """Return the same work, repeated."""
    return Counter({kind: amount * factor for kind, amount in amounts.items()})


def total(parts: Iterable[Work]) -> Work:
    """Return the sum of all the work."""
    found = Work()
    for part in parts:
        found.update(part)
    return found


def split_tokens(tokens: int) -> tuple[int, int]:
    """Return the number of tokens to fit on, and of those to compare on."""
    compared = tokens // COMPARE_EVERY
    return tokens - compared, compared


# --- planning ---


def layer_share(shape: Shape, width: float) -> float:
    """Return the cost of a layer of this width, relative to an uncut one."""
    whole = shape.products_per_layer + shape.passed * shape.products_per_neuron
    return (shape.products_per_layer + min(width, shape.passed) * shape.products_per_neuron) / whole


def ffn_share(shape: Shape) -> float:
    """Return the FFN's part of an uncut layer's products."""
    return layer_share(shape, shape.width) - layer_share(shape, 0)


def walk_work(
    shape: Shape, cut: Size, fit: int, compare: int, refit: str, output_projection: bool = True, eliminate: bool = False
) -> Work:
    """Return the work of one walk over the kept layers, its refit (:class:`flab.pruning.refit.walk.Walk`) and its final KL.

    The original's stream passes every layer, the pruned one every kept layer; the statistics of the FFN need its features once
    more. ``eliminate`` says that neurons are chosen by elimination.
    """
    tokens = fit + compare
    kept = cut.layers
    steps = REFITS[refit]
    # The two streams, and at the end the logits of both models for the tokens that compare: 2 D V each.
    parts = [
        work(layer=shape.layers * tokens + kept * tokens * layer_share(shape, cut.width)),
        work(head=2 * 2 * shape.hidden * cut.vocabulary * compare),
    ]
    # What every kept layer costs besides: the statistics and the solution of its projections, then the refit's own steps.
    each = []
    if steps.target is not None:
        each += [ffn_statistics(shape, fit, 2 if steps.ffn == "descent" else 1), ffn_solving(shape, cut)]
    if steps.attention and output_projection:
        each += [gram_work(shape.attention, shape.hidden, fit), solving(shape.attention, shape.hidden)]
    if eliminate and cut.width < shape.width:
        each.append(elimination(shape.width, cut.width, shape.hidden))
    neurons = cut.width * shape.products_per_neuron
    if steps.ffn == "descent":
        # The second target of the same statistics is the FFN's own output, so the uncut projection is computed once more.
        own_output = work(gram=2 * shape.hidden * shape.width * fit)
        each += [descent_work(neurons, shape.hidden * cut.width, fit), own_output]
    if steps.ffn == "newton":
        each.append(newton_work(shape.hidden, cut.width, neurons, fit))
    if steps.layer:
        each.append(reconstruction_work(shape.products_per_layer + neurons, fit))
    return total([*parts, times(total(each), kept)])


def ffn_statistics(shape: Shape, fit: int, targets: int) -> Work:
    """Return the work for features, Gram and cross matrices of one FFN. ``targets`` times the hidden size are fitted."""
    features = work(layer=fit * ffn_share(shape))
    passes = shape.passed // shape.fitted  # experts of one token
    return features + gram_work(shape.fitted, targets * shape.hidden, fit * passes)


def ffn_solving(shape: Shape, cut: Size) -> Work:
    """Return the work of solving for the output projection of one FFN, or of each expert that stays."""
    if shape.experts:
        return times(solving(shape.fitted, shape.hidden), cut.width // shape.block)
    return solving(cut.width, shape.hidden)


def gram_work(features: int, targets: int, tokens: int) -> Work:
    """Return the work of the lower triangle of X^T X and of Y^T X, added up in float64 after every micro-batch."""
    batches = tokens / Options.batch_tokens
    # Each product is two operations. After every micro-batch the F x F sums are updated: 14 bytes each.
    # Block by block of rows, each up to its diagonal.
    triangle = features * (features + min(features, BLOCK_ROWS))
    return work(gram=(triangle + 2 * features * targets) * tokens, memory=14 * features * features * batches)


def solving(features: int, targets: int) -> Work:
    """Return the work of one least-squares problem. Each ridge is factored, solved and judged; the last one in float64."""
    # A Cholesky factor takes F^3 / 3 operations, two triangular solves 2 F^2 for each target, judging a solution the same again.
    once = features**3 / 3 + 2 * targets * features**2
    tries = len(RIDGES) if features <= ALL_RIDGES else RIDGES_TRIED
    if features > FAST_FEATURES:
        # Ridges of many features are compared on random combinations of the targets.
        few = min(targets, SKETCH)
        return work(single=tries * (features**3 / 3 + 4 * few * features**2), double=once)
    return work(double=tries * (once + 2 * targets * features**2) + once)


def elimination(features: int, width: int, targets: int) -> Work:
    """Return the work of inverting one Gram matrix, and its downdates until ``width`` features are left, all in float64."""
    # The inverse takes F^3. Removing g of n features downdates n^2 numbers by g products, and n falls evenly from F to F'.
    rounds = FAST_ROUNDS if features > FAST_FEATURES else ELIMINATION_ROUNDS
    gone = (features - width) / rounds
    downdates = 2 * (features**3 - width**3) / 3 + 2 * gone * gone * features * rounds
    return work(double=features**3 + 2 * targets * features**2 + downdates)


def descent_work(neurons: int, outputs: int, fit: int) -> Work:
    """Return the work of forward and backward passes through one FFN, Adam's steps, and one pass for the targets.

    Only the output projection, ``outputs`` of the weights, passes gradients on to its input.
    """
    # A weight costs 2 operations forward, 2 for its own gradient and, in the output projection, 2 to pass gradients on.
    # Held-out tokens are judged before and after, forward only.
    fitted = fit * (HELD_OUT_EVERY - 1) / HELD_OUT_EVERY
    steps = descent.EPOCHS * fitted / descent.STEP_TOKENS
    judged = 2 * (fit - fitted)
    return work(
        learning=descent.EPOCHS * fitted * (4 * neurons + 2 * outputs) + 2 * neurons * (fit + judged),
        memory=steps * ADAM_BYTES * neurons,
    )


def newton_work(hidden: int, width: int, neurons: int, fit: int) -> Work:
    """Return the work of Gauss-Newton steps. An iteration takes about five products with every weight for every token."""
    # Linearising is a forward and a backward pass with the Gram matrices of the preconditioner; an iteration is J d and J^T J d.
    # Each step also judges about three candidates: halved steps on the fitted tokens, and the held-out ones.
    tokens = min(fit, newton.MOST_TOKENS) * (HELD_OUT_EVERY - 1) / HELD_OUT_EVERY
    linearised = 6 * neurons * tokens + 2 * tokens * (hidden**2 + width**2)
    iteration = 6 * neurons * tokens * 16 / 18 * 2
    preconditioned = 4 * hidden * neurons + 2 * hidden * width**2
    judged = 3 * 2 * neurons * tokens
    one = linearised + newton.CG_ITERATIONS * (iteration + preconditioned) + judged
    return work(learning=newton.MAX_STEPS * one, double=newton.MAX_STEPS * (width**3 / 3 + 10 * hidden**3))


def reconstruction_work(numbers: int, fit: int) -> Work:
    """Return the work of forward and backward passes through one layer, and of Adam's steps."""
    fitted = fit * (HELD_OUT_EVERY - 1) / HELD_OUT_EVERY
    epochs = RECONSTRUCTIONS * reconstruction.EPOCHS
    steps = epochs * fitted / reconstruction.STEP_TOKENS
    return work(learning=epochs * fitted * 6 * numbers, memory=steps * ADAM_BYTES * numbers)


def candidates_built(shape: Shape, splits: int, is_pinned: bool) -> int:
    """Return how many splits are built and compared: usually those up to the best depth, and as many more as the patience.

    Large models are probed first, which usually leaves the deepest split. It is only built as the winner.
    """
    if is_pinned or splits == 1 or shape.total >= PROBED_PARAMETERS:
        return 0
    return min(splits, PATIENCE + 2)


def scoring_work(shape: Shape, tokens: int, removals: int) -> Work:
    """Return the work of the greedy layer search: each removal runs the model from each kept layer on, raced."""
    # A removal runs half of the L^2 layers on average, since candidate i starts at layer i + 1; the race drops part of them.
    passes = removals * RACED * shape.layers**2 / 2 + shape.layers
    return work(
        layer=passes * tokens, head=2 * 2 * shape.hidden * shape.vocabulary * tokens * removals * shape.layers * RACED
    )


def probe_work(shape: Shape, cut: Size) -> Work:
    """Return the work of probing a large model: one cut without refit, and the removal of each layer, on few tokens."""
    tokens = PROBE_TOKENS
    walk = work(layer=2 * shape.layers * tokens, head=4 * shape.hidden * cut.vocabulary * tokens)
    return walk + scoring_work(Shape(**{**asdict(shape), "vocabulary": cut.vocabulary}), tokens, 1)


def model_bytes(shape: Shape, size: Size, body: int, rest: int = 4) -> int:
    """Return the bytes of a model opened to be cut: its layers with ``body`` bytes a number, all else with ``rest``."""
    return (
        size.layers * (shape.per_layer + shape.ffn(size.width)) * body
        + (size.vocabulary * shape.per_token + shape.fixed) * rest
    )


def walk_bytes(shape: Shape, cut: Size, fit: int, compare: int, refit: str) -> int:
    """Return the peak bytes of one walk beside its model.

    It holds the streams of the original and of the pruned model, with those before the FFN, in float32. The larger of two
    parts comes on top: the FFN's statistics (three matrices of F x F in float64), or the refit that follows.
    """
    # Five streams at the peak: original, pruned, both before the FFN, and the attention's output.
    streams = 5 * 4 * (fit + compare) * shape.hidden
    steps = REFITS[refit]
    if steps.target is None:
        return streams
    targets = 2 * shape.hidden if steps.ffn == "descent" else shape.hidden
    fitted = min(cut.width, shape.fitted)
    single = 4 * fitted**2 if fitted > FAST_FEATURES else 0
    # The Gram matrix, its factor and a work copy, F x F in float64, with the cross matrices of the targets beside them.
    statistics = 3 * 8 * shape.fitted**2 + 3 * 8 * targets * shape.fitted + single
    if shape.experts:  # all tokens of the layer, and its experts in float32
        statistics += 4 * (2 * fit * shape.hidden + cut.width * shape.products_per_neuron)
    neurons = cut.width * shape.products_per_neuron
    # Descent keeps three streams in bfloat16, twice while they are joined, a target in float32, and six copies of the weights.
    # Newton keeps one linearisation and the vectors of the conjugate gradients.
    moved = 0
    if steps.ffn == "descent":
        moved = fit * shape.hidden * (2 * 3 * 2 + 4) + 6 * 4 * neurons
    elif steps.ffn == "newton":
        moved = newton.KEPT_BYTES + 8 * 4 * neurons + 8 * cut.width**2 + 4 * fit * shape.hidden * 3
    if steps.layer:
        moved = max(moved, 8 * 4 * (shape.products_per_layer + neurons) + 2**28)
    return streams + max(statistics, moved)


# --- answering ---


def answering_work(shape: Shape, size: Size, prompts: int, prompt_tokens: int, new_tokens: int, batch: int) -> Work:
    """Return the work of answers of at most ``new_tokens``. Prompts are read once; then each step makes a token per row.

    On average half of a batch still runs, because rows that are finished leave it.
    """
    share = layer_share(shape, size.width)
    batches = -(-prompts // batch)
    steps = batches * new_tokens
    return work(
        layer=prompt_tokens * size.layers * share,
        step=steps * size.layers * share,
        head=2 * shape.hidden * size.vocabulary * (prompts + steps * batch / 2),
    )


def answering_bytes(weights: int, kv_bytes: int, batch: int, longest: int, vocabulary: int) -> int:
    """Return the bytes of the weights, the cache of one batch (twice while rows leave it), and its logits in float32."""
    return weights + 2 * kv_bytes * batch * longest + 3 * 4 * batch * vocabulary


# --- training ---


def training_work(
    shape: Shape,
    student: Size,
    tokens: float,
    held_out: float,
    evaluations: int,
    epochs: float,
    full: bool,
    recompute: bool,
) -> Work:
    """Return the work of the student's passes over ``tokens``, and of the teacher's forward pass over the different ones.

    ``held_out`` tokens are measured ``evaluations`` times. ``full`` trains all weights instead of an adapter. ``recompute`` is
    gradient checkpointing.
    """
    # The forward pass, the gradients of the activations and those of the weights cost one forward pass each. An adapter
    # leaves the weights as they are, so their gradients are not computed. The teacher's states are cached, so it reads
    # each token once, whatever the number of epochs.
    share = layer_share(shape, student.width)
    backward = 2 if full else 1
    passes = 1 + backward + (1 if recompute else 0)
    trained = tokens * student.layers * share * passes
    measured = evaluations * held_out * student.layers * share
    taught = (tokens / max(1.0, epochs) + held_out) * shape.layers
    # Both models' logits are computed again in the backward pass, so that they are never held whole.
    heads = 2 * shape.hidden * student.vocabulary * (tokens * (4 + backward) + evaluations * held_out * 2)
    return work(layer=trained + measured + taught, head=heads)
