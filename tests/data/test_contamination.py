"""Overlap of problems and texts: copies are found, boilerplate and idioms are not."""

import json
import os
import random
from pathlib import Path

import pytest

from flab.data.contamination import MAX_SHARED, MIN_SHARE, holding, overlaps, tokens_of
from flab.evaluation.tasks import read_task

PROBLEM = '''import re


def pass_validity(p):
    """Return true if the password is long enough, has a digit, and holds one of the special characters.
    """
    if len(p) < 6 or not re.search("[0-9]", p):
        return False
    return any(symbol in p for symbol in "$#@")
'''
OTHER = '''def largest_prime_below(number):
    """Find the greatest prime that is strictly smaller than the number given by the caller.
    """
    return next(n for n in range(number - 1, 1, -1) if all(n % d for d in range(2, n)))
'''


def words(seed, count):
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(count))


def test_tokens_are_words_and_symbols():
    assert tokens_of('Def  f_1(x):\n\t"a – B’s"') == [
        "def",
        "f_1",
        "(",
        "x",
        ")",
        ":",
        "'",
        "a",
        "-",
        "b",
        "'",
        "s",
        "'",
    ]
    assert tokens_of("") == []
    assert tokens_of("ﬁ Ä ß") == tokens_of("fi ä SS")


def test_exact_copies_are_found_whatever_their_spacing():
    copy = "x = 1\n" + PROBLEM.upper().replace("    ", "\t").replace('"""', "'''").replace("\n", "\r\n") + "\n# end"
    found = overlaps([("a", PROBLEM), ("b", OTHER)], [words(0, 50), copy])
    assert [match.task_id for match in found.matches] == ["a"]
    match = found.matches[0]
    assert (match.exact, match.shared, match.text_index) == (True, match.total, 1)
    assert (found.num_problems, found.num_texts, found.exact_ids) == (2, 2, ["a"])
    assert "1 of 2 problems" in found.warning()


def test_part_of_a_problem_is_found_and_counted():
    half = PROBLEM[len(PROBLEM) // 3 :]
    found = overlaps([("a", PROBLEM)], [words(1, 30) + half])
    match = found.matches[0]
    assert not match.exact
    assert match.flagged
    assert 0 < match.shared < match.total


def test_an_idiom_is_reported_and_not_flagged():
    short = "return true if the password is long enough, has a digit, and"
    found = overlaps([("a", PROBLEM)], [short])
    assert [match.shared for match in found.matches] == [2]
    assert not found.flagged_ids
    assert found.warning() is None
    assert found.to_json()["flagged"] == []


def test_thirteen_tokens_are_the_least():
    tokens = tokens_of(PROBLEM)[11:]
    assert overlaps([("a", PROBLEM)], [" ".join(tokens[:12])]).matches == ()
    assert overlaps([("a", PROBLEM)], [" ".join(tokens[:13])]).matches[0].shared == 1
    assert overlaps([("a", PROBLEM)], [" ".join(tokens[:12])], n=12).matches[0].shared == 1


def test_what_many_problems_have_is_no_evidence():
    boilerplate = (
        "from typing import List Dict Tuple Optional Any Union Callable Iterable Sequence Mapping Iterator Set\n"
    )
    problems = [(str(n), boilerplate + words(n, 30)) for n in range(MAX_SHARED + 2)]
    assert overlaps(problems, [boilerplate]).matches == ()
    few = overlaps(problems[:MAX_SHARED], [boilerplate])
    assert len(few.matches) == MAX_SHARED


def test_symbols_and_repeated_words_are_no_evidence():
    table = "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] for i in range(n): for i in range(n): for i in range(n)"
    assert overlaps([("a", f"def f(n): {table}")], [table]).matches == ()


def test_copies_within_many_equal_problems_stay_exact():
    problems = [(str(n), PROBLEM) for n in range(10)]
    assert len(overlaps(problems, [PROBLEM]).exact_ids) == 10


def test_short_problems_compare_whole():
    found = overlaps([("a", "def f(x): return x"), ("b", "")], ["def f(x): return x + 1", "  DEF f(x):\n  return x"])
    assert [(match.task_id, match.exact, match.text_index) for match in found.matches] == [("a", True, 1)]


def test_the_text_with_most_in_common_is_named():
    texts = [PROBLEM[:120], PROBLEM[:280], PROBLEM[:120]]
    assert overlaps([("a", PROBLEM)], texts).matches[0].text_index == 1


def test_texts_are_read_once_as_a_stream():
    found = overlaps([("a", PROBLEM)], (text for text in [PROBLEM, "", "x"]))
    assert found.num_texts == 3
    json.dumps(found.to_json())


TOKENS = tokens_of(PROBLEM)
HELD = {
    "the problem": (PROBLEM, ["a"]),
    "in other case, spacing and quotes": (PROBLEM.upper().replace("    ", "\t").replace('"', "'"), ["a"]),
    "within more": (f"{words(1, 50)}\n{PROBLEM}\n{words(2, 50)}", ["a"]),
    "both": (OTHER + PROBLEM, ["a", "b"]),
    "its second half": (" ".join(TOKENS[len(TOKENS) // 2 :]), ["a"]),
    "two pieces of it": (" ".join([*TOKENS[8:26], "and", *TOKENS[28:46]]), ["a"]),
    "an idiom of it": (" ".join(TOKENS[8:22]), []),
    "other words": (words(3, 200), []),
    "nothing": ("", []),
}


def test_which_texts_hold_which_problems():
    found = holding([("a", PROBLEM), ("b", OTHER)], [text for text, _ in HELD.values()])
    assert found == {number: ids for number, (_, ids) in enumerate(HELD.values()) if ids}


def test_a_fifth_of_the_runs_is_where_a_text_begins_to_hold_a_problem():
    total = overlaps([("a", PROBLEM)], [PROBLEM]).matches[0].total
    shared = {
        size: overlaps([("a", PROBLEM)], [text]).matches[0].shared
        for size in range(20, 60)
        if (text := " ".join(TOKENS[8 : 8 + size]))
    }
    texts = [" ".join(TOKENS[8 : 8 + size]) for size in shared]
    assert set(holding([("a", PROBLEM)], texts)) == {
        at for at, count in enumerate(shared.values()) if count >= MIN_SHARE * total
    }
    assert min(shared.values()) < MIN_SHARE * total < max(shared.values())


def test_texts_that_hold_a_problem_only_together_hold_none():
    """A problem is flagged for the data as a whole, but no text alone gives it away."""
    parts = [" ".join(TOKENS[start : start + 16]) for start in range(8, len(TOKENS) - 16, 5)]
    assert overlaps([("a", PROBLEM)], parts).flagged_ids == ["a"]
    assert holding([("a", PROBLEM)], parts) == {}


def test_a_short_problem_is_held_only_by_a_text_that_is_it():
    texts = ["def f(x): return x + 1", "  DEF f(x):\n  return x", "a"]
    assert holding([("a", "def f(x): return x"), ("b", "")], texts) == {1: ["a"]}


def test_what_many_problems_have_gives_none_of_them_away():
    boilerplate = "from typing import List Dict Tuple Optional Any Union Callable Iterable Sequence Mapping\n"
    problems = [(str(n), boilerplate + words(n, 30)) for n in range(MAX_SHARED + 1)]
    assert holding(problems, [boilerplate, problems[2][1]]) == {1: ["2"]}


def test_a_copy_of_many_equal_problems_is_held_as_all_of_them():
    assert holding([(str(n), PROBLEM) for n in range(5)], [PROBLEM]) == {0: list("01234")}


def test_no_problem_and_no_text():
    assert holding([], [PROBLEM]) == {}
    assert holding([("a", PROBLEM)], []) == {}


def test_one_copy_in_half_a_million_words_is_found():
    problems = [(str(n), words(n, 150)) for n in range(500)]
    texts = [words(1000 + n, 1000) for n in range(500)] + [problems[7][1]]
    found = overlaps(problems, texts)
    assert found.exact_ids == ["7"]


def test_public_sets():
    folder = Path(os.environ.get("FLAB_DATA", Path(__file__).parents[3] / "shared" / "data"))

    def read(name, kind=None):
        file = folder / name
        if not file.is_file():
            pytest.skip(f"{file} is not there")
        return [(one.task_id, one.prompt + (one.canonical_solution or "")) for one in read_task(file, kind).problems]

    humaneval, mbpp = read("HumanEval.jsonl"), read("MBPP_test.jsonl")
    assert len(overlaps(humaneval, [text for _, text in humaneval]).exact_ids) == 164
    apart = overlaps(humaneval, [text for _, text in mbpp])
    assert (apart.flagged_ids, len(apart.matches)) == ([], 5)
    near = overlaps(mbpp, [text for _, text in read("CodeHarmony_valid.jsonl", "code")])
    assert "MBPP/427" in near.flagged_ids
    assert len(near.flagged_ids) == 24
