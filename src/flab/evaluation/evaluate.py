"""The preparation of an evaluation: a model's generator, its identity, and the data that it has seen.

The original and the pruned model take the same path. Nothing is scored here. torch is imported when a model is opened,
after everything else was checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from flab.data.contamination import overlaps
from flab.data.samples import calibration_samples, read_samples
from flab.errors import DataError, FlabError, OptionError
from flab.evaluation.code import gold_ceiling
from flab.evaluation.exports import SAMPLES, TASKS, check_exports, clear_exports, evalplus_samples, lm_eval_task
from flab.evaluation.prompts import Render, Settings
from flab.evaluation.record import FINISHED, SAYS_DATA, asked, check_run_folder, finished_run, remember
from flab.evaluation.robustness import PERTURBATIONS, perturb
from flab.evaluation.runs import run_tasks
from flab.evaluation.tasks import (
    NAMED_TASKS,
    Explanation,
    Item,
    Prediction,
    Problem,
    TaskFile,
    named_task,
    parse_task_argument,
    read_task,
)
from flab.files import PathLike, as_path, check_place, check_result, read_regular, write_json
from flab.models.chat import chat_template
from flab.models.engines.protocol import Generation, Generator
from flab.models.engines.store import Shard
from flab.models.engines.transformers import TransformersGenerator
from flab.models.engines.vllm import VllmGenerator
from flab.models.folder import resolve
from flab.models.options import Options, settled
from flab.models.source import ModelFolder
from flab.progress import say
from flab.sandbox import Sandbox
from flab.version import __version__

ALL, EXPORTS = "all", "exports"


@dataclass(frozen=True)
class Subject:
    """A model that is ready to answer: its generator, its chat template, and the facts about it."""

    generator: Generator
    render: Render | None
    identity: dict[str, Any]


def read_tasks(
    tasks: PathLike | TaskFile | Sequence[PathLike | TaskFile],
    limit: int | None,
    perturbations: Sequence[str],
    seed: int,
) -> list[TaskFile]:
    """Read the task files (``FILE`` or ``KIND:FILE``). Each code task is followed by its perturbations.

    Raises:
        OptionError: there is no task, a perturbation is unknown, or there is no code task to perturb.
        DataError: a file cannot be read, or a perturbation applies to none of its problems.
    """
    given = [tasks] if isinstance(tasks, str | os.PathLike | TaskFile) else list(tasks)
    if not given:
        raise OptionError("`tasks`: got none; give a file of problems, e.g. HumanEval.jsonl.")
    if unknown := [name for name in perturbations if name not in (*PERTURBATIONS, ALL)]:
        raise OptionError(f"`perturbations`: got {unknown[0]!r}, allowed {', '.join(PERTURBATIONS)} or {ALL}.")
    files = [one if isinstance(one, TaskFile) else _read(os.fspath(one), limit) for one in given]
    if perturbations and all(task.kind != "code" for task in files):
        raise OptionError("`perturbations`: none of the tasks is of kind code; perturbations are for problem files")
    return [one for task in files for one in (task, *_perturbed(task, perturbations, seed))]


def _read(argument: str, limit: int | None) -> TaskFile:
    kind, source = parse_task_argument(named_task(argument))
    if as_path(source).exists():
        return read_task(as_path(source), kind, limit)
    try:
        return read_task(source, kind, limit)
    except DataError as error:
        name = next((one for one, hub in NAMED_TASKS.items() if hub == source), None)
        if name is None:
            raise
        raise DataError(
            f"`tasks` {name}: put its rows in DIR/{name}.jsonl and give `data_dir` DIR, or load it with a network: {error}"
        ) from None


def _perturbed(task: TaskFile, names: Sequence[str], seed: int) -> list[TaskFile]:
    """Return a task's perturbations. Those that only ``all`` asks for may apply to nothing."""
    made = []
    for name in dict.fromkeys([*(n for n in names if n != ALL), *(PERTURBATIONS if ALL in names else ())]):
        if task.kind != "code":
            continue
        try:
            made.append(perturb(task, name, seed))
        except DataError as error:
            if name in names:
                raise
            say(f"left out: {error}")
    return made


def sandbox_for(tasks: Sequence[TaskFile], options: Options) -> Sandbox | None:
    """Return the sandbox if any task runs code. Raises SandboxError without isolation, unless the user allows it."""
    return Sandbox.detect(options.unsandboxed) if any(task.kind == "code" for task in tasks) else None


def open_subject(model: PathLike, options: Options, backend: str = "transformers") -> Subject:
    """Load the model behind the backend.

    Raises:
        OptionError: the backend is unknown or not installed.
        CheckpointError, UnsupportedModelError
    """
    from flab.models.checkpoint import fingerprint

    path = resolve(model)
    options = settled(options)
    generator, dtype, device = BACKENDS[backend](path, options)
    identity = {
        "path": str(path.resolve()),
        "sha256": fingerprint(path),
        "dtype": dtype,
        "device": device,
        "eos_ids": generator.eos_ids,
        "chat_sha256": _digest(path / "chat_template.jinja", path / "tokenizer_config.json"),
    }
    return Subject(generator, chat_template(path, generator.tokenizer), identity)


def _open_transformers(path: Path, options: Options) -> Opened:
    from flab.models.checkpoint import open_model

    checkpoint, _ = open_model(path, options)
    dtype = str(checkpoint.model.dtype).removeprefix("torch.")
    return TransformersGenerator(checkpoint.model, checkpoint.tokenizer), dtype, options.device.partition(":")[0]


def _open_vllm(path: Path, options: Options) -> Opened:
    generator = VllmGenerator(path, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    return generator, ModelFolder.open(path).stored_dtype if options.dtype == "auto" else options.dtype, "vllm"


Opened = tuple[TransformersGenerator | VllmGenerator, str, str]  # with dtype and device
BACKENDS: dict[str, Callable[[Path, Options], Opened]] = {"transformers": _open_transformers, "vllm": _open_vllm}


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
    return digest.hexdigest()


def find_overlaps(model: PathLike, tasks: Sequence[TaskFile], against: Sequence[PathLike]) -> list[dict[str, Any]]:
    """Compare each task with each data file, including those that the model's plan names. Print the flagged problems."""
    texts = {str(as_path(path)): [s.text for s in read_samples(as_path(path))] for path in against}
    found = []
    for data, content in (texts | _known_texts(as_path(model))).items():
        for task in tasks:
            if task.perturbation is None:
                overlap = overlaps([(item.task_id, text_of(item)) for item in task.items], content)
                warning = overlap.warning()
                found.append({"task": task.name, "data": data, "warning": warning, **overlap.to_json()})
                if warning:
                    say(f"warning: {task.name} and {data}: {warning}")
    return found


def _known_texts(model: Path) -> dict[str, list[str]]:
    """Return the data, by path, that a model was calibrated or trained on. Files that no longer exist are left out."""
    found: dict[str, list[str]] = {}
    for name, keys in SAYS_DATA:
        file = model / name
        if not file.is_file():
            continue
        try:
            given = json.loads(read_regular(file))
            for key in keys:
                given = given[key]
            samples, source = calibration_samples(Path(given) if given else None)
        except (FlabError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            say(f"the data that {file} names cannot be compared with the tasks ({error}); name it with `against_data`")
            continue
        found[source.name] = [sample.text for sample in samples]
    return found


def text_of(item: Item) -> str:
    """Return a problem as it would look in the data, with its answer."""
    if isinstance(item, Problem):
        return item.prompt + (item.canonical_solution or "")
    if isinstance(item, Explanation):
        return item.prompt + item.cot
    assert isinstance(item, Prediction)
    return item.code


def export_run(folder: Path, tasks: Sequence[TaskFile], report: dict[str, Any], max_new_tokens: int) -> Path:
    """Write ``exports``: samples for EvalPlus, and tasks for lm-evaluation-harness. Replaces older ones."""
    exports = folder / EXPORTS
    clear_exports(exports)
    exports.mkdir()
    for task, made in zip(tasks, report["tasks"], strict=True):
        lm_eval_task(task, exports / TASKS, max_new_tokens)
        # EvalPlus looks for the function by its own name, so a renamed one cannot be scored there.
        if task.kind != "code" or task.perturbation == "rename-function":
            continue
        answers = iter([Generation(row["text"], row["num_tokens"], row["finish_reason"]) for row in made["rows"]])
        grouped = [list(islice(answers, made["summary"]["num_samples"])) for _ in task.items]
        lines = [json.dumps(row) + "\n" for row in evalplus_samples(task, grouped)]
        (exports / f"{task.name}{SAMPLES}").write_text("".join(lines), encoding="utf-8")
    return exports


def evaluate(
    model: PathLike,
    tasks: PathLike | TaskFile | Sequence[PathLike | TaskFile],
    out: PathLike | None = None,
    settings: Settings | None = None,
    options: Options | None = None,
    limit: int | None = None,
    perturbations: Sequence[str] = (),
    backend: str = "transformers",
    against_data: Sequence[PathLike] = (),
    gold: bool = True,
    export: bool = False,
    shard: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model on task files. Returns the content of ``results.json``.

    ``out`` is a run's folder, where a stopped run continues, or a file that ends in ``.json``. ``shard`` (``2/4``) makes
    only that part of the answers; the same call without it, in the same folder, merges and scores.

    Raises:
        SandboxError: there is no isolation here, and ``options.unsandboxed`` is off.
        DataError, CheckpointError, OptionError
    """
    settings, options = settings or Settings(), options or Options()
    if backend not in BACKENDS:
        raise OptionError(f"`backend`: got {backend}, allowed {', '.join(BACKENDS)}.")

    target, part = as_path(out) if out is not None else None, Shard.parse(shard) if shard is not None else None
    folder = target if target is not None and target.suffix != ".json" else None
    more = {"limit": limit, "perturbations": list(perturbations), "backend": backend, "gold": gold, "export": export}
    # A run that is finished answers before torch is imported or the model is read.
    digest = asked(model, tasks, settings, options, against_data, **more) if part is None else None
    if folder is not None and (known := finished_run(folder, digest)) is not None:
        say(FINISHED.format(folder))
        return known
    files = read_tasks(tasks, limit, perturbations, settings.seed)
    sandbox = sandbox_for(files, options)
    read = [*against_data, *(task.source for task in files)]
    if folder is None and (export or part is not None):
        raise OptionError(
            f"`{'export' if export else 'shard'}` needs a folder: give a name for the run that does not end in .json."
        )
    _check_target(target, folder, read, options.overwrite, export)
    overlap = find_overlaps(model, files, against_data) if part is None else []
    # The whole call has been checked by now. Opening the model is the first slow step.
    subject = open_subject(model, options, backend)
    report = run_tasks(
        subject.generator, files, settings, folder, subject.identity, sandbox, subject.render, gold,
        {"contamination": overlap}, part,
    )  # fmt: skip
    if part is not None:
        return report
    if export and folder is not None:
        export_run(folder, files, report, settings.max_new_tokens)
    if folder is not None:
        remember(folder, digest)
    if target is not None and folder is None:
        write_json(target, report)
    return report


def _check_target(
    target: Path | None, folder: Path | None, read: Sequence[PathLike], overwrite: bool, export: bool
) -> None:
    """Fail before the work if the run's folder, or the file of results, must not be written."""
    if folder is not None:
        check_place(folder, read)
        check_run_folder(folder)
        if export:
            check_exports(folder / EXPORTS)
    elif target is not None:
        check_result(target, overwrite, read)


def evaluate_references(
    tasks: PathLike | TaskFile | Sequence[PathLike | TaskFile],
    options: Options | None = None,
    limit: int | None = None,
    perturbations: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Run only the references of code tasks (the gold ceiling), without a model.

    Raises:
        OptionError: a task is of another kind.
        SandboxError, DataError
    """
    files, options = read_tasks(tasks, limit, perturbations, seed), options or Options()
    if wrong := [task.name for task in files if task.kind != "code"]:
        raise OptionError(f"only code tasks have references to run; {', '.join(wrong)} has none: leave it out.")
    sandbox = sandbox_for(files, options)
    assert sandbox is not None
    rows = [{"name": task.name, "sha256": task.sha256} | gold_ceiling(task, sandbox).summary for task in files]
    failures = {(i if len(rows) == 1 else f"{row['name']}:{i}"): c for row in rows for i, c in row["failed"].items()}
    passed, total = sum(row["passed"] for row in rows), sum(row["total"] for row in rows)
    return {
        "flab": __version__,
        "passed": passed,
        "total": total,
        "failures": failures,
        "sandbox_level": sandbox.level,
        "tasks": rows,
    }
