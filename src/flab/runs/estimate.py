"""Count the operations, the bytes in memory and the bytes on disk of planning, training and answering in advance.

A :data:`Work` holds the amount of each kind of work in a stage. Divided by the device's :data:`Speed`
(:mod:`flab.runs.device_speed`), it gives seconds. The counts follow the code of :mod:`flab.pruning.search`,
:mod:`flab.pruning.refit` and :mod:`flab.recovery`. The number of splits and the length of answers depend on the data, so
each function states what it assumes. This module loads and measures nothing.

Legend: N tokens (Nf to fit on, Nc to compare on), L layers, K kept layers, D hidden size, F FFN width, A attention width,
V tokens of the vocabulary. A prime marks the sizes of the cut model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

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

# The amount of each kind of work: tokens through one uncut layer ("layer"), FLOP of the refit's statistics ("gram"), of
# factorisations ("single", "double"), of forward and backward passes ("learning") and of the head ("head"), bytes moved in
# memory ("memory"), bytes read, written and hashed ("read", "write", "hash"), bytes of text tokenised ("text"), steps in
# which one layer generates a token for each row of a batch ("step"), programs run in the sandbox ("test"), and processes
# started ("start").
Work = Counter[str]
Speed = Mapping[str, float]  # the amount of each kind of work per second

# The number of ridges tried for a wide layer: the one chosen for the neighbouring layer, and one step to either side.
RIDGES_TRIED = 3
RECONSTRUCTIONS = 1.5  # learning rates tried per layer; the second is tried if the first does not help
# The fraction of the layers whose scores a race computes to the end.
RACED = 0.5
# The bytes that a step moves for each parameter. The weight, the gradient and both moments are read and written, and the
# gradient is cleared.
ADAM_BYTES = 36
NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Size:
    """The sizes of a model before or after a cut."""

    vocabulary: int
    layers: int
    width: int
    experts: int = 0  # of each layer; 0 in a dense model

    @property
    def inside(self) -> int:
        """The neurons of one expert, or of a dense FFN."""
        return self.width // max(1, self.experts)


@dataclass(frozen=True)
class Stage:
    """One stage of a command: its work, and the bytes it needs at its peak.

    ``at_most`` marks a time that is an upper bound, because it assumes that every answer has its maximum length.
    """

    name: str
    seconds: float
    memory_bytes: int
    disk_bytes: int = 0
    at_most: bool = False


def work(**amounts: float) -> Work:
    """Return a :data:`Work` from the amount of each kind."""
    return Counter(amounts)


def seconds(amounts: Work, speed: Speed) -> float:
    """Return how many seconds the work takes if the kinds follow each other."""
    return float(sum(amount / speed[kind] for kind, amount in amounts.items() if amount))


def times(amounts: Work, factor: float) -> Work:
    """Return the work of repeating ``one``."""
    return Counter({kind: amount * factor for kind, amount in amounts.items()})


def split_tokens(tokens: int) -> tuple[int, int]:
    """Return the number of tokens to fit on and the number to compare on."""
    compared = tokens // COMPARE_EVERY
    return tokens - compared, compared


# --- planning ---


def layer_share(shape: Shape, width: float) -> float:
    """Return the cost of a layer of this width, relative to an uncut one."""
    whole = shape.products_per_layer + shape.passed * shape.products_per_neuron
    return (shape.products_per_layer + min(width, shape.passed) * shape.products_per_neuron) / whole


def walk_work(
    shape: Shape, cut: Size, fit: int, compare: int, refit: str, output_projection: bool = True, eliminate: bool = False
) -> Work:
    """Return the work of one walk over the kept layers, its refit (:class:`flab.pruning.refit.walk.Walk`) and its final KL.

    The original's stream passes through every layer and the pruned stream through every kept layer. The statistics of the
    FFN need its features once more. ``eliminate`` means that neurons are chosen by elimination.
    """
    tokens = fit + compare
    kept = cut.layers
    steps = REFITS[refit]
    # A token passes through as many experts as before, which may be narrower.
    share = layer_share(shape, cut.inside * (shape.passed // shape.fitted))
    # The two streams, and at the end the logits of both models for the comparison tokens, 2 D V operations for each.
    parts = [
        work(layer=shape.layers * tokens + kept * tokens * share),
        work(head=2 * 2 * shape.hidden * cut.vocabulary * compare),
    ]
    # For every kept layer, add the statistics and the solution of its projections, then the refit's own steps.
    each = []
    if steps.target is not None:
        each += [ffn_statistics(shape, fit, 2 if steps.ffn == "descent" else 1)]
        # In a mixture the projection of each expert that is kept is solved for.
        each += [times(solving(cut.inside, shape.hidden), max(1, cut.experts))]
    if steps.attention and output_projection:
        each += [gram_work(shape.attention, shape.hidden, fit), solving(shape.attention, shape.hidden)]
    if eliminate and cut.inside < shape.fitted:
        each.append(times(elimination(shape.fitted, cut.inside, shape.hidden), max(1, cut.experts)))
    neurons = cut.width * shape.products_per_neuron
    if steps.ffn == "descent":
        # The same statistics have the FFN's own output as a second target, so the uncut projection is computed once more.
        own_output = work(gram=2 * shape.hidden * shape.width * fit)
        each += [descent_work(neurons, shape.hidden * cut.width, fit), own_output]
    if steps.ffn == "newton":
        each.append(newton_work(shape.hidden, cut.width, neurons, fit))
    if steps.layer:
        each.append(reconstruction_work(shape.products_per_layer + neurons, fit))
    return sum(parts, times(sum(each, Work()), kept))


def ffn_statistics(shape: Shape, fit: int, targets: int) -> Work:
    """Return the work for the features, Gram and cross matrices of one FFN, with ``targets`` x D fitted outputs."""
    # The FFN's part of an uncut layer's products.
    features = work(layer=fit * (layer_share(shape, shape.width) - layer_share(shape, 0)))
    passes = shape.passed // shape.fitted  # experts of one token
    return features + gram_work(shape.fitted, targets * shape.hidden, fit * passes)


def gram_work(features: int, targets: int, tokens: int) -> Work:
    """Return the work of the lower triangle of X^T X and of Y^T X, which are summed in float64 after every micro-batch."""
    batches = tokens / Options.batch_tokens
    # A multiplication with its addition is two operations. After every micro-batch, each of the F x F sums is updated,
    # which moves 14 bytes.
    # The triangle is computed in blocks of rows, each up to its diagonal.
    triangle = features * (features + min(features, BLOCK_ROWS))
    return work(gram=(triangle + 2 * features * targets) * tokens, memory=14 * features * features * batches)


def solving(features: int, targets: int) -> Work:
    """Return the work of one least-squares problem. Each ridge is factored, solved and judged, the last one in float64."""
    # A Cholesky factor takes F^3 / 3 operations. For each target, the two triangular solves take 2 F^2, and judging the
    # solution takes as many again.
    once = features**3 / 3 + 2 * targets * features**2
    tries = len(RIDGES) if features <= ALL_RIDGES else RIDGES_TRIED
    if features > FAST_FEATURES:
        # If there are many features, ridges are compared on random combinations of the targets.
        few = min(targets, SKETCH)
        return work(single=tries * (features**3 / 3 + 4 * few * features**2), double=once)
    return work(double=tries * (once + 2 * targets * features**2) + once)


def elimination(features: int, width: int, targets: int) -> Work:
    """Return the work of inverting a Gram matrix and downdating it until ``width`` features are left, all in float64."""
    # The inverse takes F^3. Removing g of n features downdates n^2 numbers by g products each, while n falls from F to F'.
    rounds = FAST_ROUNDS if features > FAST_FEATURES else ELIMINATION_ROUNDS
    gone = (features - width) / rounds
    downdates = 2 * (features**3 - width**3) / 3 + 2 * gone * gone * features * rounds
    return work(double=features**3 + 2 * targets * features**2 + downdates)


def descent_work(neurons: int, outputs: int, fit: int) -> Work:
    """Return the work of forward and backward passes through one FFN, Adam's steps, and one pass for the targets.

    Only the output projection, which has ``outputs`` of the weights, passes gradients on to its input.
    """
    # A weight costs 2 operations in the forward pass and 2 for its own gradient. In the output projection it costs 2 more
    # to pass the gradient on. The loss on held-out tokens is computed before and after, with forward passes only.
    fitted = fit * (HELD_OUT_EVERY - 1) / HELD_OUT_EVERY
    steps = descent.EPOCHS * fitted / descent.STEP_TOKENS
    judged = 2 * (fit - fitted)
    return work(
        learning=descent.EPOCHS * fitted * (4 * neurons + 2 * outputs) + 2 * neurons * (fit + judged),
        memory=steps * ADAM_BYTES * neurons,
    )


def newton_work(hidden: int, width: int, neurons: int, fit: int) -> Work:
    """Return the work of Gauss-Newton steps. An iteration takes about five products with every weight for every token."""
    # Linearising takes a forward and a backward pass, with the Gram matrices of the preconditioner. An iteration computes
    # J d and J^T J d. Each step also judges about three candidates: halved steps on the fitted tokens, and the held-out
    # tokens.
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
    """Return how many splits are built and compared: usually those up to the best depth, plus the patience.

    Large models are probed first, which usually leaves only the deepest split. That one is built only as the winner.
    """
    if is_pinned or splits == 1 or shape.total >= PROBED_PARAMETERS:
        return 0
    return min(splits, PATIENCE + 2)


def scoring_work(shape: Shape, tokens: int, removals: int) -> Work:
    """Return the work of the greedy layer search. For each removal, every kept layer is a candidate in a race."""
    # Candidate i runs the layers from i + 1 on, so all candidates of a removal run half of L^2 layers. The race drops part
    # of them.
    passes = removals * RACED * shape.layers**2 / 2 + shape.layers
    return work(
        layer=passes * tokens, head=2 * 2 * shape.hidden * shape.vocabulary * tokens * removals * shape.layers * RACED
    )


def probe_work(shape: Shape, cut: Size) -> Work:
    """Return the work of probing a large model with few tokens: one cut without refit, and the removal of each layer."""
    tokens = PROBE_TOKENS
    walk = work(layer=2 * shape.layers * tokens, head=4 * shape.hidden * cut.vocabulary * tokens)
    return walk + scoring_work(Shape(**{**asdict(shape), "vocabulary": cut.vocabulary}), tokens, 1)


def model_bytes(shape: Shape, size: Size, body: int) -> int:
    """Return the bytes of a model that is opened for cutting: ``body`` bytes per layer weight, 4 for all others."""
    return (
        size.layers * (shape.per_layer + shape.ffn(size.width)) * body
        + (size.vocabulary * shape.per_token + shape.fixed) * 4
    )


def walk_bytes(shape: Shape, cut: Size, fit: int, compare: int, refit: str) -> int:
    """Return the peak bytes of one walk, without its model.

    The walk holds the streams of the original and of the pruned model, and both again before the FFN, in float32. Add the
    larger of two parts: the FFN's statistics (three matrices of F x F in float64), or the refit that follows.
    """
    # At the peak there are five streams: original, pruned, both before the FFN, and the attention's output.
    streams = 5 * 4 * (fit + compare) * shape.hidden
    steps = REFITS[refit]
    if steps.target is None:
        return streams
    targets = 2 * shape.hidden if steps.ffn == "descent" else shape.hidden
    fitted = min(cut.width, shape.fitted)
    single = 4 * fitted**2 if fitted > FAST_FEATURES else 0
    # The Gram matrix, its factor and a work copy are F x F in float64. The cross matrices of the targets are added.
    statistics = 3 * 8 * shape.fitted**2 + 3 * 8 * targets * shape.fitted + single
    if shape.experts:  # all tokens of the layer, and its experts in float32
        statistics += 4 * (2 * fit * shape.hidden + cut.width * shape.products_per_neuron)
    neurons = cut.width * shape.products_per_neuron
    # Descent keeps three streams in bfloat16, twice while they are joined. It also keeps a target in float32 and six copies
    # of the weights.
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
    """Return the work of answers with at most ``new_tokens``. Prompts are read once, then each step adds a token per row.

    On average half of a batch is still running, because finished rows leave it.
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
    """Return the bytes of the weights, the cache of a batch (held twice when rows leave it), and its logits in float32."""
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
    """Return the work of the student's passes over ``tokens`` and of the teacher's pass over the distinct ones.

    The student is measured ``evaluations`` times on ``held_out`` tokens. ``full`` trains all weights instead of an adapter.
    ``recompute`` means gradient checkpointing.
    """
    # The forward pass, the gradients of the activations and the gradients of the weights cost one forward pass each. An
    # adapter does not change the weights, so their gradients are not computed. The teacher's states are cached, so it
    # reads each token once, regardless of the number of epochs.
    share = layer_share(shape, student.width)
    backward = 2 if full else 1
    passes = 1 + backward + (1 if recompute else 0)
    trained = tokens * student.layers * share * passes
    measured = evaluations * held_out * student.layers * share
    taught = (tokens / max(1.0, epochs) + held_out) * shape.layers
    # The backward pass recomputes the logits of both models, so that they are never in memory as a whole.
    heads = 2 * shape.hidden * student.vocabulary * (tokens * (4 + backward) + evaluations * held_out * 2)
    return work(layer=trained + measured + taught, head=heads)
