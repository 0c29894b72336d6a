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
PURE = "bisect collections copy datetime decimal fractions functools heapq itertools math operator random re".split()
PURE += "statistics string typing".split()
OPAQUE = "function method generator coroutine async_generator frame traceback code module".split()
FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (MemoryError, "memory"),
    (NameError, "name"),
    (AssertionError, "assertion"),
    (SystemExit, "exit"),
)


class Guard(Policy):
    """Takes only classes of data by name, and lends nothing that leads to what the tests know."""

    def name(self, value: Any) -> str | None:
        """Name what the standard library has, so that the program uses its own."""
        if isinstance(value, type(sys)):
            return f"{value.__name__}:" if is_standard(value.__name__) else None
        owner = value if isinstance(getattr(value, "__module__", None), str) else getattr(value, "__objclass__", None)
        name = f"{getattr(owner, '__module__', '')}:{getattr(value, '__qualname__', '<')}"
        try:
            return name if is_standard(name.partition(":")[0]) and "<" not in name and find(name) is value else None
        except (AttributeError, ImportError):
            return None

    def named(self, name: str) -> Any:
        """Take no function or module by name: called by a test with the program's data, it could do anything here."""
        if name not in SHARED:
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

    The running program cannot be asked: what it calls ``math`` may be anything. Its text is not believed far either,
    or it would import ``eval`` as the name of a helper that the tests call with its answers: a module counts under its
    own name, something in a module only in modules that run nothing, and only a module there under another name.
    """
    tree = compile(program, "<program>", "exec", TREE_ONLY, dont_inherit=True)
    for node in tree.body:
        kind, module = type(node).__name__, getattr(node, "module", None)
        for alias in node.names if kind in ("Import", "ImportFrom") else ():
            if kind == "Import":
                found = imported_module(alias.name, alias.asname, name)
            elif module not in PURE or node.level or alias.asname not in (None, alias.name):
                found = None
            else:
                star = alias.name == "*" and not name.startswith("_") and hasattr(find(f"{module}:"), name)
                found = f"{module}:{name}" if star or alias.name == name else None
            if found is not None:
                return found
    return None


def imported_module(module: str, other_name: str | None, name: str) -> str | None:
    """Say which module a plain import binds to ``name``: ``import a.b`` binds ``a``, which has ``b`` from then on."""
    bound = module.partition(".")[0]
    if other_name not in (None, bound):
        return f"{module}:" if other_name == name and module in PURE else None
    if name != bound or not is_standard(module):
        return None
    __import__(module)
    return f"{bound}:"


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
