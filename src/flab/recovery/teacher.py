"""The teacher: the original with the student's vocabulary, rebuilt from the plan and never stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from flab.errors import CheckpointError, PlanError
from flab.models.checkpoint import Checkpoint, fingerprint, open_model
from flab.models.families import Family
from flab.models.options import Options
from flab.models.tokenizer import new_tokenizer
from flab.pruning.cuts.vocabulary import cut_vocabulary
from flab.pruning.plan import Plan


def open_teacher(model: Path, plan: Plan, student: Checkpoint, options: Options) -> tuple[Checkpoint, Family]:
    """Return the original, cut to the plan's vocabulary. Checks that its ids are the student's.

    Raises:
        PlanError: this is not the model that was pruned.
        CheckpointError: an id means another token to the student.
    """
    if fingerprint(model) != plan.model["sha256"]:
        raise PlanError(
            f"`teacher` {model} is not the model that the student was cut from ({plan.model['path']}): its files differ. "
            "Give the original."
        )
    teacher, family = open_model(model, options)
    # With the student's cut of tokens, both models have a distribution over the same vocabulary, which the KL needs.
    teacher.tokenizer, _ = new_tokenizer(teacher.tokenizer, _rows(teacher.model), plan.vocabulary.kept)
    cut_vocabulary(teacher.model, family, plan.vocabulary.kept)
    check_same_ids(teacher, student)
    return teacher, family


def check_same_ids(teacher: Checkpoint, student: Checkpoint) -> None:
    """Check that every id is the same token to both, and that both heads have a row for each."""
    rows = [_rows(model) for model in (teacher.model, student.model)]
    if rows[0] != rows[1]:
        raise CheckpointError(
            f"the teacher has {rows[0]} tokens, the student {rows[1]}: recover what flab pruned from it."
        )
    # The sizes may agree while the numbers do not, so every token is compared.
    ours = student.tokenizer.get_vocab(with_added_tokens=True)
    theirs = teacher.tokenizer.get_vocab(with_added_tokens=True)
    if ours != theirs:
        wrong = sorted({token for token, i in (ours.items() ^ theirs.items())})[:3]
        raise CheckpointError(
            f"teacher and student number tokens differently ({', '.join(map(repr, wrong))}): prune again."
        )


def _rows(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


class Teacher:
    """The teacher's final hidden states of the tokens that count in the KL, computed when needed, or remembered.

    Every epoch reads each row again, so with several epochs it pays to let the teacher read all rows once, beforehand. It
    always reads them in the same batches, so a run that continues after a stop sees the same bits.
    """

    def __init__(self, model: Any, used: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]) -> None:
        """Keep the teacher. ``used`` gives the mask (B, T) of the positions that count in a batch."""
        self.model = model
        self.used = used
        self.states: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the states (N, D) of the positions that count, in the order of the batch's rows."""
        names = batch["rows"].tolist()
        if all(name in self.states for name in names):
            return torch.cat([self.states[name] for name in names])
        # Hidden states have D numbers per token. Logits would have V, about a hundred times as many.
        return final_states(self.model, batch["input_ids"], batch["position_ids"])[self.used(batch)]

    @torch.no_grad()
    def remember(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Let the teacher read these batches, and keep its states for each row."""
        for batch in batches:
            used = self.used(batch)
            states = final_states(self.model, batch["input_ids"], batch["position_ids"])
            self.states |= {n: states[at][used[at]] for at, n in enumerate(batch["rows"].tolist())}


def final_states(model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Return hidden states after the final norm, (B, T, D), of packed rows."""
    states: torch.Tensor = model.base_model(
        input_ids=input_ids, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    return states
