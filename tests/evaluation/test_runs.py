"""A run with known answers: what is written, what resumes, what never mixes, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import flab.evaluation.evaluate
from flab.errors import DataError, OptionError
from flab.evaluation.prompts import Settings
from flab.evaluation.runs import robustness_of, run_tasks
from flab.evaluation.score import Score
from flab.evaluation.tasks import Problem, make_task
from flab.models.engines.protocol import FakeGenerator
from flab.models.engines.store import Shard
from support.runs import COT, IDENTITY, OUTPUT, KnownSandbox, code_task


def answer(request):
    if "How" in request.prompt:
        return "Step 1 do it now\n\nmore"
    return " 1\n" if "assert" in request.prompt else "    return 1" if "one" in request.prompt else "    return two"


def run(folder, tasks, settings=None, generator=None, **more):
    generator = generator or FakeGenerator(answer)
    return run_tasks(generator, tasks, settings or Settings(), folder, IDENTITY, KnownSandbox(), **more)


def test_three_kinds_in_one_run(tmp_path):
    report = run(tmp_path / "run", [code_task("one", "two"), COT, OUTPUT])
    assert [task["summary"]["passed"] for task in report["tasks"]] == [1, 1, 1]
    assert report["tasks"][0]["gold"]["passed"] == 2
    assert report["tasks"][1]["gold"] is None
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"generations.jsonl", "run.json", "results.json"}
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads(json.dumps(report))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["fingerprint"] == report["fingerprint"]
    assert facts["sandbox_level"] == "known"
    assert set(facts["seconds"]) == {"generate", "score"}
    assert "rows" not in facts["tasks"][0]
    assert run(None, [code_task("one", "two"), COT, OUTPUT]) == report


def test_no_gold():
    assert run(None, [code_task("one")], gold=False)["tasks"][0]["gold"] is None


def test_a_second_run_generates_nothing_and_gives_the_same_bytes(tmp_path):
    tasks = [code_task("one", "two"), OUTPUT]
    run(tmp_path / "run", tasks)
    first = (tmp_path / "run" / "results.json").read_bytes()
    again = FakeGenerator(answer)
    run(tmp_path / "run", tasks, generator=again)
    assert again.requests == []
    assert (tmp_path / "run" / "results.json").read_bytes() == first


def test_an_interrupted_run_gives_the_same_bytes(tmp_path):
    tasks, settings = [code_task("one", "two", "one_more", "others"), COT], Settings(batch_size=2)
    run(tmp_path / "whole", tasks, settings)
    left = [3]

    def fail(request):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return answer(request)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", tasks, settings, FakeGenerator(fail))
    assert not (tmp_path / "run" / "results.json").exists()
    run(tmp_path / "run", tasks, settings)
    for name in ("results.json", "generations.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


PARTED = [code_task("one", "two", "one_more", "others", "alone"), COT, OUTPUT]


def run_parts(folder, count, settings, numbers=None):
    """Generate the parts, each in a run of its own; returns their reports and all that was asked."""
    asked, reports = [], []
    for number in numbers or range(1, count + 1):
        generator = FakeGenerator(answer)
        reports.append(run(folder, PARTED, settings, generator, shard=Shard(number, count)))
        asked += [(request.prompt, request.seed) for request in generator.requests]
    return reports, asked


@pytest.mark.parametrize("settings", [Settings(batch_size=2), Settings(batch_size=3, samples=3, temperature=0.5)])
@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_parts_and_then_the_whole_give_the_same_results(tmp_path, count, settings):
    whole = FakeGenerator(answer)
    run(tmp_path / "whole", PARTED, settings, whole)
    reports, asked = run_parts(tmp_path / "run", count, settings)
    assert sorted(asked) == sorted((request.prompt, request.seed) for request in whole.requests)
    assert [report["shard"] for report in reports] == [f"{number}/{count}" for number in range(1, count + 1)]
    assert (reports[-1]["generated"], reports[-1]["wanted"]) == (len(asked), len(asked))
    assert not (tmp_path / "run" / "results.json").exists()
    merged = FakeGenerator([])
    run(tmp_path / "run", PARTED, settings, merged)
    assert merged.requests == []
    assert (tmp_path / "run" / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()


def test_parts_in_any_order_and_repeated(tmp_path):
    settings = Settings(batch_size=2)
    run(tmp_path / "whole", PARTED, settings)
    reports, asked = run_parts(tmp_path / "run", 3, settings, [3, 1, 3, 2, 1])
    assert len(asked) == reports[-1]["wanted"] == 7
    assert [report["generated"] for report in reports] == [2, 5, 5, 7, 7]
    run(tmp_path / "run", PARTED, settings, FakeGenerator([]))
    assert (tmp_path / "run" / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()


def test_what_the_parts_lack_is_asked_when_merging(tmp_path):
    settings = Settings(batch_size=2)
    run(tmp_path / "whole", PARTED, settings)
    _, asked = run_parts(tmp_path / "run", 3, settings, [2])
    merged = FakeGenerator(answer)
    run(tmp_path / "run", PARTED, settings, merged)
    assert len(merged.requests) + len(asked) == 7
    assert (tmp_path / "run" / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()


def test_a_part_goes_on_where_a_whole_run_was_stopped(tmp_path):
    settings, left = Settings(batch_size=2), [3]

    def fail(request):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return answer(request)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", PARTED, settings, FakeGenerator(fail))
    _, asked = run_parts(tmp_path / "run", 2, settings)
    assert len(asked) == 7 - 2  # one batch was there


def test_a_part_of_other_settings_is_not_merged(tmp_path):
    run_parts(tmp_path / "run", 2, Settings(batch_size=2, seed=1))
    merged = FakeGenerator(answer)
    run(tmp_path / "run", PARTED, Settings(batch_size=2), merged)
    assert len(merged.requests) == 7


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """``evaluate`` with known answers instead of a model."""
    task = [COT, OUTPUT]

    def go(out, **more):
        subject = SimpleNamespace(generator=FakeGenerator(answer), render=None, identity=IDENTITY)
        monkeypatch.setattr(flab.evaluation.evaluate, "open_subject", lambda *_: subject)
        report = flab.evaluation.evaluate.evaluate(tmp_path, task, out, Settings(batch_size=1), **more)
        return report, len(subject.generator.requests)

    return go


def test_evaluate_in_parts_gives_the_same_results(evaluate, tmp_path):
    evaluate(tmp_path / "whole")
    parts = [evaluate(tmp_path / "run", shard=f"{number}/2") for number in (1, 2)]
    assert [(report["generated"], asked) for report, asked in parts] == [(1, 1), (2, 1)]
    _, asked = evaluate(tmp_path / "run")
    assert asked == 0
    assert (tmp_path / "run" / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()


@pytest.mark.parametrize(
    ("out", "shard", "words"),
    [
        (None, "1/2", "`shard` needs a folder"),
        ("results.json", "1/2", "`shard` needs a folder"),
        ("run", "3/2", "`shard`: got '3/2', allowed I/N"),
        ("run", "", "`shard`: got '', allowed I/N"),
    ],
)
def test_a_part_that_cannot_be_is_refused(evaluate, tmp_path, out, shard, words):
    with pytest.raises(OptionError, match=words):
        evaluate(tmp_path / out if out else None, shard=shard)
    assert list(tmp_path.iterdir()) == []


CHANGES = {
    "preset": Settings(preset="paper"),
    "max_new_tokens": Settings(max_new_tokens=20),
    "batch_size": Settings(batch_size=1),
    "seed": Settings(seed=1),
    "temperature": Settings(temperature=0.5),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_changed_settings_never_mix(name, tmp_path, capfd):
    folder = tmp_path / "run"
    old = run(folder, [code_task("one")])
    lines = (folder / "generations.jsonl").read_text()
    generator = FakeGenerator(lambda _: "    return 2")
    new = run(folder, [code_task("one")], CHANGES[name], generator)
    assert len(generator.requests) == 1
    assert new["fingerprint"] != old["fingerprint"]
    assert (folder / "generations.jsonl").read_text().startswith(lines)
    assert new["tasks"][0]["summary"]["passed"] == 0
    assert run(folder, [code_task("one")]) == old


def test_another_model_never_mixes_but_another_place_does_not_matter(tmp_path):
    folder, arguments = tmp_path / "run", ([code_task("one")], Settings(), tmp_path / "run")
    run(folder, [code_task("one")])
    moved, other = FakeGenerator(answer), FakeGenerator(answer)
    run_tasks(moved, *arguments, IDENTITY | {"path": "/elsewhere"}, KnownSandbox())
    run_tasks(other, *arguments, IDENTITY | {"sha256": "b" * 64}, KnownSandbox())
    assert (len(moved.requests), len(other.requests)) == (0, 1)


def test_two_tasks_of_one_name_are_refused():
    with pytest.raises(OptionError, match="2 tasks are called code"):
        run(None, [code_task("one"), code_task("two")])


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds no run"):
        run(tmp_path, [code_task("one")])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="is a file"):
        run(tmp_path / "thesis.txt", [code_task("one")])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "none"}, "`preset`"),
        ({"samples": 0}, "`samples`"),
        ({"samples": 2}, "at `temperature` 0 all samples are equal"),
        ({"temperature": -1.0}, "`temperature`"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(OptionError, match=words):
        Settings(**changes)


def test_the_paper_preset_scores_another_text_than_it_stores(tmp_path):
    generator = FakeGenerator(lambda _: '    """Doc."""\n    return 1')
    report = run(tmp_path / "run", [code_task("one")], Settings(preset="paper"), generator)
    assert report["tasks"][0]["rows"][0]["text"] == 'Doc."""\n    return 1'
    assert json.loads((tmp_path / "run" / "generations.jsonl").read_text())["text"].startswith('    """Doc')


def test_addresses_are_not_in_the_results():
    assert run(None, [code_task("two")])["tasks"][0]["rows"][0]["detail"] == "<A at 0x...>"


def score_of(name, **passed):
    rows = [{"task_id": task_id, "sample": 0, "passed": one} for task_id, one in passed.items()]
    return Score(name, "code", {}, rows)


def test_robustness_of_our_own_and_of_files_with_the_same_problems():
    clean, own = code_task("a", "b"), code_task("a", called="code~x", perturbation="x", skipped=1)
    recode = code_task("a", "b", called="recode", prefix="# ")
    other = make_task("other", "code", [Problem("a", "def z():\n", "z", "assert z() == 3", None)], "other")
    scores = [
        score_of("code", a=True, b=True),
        score_of("code~x", a=False),
        score_of("recode", a=True, b=False),
        score_of("other", a=True),
    ]
    found = robustness_of([clean, own, recode, other], scores)
    assert [(row["clean"], row["perturbed"], row["drop"]) for row in found] == [
        ("code", "code~x", 1.0),
        ("code", "recode", 0.5),
    ]
