"""Copies of builtins and modules from before the program ran: restored before the tests, compared after them.

They cover functions, classes, modules and float constants of ``builtins`` and of every module that the tests import, directly
or indirectly, and the methods of classes that Python code defines there. Other data of a module stays as the program left
it, which may have good reasons to replace ``sys.stdout``. This runs inside the sandbox.
"""

from __future__ import annotations

import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

FIXED = (type(sys), type, type(lambda: 0), type(len), float, property, classmethod, staticmethod)
METHODS = (type(lambda: 0), property, classmethod, staticmethod)
HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE
ALWAYS = ("builtins",)


def preload(names: list[str]) -> list[str]:
    """Import modules; return the names of all modules that are here because of that, those of ``names`` first."""
    before = set(sys.modules)
    for name in names:
        try:
            __import__(name)
        except BaseException:  # the tests will fail on it themselves, in the same way
            continue
    asked = {part for name in names for part in (name, name.partition(".")[0]) if part in sys.modules}
    return sorted(asked | (set(sys.modules) - before) | set(ALWAYS))


class Pristine:
    """A copy of the fixed names of modules and of their classes."""

    def __init__(self, names: list[str]) -> None:
        self.modules = {name: sys.modules[name] for name in names if isinstance(sys.modules.get(name), type(sys))}
        self.names: list[tuple[Any, dict[str, Any]]] = []
        seen: set[int] = set()
        for name, module in self.modules.items():
            self.names.append((module, fixed(vars(module))))
            for kind in list(vars(module).values()):
                # Only classes that Python code defines can be patched, and only those of the module itself are
                # looked at, not what it imports.
                own = isinstance(kind, type) and kind.__module__.partition(".")[0] == name.partition(".")[0]
                if own and id(kind) not in seen and kind.__flags__ & HEAP_TYPE and not kind.__flags__ & IMMUTABLE:
                    seen.add(id(kind))
                    self.names.append((kind, fixed(vars(kind))))

    def restore(self) -> None:
        """Restore what the program replaced or removed. What it added stays."""
        for name, module in self.modules.items():
            # A program may replace a whole module in ``sys.modules`` as well as single names in it.
            sys.modules[name] = module
        for holder, name, value in list(self.differences()):
            put(holder, name, value)

    def differences(self) -> Iterator[tuple[Any, str, Any]]:
        """Yield holder, name and former value of everything that is not what it was."""
        for holder, names in self.names:
            now = vars(holder)
            for name, value in names.items():
                if now.get(name) is not value:
                    yield holder, name, value

    def changed(self, allowed: set[str]) -> str | None:
        """Name something that is not what it was, other than what the tests themselves change."""
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module and name.rpartition(".")[2] not in allowed:
                return name
        for holder, name, _ in self.differences():
            if name not in allowed:
                return f"{holder.__name__}.{name}"
        return None


def fixed(names: Any) -> dict[str, Any]:
    """Copy the names whose values no serious program replaces."""
    return {name: value for name, value in names.items() if isinstance(value, FIXED) and name != "__builtins__"}


def methods(kind: Any) -> dict[str, Any]:
    """Copy the methods of a class of the tests; nothing of anything else."""
    return (
        {name: value for name, value in vars(kind).items() if isinstance(value, METHODS)}
        if isinstance(kind, type)
        else {}
    )


def put(holder: Any, name: str, value: Any) -> None:
    """Set one name of a module, or of a class whatever its metaclass does."""
    if isinstance(holder, type):
        type.__setattr__(holder, name, value)
    else:
        vars(holder)[name] = value


def real_builtins() -> dict[str, Any]:
    """Copy the builtins, before any program ran."""
    return dict(vars(builtins))
