"""Call the tests of a program: a check, test functions, test classes, or plain statements.

``recognize`` has found the form of the tests in their source. This module runs inside the sandbox and calls what the tests
have defined in the program's namespace. It runs coroutines and generators to their end, because a check that is never
awaited would pass any program.
"""

from __future__ import annotations

import sys

from flab.sandbox.guard import PROGRAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


class FailedTestsError(AssertionError):
    """Raised if a unittest did not succeed or a check returned False."""


def find_candidate(names: dict[str, Any], entry_point: str) -> Any:
    """Evaluate ``name``, ``Class.method`` or ``Class().method`` in the program's namespace. Raise NameError if it is missing."""
    try:
        return eval(entry_point, names)
    except (NameError, AttributeError, SyntaxError) as error:
        raise NameError(f"the program does not define {entry_point} ({type(error).__name__}: {error})") from None


def run_form(names: dict[str, Any], form: dict[str, Any], candidate: Any) -> None:
    """Call what the tests define. Their top level has already run."""
    if form["check"] is not None:
        finish(names[form["check"]](candidate))
        return
    for name in form["functions"]:
        run_function(names[name], candidate)
    for name in form["classes"]:
        run_class(names.get(name))


def finish(result: Any) -> None:
    """Run the coroutine or generator that a check returned to its end. A check that returns False has failed."""
    # Calling an async test only creates a coroutine and runs none of its code. Unless it is awaited here, it would
    # pass any program.
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
    """Call one test function: once, or once for each parameter set of its ``pytest.mark.parametrize`` marks."""
    for values in parameters(getattr(function, "pytestmark", ())):
        finish(function(**values))


def parameters(marks: Any) -> Iterator[dict[str, Any]]:
    """Yield the arguments that ``pytest.mark.parametrize`` marks provide. Without marks, yield one empty set."""
    sets: list[dict[str, Any]] = [{}]
    for mark in marks if isinstance(marks, (list, tuple)) else [marks]:
        if mark.name != "parametrize":
            continue
        names = mark.args[0]
        rows = mark.args[1]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        rows = [getattr(row, "values", row) if not isinstance(row, dict) else row for row in rows]
        rows = [(row,) if len(names) == 1 and not hasattr(row, "id") else row for row in rows]
        # As in pytest, several marks multiply: every combination of their parameter sets is run.
        sets = [{**one, **dict(zip(names, row, strict=True))} for one in sets for row in rows]
    yield from sets


def run_class(kind: Any) -> None:
    """Run a class of unittest or pytest tests. Ignore any other class."""
    cases = sys.modules.get("unittest.case")
    if not isinstance(kind, type):
        return
    if cases is not None and issubclass(kind, cases.TestCase):
        run_unittest(kind)
    elif kind.__name__.startswith("Test"):
        for name in [one for one in dir(kind) if one.startswith("test")]:
            run_method(kind(), name)


def run_method(instance: Any, name: str) -> None:
    """Run one method of a pytest class, after its set-up and before its tear-down."""
    for before in ("setup_method", "setup"):
        if hasattr(instance, before):
            getattr(instance, before)()
    run_function(getattr(instance, name), None)
    for after in ("teardown_method", "teardown"):
        if hasattr(instance, after):
            getattr(instance, after)()


def passes_through(trace: Any, file: str) -> bool:
    """Return whether a traceback passes through code of this file."""
    while trace is not None and trace.tb_frame.f_code.co_filename != file:
        trace = trace.tb_next
    return trace is not None


def run_unittest(kind: Any) -> None:
    """Run a TestCase and raise the first exception of its tests. If all tests are skipped, the run has failed."""
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
        raise FailedTestsError("every unittest was skipped, or one that should fail succeeded")
