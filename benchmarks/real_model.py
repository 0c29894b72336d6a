"""A real model at several budgets, beside other methods at the same budgets: only cut, and recovered if asked.

    python benchmarks/real_model.py recipes/qwen2.5-coder-1.5b.yml MODEL -o OUT --data FOLDER \
        --calibration MBPP_test.jsonl:250 --calibration CodeHarmony_valid.jsonl --remove 0.22 0.3 0.4 --recover 0.22 0.4

MODEL is a local folder, which takes the place of the hub id in the recipe; FOLDER holds the data files that the recipe and the
options name. ``FILE:N`` takes the first N rows of a file. Problems that the calibration rows give away are not asked.

The work is a list of stages (``--dry-run`` shows it). Each runs once, in a process of its own; after a stop, even by SIGKILL,
the same command goes on with the stage that was stopped. OUT/real_model.json and OUT/real_model.md are written after every stage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import real_table
import sittings
import torch
from authors import authors_recipe
from sittings import Stage

from flab import Options, Plan, Recipe, evaluate, make_data, prune, recover
from flab.data.contamination import overlaps
from flab.data.rows import read_rows
from flab.data.samples import sample_of
from flab.errors import CheckpointError, DataError, FlabError, OptionError
from flab.evaluation.evaluate import text_of
from flab.evaluation.tasks import TaskFile, make_task, parse_task_argument, read_task
from flab.files import write_json, write_text
from flab.models.checkpoint import Checkpoint, fingerprint, open_model, same_precision
from flab.models.folder import resolve
from flab.recovery.teacher import open_teacher
from flab.runs.recipe_file import RecipeFile, read_recipe
from flab.version import __version__

KL_LENGTH = 256  # tokens of a text at most, so that the logits of both models stay small


@dataclass(frozen=True)
class Job:
    """All that the stages need; the same command always makes the same."""

    recipe: RecipeFile
    model: Path
    out: Path
    calibration: list[dict[str, Any]]
    tasks: list[TaskFile]
    excluded: dict[str, int]  # by task: problems that the calibration rows give away
    removes: tuple[float, ...]
    recovers: tuple[float, ...]
    methods: tuple[str, ...]
    kl_tokens: int

    @property
    def options(self) -> Options:
        """The recipe's, with the original's precision for every model; a stage that is run again replaces what it left."""
        return replace(same_precision(self.model, self.recipe.options), overwrite=True)

    def settings(self, limit: int | None) -> dict[str, Any]:
        """All that decides the figures of a stage. What only adds stages is left out, so that budgets can be added later."""
        prune = self.recipe.prune.to_json() | {"remove": None, "calibration": None}
        making = asdict(self.recipe.data.making) if self.recipe.data is not None else None
        training = self.recipe.recover.to_json() if self.recipe.recover is not None else None
        return {
            "flab": __version__,
            "model": fingerprint(self.model),
            "calibration": hashlib.sha256(json.dumps(self.calibration).encode()).hexdigest(),
            "tasks": {task.name: task.sha256 for task in self.tasks},
            "excluded": self.excluded,
            "limit": limit,
            "prune": prune,
            "data": making,
            "recover": training,
            "evaluate": asdict(self.recipe.evaluate.settings),
            "device": self.recipe.options.device,
            "dtype": self.recipe.options.dtype,
            "kl_tokens": self.kl_tokens,
        }


# --- what is given ---


def read_job(given: argparse.Namespace) -> Job:
    """Read the recipe and the data.

    Raises:
        FlabError: anything that is missing or malformed, or tasks of which the calibration rows leave no problem.
    """
    recipe = read_recipe(given.recipe)
    options = replace(recipe.options, device=given.device or recipe.options.device)
    recipe = replace(recipe, options=options)
    if given.jobs < 1:
        raise OptionError(f"--jobs: got {given.jobs}, allowed 1 or more.")
    if given.recover and (recipe.data is None or recipe.recover is None):
        raise OptionError(f"--recover: {given.recipe} has no data and recover: add both, or leave --recover out.")
    sources = given.calibration or ([str(recipe.prune.calibration)] if recipe.prune.calibration is not None else [])
    if not sources:
        raise OptionError(
            f"--calibration: {given.recipe} names no calibration rows; give --calibration FILE or FILE:N."
        )
    calibration = [row for source in sources for row in rows_of(source, given.data)]
    asked = given.task or recipe.evaluate.tasks
    tasks = [without_known(task_of(one, given.data), calibration) for one in asked]
    limited = [make_task(t.name, t.kind, t.items[: given.limit], t.source) for t, _ in tasks]
    excluded = {task.name: count for task, count in tasks}
    remove = tuple(given.remove or (recipe.prune.remove,))
    return Job(
        recipe=recipe,
        model=resolve(given.model),
        out=given.output,
        calibration=calibration,
        tasks=limited,
        excluded=excluded,
        removes=remove,
        recovers=tuple(given.recover),
        methods=tuple(given.methods),
        kl_tokens=given.kl_tokens,
    )


def place(name: str, folder: Path | None) -> str:
    """Where a data file lies: in the folder of data, if there is one that has it, else where its name says."""
    inside = folder / Path(name).name if folder is not None else None
    return str(inside) if inside is not None and inside.exists() else name


def rows_of(source: str, folder: Path | None) -> list[dict[str, Any]]:
    """The rows of ``FILE``, or the first N of ``FILE:N``; a file whose own name ends like this is taken whole."""
    name, colon, number = source.rpartition(":")
    whole = place(source, folder)
    if not colon or not number.isdecimal() or Path(whole).exists():
        return [row for _, row in read_rows(whole, "train", None)]
    if int(number) < 1:
        raise OptionError(f"--calibration {source}: got {number} rows, allowed 1 or more after the colon.")
    return [row for _, row in read_rows(place(name, folder), "train", int(number))]


def task_of(argument: str, folder: Path | None) -> TaskFile:
    """The task of ``FILE`` or ``KIND:FILE``."""
    kind, source = parse_task_argument(argument)
    return read_task(place(source, folder), kind)


def without_known(task: TaskFile, calibration: Sequence[Mapping[str, Any]]) -> tuple[TaskFile, int]:
    """The task without the problems that the calibration rows hold whole or a fifth of, and how many went.

    Raises:
        DataError: no problem is left.
    """
    texts = [sample_of(row, "calibration").text for row in calibration]
    known = set(overlaps([(item.task_id, text_of(item)) for item in task.items], texts).flagged_ids)
    left = [item for item in task.items if item.task_id not in known]
    if not left:
        raise DataError(
            f"{task.source}: the calibration rows hold all of its problems: calibrate on fewer, with FILE:N."
        )
    return make_task(task.name, task.kind, left, task.source), len(known)


# --- the methods: what each would cut, given the recipe and the plan that flab made of it ---


def _block_influence(recipe: Recipe, ours: Plan) -> Recipe:
    """Drop the layers of least block influence (ShortGPT) and leave the width alone."""
    whole = {"width": ours.width.before, "layers": None}
    return replace(_selection(recipe, ours), **whole, layer_criterion="block-influence")


def _static(recipe: Recipe, ours: Plan) -> Recipe:
    """Cut the width by the size of the weights and leave the depth alone."""
    return replace(_selection(recipe, ours), layers=ours.layers.before, neuron_criterion="magnitude")


def _activation(recipe: Recipe, ours: Plan) -> Recipe:
    """Cut the width by the size of the activations and leave the depth alone."""
    return replace(_selection(recipe, ours), layers=ours.layers.before, neuron_criterion="activation")


def _selection(recipe: Recipe, ours: Plan) -> Recipe:
    """A selection without a refit, with flab's vocabulary: the body alone is compared, which favours these methods."""
    return replace(recipe, vocabulary=ours.vocabulary.after, refit="none", output_projection=False, finalists=1)


METHODS: dict[str, Callable[[Recipe, Plan], Recipe]] = {
    "authors": authors_recipe,
    "block-influence": _block_influence,
    "static": _static,
    "activation": _activation,
}


# --- the stages ---


def stages_of(job: Job) -> list[Stage]:
    """All stages, cheap and decisive ones first."""
    stages = [Stage("eval original", partial(answer, job, "original", job.model))]
    for remove in job.removes:
        ours = f"flab-{100 * remove:g}"
        stages.append(Stage(f"cut {ours}", partial(cut, job, "flab", remove)))
        stages += _measured(job, ours, f"cut {ours}")
        for method in job.methods:
            name = f"{method}-{100 * remove:g}"
            stages.append(Stage(f"cut {name}", partial(cut, job, method, remove), (f"cut {ours}",)))
            stages += _measured(job, name, f"cut {name}")
    if job.recovers:
        stages.append(Stage("data", partial(write_data, job)))
    for remove in job.recovers:
        percent = f"{100 * remove:g}"
        needs = ("data", f"cut flab-{percent}")
        stages.append(Stage(f"recover recovered-{percent}", partial(train, job, percent), needs))
        stages += _measured(job, f"recovered-{percent}", f"recover recovered-{percent}")
    return stages


def _measured(job: Job, name: str, made_by: str) -> list[Stage]:
    """The two stages that measure a model."""
    folder = job.out / "models" / name
    return [
        Stage(f"eval {name}", partial(answer, job, name, folder), (made_by,)),
        Stage(f"kl {name}", partial(divergence, job, folder), (made_by,)),
    ]


def cut(job: Job, method: str, remove: float) -> dict[str, Any]:
    """Plan, cut and check one model."""
    percent = f"{100 * remove:g}"
    recipe = replace(job.recipe.prune, remove=remove, calibration=job.out / "calibration.jsonl")
    if method != "flab":
        recipe = METHODS[method](recipe, Plan.read(job.out / "models" / f"flab-{percent}" / "plan.json"))
    folder = job.out / "models" / f"{method}-{percent}"
    # In the recipe's precision: where it is not named, a 16-bit model is cut with its stream in float32.
    report = prune(job.model, folder, recipe, replace(job.recipe.options, overwrite=True))
    failed = [one["name"] for one in report["check"]["checks"] if one["ok"] is False]
    if failed and method == "flab":  # the authors' vocabulary splits some texts otherwise, so their models do not pass
        raise CheckpointError(f"{folder} failed its check: see flab check {folder} --against {job.model}.")
    names = (
        "parameters_before parameters_after removed_fraction kl_nats_per_token kl_vocabulary refit warnings generality"
    )
    sizes = {name: report[name]["after"] for name in ("vocabulary", "layers", "width")}
    return (
        {name: report[name] for name in names.split()}
        | sizes
        | {"failed_checks": failed, "plan_seconds": report["plan_seconds"]}
    )


def answer(job: Job, name: str, folder: Path) -> dict[str, Any]:
    """Evaluate one model on all tasks; the answers that a stopped try made are kept."""
    report = evaluate(folder, job.tasks, job.out / "eval" / name, job.recipe.evaluate.settings, job.options, gold=False)
    return {"passed": {task["name"]: task["summary"]["passed"] for task in report["tasks"]}}


def divergence(job: Job, folder: Path) -> dict[str, Any]:
    """KL in both directions between the original, cut to the smaller model's vocabulary, and the smaller model."""
    smaller, _ = open_model(folder, job.options)
    plan = Plan.read(folder / "plan.json")
    original, _ = open_teacher(job.model, plan, smaller, job.options)
    columns = [[text_of(item) for item in task.items] for task in job.tasks]
    texts = [text for row in zip_longest(*columns) for text in row if text]  # of each task in turn
    return both_ways(original, smaller, texts, job.kl_tokens) | {"kl_vocabulary": plan.kl_vocabulary}


@torch.inference_mode()
def both_ways(original: Checkpoint, smaller: Checkpoint, texts: Sequence[str], tokens: int) -> dict[str, Any]:
    """``kl`` is KL(original || smaller) and ``kl_back`` the reverse, in nats per token, on about so many tokens of the texts."""
    read, forward, back = 0, 0.0, 0.0
    device = smaller.model.get_input_embeddings().weight.device
    for text in texts:
        ids = smaller.tokenizer.encode(text).ids[:KL_LENGTH]
        batch = torch.tensor([ids], device=device)
        log_p_TV, log_q_TV = (m.model(batch).logits[0].float().log_softmax(-1) for m in (original, smaller))
        difference_TV = log_p_TV - log_q_TV.to(log_p_TV.device)
        forward += float((log_p_TV.exp() * difference_TV).sum())
        back -= float((log_q_TV.exp().to(log_p_TV.device) * difference_TV).sum())
        read += len(ids)
        if read >= tokens:
            break
    return {"kl": forward / read, "kl_back": back / read, "tokens": read}


def write_data(job: Job) -> dict[str, Any]:
    """The training file: the original's own verified answers to the calibration rows."""
    assert job.recipe.data is not None
    against = [f"{task.kind}:{write_task(job, task)}" for task in job.tasks]
    rows, out = job.out / "calibration.jsonl", job.out / "data.jsonl"
    made = make_data(job.model, [rows], out, job.recipe.data.making, job.options, against)
    return {name: made[name] for name in ("rows", "kinds", "sources", "steps")}


def write_task(job: Job, task: TaskFile) -> Path:
    """A file of the problems that are asked: the task's own file may hold calibration rows, which must not be refused."""
    path = job.out / "tasks" / f"{task.name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_text(path, "".join(json.dumps(asdict(item)) + "\n" for item in task.items))
    return path


def train(job: Job, percent: str) -> dict[str, Any]:
    """Recover the cut model; a stopped training goes on from its last checkpoint."""
    assert job.recipe.recover is not None
    student = job.out / "models" / f"flab-{percent}"
    folder = job.out / "models" / f"recovered-{percent}"
    report = recover(student, job.model, job.out / "data.jsonl", folder, job.recipe.recover, job.options)
    if not report["check"]["ok"]:
        raise CheckpointError(f"{folder} failed its check: see flab check {folder} --against {job.model}.")
    names = "method learning_rate steps tokens held_out curve peak_memory stopped_early chosen_step seconds"
    return {name: report.get(name) for name in names.split()}


# --- the command ---


def write_tables(job: Job) -> None:
    """Write what is known so far as JSON and Markdown."""
    names = [stage.name.partition(" ")[2] for stage in stages_of(job) if stage.name.startswith("eval ")]
    report = real_table.collect(job.out, names) | {"excluded": job.excluded, "flab": __version__}
    write_json(job.out / "real_model.json", report)
    write_text(job.out / "real_model.md", real_table.markdown(report))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("recipe", type=Path, help="a recipe file of flab run")
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the benchmark; resumed if there")
    parser.add_argument("--data", type=Path, help="folder of the data files that are named")
    parser.add_argument(
        "--calibration", action="append", metavar="FILE[:N]", help="rows; repeatable; default: the recipe's"
    )
    parser.add_argument("--task", action="append", metavar="[KIND:]FILE", help="repeatable; default: the recipe's")
    parser.add_argument("--remove", type=float, nargs="+", help="budgets; default: the recipe's")
    parser.add_argument("--recover", type=float, nargs="+", default=[], help="budgets that are recovered too")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--limit", type=int, help="only the first N problems of each task")
    parser.add_argument(
        "--kl-tokens", type=int, default=8192, help="tokens of the tasks' texts that the KL is taken on"
    )
    parser.add_argument("--device", help="default: the recipe's")
    parser.add_argument("--jobs", type=int, default=1, help="stages that share the device (default 1)")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="a stage, or how its name begins")
    parser.add_argument("--dry-run", action="store_true", help="list the stages and what is done, and stop")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # the one stage that this process does
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None, start: Callable[[Stage], int] = sittings.in_a_process) -> int:
    """Run what is not done yet; return 1 if a stage failed, 2 for a mistake in what was given."""
    asked = arguments(given)
    try:
        return _run(asked, start)
    except FlabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(asked: argparse.Namespace, start: Callable[[Stage], int]) -> int:
    job = read_job(asked)
    stages = stages_of(job)
    if asked.work is not None:
        sittings.end_with_parent()
        return sittings.work(next(s for s in stages if s.name == asked.work), job.out, job.options.device)
    stages = sittings.chosen(stages, asked.only)
    if asked.dry_run:
        print(sittings.listed(stages, job.out))
        return 0
    sittings.claim(job.out, job.settings(asked.limit))
    with sittings.alone(job.out):
        if not (job.out / "calibration.jsonl").exists():
            write_text(job.out / "calibration.jsonl", "".join(json.dumps(row) + "\n" for row in job.calibration))
        write_tables(job)
        code = sittings.run_all(stages, job.out, start, lambda: write_tables(job), asked.jobs)
    print((job.out / "real_model.md").read_text())
    return code


if __name__ == "__main__":
    sys.exit(main())
