"""A plan on a sibling: a model of the same architecture and tokens with other weights, such as the instruct model of a base.

The plan's choices are replayed, and the weights are refitted on the sibling itself.
"""

from __future__ import annotations

from dataclasses import replace

from flab.errors import CheckpointError, PlanError
from flab.models.checkpoint import Checkpoint
from flab.models.families import Family, shape_of
from flab.models.folder import read_object, resolve
from flab.models.options import Options
from flab.models.source import ModelFolder
from flab.models.tokenizer import TokenizerModel
from flab.pruning.cuts.vocabulary import required_tokens
from flab.pruning.plan import Plan
from flab.pruning.planner import model_facts


def check_sizes(checkpoint: Checkpoint, family: Family, plan: Plan) -> None:
    """Raise PlanError that names what differs from the architecture that the plan was made for."""
    shape = shape_of(checkpoint.model, family)
    names = ("model_type", *plan.cuts, "parameters")
    got = (family.model_type, *shape.counts(plan.cuts), shape.total)
    planned = (plan.model.get("model_type"), *(cut.before for cut in plan.cuts.values()), plan.parameters_before)
    differ = [f"{n} {g} (plan: {p})" for n, g, p in zip(names, got, planned, strict=True) if g != p]
    if differ:
        raise PlanError(f"the plan does not fit {checkpoint.path}: {', '.join(differ)}. Plan for this model itself.")


def check_sibling(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """Check that the model has the tokens that the plan was made for. Return a warning about lesser differences.

    Raises:
        PlanError: names what differs, and what to do.
    """
    _check_texts(checkpoint, plan)
    return _check_needed(checkpoint, plan)


def _check_texts(checkpoint: Checkpoint, plan: Plan) -> None:
    """Check that the plan's ids mean the same tokens, if the model that it was made for is still there."""
    try:
        file = resolve(plan.model["path"]) / "tokenizer.json"
        # Equal sizes do not mean equal tokens, so ids are compared by their text.
        old = read_object(file)["model"]["vocab"]
    except (CheckpointError, KeyError):
        return
    new = TokenizerModel(checkpoint.tokenizer).data["model"]["vocab"]
    if old != new:
        raise PlanError(
            f"{checkpoint.path} is not a sibling of the plan's model: its tokens are not those of {file}. Plan for this model "
            "itself."
        )


def _check_needed(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """Refuse a plan that cuts a token this model has a role for; warn if it cuts pieces of the chat template."""
    kept = set(plan.vocabulary.kept)
    roles = set(TokenizerModel(checkpoint.tokenizer).added.values()) | checkpoint.named_ids
    # A chat model has roles that its base does not have, and a plan made on the base may cut their tokens.
    if gone := sorted(roles - kept):
        names = ", ".join(repr(checkpoint.tokenizer.id_to_token(i)) for i in gone[:5])
        raise PlanError(
            f"the plan cuts tokens that {checkpoint.path} has a role for ({names}): plan for this model itself, and apply that "
            "plan to the other."
        )
    needed = required_tokens(checkpoint.path, checkpoint.tokenizer, checkpoint.named_ids) - kept
    return [f"{len(needed)} tokens of this model's chat template are cut, so smaller ones spell them"] if needed else []


def adopted(
    plan: Plan, source: ModelFolder, family: Family, options: Options, kl: float | None, warnings: list[str]
) -> Plan:
    """Return the plan as the sibling's own: its files, the KL measured on it, and where the choices come from.

    ``kl`` is None if nothing was measured, as without a refit.
    """
    measured = "" if kl is not None else ", and so was its KL"
    origin = f"replayed on a sibling: layers, neurons and tokens were chosen on {plan.model['path']}{measured}"
    return replace(
        plan,
        model={**plan.model, **model_facts(source, family, options)},
        kl_nats_per_token=plan.kl_nats_per_token if kl is None else kl,
        warnings=[*plan.warnings, origin, *warnings],
    )
