"""Estimate the time, memory and disk of each stage of a command before it starts (``--dry-run``).

:mod:`flab.runs.costs` counts the work, and :mod:`flab.runs.device_speed` measures the device's rates for ten seconds.
Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flab.data.samples import read_samples
from flab.errors import PlanError
from flab.evaluation.evaluate import read_tasks
from flab.evaluation.prompts import Settings
from flab.files import PathLike, as_path
from flab.models.checkpoint import compute_dtype, cutting_dtype, one_layer_at_a_time
from flab.models.options import Options, settled
from flab.pruning.finalists import BATCH
from flab.pruning.plan import Plan
from flab.pruning.recipe import Recipe
from flab.recovery.settings import Training
from flab.runs.costs import (
    PROGRAM_BYTES,
    characters_per_token,
    eval_memory,
    eval_stages,
    plan_stages,
    planned,
    prune_stages,
    stage_of,
    training_stages,
)
from flab.runs.device_speed import measure_speed
from flab.runs.estimate import Size, Speed, Stage, answering_work, candidates_built, seconds, times, work
from flab.runs.facts import ModelFacts, model_facts
from flab.runs.recipe_file import RecipeFile


def estimate_plan(
    model: PathLike, recipe: Recipe, options: Options, out: PathLike, prune: bool = False
) -> dict[str, Any]:
    """Estimate ``flab plan`` (or ``prune``), stage by stage.

    Raises:
        FlabError: if planning itself would raise it at its start.
    """
    options = _decided(options, model)
    facts = model_facts(model, options)
    plan = planned(facts, recipe)
    speed = _speed(facts, cutting_dtype(facts.path, options), options, out)
    stages = (prune_stages if prune else plan_stages)(facts, plan, speed, options)
    assumed = {
        "tokens": plan.tokens,
        "split": [plan.cut.vocabulary, plan.cut.layers, plan.cut.width],
        "refit": plan.recipe.refit,
        "candidates": candidates_built(facts.shape, len(plan.splits), plan.recipe.drop_layers is not None),
    }
    return _report(stages, speed, assumed)


def _decided(options: Options, model: PathLike) -> Options:
    """Return the options with the device named, and with the choice between the whole model and one layer in memory."""
    options = settled(options)
    return replace(options, in_memory="layer" if one_layer_at_a_time(model, options) else "model")


def estimate_eval(
    model: PathLike, tasks: Sequence[PathLike], settings: Settings, options: Options, limit: int | None = None,
    perturbations: Sequence[str] = (), out: PathLike | None = None, gold: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Estimate ``flab eval``. The time is an upper bound."""
    options = settled(options)
    facts = model_facts(model, options)
    files = read_tasks(list(tasks), limit, perturbations, settings.seed)
    precision = compute_dtype(facts.path, options)
    speed = _speed(facts, facts.stored if precision == "auto" else precision, options, out or ".", settings.batch_size)
    stages = eval_stages(facts, files, settings, speed, options, gold=gold)
    return _report(stages, speed, {"answers": sum(len(task.items) for task in files) * settings.samples})


def estimate_recover(
    folder: PathLike, teacher: PathLike, data: PathLike, training: Training, options: Options, out: PathLike
) -> dict[str, Any]:
    """Estimate ``flab recover``. The student is a ``folder``, or the plan of one that is not written yet.

    Raises:
        PlanError: the plan is malformed, or was made for a model of another size than the teacher.
    """
    options = settled(options)
    facts = model_facts(teacher, options)
    size, parameters = _student(folder, facts, options)
    samples = read_samples(as_path(data))
    speed = _speed(facts, _training_precision(parameters, training, options, facts), options, out)
    stages = training_stages(facts, size, samples, training, speed)
    return _report(stages, speed, {"rows": len(samples), "method": training.method_for(parameters)})


def _student(source: PathLike, teacher: ModelFacts, options: Options) -> tuple[Size, int]:
    """Return the sizes and the number of parameters of a student's folder, or of its plan."""
    if not as_path(source).is_file():
        student = model_facts(source, options)
        return student.size, student.shape.total
    plan = Plan.read(source)
    if plan.parameters_before != teacher.shape.total:
        raise PlanError(
            f"{source} was made for a model of {plan.parameters_before:,} parameters and {teacher.path} has "
            f"{teacher.shape.total:,}: give the model that it was made for as `teacher`."
        )
    after = {name: cut["after"] for name, cut in plan.sizes().items()}
    return Size(after["vocabulary"], after["layers"], after["width"], after.get("experts", 0)), plan.parameters_after


def _training_precision(parameters: int, training: Training, options: Options, facts: ModelFacts) -> str:
    if options.device != "cpu" or options.dtype == "bfloat16":
        return "bfloat16"
    return "float32" if training.method_for(parameters) == "full" else facts.stored


def estimate_run(recipe: RecipeFile, out: PathLike) -> dict[str, Any]:
    """Estimate ``flab run`` from the estimates of its stages. The pruned model is taken to be the deepest split.

    The data stage answers every instruction once and repeats the wrong answers. It is assumed to take twice as long as the
    first answers.
    """
    options = _decided(recipe.options, recipe.model)
    recipe = replace(recipe, options=options)
    facts = model_facts(recipe.model, options)
    plan = planned(facts, recipe.prune)
    speed = _speed(facts, cutting_dtype(facts.path, options), options, out)
    stages = [replace(one, name=f"prune: {one.name}") for one in prune_stages(facts, plan, speed, options)]
    chosen = recipe.evaluate
    tasks = read_tasks(chosen.tasks, chosen.limit, chosen.perturb, chosen.settings.seed)
    # Answers are generated in another precision than the cut uses, so the speed is measured again for them.
    asked = _speed(facts, "float32" if options.device == "cpu" else facts.stored, options, out, chosen.batch_size)
    models = {"original": facts.size, "pruned": plan.cut}
    if recipe.data is not None and recipe.recover is not None:
        samples = [s for one in recipe.data.instructions if Path(one).exists() for s in read_samples(Path(one))]
        making = recipe.data.making
        samples = samples[: recipe.data.limit]
        read = int(sum(len(s.prompt) for s in samples) / characters_per_token(facts, [s.text for s in samples]))
        count = len(samples) + making.own_texts
        once = answering_work(facts.shape, facts.size, count, read, making.max_new_tokens, making.batch_size)
        stages.append(
            stage_of(
                "data",
                times(once + work(test=count), 2),
                asked,
                eval_memory(facts, options),
                2000 * count,
                at_most=True,
            )
        )
        stages += [
            replace(one, name=f"recover: {one.name}")
            for one in training_stages(facts, plan.cut, samples, recipe.recover, asked)
        ]
        models["recovered"] = plan.cut
    for name, size in models.items():
        for one in eval_stages(facts, tasks, chosen.settings, asked, options, size, gold=name == "original"):
            stages.append(replace(one, name=f"evaluate {name}: {one.name}"))
    if recipe.measure is not None:
        stages.append(_measuring_stage(recipe, facts, asked))
    return _report(
        stages, speed, {"tokens": plan.tokens, "split": [plan.cut.vocabulary, plan.cut.layers, plan.cut.width]}
    )


def _measuring_stage(recipe: RecipeFile, facts: ModelFacts, speed: Speed) -> Stage:
    """Return the stage that times both models at every batch size, in two processes, and measures their energy."""
    costs = recipe.measure
    assert costs is not None
    # The batch sizes are 1, 2, 4, ... up to the largest. Their number is that of its binary digits.
    sizes = costs.max_batch.bit_length()
    steps = 2 * costs.new_tokens * (costs.rounds + sizes + 1) * facts.shape.layers
    amount = work(
        start=2, step=steps, layer=2 * (costs.rounds + costs.max_batch * 2) * costs.prompt_tokens * facts.shape.layers
    )
    taken = seconds(amount, speed) + 4 * costs.window_seconds
    return Stage("measure", taken, PROGRAM_BYTES + eval_memory(facts, recipe.options), 0, True)


def _speed(facts: ModelFacts, precision: str, options: Options, out: PathLike, batch: int = BATCH) -> dict[str, float]:
    # The timed disk is the one that the output will be written to.
    place = next(parent for parent in as_path(out).absolute().parents if parent.is_dir())
    return measure_speed(facts.config, facts.shape, precision, options.device, place, facts.tokenizer, batch)


def _report(stages: Sequence[Stage], speed: Speed, assumed: dict[str, Any]) -> dict[str, Any]:
    """Return the estimate in the form that the commands print."""
    return {
        "stages": [asdict(one) for one in stages],
        "seconds": sum(one.seconds for one in stages),
        "memory_bytes": max(one.memory_bytes for one in stages),
        "disk_bytes": sum(one.disk_bytes for one in stages),
        "assumed": assumed,
        "rates": {name: float(f"{rate:.4g}") for name, rate in speed.items()},
    }
