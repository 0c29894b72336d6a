"""The wire: what is written is read again, and whatever bytes come, the judge gets data, a stand-in or an exception."""

import ast
import math
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flab.evaluation import harness, judge
from flab.evaluation.proxies import is_remote
from flab.evaluation.remote import Broken, Channel, Peer, Policy, find
from flab.evaluation.wire import CONTAINERS, PARTS, Reader, Writer

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
TEXTS = st.text(st.characters(codec=None)) | st.binary()
DATES = st.dates() | st.times() | st.datetimes() | st.timedeltas()
KEYS = NUMBERS | TEXTS | DATES | st.decimals(allow_nan=False) | st.fractions()
VALUES = st.recursive(
    KEYS | st.binary().map(bytearray) | st.sets(st.integers()) | st.frozensets(TEXTS),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(KEYS, inner)
        | st.lists(inner).map(deque)
        | st.dictionaries(KEYS, inner).map(OrderedDict)
    ),
    max_leaves=30,
)


def round_trip(value):
    writer = Writer(None)
    writer.write(value)
    reader = Reader(bytes(writer.out), None)
    read = reader.read()
    assert reader.at == len(writer.out)
    return read


def kinds(value):
    if isinstance(value, dict):
        return type(value), [(kinds(key), kinds(item)) for key, item in value.items()]
    return type(value), [kinds(item) for item in value] if isinstance(value, (list, tuple, deque)) else None


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read(value):
    read = round_trip(value)
    assert read == value
    assert kinds(read) == kinds(value)


def test_what_equality_does_not_show():
    assert math.copysign(1, round_trip(-0.0)) == -1
    assert math.isnan(round_trip(math.nan))
    assert math.isnan(round_trip([math.nan] * 9)[8])
    assert round_trip(Counter("aab")) == Counter("aab")
    assert round_trip(deque([1], 3)).maxlen == 3
    assert round_trip(Decimal("-0.00")).as_tuple() == Decimal("-0.00").as_tuple()
    row = []
    row.append(row)
    assert (read := round_trip([row, row]))[0] is read[1] is read[0][0]


def judge_peer():
    return Peer(Channel(-1, -1, lambda: False), judge.Guard(), lambda error: Broken("exit", str(error)))


def messages():
    """Honest messages with one of everything, as the program's side writes them."""
    peer = Peer(Channel(-1, -1, lambda: False), Policy(), lambda error: Broken("exit", str(error)))

    class OwnError(Exception):
        pass

    class Text(str):
        pass

    values = [
        [1, "a", b"b", None],
        {1: {2.5: {3}}},
        [0] * 20,
        OwnError("x"),
        ValueError(1),
        OwnError,
        Text("t"),
        len,
        iter([]),
        math,
    ]
    values += [deque([1]), defaultdict(list, a=[1]), Fraction(1, 3), Decimal("1.5"), int, {1: 2}.keys(), Policy()]
    for value in values:
        writer = Writer(peer.standins.write)
        writer.write(value)
        yield bytes(writer.out)


def is_harmless(value, depth=5):
    """Data of known classes, stand-ins, and what may go by name: nothing else may come out of a message."""
    kind = type(value)
    known = {find(name.replace(".", ":")) for name in (*CONTAINERS, *PARTS)}
    known |= {int, float, str, bytes, tuple, frozenset, bool, type(None), type(...), type(NotImplemented)}
    if is_remote(value) or isinstance(value, (BaseException, type, type(sys))) or kind.__name__ == "coroutine":
        return True
    items = [*value, *value.values()] if isinstance(value, dict) else value
    parts = items if kind in (list, tuple, set, frozenset, deque) or isinstance(value, dict) else ()
    return kind in known and (depth == 0 or all(is_harmless(part, depth - 1) for part in list(parts)[:20]))


@pytest.mark.filterwarnings("ignore:coroutine")
def test_damaged_messages_do_no_harm():
    rng = random.Random(0)
    honest = list(messages())
    read = 0
    for _ in range(6000):
        data = bytearray(rng.choice(honest))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
            data = data or bytearray(b"N")
        try:
            value = Reader(bytes(data), judge_peer().standins.read).read()
        except (Exception, Broken):
            continue
        read += 1
        assert is_harmless(value), data
    assert read > 500


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:eval", "builtins:type", "flab.errors:", "sys:modules", "torch:", "math:", "math:sqrt"],
)
def test_names_the_judge_refuses(name):
    writer = Writer(None)
    writer.blob(b"n", name.encode())
    with pytest.raises(Exception, match="not allowed"):
        Reader(bytes(writer.out), judge_peer().standins.read).read()


@pytest.mark.parametrize("kind", [Exception, AssertionError, BaseException])
def test_no_class_of_the_program_catches_an_assert(kind):
    taken = judge.Guard().named(f"builtins:{kind.__name__}")
    assert issubclass(taken, kind)
    assert not issubclass(AssertionError, taken)


def test_the_judge_lends_no_way_to_the_tests():
    guard = judge.Guard()
    for target in (judge_peer, (n for n in ()), sys._getframe(), judge_peer.__code__, "".join, math):
        with pytest.raises(AttributeError, match="do not lend"):
            guard.allow("getattr", target, ("__self__",))
    for target in (judge_peer, (n for n in ()), sys._getframe(), judge_peer.__code__, math):
        with pytest.raises(AttributeError, match="do not lend"):
            guard.allow("getattr", target, ("f_globals",))


def test_what_runs_inside_imports_little():
    """Every run of a program pays for it; typing alone would take a tenth of the time."""
    cheap = {
        "_ctypes",
        "_operator",
        "_signal",
        "_thread",
        "builtins",
        "marshal",
        "os",
        "resource",
        "select",
        "struct",
        "sys",
    }
    for name in harness.MODULES:
        tree = ast.parse(Path(harness.__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        found = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert {one for one in found if not one.startswith("flab.evaluation")} <= cheap | {"__future__"}
