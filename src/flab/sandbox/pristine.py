"""Copy builtins and modules before the program runs, restore them before the tests, and compare them after the tests.

The copies cover functions, classes, modules and float constants of ``builtins`` and of every module that the tests import,
directly or indirectly. They also cover the methods of classes that those modules define in Python. Other data of a module
stays as the program left it: a program may have good reasons to replace ``sys.stdout``, for example. This module runs
inside the sandbox.
"""

from __future__ import annotations

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
    """Import modules. Return the sorted names of ``names`` and of all modules that their imports have loaded."""
    before = set(sys.modules)
    for name in names:
        try:
            __import__(name)
        except BaseException:  # the tests will meet the same error themselves
            continue
    asked = {part for name in names for part in (name, name.partition(".")[0]) if part in sys.modules}
    return sorted(asked | (set(sys.modules) - before) | set(ALWAYS))


class Pristine:
    """Holds a copy of the fixed names of modules and of their classes."""

    def __init__(self, names: list[str]) -> None:
        self.modules = {name: sys.modules[name] for name in names if isinstance(sys.modules.get(name), type(sys))}
        self.names: list[tuple[Any, dict[str, Any]]] = []
        seen: set[int] = set()
        for name, module in self.modules.items():
            self.names.append((module, fixed(vars(module))))
            for kind in list(vars(module).values()):
                # Only classes that are written in Python can be patched. Classes that the module merely imports are
                # left to their own modules.
                own = isinstance(kind, type) and kind.__module__.partition(".")[0] == name.partition(".")[0]
                if own and id(kind) not in seen and kind.__flags__ & HEAP_TYPE and not kind.__flags__ & IMMUTABLE:
                    seen.add(id(kind))
                    self.names.append((kind, fixed(vars(kind))))

    def restore(self) -> None:
        """Restore what the program replaced or removed. Leave what it added."""
        for name, module in self.modules.items():
            # A program may replace a whole module in ``sys.modules`` as well as single names in it.
            sys.modules[name] = module
        for holder, name, value in list(self.differences()):
            put(holder, name, value)

    def differences(self) -> Iterator[tuple[Any, str, Any]]:
        """Yield the holder, the name and the former value of everything that has changed."""
        for holder, names in self.names:
            now = vars(holder)
            for name, value in names.items():
                if now.get(name) is not value:
                    yield holder, name, value

    def changed(self, allowed: set[str]) -> str | None:
        """Return the name of something that has changed and that the tests do not change themselves, or None."""
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module and name.rpartition(".")[2] not in allowed:
                return name
        for holder, name, _ in self.differences():
            if name not in allowed:
                return f"{holder.__name__}.{name}"
        return None


def fixed(names: Any) -> dict[str, Any]:
    """Copy the names whose values an honest program does not replace."""
    return {name: value for name, value in names.items() if isinstance(value, FIXED) and name != "__builtins__"}


def methods(kind: Any) -> dict[str, Any]:
    """Copy the methods of a class. Return an empty dict for anything else."""
    return (
        {name: value for name, value in vars(kind).items() if isinstance(value, METHODS)}
        if isinstance(kind, type)
        else {}
    )


def put(holder: Any, name: str, value: Any) -> None:
    """Set one name of a module, or of a class regardless of its metaclass."""
    if isinstance(holder, type):
        type.__setattr__(holder, name, value)
    else:
        vars(holder)[name] = value
