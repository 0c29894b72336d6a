"""Run tests in the form that they have: a check, test functions, test classes, or plain statements.

``rewrite`` found the form in the source; here the tests are executed in the program's namespace and called. Coroutines
and generators are run to their end: a check that nobody awaits would pass everything. It runs inside the sandbox.
"""

from __future__ import annotations

import sys

from flab.sandbox.guard import PROGRAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


class FailedTestsError(AssertionError):
    """A unittest that did not succeed, or a check that returned False."""


def find_candidate(names: dict[str, Any], entry_point: str) -> Any:
    """Evaluate ``name``, ``Class.method`` or ``Class().method`` among the program's names; NameError if it is not there."""
    try:
        return eval(entry_point, names)
    except (NameError, AttributeError, SyntaxError) as error:
        raise NameError(f"the program does not define {entry_point} ({type(error).__name__}: {error})") from None


def run_form(names: dict[str, Any], form: dict[str, Any], candidate: Any) -> None:
    """Call what the tests define, after their top level ran."""
    if form["check"] is not None:
        finish(names[form["check"]](candidate))
        return
    for name in form["functions"]:
        run_function(names[name], candidate)
    for name in form["classes"]:
        run_class(names.get(name))


def finish(result: Any) -> None:
    """Run what a check returned to its end; a check that returns False failed."""
    # An async test that is only called has run nothing yet. It is awaited here, or it would pass whatever it
    # says.
    if hasattr(result, "__await__"):
        import asyncio

        result = asyncio.run(_awaited(result))
    elif hasattr(result, "__anext__"):
        import asyncio

        asyncio.run(_exhausted(result))
        result = None
    elif hasattr(result, "send") and hasattr(result, "__next__"):
        for _ in result:
            pass
        result = None
    if result is False:
        raise FailedTestsError("the check returned False")


async def _awaited(result: Any) -> Any:
    return await result


async def _exhausted(result: Any) -> None:
    async for _ in result:
        pass


def run_function(function: Callable[..., Any], candidate: Any) -> None:
    """Call one test function, once for each of pytest's parameter sets if it has any."""
    for values in parameters(getattr(function, "pytestmark", ())):
        finish(function(**values))


def parameters(marks: Any) -> Iterator[dict[str, Any]]:
    """Yield the arguments that marks of ``pytest.mark.parametrize`` give, one empty set without marks."""
    sets: list[dict[str, Any]] = [{}]
    for mark in marks if isinstance(marks, (list, tuple)) else [marks]:
        if mark.name != "parametrize":
            continue
        names = mark.args[0]
        rows = mark.args[1]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        rows = [getattr(row, "values", row) if not isinstance(row, dict) else row for row in rows]
        rows = [(row,) if len(names) == 1 and not hasattr(row, "id") else row for row in rows]
        # Several marks multiply, as in pytest: every combination of their parameter sets is run.
        sets = [{**one, **dict(zip(names, row, strict=True))} for one in sets for row in rows]
    yield from sets


def run_class(kind: Any) -> None:
    """Run a class of tests, unittest's or pytest's; any other class is left alone."""
    cases = sys.modules.get("unittest.case")
    if not isinstance(kind, type):
        return
    if cases is not None and issubclass(kind, cases.TestCase):
        run_unittest(kind)
    elif kind.__name__.startswith("Test"):
        for name in [one for one in dir(kind) if one.startswith("test")]:
            run_method(kind(), name)


def run_method(instance: Any, name: str) -> None:
    """Run one method of pytest's kind between its set-up and its tear-down."""
    for before in ("setup_method", "setup"):
        if hasattr(instance, before):
            getattr(instance, before)()
    run_function(getattr(instance, name), None)
    for after in ("teardown_method", "teardown"):
        if hasattr(instance, after):
            getattr(instance, after)()


def passes_through(trace: Any, file: str) -> bool:
    """Return whether code of this file is in a traceback."""
    while trace is not None and trace.tb_frame.f_code.co_filename != file:
        trace = trace.tb_next
    return trace is not None


def run_unittest(kind: Any) -> None:
    """Run a TestCase; raise the first exception that a test met. A test that is skipped did not pass."""
    import unittest

    class Result(unittest.TestResult):
        first: BaseException | None = None

        def note(self, error: Any) -> None:
            """Keep the first exception."""
            self.first = self.first or error[1]

        def addError(self, test: Any, err: Any) -> None:  # noqa: N802  unittest's name
            super().addError(test, err)
            self.note(err)

        def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802  unittest's name
            super().addFailure(test, err)
            self.note(err)

        def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802  unittest's name
            super().addSubTest(test, subtest, err)
            if err is not None:
                self.note(err)

        def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802  unittest's name
            super().addSkip(test, reason)
            error = sys.exc_info()
            if passes_through(error[2], PROGRAM):  # the tests may skip, the program may not
                self.note(error)

    suite = unittest.TestLoader().loadTestsFromTestCase(kind)
    if not suite.countTestCases():
        return
    result = Result()
    suite.run(result)
    if result.first is not None:
        raise result.first
    if not result.wasSuccessful() or len(result.skipped) == result.testsRun:
        raise FailedTestsError("a unittest was skipped, or succeeded where it must not")
