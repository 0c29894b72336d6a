"""Each perturbation by its form and its meaning."""

import ast
import random
import re
from collections import Counter

import pytest

from flab.evaluation.perturbations.docstrings import docstring_format, docstring_noise, prose_lines
from flab.evaluation.perturbations.partial import dead_code, loop_form
from flab.evaluation.perturbations.programs import read_program
from flab.evaluation.perturbations.renaming import rename_arguments, rename_function
from flab.evaluation.tasks import Problem
from support.perturbed import BODY, PROBLEM, PROMPT, TEST, simple


def drawn(perturbation, problem, count=30):
    """What several seeds make of a problem, without those that do not apply."""
    made = [perturbation(problem, random.Random(seed)) for seed in range(count)]
    return [one for one in made if one is not None]


def behaves(problem, *arguments):
    names = {}
    exec(problem.prompt + problem.canonical_solution, names)
    return names[problem.entry_point](*arguments)


def test_docstring_format_keeps_code_and_words():
    made = drawn(docstring_format, PROBLEM)
    kinds = Counter("'''" if "'''" in one.prompt else "#" if "    # Count" in one.prompt else "wrap" for one in made)
    assert set(kinds) == {"'''", "#", "wrap"}
    for one in made:
        assert one.canonical_solution == BODY
        assert one.prompt.split("def count_big")[0] == PROMPT.split("def count_big")[0]
        assert re.findall(r"\w+", one.prompt) == re.findall(r"\w+", PROMPT)
        assert "    >>> count_big([1, 5], limit=2)\n    1\n" in one.prompt.replace("# ", "")


def test_comments_become_a_docstring_again():
    comments = next(one for one in drawn(docstring_format, PROBLEM) if "    # Count" in one.prompt)
    back = docstring_format(comments, random.Random(0))
    node = read_program(back).function
    assert ast.get_docstring(node).startswith("Count the given numbers")
    assert "helper(numbers)" in back.canonical_solution


def test_noise_touches_prose_only():
    made = drawn(docstring_noise, PROBLEM)
    assert len(made) == 30
    for one in made:
        before, after = PROMPT.split("\n"), one.prompt.split("\n")
        changed = [old for old, new in zip(before, after, strict=True) if old != new]
        assert changed
        assert all(line.startswith(('    """ Count', "    The order")) for line in changed)
        assert one.prompt.count("numbers") == PROMPT.count("numbers")
        assert one.canonical_solution == BODY


def test_prose_lines_leave_code_and_doctests_out():
    text = """ First of all some words
    >>> f(1)
    a result of several words
    ... more of the doctest here

    this is prose again, you see
    f(1) gives the value of one
    [1, 2] => two and three and four
    short line
    "only quoted words in this line"
    """
    assert [line.strip() for _, line in prose_lines(text)] == [
        "First of all some words",
        "this is prose again, you see",
    ]
    for offset, line in prose_lines(text):
        assert text[offset : offset + len(line)] == line


def test_rename_function():
    made = rename_function(PROBLEM, random.Random(0))
    assert made.entry_point == "countBig"
    assert "count_big" not in made.prompt + made.canonical_solution
    assert ">>> countBig([1, 5], limit=2)" in made.prompt
    assert made.test == TEST
    direct = rename_function(
        Problem(*["T", PROMPT, "count_big", "assert count_big([9]) == 1\n", BODY]), random.Random(0)
    )
    assert direct.test == "assert countBig([9]) == 1\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [("count_big", "countBig"), ("countBig", "count_big"), ("maxSUM", "max_sum"), ("f_1", "f1"), ("add", None)],
)
def test_names_change_style(old, new):
    problem = Problem("t", f'def {old}(x):\n    """Please {old} it, {old}(1)."""\n', old, "pass\n", "    return x\n")
    made = rename_function(problem, random.Random(0))
    if new is None:
        assert made.prompt.count(made.entry_point) == 2
        assert "Please add it" in made.prompt
    else:
        assert (made.entry_point, made.prompt.count(new)) == (new, 3)


def test_rename_arguments():
    made = rename_arguments(PROBLEM, random.Random(1))
    first, second = (one.arg for one in read_program(made).function.args.args)
    assert not {first, second} & {"numbers", "limit"}
    assert "def helper(numbers):" in made.prompt
    assert f">>> count_big([1, 5], {second}=2)" in made.prompt
    assert "Count the given numbers" in made.prompt
    assert f"helper({first}):  # {first}[0] first" in made.canonical_solution
    assert f"{{{second}!r:>{{{second}}}}}" in made.canonical_solution
    assert f"count_big({first}, {second}={second})" in made.canonical_solution
    assert f"candidate({first}=[4], {second}=3)" in made.test
    names = {}
    exec(made.prompt + made.canonical_solution + made.test + f"check({made.entry_point})", names)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("def f(key, a=1):", "    return sorted(key, key=lambda a: -a)[a]\n"),
        ("def f(x):", "    def g(x=x):\n        return x\n    return g(x=x) + [x for x in [x]][0]\n"),
        ("def f(*items, **more):", "    return [*items, *more], dict(items=1)\n"),
        ("def f(x, /, *, y: int = 2):", "    x.y = y\n    x['y'] = 'y'\n    return x.y\n"),
        ("def f(x, y):", "    x, y = y, x\n    for x in y:\n        pass\n    del x\n    return [y := 1]\n"),
    ],
)
def test_arguments_are_renamed_in_their_scope(header, body):
    made = drawn(rename_arguments, simple(body, header), 6)
    assert made
    for one in made:
        old, new = read_program(simple(body, header)), read_program(one)
        names = dict(zip(all_arguments(old), all_arguments(new), strict=True))
        back = {new: old for old, new in names.items()}
        words = re.split(r"(\W+)", one.canonical_solution)
        again = "".join(back.get(word, word) for word in words)
        assert again == body
        assert not set(names) & set(names.values())
    if "key" in header:
        assert "key=lambda" in made[0].canonical_solution


def all_arguments(program):
    return [node.arg for node in ast.walk(program.function.args) if isinstance(node, ast.arg)]


@pytest.mark.parametrize(
    "body",
    [
        "    return locals()['xs']\n",
        "    return eval('xs')\n",
        "    class A:\n        xs = 1\n    return A.xs\n",
        "    def g():\n        nonlocal xs\n        xs = 1\n    return g()\n",
        "    try:\n        pass\n    except ValueError as xs:\n        pass\n",
        "    import os as xs\n    return xs\n",
        "    match xs:\n        case [xs]:\n            return xs\n",
    ],
)
def test_names_in_doubt_are_left_alone(body):
    assert drawn(rename_arguments, simple(body), 3) == []


def test_dead_code_moves_half_of_the_body():
    made = drawn(dead_code, PROBLEM)
    assert len(made) == 30
    for one in made:
        assert one.prompt.startswith(PROMPT)
        added = one.prompt[len(PROMPT) :]
        assert added.endswith(
            "    total = 0\n    for one in helper(numbers):  # numbers[0] first\n        if one > limit:\n"
        )
        assert one.prompt + one.canonical_solution == PROMPT + added.split("    total = 0")[0] + BODY
    short = dead_code(simple("    return xs\n"), random.Random(0))
    assert short.canonical_solution == "    return xs\n"
    assert len(short.prompt) > len(simple("").prompt)


@pytest.mark.parametrize(
    "body",
    [
        "    total = 0\n    for x in xs:\n        if x == 2:\n            continue\n        total += x\n"
        "    else:\n        total += 100\n    return total\n",
        "    out = []\n    for i in range(len(xs) - 1, -1, -1):\n        out.append(xs[i])\n"
        "        if i == 1:\n            break\n    return out\n",
        "    out = ''\n    for i, x in enumerate(\n        xs\n    ):\n        i += 1\n"
        "        out += str(i * x)\n    return out\n",
        "    n = len(xs)\n    while n > 1 and n:\n        n -= 1\n        if n == 3:\n            continue\n    return n\n",
        "    while True:\n        if xs:\n            return 1\n    return 2\n",
        "    return [x * y for x in xs if x > 1 for y in xs]\n",
        "    return sum(x for x in xs) + 0 if xs else 0\n",
        "    return sum(x for x in xs)\n",
        "    xs = [x + 1 for x in xs]\n    return xs\n",
        "    out = []\n    for x in xs:\n        if x > 2:\n            out.append((x, 1))\n    return out\n",
        "    out = []\n    for x in xs:\n        out.append(x)\n    return out, x\n",
        "    for x in range(3):\n        for y in range(x, 5):\n            if y == 4:\n                return x\n    return 9\n",
    ],
)
def test_loops_change_form_and_not_meaning(body):
    problem = simple(body)
    for one in drawn(loop_form, problem, 12):
        assert one.prompt.startswith(problem.prompt)
        assert one.prompt + one.canonical_solution != problem.prompt + body
        assert one.canonical_solution.strip()
        for xs in ([3, 1, 2, 4], [2], [] if "while True" not in body else [1]):
            assert outcome(one, xs) == outcome(problem, xs)


def outcome(problem, xs):
    try:
        return repr(behaves(problem, list(xs)))
    except NameError as error:
        return type(error).__name__


def test_some_loop_forms_by_their_text():
    while_loop = drawn(loop_form, simple("    for i in range(2, len(xs)):\n        print(i)\n    return 1\n"))[0]
    assert "index, limit = 2, len(xs)\n    while index < limit:\n        i = index\n" in while_loop.prompt
    built = drawn(loop_form, simple("    return [x for x in xs if x]\n"))[0]
    assert "collected = []\n    for x in xs:\n        if x:\n            collected.append(x)\n" in built.prompt
    assert built.canonical_solution == "    return collected\n"
    short = drawn(loop_form, simple("    r = []\n    for x in xs:\n        r.append(x)\n    return r\n"))
    assert any("r = [x for x in xs]\n" in one.prompt for one in short)


@pytest.mark.parametrize(
    "body",
    [
        "    return xs\n",
        "    for x in xs: print(x)\n    return 1\n",
        "    for x in xs:\n        xs.remove(x)\n    return xs\n",
        "    for x in unknown(xs):\n        pass\n    return xs\n",
        "    while xs:\n        pass\n    else:\n        return 1\n    return 2\n",
        "    x = 1\n    return [x for x in xs] if x else any(y for y in xs)\n",
        "    list = 1\n    for x in xs:\n        pass\n    return xs\n",
        "    for x in xs:\n        pass\n",
    ],
)
def test_loops_in_doubt_are_left_alone(body):
    assert all("while" in one.prompt and body.endswith("pass\n") for one in drawn(loop_form, simple(body), 6))
