"""The teacher: the original with the student's vocabulary, rebuilt from the plan and never stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flab.checkpoint import Checkpoint, fingerprint
from flab.errors import CheckpointError, PlanError
from flab.families import Family
from flab.plans import Plan
from flab.prepare import cut_to_vocabulary, new_tokenizer, open_model
from flab.recipe import Options

REMEMBERED_BYTES = 2 * 2**30


def open_teacher(model: Path, plan: Plan, student: Checkpoint, options: Options) -> tuple[Checkpoint, Family]:
    """The original, cut to the plan's vocabulary; its ids are proven to be the student's.

    Raises:
        PlanError: another model than the one that was pruned.
        CheckpointError: an id means another token to the student.
    """
    if fingerprint(model) != plan.model["sha256"]:
        raise PlanError(
            f"--teacher {model} is not the model that the student was cut from ({plan.model['path']}): its files differ. "
            "Give the original."
        )
    teacher, family = open_model(model, options)
    teacher.tokenizer, _ = new_tokenizer(teacher, plan.vocabulary.kept)
    cut_to_vocabulary(teacher, family, plan.vocabulary.kept)
    check_same_ids(teacher, student)
    return teacher, family


def check_same_ids(teacher: Checkpoint, student: Checkpoint) -> None:
    """Every id is the same token to both, and both heads have a row for each."""
    rows = [_rows(model) for model in (teacher.model, student.model)]
    if rows[0] != rows[1]:
        raise CheckpointError(
            f"the teacher has {rows[0]} tokens, the student {rows[1]}: recover what flab pruned from it."
        )
    ours, theirs = (
        student.tokenizer.get_vocab(with_added_tokens=True),
        teacher.tokenizer.get_vocab(with_added_tokens=True),
    )
    if ours != theirs:
        wrong = sorted({token for token, i in (ours.items() ^ theirs.items())})[:3]
        raise CheckpointError(
            f"teacher and student number tokens otherwise ({', '.join(map(repr, wrong))}): prune again."
        )


def _rows(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


class Remembered:
    """The teacher's final hidden states of the tokens that count, remembered row by row while they fit in ``limit`` bytes.

    A row is met once an epoch; from the second on the teacher need not run.
    """

    def __init__(self, model: Any, limit: int = REMEMBERED_BYTES) -> None:
        self.model, self.room = model, limit
        self.states: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, used: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """States (N, D) of the positions in ``used`` (B, T), rows in the order of the batch; ``rows`` (B,) names them."""
        return torch.cat(
            [
                self._row(name, input_ids[at : at + 1], position_ids[at : at + 1], used[at])
                for at, name in enumerate(rows.tolist())
            ]
        )

    def _row(self, name: int, input_ids: torch.Tensor, position_ids: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        """One row's states, computed alone: the same bits whatever else is in the batch, so that resuming changes nothing."""
        if name not in self.states:
            end = int(used.nonzero().max()) + 1 if used.any() else 1
            states = final_states(self.model, input_ids[:, :end], position_ids[:, :end])[0][used[:end]]
            if states.nbytes > self.room:
                return states
            self.room -= states.nbytes
            self.states[name] = states.clone()
        return self.states[name]


def final_states(model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Hidden states after the final norm, (B, T, D), of packed rows."""
    states: torch.Tensor = model.base_model(
        input_ids=input_ids, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    return states
