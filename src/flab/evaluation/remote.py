"""One side of the talk between the judge and the program: it asks the other side, and serves what that asks.

A message is one byte of kind, a length and a body. ``Q`` asks for an operation on an object that the other side
gave away before, with arguments; ``A`` answers with a value and ``E`` with an exception, after what became of
the containers among the arguments, so that a list changed in place is changed for the one who passed it. While a
side waits for its answer it serves questions: a function passed as an argument is called so.

What is not plain data stays where it is and goes by number. A ``Policy`` says what a side lets go by name, what
it takes by name, and what the other may do with its objects. It starts no process and judges nothing.
"""

from __future__ import annotations

import _thread
import builtins
import os
import struct
import sys

from flab.evaluation import standins
from flab.evaluation.proxies import OPERATIONS
from flab.evaluation.wire import CONTAINERS, PARTS, Reader, WireError, Writer, changed, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

HEADER = struct.Struct("<cI")
MESSAGE_CAP = 64 * 2**20
PLAIN_NAMES = "bool bytes float frozenset int object str tuple".split()
SHARED = {name.replace(".", ":") for name in (*CONTAINERS, *PARTS)} | {f"builtins:{name}" for name in PLAIN_NAMES}
SHARED |= {
    f"builtins:{n}" for n, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
}
DEEP = 6000  # frames while data is read or written: four for each level of nesting


class Broken(BaseException):
    """The other side is gone or talks nonsense; no test can catch this by accident."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


class Policy:
    """What a side allows; this one, the program's, allows everything and sends only classes of data by name."""

    def name(self, value: Any) -> str | None:
        """Return the name under which the other side has the same thing, or None."""
        name = f"{value.__module__}:{value.__qualname__}" if isinstance(value, type) else ""
        return name if name in SHARED and find(name) is value else None

    def named(self, name: str) -> Any:
        """Return what the other side sent by name."""
        return find(name)

    def caught(self, kind: type[BaseException]) -> type[BaseException]:
        """Return the exception class to use for one that the other side sent."""
        return kind

    def allow(self, operation: str, target: Any, args: tuple[Any, ...]) -> None:
        """Raise where the other side may not do this."""


def find(name: str) -> Any:
    """Find a module (``math:``) or something in it (``builtins:str.upper``)."""
    module, _, path = name.partition(":")
    found = __import__(module, fromlist=["*"])
    for part in path.split(".") if path else ():
        found = getattr(found, part)
    return found


def is_standard(module: str) -> bool:
    """Say whether a module is of the standard library, by its name."""
    return module.partition(".")[0] in sys.stdlib_module_names


class Channel:
    """Two pipes; ``wait`` returns False once nothing more can come."""

    def __init__(self, read_fd: int, write_fd: int, wait: Callable[[], bool]) -> None:
        self.read_fd, self.write_fd, self.wait = read_fd, write_fd, wait
        self.buffer, self.process_id = bytearray(), os.getpid()

    def send(self, kind: bytes, body: bytes | bytearray) -> None:
        """Write one message whole; a fork of the process that comes here ends instead."""
        if os.getpid() != self.process_id:
            os._exit(0)
        if len(body) > MESSAGE_CAP:
            raise WireError(f"{len(body)} bytes are too many to pass")
        data = memoryview(HEADER.pack(kind, len(body)) + body)
        while data:
            data = data[os.write(self.write_fd, data) :]

    def receive(self) -> tuple[bytes, bytes]:
        """Read one message; EOFError when the other side is gone."""
        kind, length = HEADER.unpack(self._take(HEADER.size))
        if length > MESSAGE_CAP:
            raise WireError("a message is too long")
        return kind, self._take(length)

    def _take(self, length: int) -> bytes:
        while len(self.buffer) < length:
            chunk = os.read(self.read_fd, 2**18) if self.wait() else b""
            if not chunk:
                raise EOFError
            self.buffer += chunk
        taken = bytes(self.buffer[:length])
        del self.buffer[:length]
        return taken


class Peer:
    """One side: its objects that went out by number, and the stand-ins for the other side's."""

    def __init__(self, channel: Channel, policy: Policy, explain: Callable[[BaseException], Broken]) -> None:
        self.channel, self.policy, self.explain = channel, policy, explain
        self.broken: Broken | None = None
        self.exports: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.standins = standins.StandIns(self)
        self.lock = _thread.RLock()

    def export(self, value: Any) -> int:
        """Return the number of an object of ours; it stays alive from now on."""
        number = self.numbers.setdefault(id(value), len(self.exports))
        if number == len(self.exports):
            self.exports.append(value)
        return number

    def fault(self, error: BaseException) -> Broken:
        """Note that the other side broke off the talk, and how; the first fault stands."""
        if self.broken is None:
            self.broken = error if isinstance(error, Broken) else self.explain(error)
        return self.broken

    def request(self, operation: str, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Have the other side do something with an object of its own; raise what it raised."""
        with self.lock:
            with Deep():
                writer = Writer(self.standins.write)
                writer.text(operation)
                writer.number(number)
                writer.sequence(args)
                writer.write(kwargs or None)  # a dictionary would have to be watched for changes
            self._send(writer.out)
            try:
                return self.answer(writer.containers)
            except StopIteration as error:  # it would end a map() over a test's cases early, as if all had passed
                if operation == "__next__":
                    raise
                raise RuntimeError("a call raised StopIteration") from error

    def _send(self, question: bytearray) -> None:
        try:
            self.channel.send(b"Q", question)
        except OSError as error:
            raise self.fault(error) from None

    def answer(self, sent: list[Any]) -> Any:
        """Wait for the answer; ``sent`` are the containers that the other side may have changed."""
        while True:
            kind, value = self.hear(sent)
            if kind == b"A":
                return value
            if kind == b"E":
                raise value

    def hear(self, sent: list[Any]) -> tuple[bytes, Any]:
        """Read one message and serve it where it is a question; whatever is wrong with it is a fault."""
        try:
            kind, body = self.channel.receive()
            if kind == b"Q":
                self.serve(body)
                return kind, None
            with Deep():
                value = self._read_answer(Reader(body, self.standins.read, sent))
            if kind not in b"AE" or (kind == b"E" and not isinstance(value, BaseException)):
                raise WireError("a message is of no known kind")
        except BaseException as error:
            raise self.fault(error) from None
        return kind, value

    @staticmethod
    def _read_answer(reader: Reader) -> Any:
        num_sent = len(reader.containers)
        for _ in range(reader.number()):
            number = reader.number()
            if number >= num_sent:
                raise WireError("an answer changes what was never sent")
            reader.content(reader.containers[number])
        return reader.read()

    def serve(self, body: bytes) -> None:
        """Do what the other side asks, and answer."""
        with Deep():
            reader = Reader(body, self.standins.read)
            operation, number, args, kwargs = reader.text(), reader.number(), tuple(reader.sequence()), reader.read()
        before = [state(container) for container in reader.containers]
        try:
            target = self.exports[number]
            self.policy.allow(operation, target, args)
            kind, value = b"A", OPERATIONS[operation](target, *args, **(kwargs or {}))
        except Broken:
            raise
        except BaseException as error:
            kind, value = b"E", error
        self.reply(kind, value, reader.containers, before)

    def reply(self, kind: bytes, value: Any, containers: list[Any] | tuple[()] = (), before: Any = ()) -> None:
        """Send an answer, or the exception that kept it from being sent."""
        try:
            self.channel.send(kind, self._write_answer(value, containers, before))
        except Broken:
            raise
        except BaseException as error:
            self.channel.send(b"E", self._write_answer(error, (), ()))

    def _write_answer(self, value: Any, containers: list[Any] | tuple[()], before: Any) -> bytearray:
        with Deep():
            writer = Writer(self.standins.write, containers)
            touched = [number for number, was in enumerate(before) if changed(containers[number], was)]
            writer.number(len(touched))
            for number in touched:
                writer.number(number)
                writer.content(containers[number])
            writer.write(value)
        return writer.out


class Deep:
    """A while with room on the stack for nested data, whatever depth the program is at."""

    def __enter__(self) -> None:
        self.limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(self.limit, DEEP))

    def __exit__(self, *error: object) -> None:
        sys.setrecursionlimit(self.limit)
