"""How what is not plain data crosses: by number, by name, as a value with a class, as an exception.

Tags: ``o`` an object of the receiver's own, come back; ``n`` a thing that both sides have, by name; ``r`` an
object of the sender's; ``V`` a value of a class derived from an immutable plain one; ``X`` an exception; ``K``
an exception class. An exception arrives as the same class where both sides have it, else as a class of its name
below the nearest one that both have, so that ``except`` and the message work as they did.
"""

from __future__ import annotations

import struct
import sys

from flab.evaluation import proxies
from flab.evaluation.proxies import Remote, is_remote, number_of
from flab.evaluation.wire import Reader, WireError, Writer, name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from flab.evaluation.remote import Peer

ABILITIES = struct.Struct("<Q")
NAME_CAP = 100
COPIES: dict[type, Callable[[Any], Any]] = {
    int: int.__pos__,
    float: float.__pos__,
    complex: complex.__pos__,
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}


def known_error(name: str) -> type[BaseException] | None:
    """Find an exception class of the standard library that is loaded here."""
    module, _, own = name.rpartition(".")
    found = getattr(sys.modules.get(module), own, None)
    standard = module.partition(".")[0] in sys.stdlib_module_names
    return found if standard and isinstance(found, type) and issubclass(found, BaseException) else None


def text_of(error: BaseException) -> str:
    """Say what an exception says, if it can."""
    try:
        return str.__str__(str(error))
    except BaseException:
        return "(an exception that cannot be printed)"


class StandIns:
    """Writes and reads what is not plain for one peer, and remembers the classes and proxies it made."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.proxies: dict[int, Any] = {}
        self.classes: dict[Any, Any] = {}
        self.readers: dict[bytes, Callable[[Reader], Any]] = {
            b"r": self._read_proxy,
            b"V": self._read_value,
            b"X": self._read_error,
        }

    def write(self, writer: Writer, value: Any) -> None:
        """Append what is not plain."""
        kind = type(value)
        own_class = kind is type and Remote in value.__mro__ and "_flab_class" in vars(value)
        name = None if is_remote(value) or own_class else self.peer.policy.name(value)
        if is_remote(value) or own_class:
            writer.out += b"o"
            writer.number(value._flab_class if own_class else number_of(value))
        elif name is not None:
            writer.out += b"n"
            writer.text(name)
        elif issubclass(kind, BaseException):
            self._write_error(writer, value)
        elif issubclass(kind, type) and issubclass(value, BaseException):
            writer.out += b"K"
            self._write_lineage(writer, value)
        elif base := next((base for base in COPIES if issubclass(kind, base)), None):
            self._write_value(writer, value, base)
        else:
            name, look, abilities = proxies.describe(kind)
            writer.out += b"r" + ABILITIES.pack(abilities)
            writer.number(self.peer.export(value))
            writer.text(name)
            writer.text(look)

    def _write_error(self, writer: Writer, error: BaseException) -> None:
        error.__traceback__ = None  # else every local variable on its way would stay alive
        writer.out += b"X"
        self._write_lineage(writer, type(error))
        writer.number(self.peer.export(error))
        writer.text(text_of(error))
        writer.sequence(OSError.__reduce__(error)[1] if isinstance(error, OSError) else error.args)

    def _write_value(self, writer: Writer, value: Any, base: type) -> None:
        others = proxies.overridden(type(value), base)
        writer.out += b"V"
        writer.number(self.peer.export(value))
        writer.number(len(others))
        for text in (*others, type(value).__name__):
            writer.text(text)
        writer.write(COPIES[base](value))

    def _write_lineage(self, writer: Writer, kind: type) -> None:
        """Append an exception class and its bases by name, and by number for those that may be ours alone."""
        line = [base for base in kind.__mro__ if issubclass(base, BaseException)]
        writer.number(len(line))
        for base in line:
            writer.text(name_of(base))
            writer.number(self.peer.export(base))

    def read(self, reader: Reader, tag: bytes) -> Any:
        """Read what is not plain."""
        if tag == b"o":
            return self.peer.exports[reader.number()]
        if tag == b"n":
            return self.peer.policy.named(reader.text())
        if tag == b"K":
            return self.peer.policy.caught(self._read_lineage(reader)[0])
        if tag not in self.readers:
            raise WireError("a value has no known tag")
        return self.readers[tag](reader)

    def _cached(self, key: Any, build: Callable[..., type], *details: Any) -> Any:
        if key not in self.classes:
            self.classes[key] = build(self.peer, *details)
        return self.classes[key]

    def _read_proxy(self, reader: Reader) -> Any:
        (abilities,) = ABILITIES.unpack(reader.take(ABILITIES.size))
        number, name, look = reader.number(), reader.text()[:NAME_CAP], reader.text()
        if look == "builtins.coroutine":
            return self._coroutine(number)
        kind = self._cached((name, look, abilities), proxies.build_proxy_class, name, look, abilities)
        if type(self.proxies.get(number)) is not kind:
            self.proxies[number] = object.__new__(kind)
            proxies.set_number(self.proxies[number], number)
        return self.proxies[number]

    async def _coroutine(self, number: int) -> Any:
        """Stand for a coroutine: the other side runs it to its end when it is awaited here."""
        return self.peer.request("finish", number, (), {})

    def _read_value(self, reader: Reader) -> Any:
        number = reader.number()
        others = tuple(reader.text() for _ in range(min(reader.number(), NAME_CAP)))
        name, value = reader.text()[:NAME_CAP], reader.read()
        base = type(value)
        if base not in COPIES:
            raise WireError("a value has no plain class")
        kind = self._cached((name, base, others), proxies.build_value_class, name, base, others)
        made: Any = base.__new__(kind, value)
        made.__dict__["_flab_number"] = number
        return made

    def _read_lineage(self, reader: Reader) -> tuple[Any, int]:
        """Find an exception class, or make one for each step below the nearest that both sides have."""
        line = [(reader.text(), reader.number()) for _ in range(min(reader.number(), NAME_CAP))]
        found: Any = Exception
        for name, number in reversed(line):
            own = name.rpartition(".")[2][:NAME_CAP]
            found = known_error(name) or self._cached(number, proxies.build_error_class, own, found, number)
        return found, line[0][1]

    def _read_error(self, reader: Reader) -> BaseException:
        kind, class_number = self._read_lineage(reader)
        number, text, args = reader.number(), reader.text(), tuple(reader.sequence())
        if Remote not in kind.__mro__:
            same = _same_error(kind, args, text)
            if same is not None:
                return same
            kind = self._cached(kind, proxies.build_error_class, kind.__name__, kind, class_number)
        made: BaseException = kind.__new__(kind, *args)
        made.__dict__.update(_flab_number=number, _flab_text=text)
        return made


def _same_error(kind: type[BaseException], args: Any, text: str) -> BaseException | None:
    """Make the exception again, if that gives one that says the same."""
    try:
        made = kind(*args)
    except Exception:
        return None
    return made if text_of(made) == text else None
