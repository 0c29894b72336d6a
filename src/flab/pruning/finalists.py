"""Decide between finalists by tests: answer calibration problems that were not fitted on, and run them in the sandbox."""

from __future__ import annotations

from collections.abc import Sequence

from flab.errors import SandboxError
from flab.evaluation.code import score_code
from flab.evaluation.prompts import COMPLETION_STOP
from flab.evaluation.score import Score
from flab.evaluation.soundness import faults
from flab.evaluation.tasks import Problem, make_task
from flab.models.checkpoint import Checkpoint
from flab.models.engines.protocol import Decoding, Request, generate_all
from flab.models.engines.transformers import TransformersGenerator
from flab.models.families import family_of, kv_numbers
from flab.models.layers import LayerRunner
from flab.models.options import Options
from flab.progress import say
from flab.pruning.calibration import CalibrationSet, Texts
from flab.pruning.recipe import Recipe
from flab.sandbox import Sandbox

NEW_TOKENS = 256
BATCH = 64
CACHE_BYTES = 2**29


def judge_problems(texts: Texts, data: CalibrationSet, recipe: Recipe) -> list[Problem]:
    """Return the calibration problems that have tests and were not used for fitting."""
    samples = [texts.task[i] for i in data.compare_samples]
    chosen = [s for s in samples if s.test and s.entry_point and not s.messages][: recipe.judge_problems]
    return [Problem(f"{n}", s.prompt, s.entry_point or "", s.test or "", s.completion) for n, s in enumerate(chosen)]


def judge_sandbox(options: Options, warnings: list[str]) -> Sandbox | None:
    """Return the sandbox for the finalists, or None (with a warning) if there is no isolation."""
    try:
        return Sandbox.detect(options.unsandboxed)
    except SandboxError as error:
        warnings.append(f"the tests of the calibration problems were not run, so KL alone decides: {error}")
        say(warnings[-1])
        return None


def sound_problems(problems: list[Problem], sandbox: Sandbox, warnings: list[str]) -> list[Problem]:
    """Leave out, with a warning, the problems whose tests would pass any program."""
    found = faults(problems, sandbox, "the calibration problems")
    for task_id, fault in found.items():
        warnings.append(f"calibration problem {task_id} does not decide between finalists: {fault.text}")
        say(warnings[-1])
    return [problem for problem in problems if problem.task_id not in found]


def judge_batch(built: Checkpoint, problems: Sequence[Problem], layers: int) -> int:
    """Return how many problems to answer at once, so that their cache of keys and values stays within :data:`CACHE_BYTES`.

    ``layers`` are those of the original. Scores vary a little with the batch size, so all candidates use the same one.
    """
    longest = max(len(built.tokenizer.encode(problem.prompt).ids) for problem in problems) + NEW_TOKENS
    element: int = built.model.get_input_embeddings().weight.dtype.itemsize
    for_each = kv_numbers(built.model.config, layers) * element * longest
    return max(1, min(BATCH, CACHE_BYTES // for_each))


def run_problems(
    checkpoint: Checkpoint, problems: Sequence[Problem], sandbox: Sandbox, batch_size: int = BATCH
) -> Score:
    """Complete the problems greedily and run their tests. A model that was opened to be cut is widened first."""
    LayerRunner(checkpoint.model, family_of(checkpoint.model.config)).widen()
    generator = TransformersGenerator(checkpoint.model, checkpoint.tokenizer)
    requests = [Request(problem.prompt, COMPLETION_STOP) for problem in problems]
    made = generate_all(generator, requests, Decoding(max_new_tokens=NEW_TOKENS, batch_size=batch_size))
    return score_code(make_task("problems", "code", problems, "memory"), [[one] for one in made], sandbox)
