"""The judge's part of a run: the tests, the names they may use, what they lend to the program, the outcome.

It runs in the judge's process inside the sandbox and never executes a line of the program. It sets no limits and
starts nothing: ``harness`` does.
"""

from __future__ import annotations

import builtins
import sys

from flab.evaluation.remote import SHARED, Broken, Peer, Policy, find, is_standard
from flab.evaluation.wire import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TREE_ONLY = 0x400  # ast.PyCF_ONLY_AST; the module ast is slow to import
OPAQUE = "function method generator coroutine async_generator frame traceback code module".split()
FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (MemoryError, "memory"),
    (NameError, "name"),
    (AssertionError, "assertion"),
    (SystemExit, "exit"),
)


class Guard(Policy):
    """Takes only data and standard modules by name, and lends nothing that leads to what the tests know."""

    def name(self, value: Any) -> str | None:
        """Name what the standard library has, so that the program uses its own."""
        if isinstance(value, type(sys)):
            return super().name(value)
        owner = value if isinstance(getattr(value, "__module__", None), str) else getattr(value, "__objclass__", None)
        name = f"{getattr(owner, '__module__', '')}:{getattr(value, '__qualname__', '<')}"
        try:
            return name if is_standard(name.partition(":")[0]) and "<" not in name and find(name) is value else None
        except (AttributeError, ImportError):
            return None

    def named(self, name: str) -> Any:
        """Take no function by name: called by a test with the program's data, it could do anything here."""
        if name not in SHARED and not (name.endswith(":") and is_standard(name[:-1])):
            raise WireError("a name is not allowed")
        found = find(name)
        return self.caught(found) if isinstance(found, type) and issubclass(found, BaseException) else found

    def caught(self, kind: type[BaseException]) -> type[BaseException]:
        """Narrow what would catch a failed assert, if a test excepts what the program calls its exception."""
        return type(kind.__name__, (kind,), {}) if issubclass(AssertionError, kind) else kind

    def allow(self, operation: str, target: Any, args: tuple[Any, ...]) -> None:
        """Let the program call, iterate and index; attributes only where they lead to no frame and no globals."""
        if operation not in ("getattr", "setattr", "delattr"):
            return
        public = type(args[0]) is str and not args[0].startswith("_")
        own = type(target).__module__ == "tests"
        if not public or type(target).__name__ in OPAQUE or (operation != "getattr" and not own):
            raise AttributeError(f"the tests do not lend {args[0]!r:.100}")


class Names(dict):  # type: ignore[type-arg]  # no typing at run time
    """The builtins of the tests, and behind them the names of the program, looked up when a test uses them."""

    def __init__(self, peer: Peer, program: str) -> None:
        super().__init__(vars(builtins))
        self.peer, self.program = peer, program

    def __missing__(self, name: str) -> Any:
        """Import what the program's text imports from the standard library; ask for all else, each time anew."""
        source = imported_from(self.program, name)
        if source is None:
            return self.peer.request("__getitem__", 0, (name,), {})
        return self.setdefault(name, find(source))


def imported_from(program: str, name: str) -> str | None:
    """Say what a top-level import of the standard library in the program's text binds to a name, if any does.

    The running program cannot be asked: what it calls ``math`` may be anything.
    """
    tree = compile(program, "<program>", "exec", TREE_ONLY, dont_inherit=True)
    for node in tree.body:
        kind, module = type(node).__name__, getattr(node, "module", None)
        for alias in node.names if kind in ("Import", "ImportFrom") else ():
            if kind == "Import" and is_standard(alias.name):
                __import__(alias.name)  # a.b.c binds a, and a has b then
                if name == (alias.asname or alias.name.partition(".")[0]):
                    return f"{alias.name if alias.asname else name}:"
            elif module and not node.level and is_standard(module):
                own = name if alias.name == "*" and hasattr(find(f"{module}:"), name) else alias.name
                if name in (alias.asname, own) and (name == alias.asname or not alias.asname):
                    return f"{module}:{own}"
    return None


def run_tests(peer: Peer, program: str, tests: dict[str, str]) -> None:
    """Wait until the program is loaded, then run its tests; raise what they raise."""
    test_code = compile(tests["test"], "<test>", "exec", dont_inherit=True, optimize=0)
    peer.answer([])
    entry_point = tests["entry_point"].strip()  # MBPP has names with a blank at the end
    try:
        candidate = peer.request("__getitem__", 0, (entry_point,), {})
    except KeyError:
        raise NameError(f"the program does not define {entry_point}") from None
    module = sys.modules["tests"] = type(sys)("tests")
    names = vars(module)
    names.update({"__builtins__": Names(peer, program), entry_point: candidate})
    exec(test_code, names)
    check = names.get("check")
    if check is not None and check is not candidate:
        check(candidate)


def describe(error: BaseException, test: str) -> str:
    """Name the error and, where the trace passes through the tests, the line of the test that met it."""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<test>":
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f" at: {test.splitlines()[line - 1].strip()}" if line else ""
    what = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
    return what[:300] + where[:300]


def outcome_of(peer: Peer, program: str, tests: dict[str, str]) -> tuple[str, BaseException | None]:
    """Run the tests; return the outcome and its cause. Once the program broke the talk there is no pass."""
    cause: BaseException | None = None
    try:
        run_tests(peer, program, tests)
    except BaseException as error:
        cause = error
    if peer.broken is not None:
        return peer.broken.outcome, peer.broken
    kinds = (outcome for kind, outcome in FAILURES if isinstance(cause, kind))
    return ("passed", None) if cause is None else (next(kinds, "exception"), cause)
