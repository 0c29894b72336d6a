"""``generations.jsonl``: one line for each sample, only ever appended, so that a stopped run continues where it was.

A line is ``{"fingerprint", "task", "task_id", "sample", "text", "num_tokens", "finish_reason"}``; the text is as it
was made. Lines of other fingerprints stay in the file and are never read as this run's. If a killed writer left part
of a line at the end, it is cut off before the next append; any other damage is an error that names the line. One
process writes at a time, under a lock of the operating system that a killed process cannot leave behind.

It knows nothing of scores, and it does not rewrite or sort the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from flab.errors import DataError, OptionError
from flab.models.engines.protocol import Decoding, FinishReason, Generation, Generator, Request, batches
from flab.progress import track

Key = tuple[str, str, int]  # task, task_id, sample
SHARD = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")
Row = tuple[Key, Generation]
T = TypeVar("T")

FIELDS = ("fingerprint", "task", "task_id", "sample", "text", "num_tokens", "finish_reason")
TEXTS = ("fingerprint", "task", "task_id", "text")


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 of plain data in canonical JSON: keys sorted, no spaces, no NaN."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Shard:
    """One of ``count`` equal parts of the work, numbered from 1. Each has a separate file beside the complete one."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``2/4``; OptionError for anything else."""
        found = SHARD.fullmatch(text.strip())
        shard = cls(*map(int, found.groups())) if found else cls(1, 0)
        if shard.number > shard.count:
            raise OptionError(f"`shard`: got {text!r}, allowed I/N with 1 <= I <= N, e.g. 2/4.")
        return shard

    def file(self, path: Path) -> Path:
        """``generations.2-of-4.jsonl`` for ``generations.jsonl``."""
        return path.with_name(f"{path.stem}.{self.number}-of-{self.count}{path.suffix}")

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Return every ``count``-th item, from the ``number``-th."""
        return items[self.number - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class Store:
    """The generations of one fingerprint. Reading needs no lock; the first append takes it and keeps it.

    The file and those of its shards are read. The store of a shard writes its shard's file; any other writes the file itself.
    """

    def __init__(self, path: Path, fingerprint: str, shard: Shard | None = None) -> None:
        self.whole = path
        self.path = shard.file(path) if shard is not None else path
        self.fingerprint = fingerprint
        self._rows: dict[Key, Generation] = {}
        self._file: int | None = None
        self._read_all()

    def get(self, task: str, task_id: str, sample: int) -> Generation | None:
        """Return the stored generation of one sample, or None."""
        return self._rows.get((task, task_id, sample))

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, rows: Sequence[Row]) -> None:
        """Add new samples in one write, and flush it to the disk.

        Raises:
            DataError: another process writes the file, or the disk is full; the file still ends with a whole line.
        """
        self.lock()
        assert self._file is not None
        fresh = {key: made for key, made in rows if key not in self._rows}
        assert len({key for key, _ in rows}) == len(rows), "a sample twice in one batch"
        # A batch is one write and one flush. After a crash the file holds all of it, or a torn end that is cut off later.
        data = b"".join(_line(self.fingerprint, key, made) for key, made in fresh.items())
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            _write_all(self._file, data)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, end)
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror}); its content is intact: free space and run again."
            ) from None
        self._rows.update(fresh)

    def lock(self) -> None:
        """Become the file's only writer, unless it already is, and cut off a torn last line.

        Raises:
            DataError: another process writes it, or it cannot be opened.
        """
        if self._file is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be opened ({error.strerror}); give a folder to write in.") from None
        try:
            # A lock of the operating system ends with the process, so a killed run leaves nothing to remove by hand.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            busy = "another run is writing it; wait for it, or give another folder."
            other = f"cannot be locked ({error.strerror}); give a folder on a local disk."
            raise DataError(f"{self.path}: {busy if isinstance(error, BlockingIOError) else other}") from None
        self._file = file
        # Another process may have written since the file was read, so it is read again once the lock is held.
        self._rows.clear()
        self._mend(self._read_all())

    def close(self) -> None:
        """Release the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_all(self) -> bytes:
        """Read this fingerprint's rows in all files. Returns what follows the last line break of our own file."""
        shards = sorted(
            self.whole.parent.glob(f"{escape(self.whole.stem)}.[0-9]*-of-[0-9]*{escape(self.whole.suffix)}")
        )
        rests = {path: self._read(path) for path in dict.fromkeys([self.whole, *shards, self.path])}
        return rests[self.path]

    def _read(self, path: Path) -> bytes:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
        *lines, rest = data.split(b"\n")
        if _parse(rest) is not None:
            lines.append(rest)
        for number, line in enumerate(lines, start=1):
            row = _parse(line)
            if row is None:
                raise DataError(
                    f"{path}:{number}: not a generation ({', '.join(FIELDS)}); remove the line, or give another folder."
                )
            self._keep(row, path, number)
        return rest

    def _keep(self, row: dict[str, Any], path: Path, number: int) -> None:
        if row["fingerprint"] != self.fingerprint:
            return
        key = (row["task"], row["task_id"], row["sample"])
        made = Generation(row["text"], row["num_tokens"], row["finish_reason"])
        if self._rows.setdefault(key, made) != made:
            raise DataError(
                f"{path}:{number}: another text for sample {key[2]} of {key[1]} in {key[0]} stands above; remove one."
            )

    def _mend(self, rest: bytes) -> None:
        """End the file with a whole line: cut off a torn one, or add the line break that a whole one lacks."""
        assert self._file is not None
        if not rest:
            return
        if _parse(rest) is not None:
            _write_all(self._file, b"\n")
        else:
            os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_END) - len(rest))


def _line(fingerprint: str, key: Key, made: Generation) -> bytes:
    """Return one line in ASCII, which can hold any text that a model makes, even lone surrogates and line breaks."""
    values = (fingerprint, *key, made.text, made.num_tokens, made.finish_reason)
    return json.dumps(dict(zip(FIELDS, values, strict=True))).encode("ascii") + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the row of a line, or None if it is not one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or set(row) != set(FIELDS):
        return None
    numbers = [row["sample"], row["num_tokens"]]
    good = all(isinstance(row[name], str) for name in TEXTS) and all(type(number) is int for number in numbers)
    return row if good and row["finish_reason"] in get_args(FinishReason) else None


def _write_all(file: int, data: bytes) -> None:
    """Write all bytes, in several calls if the system accepts only a part at once."""
    while data:
        data = data[os.write(file, data) :]


def fill(
    store: Store,
    generator: Generator,
    wanted: Sequence[tuple[Key, Request]],
    decoding: Decoding,
    shard: Shard | None = None,
) -> None:
    """Generate what the store lacks; with a shard, only in its part of the batches.

    Batches are made over everything wanted, so that a resumed run and the runs of shards get the same ones. A batch that
    lacks a sample is generated again as a whole, and only the missing lines are added.
    """
    keys = [key for key, _ in wanted]
    requests = [request for _, request in wanted]
    assert len(set(keys)) == len(keys), "a sample is wanted twice"
    work = batches(requests, decoding)
    work = list(shard.part(work)) if shard is not None else work
    mine = [keys[index] for batch in work for index in batch]
    there = sum(store.get(*key) is not None for key in mine)
    if there < len(mine):
        store.lock()
    title = f"Generating, {there} of {len(mine)} were there" if there else "Generating"
    for batch in track(work, title, unit="batches"):
        if any(store.get(*keys[index]) is None for index in batch):
            made = generator.generate([requests[index] for index in batch], decoding)
            store.append([(keys[index], one) for index, one in zip(batch, made, strict=True)])


def stored(store: Store, keys: Sequence[Key]) -> list[Generation]:
    """Return the generations of the keys, which must all be in the store."""
    found = [store.get(*key) for key in keys]
    assert all(one is not None for one in found), "not all is generated"
    return [one for one in found if one is not None]
