"""Comparing two runs made by hand: counts, p, retention, BLEU, what is refused and what is warned of."""

from __future__ import annotations

import json

import pytest
from scipy.stats import binomtest

from flab.errors import DataError, OptionError
from flab.evaluation.compare import compare_runs
from flab.evaluation.prompts import Settings
from flab.evaluation.runs import run_tasks
from flab.evaluation.tasks import read_task
from flab.models.engines.protocol import FakeGenerator
from support.runs import COT, IDENTITY, OUTPUT, TEST, KnownSandbox, code_task

NAMES = [f"f{number}" for number in range(12)]


def measure(folder, passing, tasks=None, settings=None, identity=IDENTITY, other="nothing"):
    """A run in which the named functions pass; prompts of other kinds get ``other``."""

    def answer(request):
        if request.prompt.rpartition("def ")[2].removesuffix("():\n") in passing:
            return "    return 1"
        return other

    tasks = tasks or [code_task(*NAMES)]
    return run_tasks(FakeGenerator(answer), tasks, settings or Settings(), folder, identity, KnownSandbox())


def test_counts_and_p_of_a_hand_made_pair(tmp_path):
    measure(tmp_path / "a", NAMES[:10])
    measure(tmp_path / "b", NAMES[7:11], identity=IDENTITY | {"sha256": "b" * 64, "path": "/models/b"})
    report = compare_runs(tmp_path / "a", tmp_path / "b")
    assert report["differences"] == []
    (task,) = report["tasks"]
    assert [task[name] for name in ("both", "only_a", "only_b", "neither")] == [3, 7, 1, 1]
    assert task["mcnemar_p"] == pytest.approx(binomtest(1, 8).pvalue)
    assert (task["pass@1_a"], task["pass@1_b"]) == (10 / 12, 4 / 12)
    assert task["retention"]["ratio"] == pytest.approx(0.4)
    assert 0 < task["retention"]["low"] < 0.4 < task["retention"]["high"] < 1.2
    assert task["difference"]["value"] == pytest.approx(-0.5)
    assert task["failures_b"] == {"name": 8}
    assert task["same_prompts"] is True


def test_a_run_with_itself_keeps_everything(tmp_path):
    measure(tmp_path / "a", NAMES[:5])
    (task,) = compare_runs(tmp_path / "a", tmp_path / "a" / "results.json")["tasks"]
    assert (task["mcnemar_p"], task["retention"]) == (1.0, {"ratio": 1.0, "low": 1.0, "high": 1.0})


def test_several_samples_are_paired_by_item(tmp_path):
    settings = Settings(samples=3, temperature=1.0)
    measure(tmp_path / "a", NAMES[:8], settings=settings)
    measure(tmp_path / "b", NAMES[:4], settings=settings)
    (task,) = compare_runs(tmp_path / "a", tmp_path / "b")["tasks"]
    assert (task["both"], task["only_a"], task["num_items"]) == (4, 4, 12)
    assert task["retention"]["ratio"] == pytest.approx(0.5)
    assert task["retention"]["low"] < 0.5 < task["retention"]["high"]


def test_chain_of_thought_and_output(tmp_path):
    measure(tmp_path / "a", [], [COT, OUTPUT], other="Step 1 do it now")
    measure(tmp_path / "b", [], [COT, OUTPUT], other=" 1")
    cot, output = compare_runs(tmp_path / "a", tmp_path / "b")["tasks"]
    assert (cot["bleu_paper_a"], cot["bleu_paper_b"]) == (pytest.approx(100), 0)
    assert cot["bleu_paper_difference"]["value"] == pytest.approx(-100)
    assert (cot["only_a"], cot["bleu_paper_retention"]) == (1, 0)
    for name in ("em_paper", "em_literal"):
        assert (output[name]["only_b"], output[name]["pass@1_b"]) == (1, 1.0)
    assert output["retention"] is None


def test_robustness_of_both(tmp_path):
    tasks = [code_task("a", "b"), code_task("a", "b", called="code~x", prefix="# ", perturbation="x")]
    measure(tmp_path / "a", ["a", "b"], tasks)
    measure(tmp_path / "b", ["a"], tasks)
    (row,) = compare_runs(tmp_path / "a", tmp_path / "b")["robustness"]
    assert (row["drop_a"], row["drop_b"], row["pass@1_clean_b"]) == (0.0, 0.0, 0.5)


def test_what_is_decided_within_a_margin(tmp_path):
    measure(tmp_path / "a", NAMES[:6])
    measure(tmp_path / "b", NAMES[:5])
    report = compare_runs(tmp_path / "a", tmp_path / "b", margin_points=50)
    decision = report["tasks"][0]["decision"]
    assert (decision["verdict"], decision["margin"], decision["num_clusters"]) == ("non-inferior", 0.5, 12)
    assert decision["difference"] == pytest.approx(-1 / 12)
    assert report["pooled"] is None
    assert compare_runs(tmp_path / "a", tmp_path / "b")["tasks"][0]["decision"]["verdict"] == "undecided"
    with pytest.raises(OptionError, match="`margin_points`: got 0"):
        compare_runs(tmp_path / "a", tmp_path / "b", margin_points=0)


def test_pooled_over_tasks(tmp_path):
    """Problems of one id count as one cluster; perturbed tasks and chains of thought are left out."""
    tasks = [
        code_task(*NAMES),
        code_task(*NAMES, called="again", prefix="# "),
        code_task(*NAMES, called="code~x", prefix="## ", perturbation="x"),
        COT,
        OUTPUT,
    ]
    measure(tmp_path / "a", NAMES[:9], tasks)
    measure(tmp_path / "b", NAMES[:6], tasks)
    pooled = compare_runs(tmp_path / "a", tmp_path / "b")["pooled"]
    assert pooled["tasks"] == ["code", "again", "output"]
    assert (pooled["num_items"], pooled["num_clusters"]) == (25, 13)
    assert pooled["difference"] == pytest.approx(-6 / 25)
    assert pooled["low"] < -6 / 25 < pooled["high"]
    assert pooled["retention"]["ratio"] == pytest.approx(2 / 3)
    assert pooled["retention"]["low"] < 2 / 3 < pooled["retention"]["high"]


def test_problems_of_one_source_are_clustered(tmp_path):
    rows = [
        {"task_id": name, "prompt": f"def {name}():\n", "entry_point": name, "test": TEST, "source": f"book {at // 4}"}
        for at, name in enumerate(NAMES)
    ]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = read_task(file)
    assert task.clusters["f5"] == "book 1"
    measure(tmp_path / "a", NAMES[:8], [task])
    measure(tmp_path / "b", NAMES[:4], [task])
    (found,) = compare_runs(tmp_path / "a", tmp_path / "b")["tasks"]
    assert (found["decision"]["num_items"], found["decision"]["num_clusters"]) == (12, 3)
    assert found["decision"]["low"] == -1.0
    assert found["difference"]["low"] == -1.0


@pytest.mark.parametrize(
    ("settings", "identity", "field"),
    [
        (Settings(batch_size=2), IDENTITY, "settings.batch_size"),
        (Settings(seed=2), IDENTITY, "settings.seed"),
        (Settings(), IDENTITY | {"dtype": "bfloat16"}, "identity.dtype"),
    ],
)
def test_what_differs_is_said(tmp_path, settings, identity, field):
    measure(tmp_path / "a", NAMES)
    measure(tmp_path / "b", NAMES, settings=settings, identity=identity)
    assert [row["field"] for row in compare_runs(tmp_path / "a", tmp_path / "b")["differences"]] == [field]


def test_other_prompts_are_said(tmp_path):
    measure(tmp_path / "a", NAMES)
    measure(tmp_path / "b", NAMES)
    file = tmp_path / "b" / "results.json"
    results = json.loads(file.read_text())
    results["tasks"][0]["prompts_sha256"] = "f" * 64
    file.write_text(json.dumps(results))
    report = compare_runs(tmp_path / "a", tmp_path / "b")
    assert report["differences"][0]["field"] == "prompts of code"
    assert report["tasks"][0]["same_prompts"] is False


def test_other_items_are_not_compared(tmp_path):
    measure(tmp_path / "a", NAMES)
    measure(tmp_path / "b", NAMES, [code_task(*NAMES[:3])])
    with pytest.raises(DataError, match="share no task"):
        compare_runs(tmp_path / "a", tmp_path / "b")


def test_missing_and_unfinished_runs(tmp_path):
    measure(tmp_path / "a", NAMES)
    with pytest.raises(DataError, match="does not exist"):
        compare_runs(tmp_path / "a", tmp_path / "none")

    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(FakeGenerator(fail), [code_task("a")], Settings(), tmp_path / "a", IDENTITY, KnownSandbox())
    with pytest.raises(DataError, match="unfinished"):
        compare_runs(tmp_path / "a", tmp_path / "a")
    (tmp_path / "a" / "results.json").unlink()
    with pytest.raises(DataError, match="run flab eval again"):
        compare_runs(tmp_path / "a", tmp_path / "a")
