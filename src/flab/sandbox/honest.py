"""Carry out the comparisons of the tests and detect objects of the program that lie in them.

``rewrite`` puts these helpers into the tests. Each helper does on the real objects what the source says. Then it examines
the objects of the program's own classes that took part. An object lies in any of these cases:

- it equals or contains an object that the program cannot know, or has it as an instance;
- it is both smaller and greater than the other side;
- it equals changed copies of the data that it was compared with.

Objects whose classes compare by methods of builtins or of the standard library are not examined.

This module runs inside the sandbox. It reports a lie through ``on_lie``, which ends the run.
"""

from __future__ import annotations

import operator
import sys
from _collections import deque  # type: ignore[import-not-found]
from itertools import groupby, islice, starmap  # imported before the program can replace it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Truth = Callable[[Any], bool]

PLAIN = frozenset((int, float, complex, bool, str, bytes, type(None), range, type(...), bytearray))
CONTAINERS = (list, tuple, set, frozenset, dict)
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
PROXY = type(vars(type))  # a read-only view of a dict
METHODS = ("__eq__", "__ne__", "__lt__", "__gt__", "__le__", "__ge__", "__contains__")
# Bounds on how much is examined. Without them, a test that compares a huge structure could exceed its time
# limit here.
MAX_ITEMS = 2000
MAX_DEPTH = 12
MAX_RUNS = 100
# How deeply to follow the attributes of objects that compare by them. A cyclic graph of objects would have no end.
ATTRIBUTES_DEPTH = 2
# Parts of the standard library whose objects equal everything.
GIVES_LIARS = ("/unittest/mock.py", "/test/")
# Py_TPFLAGS_HEAPTYPE marks a class made by a class statement, whose methods can be anything.
HEAP_TYPE = 1 << 9


class _Slot:
    __slots__ = ("slot",)


MEMBER = type(_Slot.slot)  # type: ignore[attr-defined]
GETSET = type(type.__dict__["__dict__"])
NAMESPACE = type(sys.implementation)  # types.SimpleNamespace


class Nothing:
    """An object of a class that no program knows, so an honest object does not equal it."""


class Honest:
    """Holds the helpers under the names that ``rewrite`` uses.

    ``trusted`` tells whether a file belongs to the standard library. ``swallowed`` lists the lines of failed asserts.
    """

    def __init__(self, trusted: Callable[[str], bool], on_lie: Callable[[str], None]) -> None:
        self.trusted = trusted
        self.on_lie = on_lie
        self.swallowed: list[int] = []
        self.mocks = False  # whether the tests use unittest.mock, whose ANY equals everything
        self.looked = False  # whether the tests compared or asserted anything
        # Comparisons by the program's methods that returned an object. How the tests use that object is not known yet.
        self.pending: list[tuple[Any, Any, Any, bool, Truth]] = []
        pairs = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
        pairs |= {"contains": lambda a, b: a in b, "lacks": lambda a, b: a not in b}
        self.helpers: dict[str, Callable[..., Any]] = {name: self._pair(name, act) for name, act in pairs.items()}
        self.helpers |= {f"each_{name}": self._pair(name, act, all) for name, act in pairs.items()}
        self.helpers |= {f"data_{name}": self._pair(name, act, None) for name, act in pairs.items()}
        self.helpers |= {
            "must": self.must,
            "holds": self.holds,
            "seen": self.seen,
            "minus": self.minus,
            "compared": self.compared,
            "copied": self.copied,
            "steps": steps,
            "checked_isinstance": self._class_check(isinstance),
            "checked_issubclass": self._class_check(issubclass),
        }

    def must(self, value: Any) -> bool:
        """Return the truth of what is asserted. If it is false, note the line."""
        self.looked = True
        holds = bool(value)
        self.look_at_pending()
        if not holds:
            self.swallowed.append(sys._getframe(1).f_lineno)
        return holds

    def look_at_pending(self) -> None:
        """Examine the comparisons whose result was used as a truth value instead of being compared further as data."""
        pending = self.pending
        self.pending = []
        for _, a, b, equal, truth in pending:
            self._look_at_pair(a, b, equal, truth)

    def holds(self, value: Any) -> bool:
        """Return the truth of an assert whose failure the tests themselves catch."""
        self.looked = True
        return bool(value)

    def seen(self, value: Any) -> Any:
        """Examine one operand of a chain of comparisons and return it."""
        self.looked = True
        self._look(value)
        return value

    def _pair(self, name: str, act: Callable[[Any, Any], Any], truth: Truth | None = bool) -> Callable[[Any, Any], Any]:
        """Return a comparison that also examines its operands.

        ``truth`` is how the tests use a result that is not a plain value: ``all`` of its items, or None if they only
        read parts of it.
        """
        equal = name in ("eq", "ne")

        def compare(a: Any, b: Any) -> Any:
            self.looked = True
            result = act(a, b)
            if type(a) in PLAIN and type(b) in PLAIN:
                return result
            self.pending = [one for one in self.pending if one[0] is not a and one[0] is not b]
            if type(result) in PLAIN:
                self._look_at_pair(a, b, equal)
            elif truth is not None:
                self.pending.append((result, a, b, equal, truth))
            return result

        return compare

    def minus(self, a: Any, b: Any) -> Any:
        """Subtract. An object lies if its difference from every number is the same."""
        result = a - b
        if type(result) in PLAIN and not (type(a) in PLAIN and type(b) in PLAIN):
            for one, other, turned in ((a, b, False), (b, a, True)):
                if type(other) in (int, float) and self._own(type(one), ("__sub__", "__rsub__")):
                    self._same_differences(one, other, result, turned)
        return result

    def _same_differences(self, one: Any, other: Any, result: Any, turned: bool) -> None:
        for decoy in decoys_of(other):
            try:
                if (decoy - one if turned else one - decoy) != result:
                    return
            except Exception:
                return
        self.on_lie("an object of the program has the same difference from every number")

    def compared(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Call an assert method or a function that compares, and examine its arguments."""
        self.looked = True
        result = function(*args, **keywords)
        for value in args[2:]:
            self._look(value)
        if len(args) > 1:
            self._look_at_pair(args[0], args[1], True)
        elif args:
            self._look(args[0])
        return result

    def copied(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Copy. An object of the program lies if its copy is plain data."""
        result = function(*args, **keywords)
        changed = args and type(args[0]) not in PLAIN and type(result) in PLAIN
        if changed and self._own(type(args[0]), ("__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__")):
            self.on_lie("a copy of an object of the program is of another type")
        return result

    def _class_check(self, act: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
        def check(value: Any, kind: Any) -> bool:
            result = act(value, kind)
            self._look(kind)
            return result

        return check

    def _look_at_pair(self, a: Any, b: Any, equal: bool, truth: Truth = bool) -> None:
        self._look(a, truth)
        self._look(b, truth)
        for one, other in ((a, b), (b, a)):
            if equal and self._own(type(one), ("__eq__", "__ne__")):
                self._equals_changed(one, other, truth)
            ordered = self._own(type(one), ("__lt__", "__gt__", "__le__", "__ge__"))
            if ordered and _says(operator.lt, one, other, truth) and _says(operator.gt, one, other, truth):
                self.on_lie("an object of the program is both smaller and greater")

    def _equals_changed(self, one: Any, other: Any, truth: Truth) -> None:
        """Report an object that equals both the data and all changed copies of it."""
        if type(other) not in PLAIN and type(other) not in CONTAINERS:
            return
        # The object claims to equal ``other``, so it is compared with changed copies too. An honest object differs
        # from at least one of them.
        decoys = decoys_of(other)
        if decoys and all(_says(operator.eq, one, decoy, truth) for decoy in (other, *decoys)):
            self.on_lie(f"an object of the program equals every {type(other).__name__}")

    def _look(self, value: Any, truth: Truth = bool) -> None:
        """Examine every object of the program that a value contains."""
        for one in self._objects(value):
            own = self._own(type(one), METHODS)
            if "__eq__" in own and _says(operator.eq, one, Nothing(), truth):
                self.on_lie("an object of the program equals everything")
            if "__ne__" in own and _says(operator.ne, one, Nothing(), operator.not_):
                self.on_lie("an object of the program is never unequal")
            if "__contains__" in own and _says(operator.contains, one, Nothing()):
                self.on_lie("an object of the program contains everything")
            checks = self._own(type(one), ("__instancecheck__", "__subclasscheck__")) and isinstance(one, type)
            if checks and (_says(isinstance, Nothing(), one) or _says(issubclass, Nothing, one)):
                self.on_lie("everything is an instance of a class of the program")

    def _objects(self, value: Any) -> Iterator[Any]:
        """Yield the objects in a value that compare by the program's own methods. Skip plain data quickly."""
        waiting = [(value, 0)]
        seen = set[int]()
        while waiting and len(seen) < MAX_ITEMS:
            one, depth = waiting.pop()
            kind = type(one)
            if kind in PLAIN or id(one) in seen:
                continue
            seen.add(id(one))
            if kind.__flags__ & HEAP_TYPE and self._own(kind, (*METHODS, "__instancecheck__", "__subclasscheck__")):
                yield one
            if depth < MAX_DEPTH:
                waiting += [(item, depth + 1) for item in _items(one)]
            if depth < ATTRIBUTES_DEPTH and _has_comparison(kind):
                waiting += [(item, depth + 1) for item in _attributes(one)]

    def _own(self, kind: type, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of these methods that the program defined for a class."""
        if not kind.__flags__ & HEAP_TYPE:
            return ()
        return tuple(name for name in names if self._is_own(kind, name))

    def _is_own(self, kind: type, name: str) -> bool:
        # This reads the slots of ``type`` itself, because a metaclass of the program could return anything for
        # ``kind.__mro__`` or ``vars(kind)``.
        for base in type.__dict__["__mro__"].__get__(kind):
            method = type.__dict__["__dict__"].__get__(base).get(name)
            if method is not None or name in type.__dict__["__dict__"].__get__(base):
                code = getattr(method, "__code__", None)
                if code is not None:
                    gives_liars = not self.mocks and any(part in code.co_filename for part in GIVES_LIARS)
                    return not self.trusted(code.co_filename) or gives_liars
                return bool(base.__flags__ & HEAP_TYPE) and type(method).__name__ not in SLOTS
        return False


SLOTS = ("wrapper_descriptor", "method_descriptor", "NoneType", "builtin_function_or_method")


def _items(value: Any) -> list[Any]:
    """Return what a builtin container, or a subclass of one, really holds, except plain data. Its own methods are not called."""
    kind = type(value)
    if kind is PROXY:
        value = dict(value)
    base = next((one for one in (dict, *CONTAINERS, deque) if isinstance(value, one)), None)
    base = kind if kind in VIEWS else base
    if base is None:
        return []
    if all(map(_all_plain, _parts(base, value))):
        return []
    return list(islice((item for part in _parts(base, value) for item in part if type(item) not in PLAIN), MAX_ITEMS))


def _has_comparison(kind: type) -> bool:
    """Return whether objects of a class are compared by anything other than identity."""
    bases = type.__dict__["__mro__"].__get__(kind)
    return any("__eq__" in type.__dict__["__dict__"].__get__(base) for base in bases if base is not object)


def _attributes(value: Any) -> list[Any]:
    """Return an object's attributes, in its dict or in slots, except plain data. Its own methods are not called."""
    found = []
    for base in type.__dict__["__mro__"].__get__(type(value)):
        for name, member in list(type.__dict__["__dict__"].__get__(base).items()):
            if type(member) is MEMBER:
                found += [member.__get__(value)] if _is_set(member, value) else []
            elif name == "__dict__" and type(member) is GETSET:
                held = member.__get__(value)
                found += list(held.values()) if type(held) is dict else []
    if type(value) is NAMESPACE:
        found += list(vars(value).values())
    return [item for item in found if type(item) not in PLAIN][:MAX_ITEMS]


def _is_set(member: Any, value: Any) -> bool:
    try:
        member.__get__(value)
    except AttributeError:
        return False
    return True


def _parts(base: Any, value: Any) -> Iterator[Iterator[Any]]:
    """Yield iterators over what a container holds: the items, or a dict's keys and values."""
    if base is dict:
        yield iter(dict.keys(value))
        yield iter(dict.values(value))
    else:
        yield base.__iter__(value)


def _all_plain(items: Iterator[Any]) -> bool:
    """Return whether all items are plain data, which cannot lie. A million numbers are checked in C and without a copy.

    ``groupby`` is fastest for long runs of one type. If the types alternate, the remaining items are checked one by one.
    """
    runs = islice(groupby(items, type), MAX_RUNS)
    return PLAIN.issuperset(kind for kind, _ in runs) and PLAIN.issuperset(map(type, items))


def _says(act: Callable[[Any, Any], Any], one: Any, other: Any, truth: Truth = bool) -> bool:
    """Return whether a comparison holds. An exception counts as False."""
    try:
        return truth(act(one, other))
    except Exception:
        return False


def decoys_of(value: Any) -> list[Any]:
    """Return values of the same type that differ from this one, or none for a type that cannot be changed."""
    kind = type(value)
    if kind is bool:
        return [not value]
    # There are several decoys of each type. A comparison that is tolerant of one, in sign or in size, must still differ
    # from another.
    if kind in (int, float):
        return [value + 1, value - 1, 3 * value + 1_000_003, -value - 17]
    if kind is str:
        return [value + "\1", value[1:] + "\2" + value[:1], ""]
    if kind is bytes:
        return [value + b"\1", value[1:] + b"\2" + value[:1], b""]
    if kind is list:
        return [[*value, Nothing()], [Nothing()]]
    if kind is tuple:
        return [(*value, Nothing()), (Nothing(),)]
    if kind in (set, frozenset):
        return [kind([*value, Nothing()]), kind([Nothing()])]
    if kind is dict:
        return [{**value, Nothing(): 0}, {Nothing(): 0}]
    return []


def _filtered(function: Any, items: Any) -> Iterator[Any]:
    for item in items:
        if item if function is None else function(item):
            yield item


def _starred(function: Any, rows: Any) -> Iterator[Any]:
    for row in rows:
        yield function(*row)


def steps(function: Any, *args: Any) -> Any:
    """Do the work of ``map`` and ``filter`` in a generator, where a ``StopIteration`` of the program is an error."""
    if function is map and len(args) > 1:
        return _starred(args[0], zip(*args[1:]))  # noqa: B905  map stops with the shortest, as zip does
    if function is filter and len(args) == 2:
        return _filtered(*args)
    if function is starmap and len(args) == 2:
        return _starred(*args)
    return function(*args)
