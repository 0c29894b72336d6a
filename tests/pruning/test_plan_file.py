"""Plan files that do not add up: each is one line that names the file and the field, before anything is cut."""

from __future__ import annotations

import json

import pytest

from flab.errors import PlanError
from flab.pruning.pipeline import apply
from flab.pruning.plan import Plan
from support import pico

REFIT = {"kind": "none", "scaling": "feature"}
PLAN = {
    "remove": 0.3,
    "model": {"path": "model", "sha256": "0" * 64, "model_type": "qwen2"}
    | dict.fromkeys(("stored_dtype", "compute_dtype"), "float32"),
    "calibration": {"path": None, "general": 0.0, "prompt_weight": 1.0, "sources": []}
    | dict.fromkeys(("tokens", "max_length", "batch_tokens", "seed"), 1),
    "cuts": {
        "vocabulary": {"before": 480, "after": 3, "kept": [0, 1, 2]},
        "layers": {"before": 5, "after": 2, "kept": [0, 4]},
        "width": {"before": 64, "after": 2, "kept": [[0, 1], [2, 3]]},
    },
    "refit": REFIT,
    **dict.fromkeys(("parameters_before", "body_before"), 100),
    **dict.fromkeys(("parameters_after", "body_after"), 70),
    **dict.fromkeys(("kl_vocabulary", "kl_nats_per_token"), 0.1),
    **{"criteria": {}, "candidates": [], "layer_path": [], "warnings": [], "seconds": {}, "flab_version": "0"},
    "format": 2,
}
DAMAGED = {
    "another format": ({"format": 3}, "plan format 3, this flab reads 1 and 2"),
    "a number that is none": ({"remove": float("nan")}, "not JSON .NaN is not a number"),
    "text for a number": ({"parameters_before": "x"}, "parameters_before is of a wrong type"),
    "truth for a number": ({"parameters_after": True}, "parameters_after is of a wrong type"),
    "no candidates": ({"candidates": None}, "candidates is of a wrong type"),
    "criteria as text": ({"criteria": "x"}, "criteria is of a wrong type"),
    "no model": ({"model": None}, "path of the model is missing"),
    "no cuts": ({"cuts": None}, "is damaged"),
    "an unknown refit": ({"refit": REFIT | {"kind": "nonsense"}}, "unknown refit 'nonsense'"),
    "an unknown field": ({"zzz": 1}, "missing or unknown plan fields: zzz"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_plan_is_one_line(tmp_path, name):
    changes, said = DAMAGED[name]
    (tmp_path / "plan.json").write_text(json.dumps(PLAN | changes))
    with pytest.raises(PlanError, match=said) as caught:
        Plan.read(tmp_path / "plan.json")
    assert str(caught.value).startswith(("plan", str(tmp_path / "plan.json")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [None, "x", [-1], [480], [0.5], [0, 0, 1], [], [2, 1, 0], 5, {"a": 1}])
def test_kept_indices_that_are_none_are_found(tmp_path, kept):
    cuts = PLAN["cuts"] | {"vocabulary": {"before": 480, "after": 3, "kept": kept}}
    (tmp_path / "plan.json").write_text(json.dumps(PLAN | {"cuts": cuts}))
    with pytest.raises(PlanError, match="is damaged"):
        Plan.read(tmp_path / "plan.json")


@pytest.mark.parametrize("part", ["vocabulary", "layers", "width", "parameters"])
def test_sizes_that_are_not_the_models_are_found(tmp_path, recipe, part):
    """Whoever edits a plan gets no folder whose report states sizes that the model never had."""
    from flab.pruning.pipeline import plan

    model = pico.build("qwen2", tmp_path / "model")
    decided = plan(model, recipe(remove=0.3, finalists=1, refit="none")).to_json()
    assert Plan.read(written(tmp_path, decided)).to_json() == decided
    if part == "parameters":
        decided["parameters_before"] += 1
    else:
        decided["cuts"][part]["before"] += 1
    with pytest.raises(PlanError, match=f"the plan does not fit .*{part}"):
        apply(model, written(tmp_path, decided), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def written(folder, data):
    (folder / "plan.json").write_text(json.dumps(data))
    return folder / "plan.json"
