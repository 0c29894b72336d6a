"""Plain data as bytes and back: all that crosses between the judge and the program.

No pickle and no marshal: a reader builds only what the tables here name, and whatever bytes arrive, it gives a
value or raises. A value is one tag byte and its content; numbers are little-endian. Mutable containers are
numbered in the order in which they appear, and a second appearance is its number: shared and cyclic data arrive
as they were, and an answer can say what became of the containers that came with the question.

What is not plain goes to ``special``, which ``remote`` supplies. A range, a date or a Decimal is its name and
the arguments that make it again. It knows nothing of calls, proxies or verdicts, and imports little: every run
of a program loads it.
"""

from __future__ import annotations

import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes longer to import than all the rest
    from collections.abc import Callable
    from typing import Any

NUMBER, INT64, FLOAT64 = struct.Struct("<I"), struct.Struct("<q"), struct.Struct("<d")
PACKED_FROM = 8  # items; shorter sequences are not worth the look
CONTAINERS = {
    "builtins.list": b"l",
    "builtins.dict": b"d",
    "builtins.set": b"S",
    "builtins.bytearray": b"B",
    "collections.deque": b"D",
    "collections.Counter": b"C",
    "collections.OrderedDict": b"O",
    "collections.defaultdict": b"F",
}
CONTAINER_NAMES = {tag: name for name, tag in CONTAINERS.items()}
CONSTANTS = {None: b"N", True: b"T", False: b"f", Ellipsis: b".", NotImplemented: b"!"}
CONSTANT_OF = {tag: value for value, tag in CONSTANTS.items()}
PARTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "builtins.complex": lambda v: (v.real, v.imag),
    "builtins.range": lambda v: (v.start, v.stop, v.step),
    "builtins.slice": lambda v: (v.start, v.stop, v.step),
    **dict.fromkeys(
        ("decimal.Decimal", "uuid.UUID", "pathlib.PosixPath", "pathlib.PurePosixPath"), lambda v: (str(v),)
    ),
    "fractions.Fraction": lambda v: (v.numerator, v.denominator),
    "datetime.date": lambda v: (v.year, v.month, v.day),
    "datetime.time": lambda v: (v.hour, v.minute, v.second, v.microsecond, v.tzinfo),
    "datetime.datetime": lambda v: (*v.timetuple()[:6], v.microsecond, v.tzinfo),
    "datetime.timedelta": lambda v: (v.days, v.seconds, v.microseconds),
    "datetime.timezone": lambda v: (v.utcoffset(None),),
}
ARGUMENT_TYPES = {"builtins.int", "builtins.float", "builtins.str", "builtins.NoneType"}
ARGUMENT_TYPES |= {"datetime.timedelta", "datetime.timezone"}


class WireError(Exception):
    """Bytes that no honest writer makes."""


def name_of(kind: type) -> str:
    """Name a class by its module and its own name."""
    return f"{kind.__module__}.{kind.__qualname__}"


def class_named(name: str) -> Any:
    """Find a class of the tables here; the reader looks the name up in a table first."""
    module, _, own = name.partition(".")
    __import__(module)
    return getattr(sys.modules[module], own)


def state(container: Any) -> Any:
    """List what a container holds: a dictionary's keys, then its values."""
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    return bytes(container) if isinstance(container, bytearray) else list(container)


def fill(container: Any, items: Any) -> None:
    """Make a container hold exactly what ``state`` listed."""
    container.clear()
    if isinstance(container, dict):
        half = len(items) // 2
        for key, value in zip(items[:half], items[half:], strict=True):
            container[key] = value
    elif isinstance(container, set):
        container.update(items)
    else:
        container.extend(items)


def changed(container: Any, before: Any) -> bool:
    """Say whether a container holds other objects, or in another order, than when ``before`` was listed."""
    now = state(container)
    if isinstance(now, bytes):
        return bool(now != before)
    return len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True))


class Writer:
    """Turns values into bytes; ``known`` are the containers that the other side has already."""

    def __init__(self, special: Callable[[Writer, Any], None], known: list[Any] | tuple[Any, ...] = ()) -> None:
        self.out = bytearray()
        self.containers = list(known)
        self.numbers = {id(container): number for number, container in enumerate(self.containers)}
        self.special = special

    def write(self, value: Any) -> None:
        """Append one value."""
        kind = type(value)
        writer = WRITERS.get(kind)
        if writer is not None:
            writer(self, value)
            return
        name = name_of(kind)
        if name in CONTAINERS and kind is class_named(name):
            _write_container(self, value)
        elif name in PARTS and kind is class_named(name) and _has_parts(value):
            self.out += b"v"
            self.text(name)
            self.sequence(PARTS[name](value))
        else:
            self.special(self, value)

    def number(self, number: int) -> None:
        """Append a count or an index."""
        self.out += NUMBER.pack(number)

    def blob(self, tag: bytes, data: bytes) -> None:
        """Append a tag and bytes with their length."""
        self.out += tag + NUMBER.pack(len(data)) + data

    def text(self, text: str) -> None:
        """Append a text that is part of the form."""
        self.blob(b"", text.encode("utf-8", "surrogatepass"))

    def sequence(self, items: Any) -> None:
        """Append items; many of one number type are packed, which is much faster on both sides."""
        kinds = set(map(type, items)) if len(items) >= PACKED_FROM else ()
        code = "q" if kinds == {int} else "d" if kinds == {float} else ""
        try:
            packed = struct.pack(f"<{len(items)}{code}", *items) if code else None
        except struct.error:  # an integer of more than 64 bits
            packed = None
        if packed is not None:
            self.blob(code.encode(), packed)
            return
        self.out += b"*"
        self.number(len(items))
        for item in items:
            self.write(item)

    def content(self, container: Any) -> None:
        """Append what a container holds."""
        held = state(container)
        if isinstance(held, bytes):
            self.blob(b"", held)
        else:
            self.sequence(held)


def _has_parts(value: Any) -> bool:
    """Say whether a value is made again by its parts: a time zone of the program's own making is not."""
    zone = getattr(value, "tzinfo", None)
    return zone is None or name_of(type(zone)) == "datetime.timezone"


def _write_constant(writer: Writer, value: Any) -> None:
    writer.out += CONSTANTS[value]


def _write_int(writer: Writer, value: int) -> None:
    if -(2**63) <= value < 2**63:
        writer.out += b"i" + INT64.pack(value)
    else:
        writer.blob(b"I", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _write_tuple(writer: Writer, value: tuple[Any, ...]) -> None:
    writer.out += b"t"
    writer.sequence(value)


def _write_frozenset(writer: Writer, value: frozenset[Any]) -> None:
    writer.out += b"Z"
    writer.sequence(list(value))


def _write_container(writer: Writer, value: Any) -> None:
    number = writer.numbers.get(id(value))
    if number is not None:
        writer.out += b"@"
        writer.number(number)
        return
    writer.numbers[id(value)] = len(writer.containers)
    writer.containers.append(value)
    writer.out += CONTAINERS[name_of(type(value))]
    writer.write(getattr(value, "default_factory", getattr(value, "maxlen", None)))
    writer.content(value)


WRITERS: dict[type, Callable[[Writer, Any], None]] = {
    **{type(value): _write_constant for value in CONSTANTS},
    **dict.fromkeys((list, dict, set, bytearray), _write_container),
    int: _write_int,
    float: lambda writer, value: writer.out.extend(b"e" + FLOAT64.pack(value)),
    str: lambda writer, value: writer.blob(b"s", value.encode("utf-8", "surrogatepass")),
    bytes: lambda writer, value: writer.blob(b"b", value),
    tuple: _write_tuple,
    frozenset: _write_frozenset,
}


class Reader:
    """Turns bytes into values and trusts nothing; every fault is an exception, none a strange object."""

    def __init__(
        self, data: bytes, special: Callable[[Reader, bytes], Any], known: list[Any] | tuple[Any, ...] = ()
    ) -> None:
        self.data, self.at = data, 0
        self.containers = list(known)
        self.special = special

    def take(self, length: int) -> bytes:
        """Return the next bytes."""
        chunk = self.data[self.at : self.at + length]
        if len(chunk) != length:
            raise WireError("a message ends too early")
        self.at += length
        return chunk

    def number(self) -> int:
        """Read a count or an index."""
        return int(NUMBER.unpack(self.take(4))[0])

    def blob(self) -> bytes:
        """Read bytes with their length."""
        return self.take(self.number())

    def text(self) -> str:
        """Read a text that is part of the form: never an object that only passes for one."""
        return self.blob().decode("utf-8", "surrogatepass")

    def read(self) -> Any:
        """Read one value."""
        tag = self.take(1)
        reader = READERS.get(tag)
        if reader is not None:
            return reader(self)
        if tag in CONSTANT_OF:
            return CONSTANT_OF[tag]
        return self._container(tag) if tag in CONTAINER_NAMES else self.special(self, tag)

    def sequence(self) -> list[Any]:
        """Read items."""
        code = self.take(1)
        if code in b"qd":
            packed = self.blob()
            return list(struct.unpack(f"<{len(packed) // 8}{code.decode()}", packed))
        count = self.number()
        if code != b"*" or count > len(self.data) - self.at:  # an item takes a byte at least
            raise WireError("a sequence is malformed")
        return [self.read() for _ in range(count)]

    def content(self, container: Any) -> None:
        """Read what a container holds into it."""
        fill(container, self.blob() if isinstance(container, bytearray) else self.sequence())

    def _container(self, tag: bytes) -> Any:
        kind = class_named(CONTAINER_NAMES[tag])
        number = len(self.containers)
        self.containers.append(None)
        extra = self.read()
        made = kind(extra) if tag == b"F" else kind(maxlen=extra) if tag == b"D" else kind()
        self.containers[number] = made
        self.content(made)
        return made


def _read_value(reader: Reader) -> Any:
    name, arguments = reader.text(), reader.sequence()
    if name not in PARTS or not {name_of(type(argument)) for argument in arguments} <= ARGUMENT_TYPES:
        raise WireError("a value is malformed")
    return class_named(name)(*arguments)


READERS: dict[bytes, Callable[[Reader], Any]] = {
    b"i": lambda reader: INT64.unpack(reader.take(8))[0],
    b"I": lambda reader: int.from_bytes(reader.blob(), "little", signed=True),
    b"e": lambda reader: FLOAT64.unpack(reader.take(8))[0],
    b"s": lambda reader: reader.text(),
    b"b": lambda reader: reader.blob(),
    b"t": lambda reader: tuple(reader.sequence()),
    b"Z": lambda reader: frozenset(reader.sequence()),
    b"v": _read_value,
    b"@": lambda reader: reader.containers[reader.number()],
}
