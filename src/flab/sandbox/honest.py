"""Comparisons of the tests, and whether an object of the program lies in them.

``rewrite`` puts these helpers into the tests. Each does what the source says, on the real objects; then it looks at the
objects of the program's own classes that took part. An object lies if it equals, contains, or is an instance of
something that nobody has ever seen, if it is both smaller and greater than the other side, or if it equals changed
copies of the data that it was compared with. Objects whose classes compare by the methods of builtins or of the
standard library are not looked at.

It runs inside the sandbox and does not end the run: ``on_lie`` does.
"""

from __future__ import annotations

import operator
import sys
from _collections import deque  # type: ignore[import-not-found]
from itertools import groupby, islice, starmap  # taken before the program can put something else there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Truth = Callable[[Any], bool]

PLAIN = frozenset((int, float, complex, bool, str, bytes, type(None), range, type(...), bytearray))
CONTAINERS = (list, tuple, set, frozenset, dict)
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
PROXY = type(vars(type))  # of a dict, to be read only
METHODS = ("__eq__", "__ne__", "__lt__", "__gt__", "__le__", "__ge__", "__contains__")
# Bounds on how much is looked at, so that a test that compares a huge structure does not run into its time
# limit here.
MAX_ITEMS = 2000
MAX_DEPTH = 12
MAX_RUNS = 100
# How deep to follow the attributes of objects that compare by them. A graph of objects would have no end.
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
    """What no object of a program has ever seen."""


class Honest:
    """The helpers, by the names that ``rewrite`` gives them.

    ``trusted`` says whether a file holds code of the standard library. ``swallowed`` counts asserts that failed.
    """

    def __init__(self, trusted: Callable[[str], bool], on_lie: Callable[[str], None]) -> None:
        self.trusted = trusted
        self.on_lie = on_lie
        self.swallowed: list[int] = []
        self.mocks = False  # whether the tests use unittest.mock, whose ANY equals everything
        self.looked = False  # whether the tests compared or asserted anything
        # Comparisons by the program's own methods whose result is no truth value: nothing yet says what it is for.
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
        """Return the truth of what is asserted, and note where it fails."""
        self.looked = True
        holds = bool(value)
        self.look_at_pending()
        if not holds:
            self.swallowed.append(sys._getframe(1).f_lineno)
        return holds

    def look_at_pending(self) -> None:
        """Look at comparisons whose result was taken for a truth value, not compared further as data."""
        pending = self.pending
        self.pending = []
        for _, a, b, equal, truth in pending:
            self._look_at_pair(a, b, equal, truth)

    def holds(self, value: Any) -> bool:
        """Return the truth of what is asserted where the tests mean to catch its failure."""
        self.looked = True
        return bool(value)

    def seen(self, value: Any) -> Any:
        """Look at one operand of a chain of comparisons."""
        self.looked = True
        self._look(value)
        return value

    def _pair(self, name: str, act: Callable[[Any, Any], Any], truth: Truth | None = bool) -> Callable[[Any, Any], Any]:
        """Return a comparison that looks.

        ``truth`` is what the tests make of a result that is no plain value: ``all`` of its items, or None, where they only
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
        """Subtract; an object whose difference from everything is the same number lies."""
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
        self.on_lie("an object of the program differs from all numbers by the same")

    def compared(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Call an assert method, or a function that compares, and look at what it was given."""
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
        """Copy; an object of the program whose copy is plain data lies."""
        result = function(*args, **keywords)
        changed = args and type(args[0]) not in PLAIN and type(result) in PLAIN
        if changed and self._own(type(args[0]), ("__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__")):
            self.on_lie("an object of the program is copied as something else")
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
            if self._own(type(one), ("__lt__", "__gt__", "__le__", "__ge__")):
                self._on_both_sides(one, other, truth)

    def _equals_changed(self, one: Any, other: Any, truth: Truth) -> None:
        """An object that equals data and all changed copies of it lies."""
        if type(other) not in PLAIN and type(other) not in CONTAINERS:
            return
        # The object has said that it equals ``other``. It is asked about changed copies as well; an honest one
        # says no to at least one.
        decoys = decoys_of(other)
        if decoys and all(_says(operator.eq, one, decoy, truth) for decoy in (other, *decoys)):
            self.on_lie(f"an object of the program equals every {type(other).__name__}")

    def _on_both_sides(self, one: Any, other: Any, truth: Truth) -> None:
        if _says(operator.lt, one, other, truth) and _says(operator.gt, one, other, truth):
            self.on_lie("an object of the program is both smaller and greater")

    def _look(self, value: Any, truth: Truth = bool) -> None:
        """Look at every object of the program in a value."""
        for one in self._objects(value):
            own = self._own(type(one), METHODS)
            if "__eq__" in own and _says(operator.eq, one, Nothing(), truth):
                self.on_lie("an object of the program equals everything")
            if "__ne__" in own and _denies(operator.ne, one, Nothing()):
                self.on_lie("an object of the program is unequal to nothing")
            if "__contains__" in own and _says(operator.contains, one, Nothing()):
                self.on_lie("an object of the program contains everything")
            if self._own(type(one), ("__instancecheck__", "__subclasscheck__")) and isinstance(one, type):
                self._class_of_everything(one)

    def _class_of_everything(self, kind: type) -> None:
        if _says(isinstance, Nothing(), kind) or _says(issubclass, Nothing, kind):
            self.on_lie("everything is an instance of a class of the program")

    def _objects(self, value: Any) -> Iterator[Any]:
        """Yield the objects in a value that compare by methods of the program's own; plain data costs little."""
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
        """Say which of these methods a class has from the program."""
        if not kind.__flags__ & HEAP_TYPE:
            return ()
        return tuple(name for name in names if self._is_own(kind, name))

    def _is_own(self, kind: type, name: str) -> bool:
        # Always by ``type``'s own slots: a metaclass of the program could answer ``kind.__mro__`` or
        # ``vars(kind)`` with anything.
        for base in type.__dict__["__mro__"].__get__(kind):
            method = type.__dict__["__dict__"].__get__(base).get(name)
            if method is not None or name in type.__dict__["__dict__"].__get__(base):
                code = getattr(method, "__code__", None)
                if code is not None:
                    return not self.trusted(code.co_filename) or self._gives_liars(code.co_filename)
                return bool(base.__flags__ & HEAP_TYPE) and type(method).__name__ not in SLOTS
        return False

    def _gives_liars(self, name: str) -> bool:
        return not self.mocks and any(part in name for part in GIVES_LIARS)


SLOTS = ("wrapper_descriptor", "method_descriptor", "NoneType", "builtin_function_or_method")


def _items(value: Any) -> list[Any]:
    """Return what a builtin container, or a subclass of one, really holds, without what is plain; never by its methods."""
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
    """Return whether objects of a class are compared by anything but who they are."""
    bases = type.__dict__["__mro__"].__get__(kind)
    return any("__eq__" in type.__dict__["__dict__"].__get__(base) for base in bases if base is not object)


def _attributes(value: Any) -> list[Any]:
    """Return what an object holds by name, in its dict or in slots, without what is plain; never by its own methods."""
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
    """Return whether nothing here can lie; a million numbers are looked through at the speed of C, and without a copy.

    Runs of one type go fastest by ``groupby``; if the types alternate, the rest is looked at one by one.
    """
    runs = islice(groupby(items, type), MAX_RUNS)
    return PLAIN.issuperset(kind for kind, _ in runs) and PLAIN.issuperset(map(type, items))


def _says(act: Callable[[Any, Any], Any], one: Any, other: Any, truth: Truth = bool) -> bool:
    """Return whether the objects say so; an exception is a no."""
    try:
        return truth(act(one, other))
    except Exception:
        return False


def _denies(act: Callable[[Any, Any], Any], one: Any, other: Any) -> bool:
    try:
        return not act(one, other)
    except Exception:
        return False


def decoys_of(value: Any) -> list[Any]:
    """Return values of the same type that differ from this one; none if there is no way to change it."""
    kind = type(value)
    if kind is bool:
        return [not value]
    # Several of each kind: a comparison that is wrong by one, in sign or in size must differ from at least one of them.
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


def _mapped(function: Any, *columns: Any) -> Iterator[Any]:
    for row in zip(*columns):  # noqa: B905  map stops with the shortest, as zip does
        yield function(*row)


def _filtered(function: Any, items: Any) -> Iterator[Any]:
    for item in items:
        if item if function is None else function(item):
            yield item


def _starred(function: Any, rows: Any) -> Iterator[Any]:
    for row in rows:
        yield function(*row)


def steps(function: Any, *args: Any) -> Any:
    """Do as ``map`` and ``filter`` do, in a generator, where a ``StopIteration`` of the program is an error."""
    if function is map and len(args) > 1:
        return _mapped(*args)
    if function is filter and len(args) == 2:
        return _filtered(*args)
    if function is starmap and len(args) == 2:
        return _starred(*args)
    return function(*args)
