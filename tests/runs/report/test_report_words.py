"""The words of the report: the verdict, numbers, and foreign text without the user's own folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flab.runs.report import make_report
from flab.runs.report.gather import gather
from flab.runs.report.words import figure, figures, number, percent, points, quantity, visible, without_home
from support import made_run


def test_the_verdict_says_what_was_kept_and_at_what_speed(run):
    sentence = gather(run)["verdict"]["sentence"]
    assert sentence.startswith(
        "40.0 % of the parameters were removed; of the 4 problems in “problems”, the original solves 2"
    )
    assert "100.5 % of that (95 % interval 99.0 % to 102.6 %; 1 lost, 2 won, McNemar p = 0.75)" in sentence
    assert "2.00 times as fast per token (1.80 to 2.20) and its weights take 50 % less memory" in sentence


def test_the_verdict_is_honest_about_a_loss(changed):
    def lose(value):
        value["tasks"][0]["retention"] = {"ratio": 0.7, "low": 0.6, "high": 0.8}

    report = gather(changed("compare-recovered.json", lose))
    assert report["verdict"]["remarks"][0].startswith("The loss is significant")
    assert {tile["label"]: tile["state"] for tile in report["verdict"]["tiles"]}["Score kept"] == "worse"


def test_the_verdict_does_not_claim_a_gain_that_may_be_chance(run):
    remarks = gather(run)["verdict"]["remarks"]
    assert remarks[0] == "The difference is not significant; a loss of up to 1.0 % cannot be excluded."
    assert "The speed-up is 80 % of the predicted one (2.50 ×)." in remarks


def test_a_slower_model_is_called_slower(changed):
    def slow(value):
        value["gains"]["time_per_output_token"] |= {"value": 0.8, "low": 0.7, "high": 0.9}

    assert "slower per token, at 0.80 times the speed" in gather(changed("measure.json", slow))["verdict"]["sentence"]


def overlapping(value):
    """The ranges of both models overlap in speed, throughput and energy."""
    value["gains"]["time_per_output_token"] |= {"value": 1.19, "low": 0.91, "high": 1.44}
    for model, size in zip(value["models"], (1.0, 1.1), strict=True):
        model["figures"] |= {
            "energy_per_1000_tokens": made_run.figure(8.0 * size, "J", 1.0),
            "throughput": made_run.figure(250 / size, "tokens/s", 40.0),
            "time_to_first_token": made_run.figure(0.1 * size, "s", 0.02),
        }


def test_a_speed_whose_range_contains_1_is_no_claim(changed):
    verdict = gather(changed("measure.json", overlapping))["verdict"]
    assert verdict["headline"].endswith("(2 instead of 2 of 4), no difference in speed shown.")
    assert (
        "no difference in speed per token was shown (0.91 to 1.44 times the original's) and its" in verdict["sentence"]
    )
    assert "No speed-up was shown; 2.50 × was predicted." in verdict["remarks"]
    assert "as fast" not in json.dumps(verdict)
    tile = {tile["label"]: tile for tile in verdict["tiles"]}["Speed per token"]
    assert (tile["value"], tile["state"]) == ("unclear", "plain")
    assert tile["note"] == "no difference shown: 0.91 to 1.44 times the original's, 2.50 predicted"


def test_a_speed_whose_range_leaves_1_out_is_claimed(run):
    tiles = {tile["label"]: tile for tile in gather(run)["verdict"]["tiles"]}
    assert tiles["Speed per token"] == {
        "label": "Speed per token", "value": "2.00 ×", "note": "1.80 to 2.20, 2.50 predicted", "state": "kept"
    }  # fmt: skip


def test_other_costs_whose_range_contains_1_are_no_claim(changed):
    run = changed("measure.json", overlapping)
    verdict = gather(run)["verdict"]
    tile = {tile["label"]: tile for tile in verdict["tiles"]}["Energy, 1,000 tokens"]
    assert (tile["value"], tile["state"]) == ("unclear", "plain")
    assert tile["note"] == "no difference shown: 0.87 to 1.40 times the original's"
    assert not any("worse, 1.10 times" in remark or "worse, 0.91 times" in remark for remark in verdict["remarks"])
    make_report(run)
    page = (run / "report.md").read_text()
    assert "A ratio whose range contains 1 shows no difference." in page
    assert "| 1.10 (0.87 to 1.40) |" in page


def test_other_costs_whose_range_leaves_1_out_are_claimed(changed):
    def costly(value):
        overlapping(value)
        value["models"][-1]["figures"]["energy_per_1000_tokens"] = made_run.figure(16.0, "J", 1.0)
        value["models"][-1]["figures"]["time_to_first_token"] = made_run.figure(0.3, "s", 0.02)

    verdict = gather(changed("measure.json", costly))["verdict"]
    tile = {tile["label"]: tile for tile in verdict["tiles"]}["Energy, 1,000 tokens"]
    assert (tile["value"], tile["state"]) == ("+100.0 %", "worse")
    assert "Time to the first token: worse, 3.00 times the original's." in verdict["remarks"]


def test_one_round_is_no_claim(changed):
    def once(value):
        value["gains"]["time_per_output_token"] |= {"value": 1.6, "low": 1.6, "high": 1.6, "rounds": 1}
        for model, size in zip(value["models"], (1.0, 0.5), strict=True):
            model["figures"]["energy_per_1000_tokens"] = made_run.figure(8.0 * size, "J", rounds=1)

    run = changed("measure.json", once)
    verdict = gather(run)["verdict"]
    assert verdict["headline"].endswith(", no difference in speed shown.")
    assert "one round shows no difference in speed per token (1.60 times the original's)" in verdict["sentence"]
    assert "No speed-up was shown; 2.50 × was predicted." in verdict["remarks"]
    tiles = {tile["label"]: tile for tile in verdict["tiles"]}
    for label, note in (
        ("Speed per token", "one round shows no difference: 1.60 times the original's, 2.50 predicted"),
        ("Energy, 1,000 tokens", "one round shows no difference: 0.50 times the original's"),
    ):
        assert (tiles[label]["value"], tiles[label]["note"], tiles[label]["state"]) == ("unclear", note, "plain")
    make_report(run)
    page = (run / "report.md").read_text()
    assert "| 1.60 × | one round |" in page
    assert "| 0.50 (one round) |" in page


@pytest.mark.parametrize(
    ("pair", "state"),
    [
        ((1.005, 0.99, 1.026, 1, 2, 0.75), "plain"),  # the interval contains the original's value
        ((0.7, 0.6, 0.8, 8, 0, 0.008), "worse"),
        ((1.3, 1.1, 1.5, 0, 8, 0.008), "kept"),
    ],
)
def test_only_a_significant_score_has_a_colour(run, pair, state):
    made_run.write(run / "compare-recovered.json", made_run.compared(*pair))
    assert score_tile(gather(run)["verdict"])["state"] == state


def test_several_samples_are_called_answers(changed):
    def sampled(value):
        value["tasks"][0]["summary"].update(num_samples=5, total=20, passed=9)

    sentence = gather(changed("eval/original/results.json", sampled))["verdict"]["sentence"]
    assert "of the 20 answers to problems in “problems”, the original solves 9" in sentence


def of_none(run, kind="code"):
    """The original passes nothing, the smaller model two."""
    for name, passed in (("original", 0), ("recovered", 2)):
        value = json.loads((run / f"eval/{name}/results.json").read_text())
        value["tasks"][0]["kind"] = kind
        value["tasks"][0]["summary"]["passed"] = passed
        made_run.write(run / f"eval/{name}/results.json", value)
    pair = made_run.compared(1.0, 1.0, 1.0, 0, 2, 0.5)
    pair["tasks"][0]["retention"] = None
    made_run.write(run / "compare-recovered.json", pair)
    return run


def score_tile(verdict):
    return next(tile for tile in verdict["tiles"] if tile["label"] == "Score kept")


def test_of_nothing_nothing_can_be_kept(run):
    verdict = gather(of_none(run))["verdict"]
    assert "the original solves 0 and the smaller model 2, so retention is undefined" in verdict["sentence"]
    assert (score_tile(verdict)["value"], score_tile(verdict)["note"]) == ("–", "retention is undefined, problems")


def test_scores_without_a_pair_are_not_called_unmeasured(run):
    (run / "compare-recovered.json").unlink()
    assert score_tile(gather(run)["verdict"])["note"] == "not paired with the original"
    (run / "eval/recovered/results.json").unlink()
    assert score_tile(gather(run)["verdict"])["note"] == "not measured"


@pytest.mark.parametrize("kind", ["cot", "output"])
def test_what_is_compared_and_not_run_is_called_an_exact_match(run, kind):
    sentence = gather(of_none(run, kind))["verdict"]["sentence"]
    assert "of the 4 problems in “problems”, the original has 0 exact matches and the smaller model 2" in sentence
    assert "solves" not in sentence


def test_exact_matches_of_another_task_are_called_that(run):
    of_none(run, "cot")
    for name in ("original", "recovered"):
        value = json.loads((run / f"eval/{name}/results.json").read_text())
        value["tasks"].insert(0, value["tasks"][0] | {"name": "first", "kind": "code"})
        made_run.write(run / f"eval/{name}/results.json", value)
    remarks = gather(run)["verdict"]["remarks"]
    assert "problems: 2 exact matches of 4, the original 0, not significantly different." in remarks


@pytest.mark.parametrize(("counts", "word"), [((20, 0), "fewer"), ((0, 20), "more")])
def test_a_difference_in_exact_matches_is_called_one(run, counts, word):
    of_none(run, "cot")
    made_run.write(run / "compare-recovered.json", made_run.compared(1.0, 1.0, 1.0, *counts, 0.001))
    assert f"has {word} exact matches than the original" in gather(run)["verdict"]["remarks"][0]


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.996, "as much memory"), (1.004, "as much memory"), (0.99, "1 % less"), (1.02, "2 % more")]
)
def test_memory_that_hardly_differs_is_as_much(changed, ratio, words):
    def same(value):
        value["models"][1]["figures"]["storage_bytes"] = made_run.figure(2e6 * ratio, "B")

    assert f"its weights take {words}" in gather(changed("measure.json", same))["verdict"]["sentence"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/root", "~"),
        ("a /root/x:/root/y", "a ~/x:~/y"),
        ("/data/root/x", "/data/root/x"),
        ("http://a.b/root", "http://a.b/root"),
        ("x/root ./root ~/root -/root ../root", "x/root ./root ~/root -/root ../root"),
        ("/rooted /root.d", "/rooted /root.d"),
    ],
)
def test_only_the_home_folder_itself_is_shortened(monkeypatch, text, shown):
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    assert without_home(text) == shown


def test_without_a_home_nothing_is_shortened(monkeypatch, run):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert without_home("/root/x") == "/root/x"
    assert make_report(run)["files"]


@pytest.mark.parametrize("home", ["/", "x", "."])
def test_a_home_that_is_no_folder_of_somebody_is_not_shortened(monkeypatch, home):
    monkeypatch.setattr(Path, "home", lambda: Path(home))
    assert without_home("x and /y .") == "x and /y ."


def test_prompts_and_answers_are_shown_as_they_were_made(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    source = tmp_path / "homely.jsonl"
    rows = [row | {"prompt": "# /root/prompt\n" + row["prompt"]} for row in made_run.PROBLEMS]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in made_run.PASSED:
        value = made_run.results(name, source)
        for row in value["tasks"][0]["rows"]:
            row |= {"text": "    open('/root/answer')\n", "detail": "no /root/detail"}
        made_run.write(run / f"eval/{name}/results.json", value)
    problem = make_report(run)["examples"]["problems"][0]
    assert problem["prompt"].startswith("# /root/prompt")
    assert problem["original"]["text"] == problem["smaller"]["text"] == "    open('/root/answer')\n"
    assert problem["smaller"]["detail"] == "no ~/detail"
    assert "# /root/prompt" in (run / "report.md").read_text()


def test_numbers_are_readable():
    assert [percent(0.403), percent(-0.068), percent(None)] == ["40.3 %", "−6.8 %", "–"]
    assert [quantity(4860848, "B"), quantity(0.00512, "s"), quantity(145.35, "s"), quantity(1.6, "x")] == [
        "4.86 MB", "5.12 ms", "2.42 min", "1.60 ×"]  # fmt: skip
    assert [number(0.0212), number(12345.6), number(3.0), number(1.23e-9)] == ["0.0212", "12,346", "3", "1.23e-09"]
    assert [number(999.6), number(999.4), number(9999.7, 4), number(9.9996e-5)] == ["1,000", "999", "10,000", "0.0001"]
    assert [quantity(0.9997, "s"), quantity(0.9994, "s"), quantity(999_999, "B")] == ["1 s", "999 ms", "1 MB"]
    assert figure(made_run.figure(0.9997, "s", 0.0005)) == "1 s (0.999 to 1)"
    assert figure(made_run.figure(0.004, "s", 0.0005)) == "4 ms (3.5 to 4.5)"
    assert figure(made_run.figure(None, "J", reason="none")) == "–"


def test_invisible_characters_are_shown():
    assert visible("a\x00\x1b\x7f\u202e\u200b\u2028b\tc\r\nd") == "a␀␛␡⟨U+202E⟩⟨U+200B⟩⟨U+2028⟩b\tc\nd"


def test_a_sweep_without_scores_shows_its_tests(changed):
    def tried(value):
        value["budgets"] = [row | {"retention": None, "task_passed": 9, "task_total": 10} for row in value["budgets"]]

    run = changed("sweep/sweep.json", tried)
    make_report(run)
    assert "| sweep, tests | 10.3 % | 90.0 % | – |" in (run / "report.md").read_text()


def test_a_budget_of_the_sweep_is_not_rounded(changed):
    run = changed("sweep/sweep.json", lambda value: value["budgets"][0].update(remove=0.225))
    make_report(run)
    assert "| 22.5 % |" in (run / "report.md").read_text()


def test_the_headline_says_the_verdict_in_one_line(run, changed):
    verdict = gather(run)["verdict"]
    assert verdict["headline"] == (
        "40.0 % smaller, not significantly different on problems (2 instead of 2 of 4), 2.00 times as fast."
    )
    assert verdict["outcome"] == "kept"

    def lose(value):
        value["tasks"][0]["retention"] = {"ratio": 0.7, "low": 0.6, "high": 0.8}

    verdict = gather(changed("compare-recovered.json", lose))["verdict"]
    assert "40.0 % smaller, significantly worse on problems" in verdict["headline"]
    assert verdict["outcome"] == "worse"


@pytest.mark.parametrize(
    ("value", "shown", "state"), [(1000, "0.0 %", "plain"), (500, "−50.0 %", "kept"), (1200, "+20.0 %", "worse")]
)
def test_a_tile_is_good_only_where_something_was_gained(changed, value, shown, state):
    def cache(report):
        for model, size in zip(report["models"], (1000, value), strict=True):
            model["figures"]["kv_bytes_per_token"] = made_run.figure(size, "B", 0.0)

    tiles = {tile["label"]: tile for tile in gather(changed("measure.json", cache))["verdict"]["tiles"]}
    assert (tiles["Cache per token"]["value"], tiles["Cache per token"]["state"]) == (shown, state)


def test_figures_in_one_column_have_one_unit_and_equal_decimals():
    def one(value, spread=0.0):
        return made_run.figure(value, "B", spread)

    assert figures([one(8.124e6), one(950_000)]) == ["8.12 MB", "0.95 MB"]
    assert figures([one(812.4e6, 5e5), None, one(4.86e6)]) == ["812.4 MB (811.9 to 812.9)", "–", "4.9 MB"]
    assert figures([one(None), None]) == ["–", "–"]


@pytest.mark.parametrize(("value", "shown"), [(-0.267, "−26.7 points"), (0.05, "+5.0 points"), (0.0, "+0.0 points")])
def test_a_difference_of_rates_is_in_points(value, shown):
    assert points(value) == shown
