"""Tests in every form: a right program passes them, a wrong one fails, and what cannot fail is found out."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from flab.errors import SandboxError
from flab.sandbox import Sandbox
from flab.sandbox.rewrite import prepare

RIGHT, WRONG = "def inc(x):\n    return x + 1\n", "def inc(x):\n    return x - 1\n"
FORMS = {
    "check": "def check(candidate):\n    assert candidate(1) == 2\n",
    "check that is async": "async def check(candidate):\n    assert candidate(1) == 2\n",
    "check that is a generator": "def check(candidate):\n    yield\n    assert candidate(1) == 2\n",
    "check that is an async generator": "async def check(candidate):\n    yield\n    assert candidate(1) == 2\n",
    "check that returns a truth value": "def check(candidate):\n    return candidate(1) == 2\n",
    "check of another name": "def check_inc(candidate):\n    assert candidate(1) == 2\n",
    "a test that takes the candidate": "def test(candidate):\n    assert candidate(1) == 2\n",
    "check as a lambda": "check = lambda candidate: candidate(1) == 2\n",
    "bare asserts": "assert inc(1) == 2\nassert inc(-1) == 0\n",
    "a loop": "for x, y in [(1, 2), (5, 6)]:\n    out = inc(x)\n    if out != y:\n        raise ValueError(out)\n",
    "a loop over lists": (
        "inputs, results = [[1], [2]], [2, 3]\nfor one, two in zip(inputs, results):\n    assert inc(*one) == two\n"
    ),
    "a helper of the tests": "def same(a, b):\n    assert a == b\nsame(inc(1), 2)\n",
    "pytest functions": "def test_one():\n    assert inc(1) == 2\ndef test_two():\n    assert inc(-1) == 0\n",
    "pytest class": (
        "class TestInc:\n    def setup_method(self):\n        self.x = 1\n    def test_one(self):\n"
        "        assert inc(self.x) == 2\n"
    ),
    "unittest": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_one(self):\n        self.assertEqual(inc(1), 2)\n"
    ),
    "unittest imported by name": (
        "from unittest import TestCase\nclass T(TestCase):\n    def setUp(self):\n        self.x = 1\n"
        "    def test_one(self):\n        with self.subTest(x=1):\n            self.assertEqual(inc(self.x), 2)\n"
    ),
    "async unittest": (
        "import unittest\nclass T(unittest.IsolatedAsyncioTestCase):\n    async def test_one(self):\n"
        "        self.assertEqual(inc(1), 2)\n"
    ),
    "unittest with a main guard": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_one(self):\n        self.assertEqual(inc(1), 2)\n"
        "if __name__ == '__main__':\n    unittest.main()\n"
    ),
    "unittest without a main guard": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_one(self):\n        self.assertEqual(inc(1), 2)\n"
        "unittest.main()\n"
    ),
    "nothing but a main guard": "if __name__ == '__main__':\n    assert inc(1) == 2\n",
    "a main function": "def main():\n    assert inc(1) == 2\nif __name__ == '__main__':\n    main()\n",
    "defined under a condition": (
        "import sys\nif sys.version_info > (3,):\n    def check(candidate):\n        assert candidate(1) == 2\n"
    ),
}


@pytest.fixture(scope="module")
def sandbox():
    try:
        return Sandbox.detect()
    except SandboxError as error:
        pytest.skip(f"no namespaces on this machine: {error}")


@pytest.mark.parametrize("form", FORMS)
def test_a_form_tells_right_from_wrong(sandbox, form):
    right, wrong = sandbox.run(RIGHT, FORMS[form], "inc"), sandbox.run(WRONG, FORMS[form], "inc")
    assert right.passed, right.detail
    assert wrong.outcome in ("assertion", "exception")


def test_pytest_parameters(sandbox):
    pytest_test = (
        "import pytest\n@pytest.mark.parametrize('x, y', [(1, 2), (2, 3)])\n"
        "def test_one(x, y):\n    assert inc(x) == y\n"
    )
    assert sandbox.run(RIGHT, pytest_test, "inc").passed
    assert sandbox.run("def inc(x):\n    return 2\n", pytest_test, "inc").outcome == "assertion"


def test_a_method_as_entry_point(sandbox):
    program = "class Solution:\n    def inc(self, x):\n        return x + 1\n"
    assert sandbox.run(program, FORMS["check"], "Solution().inc").passed
    assert sandbox.run(program, FORMS["check"], "Solution().dec").outcome == "name"


@pytest.mark.parametrize(
    "test",
    [
        "def check(candidate):\n    assert True\n",
        "x = 1\n",
        "def check(candidate):\n    candidate\n",
        "class T:\n    pass\n",
    ],
)
def test_a_pass_must_have_called_the_program(sandbox, test):
    assert sandbox.run(RIGHT, test, "inc").outcome == "uncalled"


@pytest.mark.parametrize(
    "test",
    [
        (
            "def check(candidate):\n    import threading\n"
            "    t = threading.Thread(target=candidate, args=(1,))\n    t.start()\n    t.join()\n"
        ),
        (
            "def check(candidate):\n    from multiprocessing import Pool\n    with Pool(1) as p:\n"
            "        assert p.map(candidate, [1]) == [2]\n"
        ),
        "def check(candidate):\n    assert list(map(candidate, [1, 2])) == [2, 3]\n",
        "import inspect\ndef check(candidate):\n    assert list(inspect.signature(candidate).parameters) == ['x']\n",
    ],
)
def test_a_call_may_happen_anywhere(sandbox, test):
    assert sandbox.run(RIGHT, test, "inc").passed


def test_tests_that_are_no_python(sandbox):
    verdict = sandbox.run(RIGHT, "def check(candidate)\n    assert", "inc")
    assert (verdict.outcome, "the tests are not Python" in verdict.detail) == ("exception", True)


def test_numpy_is_lent_where_the_tests_import_it(sandbox):
    test = "import numpy as np\ndef check(candidate):\n    assert np.allclose(candidate(np.array([1.0])), [2.0])\n"
    assert sandbox.run(RIGHT, test, "inc").passed
    program = "import numpy\n" + RIGHT
    assert "No module named 'numpy'" in sandbox.run(program, FORMS["check"], "inc").detail


def test_many_threads_may_prepare_tests_at_once():
    """The verdicts of a file are made by several threads, and Python 3.11 cannot parse in two of them at once."""
    line = "    assert candidate([[1, [2, [3]]], {n}]) == (({n}))\n"
    sources = ["def check(candidate):\n" + line.format(n=n) * 200 for n in range(60)]
    with ThreadPoolExecutor(8) as pool:
        ready = list(pool.map(lambda source: prepare(source, "f"), sources))
    assert [tests.problem for tests in ready] == [""] * 60
