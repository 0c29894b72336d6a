"""transformers' Trainer with our loss.

The student's ``forward`` is replaced by one that returns the loss, so that the chunked head runs inside whatever wraps
the model (PEFT, DDP, FSDP); the teacher runs before it, without gradients. There is no training loop here.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerState, TrainingArguments, set_seed

from flab.errors import OptionError, TrainingError
from flab.models.checkpoint import Checkpoint
from flab.models.options import Options, settled
from flab.models.scorer import scorer_of
from flab.progress import track
from flab.recovery.callbacks import Progressing, TrainingTime
from flab.recovery.examples import Examples, collate
from flab.recovery.loss import IGNORED, Objective, loss_terms
from flab.recovery.settings import Training
from flab.recovery.teacher import Teacher, final_states

# The largest size of the teacher's remembered states.
REMEMBERED_BYTES = 2 * 2**30
LOGGED = 100  # points of the curve of the training loss


def install_loss(student: Any, teacher_head: Any, objective: Objective) -> None:
    """Replace the forward of a causal LM with one that returns the loss and its sums; see :func:`distilled_forward`."""
    student.forward = partial(distilled_forward, student, teacher_head, objective)


def remove_loss(student: Any) -> None:
    """Restore the model's own forward."""
    del student.forward


def distilled_forward(
    student: Any,
    teacher_head: Any,
    objective: Objective,
    input_ids: torch.Tensor,
    targets: torch.Tensor,
    position_ids: torch.Tensor,
    within: torch.Tensor,
    teacher_states: torch.Tensor | None = None,
    counts: torch.Tensor | None = None,
    **_: Any,
) -> dict[str, torch.Tensor]:
    """Return ``(1 - alpha) CE + alpha KL`` of a batch of packed rows, each term a mean over its own tokens.

    ``counts`` (answer tokens, KL tokens) are those of the whole step if it is larger than this batch.
    """
    states = final_states(student, input_ids, position_ids)
    # Only tokens that count reach the heads: with prompts masked that is often less than half of them.
    used = chosen_tokens(targets, within, objective)
    taught = teacher_states if objective.alpha > 0 else None
    terms = loss_terms(scorer_of(student), states[used], targets[used], taught, teacher_head, objective.temperature)
    # The means are over the tokens of the whole step. Averaging a mean of each micro-batch would give tokens of short
    # micro-batches more weight, and the result would depend on the size of the micro-batches.
    answers, tokens = (terms.answers, terms.tokens) if counts is None else counts.unbind()
    loss = (1 - objective.alpha) * terms.cross_entropy / _least_one(answers)
    loss = loss + objective.alpha * terms.divergence / _least_one(tokens)
    sums = torch.stack(
        [terms.cross_entropy, loss.new_tensor(terms.answers), terms.divergence, loss.new_tensor(terms.tokens)]
    )
    return {"loss": loss, "sums": sums.detach()}


def chosen_tokens(targets: torch.Tensor, within: torch.Tensor, objective: Objective) -> torch.Tensor:
    """Return the mask (B, T) of the positions whose next token counts in either term."""
    return within if objective.on == "all" and objective.alpha > 0 else targets != IGNORED


def _least_one(count: Any) -> Any:
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(1, count)


class RecoveryTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose loss is :func:`distilled_forward`; logs both terms as means over tokens of all devices."""

    def __init__(self, teacher: Any, objective: Objective, **given: Any) -> None:
        super().__init__(**given)
        self.objective = objective
        self.teacher = Teacher(teacher, lambda batch: chosen_tokens(batch["targets"], batch["within"], objective))
        self.sums: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.loss_is_scaled_for_ga = True  # the counts are those of the whole step
        self.bar: Progressing | None = None

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of one step, and the tokens that both terms have in all of them, on all devices."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        answers = sum(int((b["targets"] != IGNORED).sum()) for b in batches)
        tokens = sum(int(chosen_tokens(b["targets"], b["within"], self.objective).sum()) for b in batches)
        counts = torch.tensor([answers, tokens], device=device)
        return batches, self.accelerator.reduce(counts, "sum") if self.args.world_size > 1 else counts

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return a micro-batch's loss. Summed over micro-batches and averaged over devices, it is the loss of the step."""
        states = self.teacher(inputs) if self.objective.alpha > 0 else None
        outputs = model(**inputs, teacher_states=states, counts=num_items_in_batch)
        loss = outputs["loss"]
        mode = "train" if model.training else "eval"
        if not torch.isfinite(loss.detach()):
            raise TrainingError(f"the loss is {loss.item()} at step {self.state.global_step}")
        self.sums[mode].append(outputs["sums"])
        if num_items_in_batch is not None and self.args.world_size > 1:
            # DDP averages the gradients over the devices, while the counts are sums over all of them: this
            # undoes the division.
            loss = loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return all held-out rows in every process. Even shares would need some rows twice."""
        return DataLoader(self.eval_dataset, self.args.per_device_eval_batch_size, collate_fn=collate)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Return the loss of a validation batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return bool(self.accelerator.distributed_type == DistributedType.FSDP)

    def plan_steps(self, training: Training, steps: int, spent: float, resumed: bool) -> None:
        """Set the number of steps, when to validate and save, and the time limit. ``spent`` are seconds of earlier starts."""
        args = self.args
        limit = training.minutes
        args.max_steps = steps
        args.warmup_steps = round(training.warmup * steps)
        # Every validation is a checkpoint, because the best one is loaded at the end and a stopped run resumes at the last.
        args.eval_steps = args.save_steps = max(1, math.ceil(steps / training.evaluations))
        args.logging_steps = max(1, math.ceil(steps / LOGGED))
        args.eval_on_start = not resumed
        self.bar = Progressing()
        for callback in (self.bar, TrainingTime(spent, 60 * limit if limit is not None else None)):
            self.add_callback(callback)

    def remember_teacher(self, epochs: float) -> bool:
        """Let the teacher read every row beforehand, if its states fit and this costs less than running it at each step."""
        count = sum(len(ids) for data in (self.train_dataset, self.eval_dataset) for ids in data["input_ids"])
        states = count * self.model.config.hidden_size * self.teacher.model.dtype.itemsize
        if self.objective.alpha == 0 or epochs <= self.args.world_size or states > REMEMBERED_BYTES:
            return False
        for data, name in (
            (self.train_dataset, "Teacher reads the rows"),
            (self.eval_dataset, "Teacher reads the held-out rows"),
        ):
            batches = DataLoader(data, self.args.per_device_train_batch_size, collate_fn=collate)
            self.teacher.remember(
                {n: v.to(self.args.device) for n, v in b.items()} for b in track(batches, name, unit="batches")
            )
        return True

    def load_outcome(self, checkpoint: Path) -> None:
        """Load the best model and the curve of a training that ended at ``checkpoint``."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        # The path on record is that of the first start, which may have been given from another current folder.
        best = Path(str(self.state.best_model_checkpoint)).name
        self.state.best_model_checkpoint = str(checkpoint.parent / best)
        self._load_best_model()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log means over tokens instead of means over batches."""
        evaluated = any(name.startswith("eval_") for name in logs)
        sums = self.sums.pop("eval" if evaluated else "train", None)
        if sums:
            # Sums of the loss and counts of tokens, added over steps and processes; their quotient is the mean over tokens.
            total = torch.stack(sums).double().sum(0)
            total = self.accelerator.reduce(total.float(), "sum") if self.args.world_size > 1 else total
            logs.update(means(total.tolist(), self.objective, "eval_" if evaluated else ""))
        super().log(logs, start_time)


def means(sums: list[float], objective: Objective, prefix: str = "") -> dict[str, float]:
    """Return both terms in nats per token, and the loss. The KL is left out if it was not computed."""
    cross_entropy, answers, divergence, tokens = sums
    ce = cross_entropy / max(1.0, answers)
    kl = divergence / max(1.0, tokens)
    found = {"loss": (1 - objective.alpha) * ce + objective.alpha * kl, "cross_entropy": ce}
    return {prefix + name: value for name, value in (found | ({"kl": kl} if tokens else {})).items()}


def make_trainer(
    student: Checkpoint,
    teacher: Checkpoint,
    examples: Examples,
    training: Training,
    parameters: int,
    work: Path,
    options: Options,
) -> RecoveryTrainer:
    """Return a trainer that only lacks the number of steps. The student gets our loss, and adapters if asked for.

    Raises:
        OptionError: the devices cannot share a batch evenly.
    """
    set_seed(training.seed)
    options = settled(options)
    objective = Objective(training.alpha, training.temperature, training.kl_on)
    args = _arguments(training, parameters, work, options)
    model = student.model.requires_grad_(True)
    install_loss(model, scorer_of(teacher.model), objective)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if training.method_for(parameters) == "lora":
        model.requires_grad_(False)
        rank = training.lora_rank
        # A scale of alpha / r = 2 is common. All linear layers get adapters, because a cut disturbs all of them.
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
        if training.gradient_checkpointing:
            # With frozen weights no input of a checkpointed layer requires gradients, and the backward pass would stop there.
            model.enable_input_require_grads()
    trainer = RecoveryTrainer(
        teacher.model.to(args.device),
        objective,
        model=model,
        args=args,
        train_dataset=examples.train,
        eval_dataset=examples.held_out,
        data_collator=collate,
        callbacks=[EarlyStoppingCallback(training.patience)],
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.is_sharded and training.method_for(parameters) == "lora":
        raise OptionError(
            "`method` lora under FSDP: adapters are merged on one device; use recipes/ddp.yaml, or `method` full."
        )
    return trainer


def _arguments(training: Training, parameters: int, work: Path, options: Options) -> TrainingArguments:
    """Return transformers' arguments. The steps are set later, see :meth:`RecoveryTrainer.plan_steps`."""
    cpu = options.device == "cpu"
    args = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=training.micro_batch,
        per_device_eval_batch_size=training.micro_batch,
        learning_rate=training.rate_for(parameters),
        lr_scheduler_type="cosine",
        weight_decay=training.weight_decay,
        eval_strategy="steps",
        save_strategy="steps",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        # A resumed training is as patient as one that was never stopped: the count of validations without a gain goes on.
        restore_callback_states_from_checkpoint=True,
        seed=training.seed,
        data_seed=training.seed,
        use_cpu=cpu,
        bf16=options.dtype == "bfloat16" or (options.dtype == "auto" and not cpu),
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        label_names=["targets"],
        ddp_find_unused_parameters=False,
    )
    # One optimizer step reads ``batch`` rows in all: micro-batches of every process, several in a row if need be.
    share = training.micro_batch * args.world_size
    if training.batch % share:
        raise OptionError(
            f"`batch` {training.batch}: {args.world_size} processes with `micro_batch` {training.micro_batch} need a "
            f"multiple of {share}."
        )
    args.gradient_accumulation_steps = training.batch // share
    return args


def seconds_per_step(trainer: RecoveryTrainer, steps: int = 3) -> float:
    """Return the median time of forward and backward of one step; no weight is changed.

    With a time budget, the number of steps must be known before the first, because the learning rate depends on it.
    """
    model = trainer.model.to(trainer.args.device).train()
    micro = trainer.args.gradient_accumulation_steps
    batches = iter(DataLoader(trainer.train_dataset, trainer.args.per_device_train_batch_size, collate_fn=collate))
    taken = []
    for _ in range(steps):
        start = time.perf_counter()
        for _, batch in zip(range(micro), batches, strict=False):
            placed = {name: value.to(trainer.args.device) for name, value in batch.items()}
            with trainer.accelerator.autocast():  # as in training, which wraps the model in it
                loss = trainer.compute_loss(model, placed)
            loss.backward()
        if trainer.args.device.type == "cuda":
            torch.cuda.synchronize()  # a GPU works on after the call returns
        taken.append(time.perf_counter() - start)
    model.zero_grad(set_to_none=True)
    trainer.sums.clear()
    # The first step also pays for allocating memory and choosing kernels, so the median is taken.
    return sorted(taken)[len(taken) // 2]
