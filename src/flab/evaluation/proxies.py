"""Stand-ins for objects that stay in the other process: proxies, values with a class of the program, exceptions.

A proxy forwards what its object can do, and only that: calls, attributes, iteration, indexing and the like. It
never asks the other side how it compares with data: the data would be sent, and the answer believed. With data
it counts as its plain value where it has one (a list of the program's own class is a list) and equals nothing
where it has none; two objects of one side are compared there, for both are of its making. ``in`` looks at the
items here.

It sends nothing by itself: ``remote`` gives each class its peer and does the talking.
"""

from __future__ import annotations

import _operator as operator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from flab.evaluation.remote import Peer

ARITHMETIC = "add sub mul matmul truediv floordiv mod pow and_ or_ xor lshift rshift".split()
COMPARISONS = "lt le gt ge".split()


def _swapped(act: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: act(b, a)


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **{f"__{name.rstrip('_')}__": getattr(operator, name) for name in (*ARITHMETIC, *COMPARISONS)},
    **{f"__r{name.rstrip('_')}__": _swapped(getattr(operator, name)) for name in ARITHMETIC},
}
PLAIN: dict[type, Callable[[Any], Any]] = {
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: {key: dict.__getitem__(value, key) for key in dict.__iter__(value)},
    set: lambda value: set(set.__iter__(value)),
    bytearray: lambda value: bytearray(bytes(value)),
    type({}.keys()): set,
    type({}.items()): set,
}
LOOKS = {
    f"builtins.{kind.__name__}": kind
    for kind in (
        *PLAIN,
        type,
        type(len),
        type(lambda: 0),
        type(_ for _ in ()),
        type({}.values()),
        map,
        filter,
        zip,
        enumerate,
    )
}
LOOKS["builtins.coroutine"] = object  # has a stand-in of its own
PLAIN_LOOKS = {f"builtins.{kind.__name__}" for kind in PLAIN}


def plain(value: Any) -> Any:
    """Copy an object of a class derived from a plain one as the plain one."""
    return next(copy(value) for kind, copy in PLAIN.items() if issubclass(type(value), kind))


def copy_of(value: Any, deep: bool) -> Any:
    """Copy an object where it is."""
    import copy

    return copy.deepcopy(value) if deep else copy.copy(value)


def finish(coroutine: Any) -> Any:
    """Run a coroutine to its end: the side that awaits it waits."""
    import asyncio

    return asyncio.run(coroutine)


UNARY: dict[str, Callable[..., Any]] = {
    "__call__": lambda value, /, *args, **kwargs: value(*args, **kwargs),
    "__len__": len,
    "__iter__": iter,
    "__next__": next,
    "__bool__": bool,
    "__hash__": hash,
    "__int__": int,
    "__float__": float,
    "__complex__": complex,
    "__index__": operator.index,
    "__abs__": abs,
    "__neg__": operator.neg,
    "__pos__": operator.pos,
    "__invert__": operator.invert,
    "__round__": round,
    "__reversed__": reversed,
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__enter__": lambda value: type(value).__enter__(value),
    "__exit__": lambda value, *error: type(value).__exit__(value, *error),
    "__instancecheck__": lambda kind, value: isinstance(value, kind),
    "__subclasscheck__": lambda kind, value: issubclass(value, kind),
}
ALWAYS: dict[str, Callable[..., Any]] = {"__str__": str, "__repr__": repr, "__format__": format}
OPERATIONS: dict[str, Callable[..., Any]] = {
    **UNARY,
    **BINARY,
    **ALWAYS,
    "__eq__": operator.eq,
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "plain": plain,
    "finish": finish,
    "copy": copy_of,
}
ABILITIES = (*UNARY, *BINARY)


class Remote:
    """Marks every stand-in; its object's number lies in ``_flab_number``, its class's peer in ``_flab_peer``."""

    __slots__ = ()
    _flab_peer: Peer


def is_remote(value: Any) -> bool:
    """Say whether a value stands for an object of the other side, whatever class it claims to have."""
    if Remote not in type(value).__mro__:
        return False
    try:  # an exception that a test made of the program's class stands for none
        object.__getattribute__(value, "_flab_number")
    except AttributeError:
        return False
    return True


def number_of(value: Any) -> int:
    """Return the other side's number of the object that a stand-in stands for."""
    return int(object.__getattribute__(value, "_flab_number"))


def ask(operation: str) -> Callable[..., Any]:
    """Make the method that forwards one operation."""

    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return type(self)._flab_peer.request(operation, number_of(self), args, kwargs)

    return method


def ask_about(operation: str) -> Callable[[Any, Any], bool]:
    """Make the method for isinstance or issubclass: data is never of a class of the other side."""

    def method(self: Any, other: Any) -> bool:
        return is_remote(other) and bool(ask(operation)(self, other))

    return method


def leave_block(self: Any, kind: Any, error: Any, trace: Any) -> None:
    """Tell a manager how its block ended; that it would swallow an exception, a failed assert too, is not heard."""
    ask("__exit__")(self, kind, error, None)


def plain_of(proxy: Any) -> Any:
    """Ask for the plain value, and take nothing else for it."""
    value = ask("plain")(proxy)
    if type(value) not in (list, dict, set, bytearray):
        raise TypeError("the program's object has no plain value")
    return value


def combine(operation: str) -> Callable[[Any, Any], Any]:
    """Make the method for an operator: asked between two objects of the other side, here where data is met."""
    forward, act = ask(operation), BINARY[operation]

    def method(self: Any, other: Any) -> Any:
        if is_remote(other):
            return forward(self, other)
        return act(plain_of(self), other) if type(self)._flab_look in PLAIN_LOOKS else NotImplemented

    return method


class Proxy(Remote):
    """Stands for an object that has no plain value to send; ``build_proxy_class`` adds what it can do."""

    __slots__ = ("__weakref__", "_flab_number")
    _flab_look = ""
    __getattr__ = ask("getattr")
    __setattr__ = ask("setattr")
    __delattr__ = ask("delattr")
    __str__ = ask("__str__")
    __repr__ = ask("__repr__")
    __format__ = ask("__format__")

    def __copy__(self) -> Any:
        return ask("copy")(self, False)

    def __deepcopy__(self, memo: Any) -> Any:
        return ask("copy")(self, True)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Look like a generator, a function, a list, …, to ``isinstance``; nothing else trusts it."""
        return LOOKS.get(type(self)._flab_look, type(self))

    def __eq__(self, other: object) -> bool:
        """Compare identity first, with data by the plain value, with another object of that side over there."""
        if is_remote(other):
            return number_of(self) == number_of(other) or bool(ask("__eq__")(self, other))
        return type(self)._flab_look in PLAIN_LOOKS and bool(plain_of(self) == other)

    __hash__ = None  # type: ignore[assignment]


def describe(kind: type) -> tuple[str, str, int]:
    """Say of a class: its name, what it looks like, and as bits which of ``ABILITIES`` it has."""
    names = [f"{base.__module__}.{base.__name__}" for base in kind.__mro__]
    look = next((name for name in names if name in LOOKS), "")
    return kind.__name__, look, sum(1 << bit for bit, ability in enumerate(ABILITIES) if _has(kind, ability))


def _has(kind: type, ability: str) -> bool:
    """Look for a method as the interpreter does: in the class and its bases, never in the class of the class."""
    found = next((vars(base)[ability] for base in kind.__mro__ if ability in vars(base)), None)
    return found is not None


def overridden(kind: type, base: type) -> tuple[str, ...]:
    """List the attributes of a plain class that a class derived from it has otherwise: a field named count."""
    names = [name for name in dir(base) if not name.startswith("_")]
    return tuple(name for name in names if getattr(kind, name, None) is not getattr(base, name))


CAREFUL: dict[str, Callable[..., Any]] = {
    "__exit__": leave_block,
    "__instancecheck__": ask_about("__instancecheck__"),
    "__subclasscheck__": ask_about("__subclasscheck__"),
}


def build_proxy_class(peer: Peer, name: str, look: str, abilities: int) -> type[Proxy]:
    """Make the class of the proxies of one class of the other side."""
    able = [ability for bit, ability in enumerate(ABILITIES) if abilities >> bit & 1]
    methods: dict[str, Any] = {ability: ask(ability) if ability in UNARY else combine(ability) for ability in able}
    methods.update({ability: CAREFUL[ability] for ability in able if ability in CAREFUL})
    own = {"__slots__": (), "__doc__": _attribute("__doc__"), "_flab_look": look}
    return type(name, (Proxy,), {**_common(peer), **own, **methods})


def build_value_class(peer: Peer, name: str, base: type, others: tuple[str, ...]) -> type:
    """Make a class of values that are plain here and know the program's attributes: a named tuple's fields."""
    if any(other.startswith("_") for other in others):
        raise ValueError("a special method cannot be the program's")
    own: dict[str, Any] = {other: _attribute(other) for other in others}
    return type(name, (base, Remote), {**own, **_common(peer), **{method: ask(method) for method in ALWAYS}})


def build_error_class(peer: Peer, name: str, base: type[BaseException], number: int) -> type:
    """Make an exception class that says what the program's exception says and knows its attributes."""

    def text(error: Any) -> str:
        return str(error.__dict__["_flab_text"] if is_remote(error) else base.__str__(error))

    return type(name, (base, Remote), {**_common(peer), "__str__": text, "_flab_class": number})


def _common(peer: Peer) -> dict[str, Any]:
    """What the classes of stand-ins share; the module is no module, so that no class is taken for a known one."""
    return {"__module__": "program", "_flab_peer": peer, "__getattr__": ask("getattr")}


def _attribute(name: str) -> property:
    return property(lambda self: ask("getattr")(self, name))


def set_number(made: Any, number: int) -> None:
    """Say which object a new stand-in stands for."""
    object.__setattr__(made, "_flab_number", number)
