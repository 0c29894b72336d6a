"""Recover a pruned model: distil the original into it, save a stock folder, verify it.

The folder ``OUT.training`` beside the output holds the checkpoints, and ``run.json`` with the identity of the training, so
the same command continues after any stop. The output appears whole or not at all. Once it has been checked, the working
folder is removed.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from flab.data.samples import files_under, read_samples, sha256_of
from flab.errors import CheckpointError, FlabError, TrainingError
from flab.files import discard, new_folder, read_json, write_text
from flab.files.temporary import sweep
from flab.models.checkpoint import Checkpoint, cast_parameters, fingerprint, open_model, save, try_saving
from flab.models.families import shape_of
from flab.models.folder import resolve
from flab.models.options import Options, settled
from flab.models.source import ModelFolder
from flab.models.tokenizer import end_of_text, load_tokenizer, quiet, token_change
from flab.progress import say
from flab.pruning.calibration import in_template
from flab.pruning.check import check, read_proof, write_proof
from flab.pruning.plan import Plan
from flab.recovery.callbacks import is_over, last_whole
from flab.recovery.examples import Examples, make_examples
from flab.recovery.inputs import REPORT, RUN, check_inputs, is_uncleared, working_folder
from flab.recovery.memory import measured_peak, predicted_peak
from flab.recovery.settings import Training
from flab.recovery.teacher import open_teacher
from flab.recovery.trainer import RecoveryTrainer, make_trainer, remove_loss, seconds_per_step
from flab.version import __version__

DEFAULT_EPOCHS = 3.0
# In bytes. If less is free when a write fails, the disk is taken to be full.
LEAST_FREE = 2**20
# The fraction of a time budget for training; the rest is for the validations.
TRAINING_SHARE = 0.9


@dataclass
class Bench:
    """Everything that one training uses. ``identity`` holds all that decides its outcome on one machine."""

    student: Checkpoint
    teacher: Checkpoint
    plan: Plan
    examples: Examples
    training: Training
    identity: dict[str, Any]
    work: Path
    parameters: int
    facts: dict[str, Any] = field(default_factory=dict)


def recover(
    folder: str | Path,
    teacher: str | Path,
    data: str | Path,
    out: str | Path,
    training: Training | None = None,
    options: Options | None = None,
) -> dict[str, Any]:
    """Train the pruned model in ``folder`` against its original, save the outcome at ``out``, verify it.

    Under ``accelerate launch`` or ``torchrun`` every process calls this; the first one writes.

    Raises:
        TrainingError: the loss became NaN, or ``OUT.training`` holds a training with other settings.
        CheckpointError, PlanError, DataError, OptionError
    """
    training, options = training or Training(), settled(options or Options())
    out, source, original = Path(out), resolve(folder), resolve(teacher)
    state = PartialState(cpu=options.device == "cpu")
    if options.device == "cuda" and state.num_processes > 1:
        # Each process works on a device of its own.
        options = replace(options, device=f"cuda:{state.local_process_index}")
    plan = check_inputs(source, original, Path(data), out, options.overwrite)
    bench = _prepare(source, original, Path(data), out, plan, training, options)
    kept = _finished(bench, out, original, options, state)
    if kept is not None:
        return kept
    _claim(bench, options.overwrite, state)
    trainer = make_trainer(
        bench.student, bench.teacher, bench.examples, training, bench.parameters, bench.work, options
    )
    if not _is_trained(trainer, bench):
        _train(trainer, bench, _steps(trainer, bench, state))
    report = bench.facts | _outcome(trainer, bench)
    model = _stock_model(trainer, bench, options)
    if state.is_main_process:
        _write(model, bench, out, report, options.overwrite or is_uncleared(out))
        report = {"output": str(out), **report, "check": check(out, original)}
        discard(bench.work)
    state.wait_for_everyone()
    return report


def _prepare(
    source: Path, original: Path, data: Path, out: Path, plan: Plan, training: Training, options: Options
) -> Bench:
    """Read everything, check that every id means the same to student and teacher, tokenise and pack."""
    samples = read_samples(data)
    check_tokenizer(source)
    student, family = open_model(source, options)
    try_saving(student, family)
    parameters = shape_of(student.model, family).total
    if training.method_for(parameters) == "full" and student.model.dtype != torch.float32:
        # Full training needs float32 weights; the products may still be in bfloat16.
        student.model.float()
    teacher, _ = open_teacher(original, plan, student, options)
    samples = in_template(samples, source, student.tokenizer, training.template)
    eos = end_of_text(student.model, list(range(student.tokenizer.get_vocab_size())))
    examples = make_examples(samples, student.tokenizer, eos, training.length, training.held_out, training.packing)
    identity = {
        "student": fingerprint(source),
        "teacher": plan.model["sha256"],
        "data": sha256_of(files_under(data)),
        "training": training.to_json(),
        "dtype": str(student.model.dtype).removeprefix("torch."),
        "flab": __version__,
    }
    facts = {
        "student": str(source.resolve()),
        "teacher": str(original.resolve()),
        "data": str(data.resolve()),
        "examples": examples.counts,
        "method": training.method_for(parameters),
        "learning_rate": training.rate_for(parameters),
        "identity": identity,
    }
    work = working_folder(out).absolute()
    return Bench(student, teacher, plan, examples, training, identity, work, parameters, facts)


def check_tokenizer(student: Path) -> None:
    """Check that a student's tokenizer is the one that its folder was written with, as far as its proof records it.

    Under another tokenizer the student would learn other tokens than those it was cut for, and a new proof would hide it.

    Raises:
        CheckpointError: a token has another id, or a text is split differently.
    """
    record = read_proof(student).get("tokens")
    change = token_change(load_tokenizer(student)[0], record) if record is not None else None
    if change is not None:
        raise CheckpointError(
            f"{student}: its tokenizer is not the one that it was written with ({change}): make the folder again with flab apply "
            f"ORIGINAL {student / 'plan.json'}."
        )


def _finished(bench: Bench, out: Path, original: Path, options: Options, state: PartialState) -> dict[str, Any] | None:
    """Return the report of an output that this very training has written already, if the output still passes its check.

    A run that was killed before it put its recovery on record finds it here and does not train again.
    """
    found: list[dict[str, Any] | None] = [None]
    if state.is_main_process and not bench.work.exists():
        found = [_checked_report(bench, out, original, options)]
    broadcast_object_list(found)
    return found[0]


def _checked_report(bench: Bench, out: Path, original: Path, options: Options) -> dict[str, Any] | None:
    """Return the report in ``out`` if it is that of this training on this kind of device, and the folder passes its check."""
    try:
        report = read_json(out / REPORT)
        if report.get("identity") != bench.identity or report.get("device") != options.device.partition(":")[0]:
            return None
        verdict = check(out, original)
    except FlabError:  # what is there is missing or damaged, and is written again
        return None
    if not verdict["ok"]:
        return None
    sweep(bench.work)
    sweep(out)
    say(f"{out} was written by this same training and passes its check, so it is kept; remove it to train again")
    return {"output": str(out), **report, "check": verdict}


def _claim(bench: Bench, overwrite: bool, state: PartialState) -> None:
    """Create the working folder, or check that it holds a stopped run of this very training."""
    file = bench.work / RUN
    if state.is_main_process:
        sweep(bench.work)
        sweep(file)
    state.wait_for_everyone()
    before = json.loads(file.read_text()) if file.is_file() else None
    # A training may continue only with exactly the settings that it began with, because the curve, the schedule and
    # the order of rows depend on all of them.
    changed = [n for n, v in bench.identity.items() if before is not None and before["identity"].get(n) != v]
    if changed and not overwrite:
        raise TrainingError(
            f"{bench.work} holds a stopped training that differs in {', '.join(changed)}: repeat that command to continue, "
            "pass `overwrite` to start over, or choose another output."
        )
    if bench.work.exists() and before is None and any(bench.work.iterdir()):
        raise TrainingError(f"{bench.work} is a folder but holds no training: choose another output.")
    state.wait_for_everyone()
    if state.is_main_process:
        if changed:
            discard(bench.work)
        bench.work.mkdir(parents=True, exist_ok=True)
        if before is None or changed:
            write_text(file, json.dumps({"identity": bench.identity}) + "\n")
    state.wait_for_everyone()


def _steps(trainer: RecoveryTrainer, bench: Bench, state: PartialState) -> int:
    """Return the optimizer steps that the budget allows, fixed once. Lets the teacher read the rows first, if that pays."""
    training, file = bench.training, bench.work / RUN
    per_epoch = max(1, math.ceil(len(bench.examples.train) / training.batch))
    known = json.loads(file.read_text())
    if training.minutes is not None and "steps" not in known:
        steps = _timed_steps(trainer, 60 * training.minutes, per_epoch)
    else:
        tokens_per_step = bench.examples.counts["train_tokens"] / per_epoch
        by_tokens = training.tokens / tokens_per_step if training.tokens is not None else None
        by_epochs = per_epoch * (training.epochs or DEFAULT_EPOCHS)
        # The number from an earlier start takes precedence, then the user's budget, then the default.
        steps = next(float(n) for n in (known.get("steps"), training.steps, by_tokens, by_epochs) if n is not None)
        trainer.remember_teacher(steps / per_epoch)
    chosen = [max(1, round(steps))]
    # Processes may have measured different times; the first one's number holds for all.
    broadcast_object_list(chosen)
    if state.is_main_process:
        write_text(file, json.dumps({**known, "steps": chosen[0]}) + "\n")
    state.wait_for_everyone()
    return chosen[0]


def _timed_steps(trainer: RecoveryTrainer, seconds: float, per_epoch: int) -> float:
    """Return the steps that fit into a time, by the measured time of one. The teacher's reading counts too."""
    steps = TRAINING_SHARE * seconds / seconds_per_step(trainer)
    start = time.perf_counter()
    if trainer.remember_teacher(steps / per_epoch):
        left = TRAINING_SHARE * seconds - (time.perf_counter() - start)
        steps = max(0.0, left) / seconds_per_step(trainer)
    return steps


def _is_trained(trainer: RecoveryTrainer, bench: Bench) -> bool:
    """Return whether an earlier start trained to the end but did not write the outcome, which is then loaded."""
    last, _ = last_whole(bench.work)
    # A sharded model can only be loaded by way of the training loop, which then makes one more step.
    if last is None or not is_over(last) or trainer.is_sharded:
        return False
    say_main(trainer, f"training ended at {last}; only its outcome is written")
    trainer.load_outcome(last)
    return True


def _train(trainer: RecoveryTrainer, bench: Bench, steps: int) -> None:
    """Train to the end, from the newest whole checkpoint if there is one."""
    start, spent = last_whole(bench.work)
    if start is not None:
        say_main(trainer, f"continuing from {start}")
    trainer.plan_steps(bench.training, steps, spent, resumed=start is not None)
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=str(start) if start is not None else None)
    except (TrainingError, OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error, bench)
        if reason is None:
            raise
        good, _ = last_whole(bench.work)
        kept = f"the last good checkpoint is {good}" if good else "no checkpoint was written yet"
        raise TrainingError(f"{reason[0]}: {kept}. {reason[1]}") from None
    finally:
        if trainer.bar is not None:
            trainer.bar.close()


def _reason(error: Exception, bench: Bench) -> tuple[str, str] | None:
    """Return what stopped the training, and what helps, if that is known."""
    text = str(error)
    if isinstance(error, TrainingError):
        return text, f"Lower `learning_rate` (it was {bench.facts['learning_rate']:g})."
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return "out of memory", "Lower `micro_batch` or `length`, or add `gradient_checkpointing`."
    if shutil.disk_usage(bench.work).free < LEAST_FREE or "No space left" in text:
        return f"no space left on the disk of {bench.work}", "Free space and repeat the command to go on."
    return None


def say_main(trainer: RecoveryTrainer, message: str) -> None:
    """Print one line, from the first process only."""
    if trainer.is_world_process_zero():
        say(message)


def _outcome(trainer: RecoveryTrainer, bench: Bench) -> dict[str, Any]:
    """Return the result of the training and its curve."""
    history = trainer.state.log_history
    curve = [entry for entry in history if "eval_loss" in entry or "loss" in entry]
    measured = [entry for entry in curve if "eval_loss" in entry]
    # The first entry was measured before training. If no later one beats it, nothing is written.
    best = min(measured[1:] or measured, key=lambda entry: entry["eval_loss"])
    if not best["eval_loss"] < measured[0]["eval_loss"]:
        rate = bench.facts["learning_rate"]
        raise TrainingError(
            f"training did not help: the held-out loss went from {measured[0]['eval_loss']:.4f} to "
            f"{best['eval_loss']:.4f} at best. Lower `learning_rate` (it was {rate:g}), or give more rows."
        )
    _, seconds = last_whole(bench.work)
    tokens = bench.examples.counts["train_tokens"] / max(1, len(bench.examples.train)) * bench.training.batch
    return {
        "steps": trainer.state.global_step,
        "planned_steps": trainer.state.max_steps,
        "chosen_step": best["step"],
        "stopped_early": trainer.state.global_step < trainer.state.max_steps,
        "tokens": round(tokens * trainer.state.global_step),
        "seconds": seconds,
        "devices": trainer.args.world_size,
        "device": trainer.args.device.type,
        "held_out": {"before": _terms(measured[0]), "after": _terms(best)},
        "peak_memory": {
            "predicted_bytes": predicted_peak(bench.student.model, bench.teacher.model, bench.training, bench.parameters),
            **measured_peak(trainer.args.device),
        },
        "curve": curve,
    }  # fmt: skip


def _terms(entry: dict[str, Any]) -> dict[str, Any]:
    names = ("loss", "cross_entropy", "kl")
    return {"step": entry["step"]} | {n: entry[f"eval_{n}"] for n in names if f"eval_{n}" in entry}


def _stock_model(trainer: RecoveryTrainer, bench: Bench, options: Options) -> Any:
    """Return the trained model without adapters, wrappers and our loss; None in all processes but the first."""
    # All processes must call this; the first one gets the whole state of a sharded model.
    whole = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_sharded else None
    if not trainer.is_world_process_zero():
        return None
    model = bench.student.model
    if whole is not None:
        model = open_model(bench.facts["student"], options)[0].model
        model.load_state_dict(whole)
    elif bench.facts["method"] == "lora":
        # The low-rank updates are added to the weights they belong to, so the folder is an ordinary model.
        model = trainer.model.merge_and_unload()
        remove_loss(model)
    else:
        remove_loss(model)
    return model.requires_grad_(False).eval().to("cpu")


def _write(model: Any, bench: Bench, out: Path, report: dict[str, Any], overwrite: bool) -> None:
    """Write the stock folder: model, tokenizer, the student's plan, the proof and the report."""
    source = Path(bench.facts["student"])
    cast_parameters(model, ModelFolder.open(source).stored_dtype)
    with new_folder(out, overwrite) as folder:
        bench.student.model, bench.student.path = model, source
        save(bench.student, folder, None)
        for name in ("plan.json", "kept_tokens.json"):
            shutil.copyfile(source / name, folder / name)
        write_proof(model, folder, refit=bench.plan.refit.kind, trained=True)
        (folder / REPORT).write_text(json.dumps(report | {"written": time.strftime("%Y-%m-%d")}, indent=1) + "\n")
