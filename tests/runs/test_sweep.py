"""One search, many budgets: what is shared, what each budget gets, and how a stopped sweep goes on."""

from __future__ import annotations

import json

import pytest

import flab
from flab.errors import BudgetError, DataError, OptionError
from flab.pruning import planner
from flab.pruning.cuts import layers
from flab.pruning.plan import Plan
from flab.pruning.verify import verify
from flab.runs.sweep import mark_best, sweep

BUDGETS = (0.1, 0.3, 0.5)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, trained_folder, recipe):
    """A sweep of three budgets over the trained pico model, with its folder."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    return folder, sweep(trained_folder, BUDGETS, folder, recipe())


def test_every_budget_is_met_and_its_plan_can_be_applied(swept, trained_folder, tmp_path):
    folder, report = swept
    assert [row["remove"] for row in report["budgets"]] == list(BUDGETS)
    for row in report["budgets"]:
        assert row["removed_fraction"] >= row["remove"]
        plan = Plan.read(folder / row["plan"])
        assert plan.parameters_after == row["parameters"]
        assert plan.kl_nats_per_token == row["kl_nats_per_token"]
    out = flab.apply(trained_folder, folder / report["budgets"][1]["plan"], tmp_path / "applied")
    assert verify(out, trained_folder)["ok"]


def test_a_deeper_budget_keeps_no_more_layers_and_loses_more(swept):
    rows = swept[1]["budgets"]
    assert [r["layers"]["after"] for r in rows] == sorted((r["layers"]["after"] for r in rows), reverse=True)
    assert [r["kl_nats_per_token"] for r in rows] == sorted(r["kl_nats_per_token"] for r in rows)


def test_the_order_of_the_layers_is_searched_once(tmp_path, trained_folder, recipe, monkeypatch):
    scored, real = [], layers.score_removals

    def counting(search, kept, reference):
        scored.append(tuple(kept))
        return real(search, kept, reference)

    monkeypatch.setattr(layers, "score_removals", counting)
    sweep(trained_folder, BUDGETS, tmp_path / "out", recipe())
    assert scored
    assert len(scored) == len(set(scored)), "a set of layers was scored for two budgets"


def test_budgets_that_keep_the_same_tokens_share_what_follows_from_them(tmp_path, trained_folder, recipe, monkeypatch):
    """Once for each vocabulary, and the plans are those of budgets that share nothing."""
    made, real = [], planner.prepare_material

    def counting(checkpoint, family, kept, *rest):
        made.append(tuple(kept))
        return real(checkpoint, family, kept, *rest)

    monkeypatch.setattr(planner, "prepare_material", counting)
    pinned = recipe(vocabulary=400)
    sweep(trained_folder, [0.3, 0.35], tmp_path / "pinned", pinned)
    assert len(made) == 1
    for name, budget in (("plan-30.json", 0.3), ("plan-35.json", 0.35)):
        sweep(trained_folder, [budget], tmp_path / name, pinned)
        alone, shared = (Plan.read(folder / name) for folder in (tmp_path / name, tmp_path / "pinned"))
        for field in ("vocabulary", "kl_vocabulary", "calibration"):
            assert getattr(alone, field) == getattr(shared, field)
    made.clear()
    sweep(trained_folder, [0.0, 0.6], tmp_path / "free", recipe())
    assert len(set(made)) == len(made) == 2, "another vocabulary has material of its own"


def test_alone_a_budget_is_decided_as_a_plan_by_kl_is(tmp_path, trained_folder, recipe):
    plan = flab.plan(trained_folder, recipe(remove=0.3, finalists=1))
    report = sweep(trained_folder, [0.3], tmp_path / "out", recipe())
    again = Plan.read(tmp_path / "out" / report["budgets"][0]["plan"])
    assert (again.vocabulary, again.layers, again.width) == (plan.vocabulary, plan.layers, plan.width)
    assert again.kl_nats_per_token == plan.kl_nats_per_token


def test_a_stopped_sweep_goes_on_and_another_is_refused(tmp_path, trained_folder, recipe, monkeypatch):
    out, real, planned = tmp_path / "out", planner.Planner.plan, []

    def stopping(self, remove):
        planned.append(remove)
        if remove == 0.5 and planned.count(0.5) == 1:
            raise KeyboardInterrupt
        return real(self, remove)

    monkeypatch.setattr(planner.Planner, "plan", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(trained_folder, BUDGETS, out, recipe())
    kept = (out / "plan-30.json").read_bytes()
    report = sweep(trained_folder, BUDGETS, out, recipe())
    assert planned == [0.1, 0.3, 0.5, 0.5]
    assert (out / "plan-30.json").read_bytes() == kept
    assert len(report["budgets"]) == 3
    report = sweep(trained_folder, [0.2], out, recipe())
    assert planned[-1] == 0.2
    assert [row["remove"] for row in report["budgets"]] == [0.1, 0.2, 0.3, 0.5]
    (out / "plan-30.json").unlink()
    sweep(trained_folder, [0.3], out, recipe())
    assert planned[-1] == 0.3
    assert (out / "plan-30.json").is_file()
    with pytest.raises(OptionError, match="another model, recipe or data"):
        sweep(trained_folder, BUDGETS, out, recipe(seed=1))


def test_resumed_or_not_the_plans_are_the_same(swept, tmp_path, trained_folder, recipe):
    """Between two others, and after them: what is shared does not depend on which budgets came before in time."""
    folder, report = swept
    out = tmp_path / "out"
    sweep(trained_folder, [0.1], out, recipe())
    sweep(trained_folder, [0.1, 0.3], out, recipe())
    for row in report["budgets"][:2]:
        ours, theirs = (json.loads((f / row["plan"]).read_text()) for f in (folder, out))
        for one in (ours, theirs):
            one.pop("seconds")
            one.pop("layer_path")
        assert ours == theirs


def test_an_unreachable_budget_is_found_before_any_is_planned(tmp_path, trained_folder, recipe):
    with pytest.raises(BudgetError, match=r"`remove` 0.99 cannot be reached"):
        sweep(trained_folder, [0.1, 0.99], tmp_path / "out", recipe())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("budgets", [[], [1.0], [-0.1]])
def test_what_is_no_budget_is_refused(budgets, tmp_path, trained_folder, recipe):
    with pytest.raises(OptionError, match="`remove`"):
        sweep(trained_folder, budgets, tmp_path / "out", recipe())
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, trained_folder, recipe):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OptionError, match="does not hold a sweep"):
        sweep(trained_folder, BUDGETS, tmp_path, recipe())
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_a_sweep_killed_in_its_first_write_starts_clean(tmp_path, trained_folder, recipe):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".sweep.json.17.tmp").write_text("{")
    assert len(sweep(trained_folder, [0.1], out, recipe())["budgets"]) == 1


def test_what_only_the_measuring_reads_is_missed_before_the_planning(tmp_path, trained_folder, recipe):
    with pytest.raises(DataError, match="nothere"):
        sweep(trained_folder, [0.1], tmp_path / "out", recipe(), tasks=["output:nothere.jsonl"])
    with pytest.raises(OptionError, match="`limit` limits the problems of a `task`"):
        sweep(trained_folder, [0.1], tmp_path / "out", recipe(), limit=3)
    with pytest.raises(OptionError, match="is in the source model"):
        sweep(trained_folder, [0.1], trained_folder / "out", recipe())
    assert not (tmp_path / "out").exists()
    assert not (trained_folder / "out").exists()


def test_budgets_that_are_nearly_one_have_plans_of_their_own(tmp_path, trained_folder, recipe):
    report = sweep(trained_folder, [0.2, 0.200001, 0.07], tmp_path / "out", recipe())
    assert [row["plan"] for row in report["budgets"]] == ["plan-7.json", "plan-20.json", "plan-20.0001.json"]


def test_models_are_kept_of_the_plans_that_are_there(tmp_path, trained_folder, recipe):
    out = tmp_path / "out"
    sweep(trained_folder, [0.1], out, recipe())
    assert not (out / "smaller-10").exists()
    sweep(trained_folder, [0.1], out, recipe(), save=True)
    kept = out / "smaller-10" / "plan.json"
    assert kept.read_bytes() == (out / "plan-10.json").read_bytes()
    kept.write_text("{}")
    sweep(trained_folder, [0.1], out, recipe(), save=True)
    assert kept.read_bytes() == (out / "plan-10.json").read_bytes()


def test_a_depth_is_passed_over_where_a_wider_model_of_it_was_worse_already(
    tmp_path, trained_folder, recipe, monkeypatch
):
    import flab.pruning.search as search

    built, real = [], search.Search.measure

    def noting(self, split, removed):
        built.append((self.recipe.remove, split.layers))
        found = real(self, split, removed)
        if split.layers == 4:
            found.kl_search = 1e6  # as if a shallower model were of no use at all
        return found

    monkeypatch.setattr(search.Search, "measure", noting)
    sweep(trained_folder, [0.1, 0.2], tmp_path / "out", recipe())
    assert (0.1, 4) in built
    assert (0.2, 4) not in built
    assert (0.2, 5) in built


def row(parameters, **kept):
    return {"parameters": parameters, "retention": None, "task_total": None, "kl_nats_per_token": 0.1, **kept}


def test_the_best_are_those_that_no_other_beats():
    by_retention = [row(10, retention=1.0), row(8, retention=0.9), row(8, retention=0.8), row(9, retention=0.9)]
    assert [r["pareto"] for r in mark_best(by_retention)] == [True, True, False, False]
    by_tests = [row(10, task_passed=9, task_total=10), row(5, task_passed=9, task_total=10)]
    assert [r["pareto"] for r in mark_best(by_tests)] == [False, True]
    mixed = [row(10, retention=0.95), row(5, task_passed=97, task_total=100, kl_nats_per_token=0.2)]
    assert [r["pareto"] for r in mark_best(mixed)] == [True, True]  # by KL, which both have
    by_kl = [row(10, kl_nats_per_token=0.1), row(5, kl_nats_per_token=0.2), row(6, kl_nats_per_token=0.3)]
    assert [r["pareto"] for r in mark_best(by_kl)] == [True, True, False]


def test_with_a_task_every_budget_is_measured_beside_the_original(tmp_path, trained_folder, recipe):
    task = tmp_path / "outputs.jsonl"
    rows = [
        {"id": f"{n}", "code": f"def f(x):\n    return x + {n}\n", "input": "1", "output": f"{n + 1}"} for n in range(3)
    ]
    task.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "out"
    report = sweep(trained_folder, [0.1], out, recipe(), tasks=[f"output:{task}"])
    scores = report["budgets"][0]["scores"]["outputs"]
    assert scores["total"] == 3
    assert (out / "smaller-10" / "config.json").is_file()
    assert report["budgets"][0]["retention"] is None or scores["original"]
