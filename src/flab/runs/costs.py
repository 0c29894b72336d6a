"""Count what each stage of a command costs for one model, its texts and its tasks, with :mod:`flab.runs.estimate`.

The number of splits and the length of answers are known only afterwards, so each function states its assumption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flab.data.samples import Sample
from flab.evaluation.bits_per_byte import general_size
from flab.evaluation.prompts import Settings, requests_for
from flab.evaluation.tasks import TaskFile
from flab.models.chat import chat_template
from flab.models.checkpoint import MIXED, compute_dtype, cutting_dtype
from flab.models.options import Options
from flab.models.shape import Shape
from flab.pruning.budget import Split, feasible_splits
from flab.pruning.calibration import Texts, read_texts
from flab.pruning.finalists import BATCH, NEW_TOKENS
from flab.pruning.recipe import Recipe
from flab.pruning.vocabulary import EXPECTED_TOKENS, LARGE_VOCABULARY, Counts, Needs
from flab.recovery.memory import activation_bytes, logit_bytes
from flab.recovery.settings import Training
from flab.recovery.train import DEFAULT_EPOCHS
from flab.runs.estimate import (
    NUMBER_BYTES,
    Size,
    Speed,
    Stage,
    Work,
    answering_bytes,
    answering_work,
    candidates_built,
    model_bytes,
    probe_work,
    scoring_work,
    seconds,
    split_tokens,
    times,
    training_work,
    walk_bytes,
    walk_work,
    work,
)
from flab.runs.facts import ModelFacts, assumed_vocabulary

SAMPLED = 64  # how many texts are tokenised to estimate the characters per token
SEQUENCE = 512  # the assumed number of tokens in a prompt, if it is not known
PROGRAM_BYTES = 500_000_000  # of a process that has imported torch and transformers


@dataclass(frozen=True)
class Planned:
    """The input of a plan: its recipe with all defaults filled in, the tokens of the texts, and the deepest split."""

    recipe: Recipe
    splits: list[Split]
    tokens: int
    problems: int
    text_bytes: int

    @property
    def cut(self) -> Size:
        """The sizes of the model after the deepest split."""
        first = self.splits[0]
        return Size(**first.sizes)


def characters_per_token(facts: ModelFacts, texts: Sequence[str]) -> float:
    """Return the characters per token of the first few texts."""
    few = [text for text in texts[:SAMPLED] if text]
    made = sum(len(one.ids) for one in facts.tokenizer.encode_batch(few, add_special_tokens=False))
    return sum(map(len, few)) / max(1, made)


def planned(facts: ModelFacts, recipe: Recipe) -> Planned:
    """Read the texts and determine the splits, with as many tokens as planning will keep.

    Raises:
        DataError, BudgetError, OptionError: as planning would.
    """
    texts = read_texts(recipe)
    shape = facts.shape
    recipe = recipe.resolved(shape)
    pins = recipe.pins(shape)
    vocabulary = pins.vocabulary or needs_of(facts, texts, recipe).size(shape, recipe.remove, pins)
    splits = feasible_splits(shape, recipe.remove, vocabulary, pins)
    assert recipe.tokens is not None
    # All texts are tokenised once to count tokens, and those of the task once more to fill the windows.
    tokenised = [*texts.task_texts(), *texts.general_texts(), *(sample.text for sample in texts.task)]
    problems = _problems(texts.task, recipe)
    return Planned(recipe, splits, _tokens(facts, texts, recipe), problems, sum(map(len, tokenised)))


def needs_of(facts: ModelFacts, texts: Texts, recipe: Recipe) -> Needs:
    """Return what these texts need of the model's vocabulary."""
    return Needs(facts, recipe, Counts.of(facts.tokenizer, texts.task_texts(), texts.general_texts()))


def _tokens(facts: ModelFacts, texts: Texts, recipe: Recipe) -> int:
    """Return the number of calibration tokens that are available, up to the number requested."""
    assert recipe.tokens is not None
    task = [sample.text for sample in texts.task]
    available = sum(map(len, task)) / characters_per_token(facts, task)
    # If there is less text than requested, the general text shrinks in proportion, so its share does not change.
    of_task = min(available, recipe.tokens * (1 - recipe.general))
    return int(of_task / (1 - recipe.general))


def _problems(samples: Sequence[Sample], recipe: Recipe) -> int:
    """Return the number of problems with tests that are not used for fitting. About one window in five only compares."""
    return min(recipe.judge_problems, sum(bool(s.test and s.entry_point) for s in samples) // 5)


def plan_stages(facts: ModelFacts, plan: Planned, speed: Speed, options: Options) -> list[Stage]:
    """Return the stages of planning, as :func:`flab.pruning.planner.Planner.plan` goes through them."""
    if options.in_memory == "layer":
        plan = replace(plan, problems=0)  # there is no whole model in memory to answer them
    shape = facts.shape
    recipe = plan.recipe
    cut = plan.cut
    fit, compare = split_tokens(plan.tokens)
    few, few_compared = split_tokens(min(plan.tokens, recipe.search_tokens))
    model = opened_bytes(facts, cut, options)
    whole = opened_bytes(facts, facts.size, options)
    built = candidates_built(shape, len(plan.splits), recipe.drop_layers is not None)
    reading = work(read=facts.weights_bytes, text=plan.text_bytes)
    choosing = vocabulary_work(shape, cut.vocabulary, plan.tokens)
    stages = [stage_of("vocabulary", reading + choosing, speed, whole + 3 * 4 * compare * shape.hidden)]
    searching = times(_candidate(plan, facts, few, few_compared), built)
    if options.in_memory == "layer":
        searching += work(read=built * facts.weights_bytes)
    if built:
        searching += scoring_work(shape, few, built - 1)
    elif len(plan.splits) > 1 and recipe.drop_layers is None:
        searching += probe_work(shape, cut)
    # Scoring the neurons takes two more passes over these tokens. Elimination needs no such pass if there are enough
    # tokens, because it uses the sums of the refit.
    if recipe.neuron_criterion != "elimination" or few < shape.width:
        searching += work(layer=2 * shape.layers * few)
    refit = "residual" if recipe.refit != "none" else "none"
    memory = whole + walk_bytes(shape, cut, few, few_compared, refit) if built else whole
    stages.append(stage_of("search", searching, speed, memory))
    finalists = min(recipe.finalists, built)
    if finalists > 1:
        more, compared = split_tokens(min(plan.tokens, recipe.finalist_tokens))
        one = _candidate(plan, facts, more, compared) + work(read=facts.weights_bytes)
        one += answering_work(shape, cut, plan.problems, plan.problems * SEQUENCE // 4, NEW_TOKENS, BATCH)
        one += work(test=plan.problems)
        memory = model + walk_bytes(shape, cut, more, compared, refit)
        stages.append(stage_of("finalists", times(one, finalists), speed, memory, at_most=plan.problems > 0))
    # The winner is built from a fresh copy, and the fingerprint reads the weights once more.
    last = _candidate(plan, facts, fit, compare, recipe.refit) + work(
        read=facts.weights_bytes, hash=facts.weights_bytes
    )
    memory = whole + walk_bytes(shape, cut, fit, compare, recipe.refit)
    precision = cutting_dtype(facts.path, options)
    number = NUMBER_BYTES[facts.stored] if precision == MIXED else NUMBER_BYTES.get(precision, 4)
    layers = refitted_numbers(shape, cut, recipe.refit) * number
    stages.append(stage_of("winner", last, speed, memory, layers))
    return stages


def refitted_numbers(shape: Shape, cut: Size, refit: str) -> int:
    """Return how many numbers the refitted layers hold that planning keeps in files."""
    if refit == "none" or shape.experts or (cut.layers, cut.width) == (shape.layers, shape.width):
        return 0
    attention = shape.attention * shape.hidden
    moved = {"newton": shape.ffn(cut.width) + attention, "descent": shape.ffn(cut.width) + attention}
    # A reconstructed layer is kept beside the refit that it began with.
    moved["reconstruction"] = shape.per_layer + shape.ffn(cut.width) + moved["newton"]
    # The other refits move the two output projections alone.
    return cut.layers * moved.get(refit, cut.width * shape.hidden + attention)


def vocabulary_work(shape: Shape, kept: int, tokens: int) -> Work:
    """Return the tokens that the uncut model reads to choose among a large vocabulary and to measure the vocabulary cut."""
    if kept == shape.vocabulary:
        return work()
    # The cost of the cut is measured on the comparison tokens. To choose among a large vocabulary, the model also predicts
    # tokens at further places.
    _, read = split_tokens(tokens)
    if shape.vocabulary > LARGE_VOCABULARY:
        read += min(tokens, EXPECTED_TOKENS)
    return work(layer=shape.layers * read, head=2 * shape.hidden * shape.vocabulary * read)


def _candidate(plan: Planned, facts: ModelFacts, fit: int, compare: int, refit: str | None = None) -> Work:
    """Return the work of building one split. A split that is only compared gets the cheap refit and no elimination."""
    recipe = plan.recipe
    compared = refit is None
    kind = refit or ("residual" if recipe.refit != "none" else "none")
    eliminate = recipe.neuron_criterion == "elimination" and not compared and fit >= facts.shape.fitted
    return walk_work(facts.shape, plan.cut, fit, compare, kind, recipe.output_projection, eliminate)


def stage_of(name: str, amount: Work, speed: Speed, memory: int, disk: int = 0, at_most: bool = False) -> Stage:
    return Stage(name, seconds(amount, speed), PROGRAM_BYTES + memory, disk, at_most)


def opened_bytes(facts: ModelFacts, size: Size, options: Options) -> int:
    """Return the bytes of the model that is opened for cutting. Layers that are stored in 16 bits stay so if possible.

    With one layer in memory at a time, there may be two: the current one, and the removed one before it.
    """
    if options.in_memory == "layer":
        size = replace(size, layers=min(2, size.layers))
    precision = cutting_dtype(facts.path, options)
    narrow = precision == MIXED or (precision in ("float32", "auto") and facts.stored != "float32")
    body = NUMBER_BYTES[facts.stored] if narrow else NUMBER_BYTES.get(precision, 4)
    return model_bytes(facts.shape, size, body)


def prune_stages(facts: ModelFacts, plan: Planned, speed: Speed, options: Options) -> list[Stage]:
    """Return the stages of planning, saving and checking."""
    shape = facts.shape
    cut = plan.cut
    saved = plan.splits[0].parameters * NUMBER_BYTES[facts.stored]
    # To measure bits per byte, both models read the general text. A token is about three bytes.
    general = general_size(facts.path) / 3  # tokens
    passes = general * (shape.layers + cut.layers)
    check = work(
        start=1, read=facts.weights_bytes + saved, layer=passes, head=4 * shape.hidden * shape.vocabulary * general
    )
    both = (shape.total + plan.splits[0].parameters) * 4
    return [
        *plan_stages(facts, plan, speed, options),
        stage_of("save", work(write=saved, hash=saved), speed, opened_bytes(facts, cut, options), saved),
        stage_of("check", check, speed, both),
    ]


# --- evaluation, training ---


def eval_stages(
    facts: ModelFacts, tasks: Sequence[TaskFile], settings: Settings, speed: Speed, options: Options, size: Size | None = None,
    gold: bool = True,
) -> list[Stage]:  # fmt: skip
    """Return the stages of answering and scoring, with every answer at its maximum length."""
    render = chat_template(facts.path, facts.tokenizer)
    asked = [
        one for task in tasks for _, one in requests_for(task, settings.preset, settings.samples, settings.seed, render)
    ]
    read = int(sum(len(one.prompt) for one in asked) / characters_per_token(facts, [one.prompt for one in asked]))
    # All answers are assumed to have the maximum length, so the time is an upper bound.
    amount = answering_work(
        facts.shape, size or facts.size, len(asked), read, settings.max_new_tokens, settings.batch_size
    )
    programs = sum(len(task.items) * (settings.samples + gold) for task in tasks if task.kind == "code")
    memory = eval_memory(facts, options, settings, size)
    answering = stage_of(
        "answers", amount + work(read=facts.weights_bytes), speed, memory, 2000 * len(asked), at_most=True
    )
    return [answering, stage_of("scores", work(test=programs), speed, memory, 1000 * len(asked))]


def training_stages(
    facts: ModelFacts, student: Size, samples: Sequence[Sample], training: Training, speed: Speed
) -> list[Stage]:
    """Return the stages of training, including validation, and of checking the output."""
    parameters = facts.shape.parameters(student.vocabulary, student.layers, student.width)
    characters = sum(len(sample.text) for sample in samples)
    tokens = characters / characters_per_token(facts, [sample.text for sample in samples])
    held_out = tokens * training.held_out
    epoch = tokens - held_out
    rows = max(1.0, epoch / training.length)
    steps = training.steps or (training.tokens or 0) / (training.batch * training.length)
    epochs = steps * training.batch / rows if steps else training.epochs or DEFAULT_EPOCHS
    full = training.method_for(parameters) == "full"
    amount = training_work(
        facts.shape,
        student,
        epochs * epoch,
        held_out,
        training.evaluations + 1,
        epochs,
        full,
        training.gradient_checkpointing,
    )
    # At every step Adam reads and writes the weight, the gradient and two moments of each parameter, about 64 bytes.
    amount += work(memory=epochs * rows / training.batch * 64 * (parameters if full else 0))
    # A checkpoint of full training holds the weights and Adam's two moments in float32. A checkpoint of LoRA is small in
    # comparison.
    checkpoint = parameters * (12 if full else 1)
    amount += work(write=training.evaluations * checkpoint)
    spent = 60 * training.minutes if training.minutes is not None else seconds(amount, speed)
    memory = PROGRAM_BYTES + recover_memory(facts, student, training)
    saved = parameters * NUMBER_BYTES[facts.stored]
    check = work(start=1, read=facts.weights_bytes + saved, write=saved)
    return [
        Stage("training", spent, memory, 2 * checkpoint, training.minutes is not None),
        stage_of("save and check", check, speed, (facts.shape.total + parameters) * 4, saved),
    ]


def plan_memory(facts: ModelFacts, options: Options) -> int:
    """Return the peak bytes of planning with the default budget and the default number of tokens."""
    recipe = Recipe().resolved(facts.shape)
    assert recipe.tokens is not None
    vocabulary = assumed_vocabulary(facts.shape, recipe.remove)
    split = feasible_splits(facts.shape, recipe.remove, vocabulary, recipe.pins(facts.shape))[0]
    cut = Size(**split.sizes)
    walk = walk_bytes(facts.shape, cut, *split_tokens(recipe.tokens), recipe.refit)
    return opened_bytes(facts, facts.size, options) + walk


def eval_memory(facts: ModelFacts, options: Options, settings: Settings | None = None, size: Size | None = None) -> int:
    """Return the peak bytes of generating answers to prompts of :data:`SEQUENCE` tokens."""
    settings = settings or Settings()
    size = size or facts.size
    precision = compute_dtype(facts.path, options)
    number = NUMBER_BYTES[facts.stored if precision == "auto" else precision]
    weights = facts.shape.parameters(size.vocabulary, size.layers, size.width) * number
    kv = facts.kv_bytes * number // NUMBER_BYTES[facts.stored] * size.layers // facts.shape.layers
    return answering_bytes(weights, kv, settings.batch_size, SEQUENCE + settings.max_new_tokens, size.vocabulary)


def recover_memory(facts: ModelFacts, student: Size | None = None, training: Training | None = None) -> int:
    """Return the peak bytes of training by :mod:`flab.recovery.memory`. The student defaults to the original's size."""
    student = student or facts.size
    training = training or Training()
    parameters = facts.shape.parameters(student.vocabulary, student.layers, student.width)
    full = training.method_for(parameters) == "full"
    element = 4 if full else NUMBER_BYTES[facts.stored]
    trainable = parameters if full else parameters // 50
    tokens = training.micro_batch * training.length
    weights = parameters * element + facts.shape.total * element
    return weights + 12 * trainable + activation_bytes(facts.config, tokens, element, training) + logit_bytes()
