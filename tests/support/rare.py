"""Right programs that use rarer parts of the language and its library; ``test_correct`` runs them, in plain Python too."""

RARE = {
    "descriptor with __set_name__": (
        (
            "class Typed:\n"
            "    def __set_name__(self, owner, name): self.name = '_' + name\n"
            "    def __get__(self, one, owner=None): return self if one is None else getattr(one, self.name, 0)\n"
            "    def __set__(self, one, value):\n"
            "        if not isinstance(value, int): raise TypeError(self.name)\n"
            "        setattr(one, self.name, value)\n"
            "class f:\n"
            "    x = Typed()\n"
        ),
        (
            "def check(candidate):\n"
            "    one = candidate()\n"
            "    assert one.x == 0\n"
            "    one.x = 4\n"
            "    assert one.x == 4 and vars(one) == {'_x': 4}\n"
            "    try:\n"
            "        one.x = 'a'\n"
            "    except TypeError as e:\n"
            "        assert str(e) == '_x'\n"
            "    else:\n"
            "        assert False\n"
        ),
    ),
    "weak dictionary forgets": (
        (
            "import gc, weakref\n"
            "class Key: pass\n"
            "def f():\n"
            "    table = weakref.WeakKeyDictionary()\n"
            "    key = Key()\n"
            "    table[key] = 1\n"
            "    before = len(table)\n"
            "    del key\n"
            "    gc.collect()\n"
            "    return before, len(table)\n"
        ),
        ("def check(candidate):\n    assert candidate() == (1, 0)\n"),
    ),
    "finalizer runs": (
        (
            "import weakref\n"
            "def f(log):\n"
            "    class A: pass\n"
            "    a = A()\n"
            "    weakref.finalize(a, log.append, 'gone')\n"
            "    del a\n"
            "    return log\n"
        ),
        (
            "def check(candidate):\n"
            "    import gc\n"
            "    log = []\n"
            "    candidate(log)\n"
            "    gc.collect()\n"
            "    assert log == ['gone']\n"
        ),
    ),
    "exception groups": (
        (
            "def f(values):\n"
            "    errors = []\n"
            "    for v in values:\n"
            "        try: int(v)\n"
            "        except ValueError as e: errors.append(e)\n"
            "    if errors: raise ExceptionGroup('bad', errors)\n"
            "    return len(values)\n"
        ),
        (
            "def check(candidate):\n"
            "    assert candidate(['1', '2']) == 2\n"
            "    try:\n"
            "        candidate(['1', 'x', 'y'])\n"
            "    except* ValueError as group:\n"
            "        assert len(group.exceptions) == 2\n"
            "    else:\n"
            "        assert False\n"
        ),
    ),
    "sorting by cmp_to_key": (
        (
            "from functools import cmp_to_key\n"
            "def f(numbers):\n"
            "    return ''.join(sorted(map(str, numbers), key=cmp_to_key(lambda a, b: (a + b < b + a) - (a + b > b + a))))\n"
        ),
        ("def check(candidate):\n    assert candidate([3, 30, 34, 5, 9]) == '9534330'\n"),
    ),
    "total ordering with NotImplemented": (
        (
            "import functools\n"
            "@functools.total_ordering\n"
            "class f:\n"
            "    def __init__(self, n): self.n = n\n"
            "    def __eq__(self, o): return self.n == o.n if isinstance(o, f) else NotImplemented\n"
            "    def __lt__(self, o): return self.n < o.n if isinstance(o, f) else NotImplemented\n"
            "    def __hash__(self): return hash(self.n)\n"
        ),
        (
            "def check(candidate):\n"
            "    a, b = candidate(1), candidate(2)\n"
            "    assert a < b and b > a and a <= a and a != b and a == candidate(1)\n"
            "    assert sorted([b, a]) == [a, b] and max(a, b) is b and {a: 1}[candidate(1)] == 1\n"
            "    assert a != 1\n"
        ),
    ),
    "interval arithmetic, order is partial": (
        (
            "class f:\n"
            "    def __init__(self, a, b): self.a, self.b = a, b\n"
            "    def __lt__(self, o): return self.b < o.a\n"
            "    def __gt__(self, o): return self.a > o.b\n"
            "    def __eq__(self, o): return isinstance(o, f) and (self.a, self.b) == (o.a, o.b)\n"
            "    def __contains__(self, x): return self.a <= x <= self.b\n"
            "    def __sub__(self, o): return f(self.a - o.b, self.b - o.a)\n"
        ),
        (
            "def check(candidate):\n"
            "    a, b = candidate(0, 2), candidate(1, 3)\n"
            "    assert not a < b and not a > b and a != b\n"
            "    assert 1 in a and 5 not in a and candidate(4, 5) > a and b - a == candidate(-1, 3)\n"
        ),
    ),
    "approximate floats with own isclose class": (
        (
            "class f(float):\n"
            "    def __eq__(self, o): return abs(float(self) - float(o)) < 1e-9\n"
            "    __hash__ = float.__hash__\n"
        ),
        (
            "def check(candidate):\n"
            "    assert candidate(0.1 + 0.2) == 0.3 and candidate(0.5) != 0.4 and [candidate(0.3)] == [0.3]\n"
        ),
    ),
    "matcher that equals by regular expression": (
        (
            "import re\n"
            "class f:\n"
            "    def __init__(self, p): self.p = re.compile(p)\n"
            "    def __eq__(self, o): return isinstance(o, str) and bool(self.p.fullmatch(o))\n"
            "    def __hash__(self): return hash(self.p)\n"
        ),
        (
            "def check(candidate):\n"
            "    assert candidate('a+') == 'aaa' and candidate('a+') != 'b' and ['ab'] == [candidate('a.')]\n"
        ),
    ),
    "symbolic expressions that build equality": (
        (
            "class Expr:\n"
            "    def __init__(self, text): self.text = text\n"
            "    def __eq__(self, o): return Expr(f'({self.text} == {getattr(o, \"text\", o)})')\n"
            "    def __add__(self, o): return Expr(f'({self.text} + {getattr(o, \"text\", o)})')\n"
            "    __hash__ = None\n"
            "def f(name): return Expr(name)\n"
        ),
        (
            "def check(candidate):\n"
            "    e = (candidate('x') + 1) == candidate('y')\n"
            "    assert e.text == '((x + 1) == y)'\n"
        ),
    ),
    "vector whose comparison is by item": (
        (
            "class f(list):\n"
            "    def __eq__(self, o): return f(a == b for a, b in zip(self, o))\n"
            "    def __lt__(self, o): return f(a < o for a in self)\n"
            "    def __getitem__(self, k):\n"
            "        if isinstance(k, f): return f(x for x, keep in zip(self, k) if keep)\n"
            "        return list.__getitem__(self, k)\n"
        ),
        (
            "def check(candidate):\n"
            "    v = candidate([1, 5, 2])\n"
            "    assert list(v < 3) == [True, False, True] and list(v[v < 3]) == [1, 2]\n"
            "    assert all(v == [1, 5, 2])\n"
        ),
    ),
    "context variables over tasks": (
        (
            "import asyncio, contextvars\n"
            "var = contextvars.ContextVar('v', default=0)\n"
            "async def one(i):\n"
            "    var.set(i)\n"
            "    await asyncio.sleep(0)\n"
            "    return var.get()\n"
            "async def f(n):\n"
            "    return await asyncio.gather(*(one(i) for i in range(n)))\n"
        ),
        ("import asyncio\ndef check(candidate):\n    assert asyncio.run(candidate(4)) == [0, 1, 2, 3]\n"),
    ),
    "threads with a queue": (
        (
            "import queue, threading\n"
            "def f(items):\n"
            "    q, out, lock = queue.Queue(), [], threading.Lock()\n"
            "    def work():\n"
            "        while (x := q.get()) is not None:\n"
            "            with lock: out.append(x * x)\n"
            "    ts = [threading.Thread(target=work) for _ in range(3)]\n"
            "    for t in ts: t.start()\n"
            "    for i in items: q.put(i)\n"
            "    for _ in ts: q.put(None)\n"
            "    for t in ts: t.join()\n"
            "    return sorted(out)\n"
        ),
        ("def check(candidate):\n    assert candidate(range(5)) == [0, 1, 4, 9, 16]\n"),
    ),
    "process pool": (
        (
            "from concurrent.futures import ProcessPoolExecutor\n"
            "import multiprocessing as mp\n"
            "def square(x): return x * x\n"
            "def f(n):\n"
            "    with ProcessPoolExecutor(2, mp_context=mp.get_context('fork')) as pool:\n"
            "        return list(pool.map(square, range(n)))\n"
        ),
        ("def check(candidate):\n    assert candidate(5) == [0, 1, 4, 9, 16]\n"),
    ),
    "socket pair and selectors": (
        (
            "import selectors, socket\n"
            "def f(data):\n"
            "    a, b = socket.socketpair()\n"
            "    with a, b, selectors.DefaultSelector() as s:\n"
            "        s.register(b, selectors.EVENT_READ)\n"
            "        a.sendall(data)\n"
            "        (key, _), = s.select(1)\n"
            "        return key.fileobj.recv(100)\n"
        ),
        ("def check(candidate):\n    assert candidate(b'abc') == b'abc'\n"),
    ),
    "server on loopback": (
        (
            "import socket, threading\n"
            "def f(text):\n"
            "    server = socket.create_server(('127.0.0.1', 0))\n"
            "    def serve():\n"
            "        c, _ = server.accept()\n"
            "        with c: c.sendall(c.recv(100).upper())\n"
            "    t = threading.Thread(target=serve); t.start()\n"
            "    with socket.create_connection(server.getsockname()) as c:\n"
            "        c.sendall(text.encode()); got = c.recv(100).decode()\n"
            "    t.join(); server.close()\n"
            "    return got\n"
        ),
        ("def check(candidate):\n    assert candidate('abc') == 'ABC'\n"),
    ),
    "subprocess of the interpreter": (
        (
            "import subprocess, sys\n"
            "def f(code):\n"
            "    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout\n"
        ),
        ("def check(candidate):\n    assert candidate('print(6*7)') == '42\\n'\n"),
    ),
    "temporary files and sqlite": (
        (
            "import os, sqlite3, tempfile\n"
            "def f(rows):\n"
            "    with tempfile.TemporaryDirectory() as d:\n"
            "        db = sqlite3.connect(os.path.join(d, 'x.db'))\n"
            "        with db:\n"
            "            db.execute('create table t (a, b)')\n"
            "            db.executemany('insert into t values (?, ?)', rows)\n"
            "        out = db.execute('select sum(a), count(b) from t').fetchone()\n"
            "        db.close()\n"
            "    return out\n"
        ),
        ("def check(candidate):\n    assert candidate([(1, 'x'), (2, 'y')]) == (3, 2)\n"),
    ),
    "pickle of own instances": (
        (
            "import copy, pickle\n"
            "class f:\n"
            "    def __init__(self, n): self.n = n\n"
            "    def __reduce__(self): return (f, (self.n,))\n"
            "    def __eq__(self, o): return isinstance(o, f) and self.n == o.n\n"
            "    __hash__ = None\n"
        ),
        (
            "def check(candidate):\n"
            "    import copy, pickle\n"
            "    one = candidate([1])\n"
            "    assert pickle.loads(pickle.dumps(one)) == one and copy.deepcopy(one) == one and copy.copy(one).n is one.n\n"
        ),
    ),
    "recursion with a raised limit": (
        ("import sys\nsys.setrecursionlimit(6000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\n"),
        ("def check(candidate):\n    assert candidate(5000) == 5000\n"),
    ),
    "deep recursion in a big thread": (
        (
            "import sys, threading\n"
            "def f(n):\n"
            "    out = []\n"
            "    def deep(k): return 0 if k == 0 else 1 + deep(k - 1)\n"
            "    def run():\n"
            "        sys.setrecursionlimit(40000)\n"
            "        out.append(deep(n))\n"
            "    threading.stack_size(256 * 1024 * 1024)\n"
            "    t = threading.Thread(target=run); t.start(); t.join()\n"
            "    return out[0]\n"
        ),
        ("def check(candidate):\n    assert candidate(20000) == 20000\n"),
    ),
    "alarm signal": (
        (
            "import signal\n"
            "def f():\n"
            "    got = []\n"
            "    old = signal.signal(signal.SIGALRM, lambda *a: got.append(1))\n"
            "    signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
            "    signal.pause()\n"
            "    signal.signal(signal.SIGALRM, old)\n"
            "    return got\n"
        ),
        ("def check(candidate):\n    assert candidate() == [1]\n"),
    ),
    "redirected output": (
        ("import contextlib, io\ndef f(x):\n    print('hello', x)\n    return None\n"),
        (
            "import contextlib, io\n"
            "def check(candidate):\n"
            "    out = io.StringIO()\n"
            "    with contextlib.redirect_stdout(out):\n"
            "        candidate(3)\n"
            "    assert out.getvalue() == 'hello 3\\n'\n"
        ),
    ),
    "input patched by tests": (
        ("def f():\n    return int(input()) + int(input())\n"),
        (
            "from unittest.mock import patch\n"
            "def check(candidate):\n"
            "    with patch('builtins.input', side_effect=['2', '3']):\n"
            "        assert candidate() == 5\n"
        ),
    ),
    "standard input replaced by tests": (
        ("import sys\ndef f():\n    return sum(map(int, sys.stdin.read().split()))\n"),
        (
            "import io, sys\n"
            "def check(candidate):\n"
            "    old, sys.stdin = sys.stdin, io.StringIO('1 2 3')\n"
            "    try:\n"
            "        assert candidate() == 6\n"
            "    finally:\n"
            "        sys.stdin = old\n"
        ),
    ),
    "module __getattr__ and __all__": (
        (
            "import sys\n"
            "__all__ = ['f']\n"
            "def __getattr__(name):\n"
            "    if name == 'lazy': return 42\n"
            "    raise AttributeError(name)\n"
            "def f(): return sys.modules[__name__].lazy\n"
        ),
        ("def check(candidate):\n    assert candidate() == 42\n"),
    ),
    "class built by type and metaclass registry": (
        (
            "class Meta(type):\n"
            "    registry = {}\n"
            "    def __new__(m, name, bases, ns, **kw):\n"
            "        cls = super().__new__(m, name, bases, ns)\n"
            "        m.registry[name] = kw\n"
            "        return cls\n"
            "    def __len__(cls): return len(cls.registry)\n"
            "class A(metaclass=Meta, tag=1): pass\n"
            "def f(name): return type(A)(name, (A,), {'x': 1}, tag=2)\n"
        ),
        (
            "def check(candidate):\n"
            "    B = candidate('B')\n"
            "    assert B.x == 1 and len(B) == 2 and type(B).registry['B'] == {'tag': 2} and issubclass(B, B.__mro__[1])\n"
        ),
    ),
    "structural pattern matching": (
        (
            "from dataclasses import dataclass\n"
            "@dataclass\n"
            "class P:\n"
            "    x: int\n"
            "    y: int\n"
            "def f(v):\n"
            "    match v:\n"
            "        case P(x=0, y=y): return ('axis', y)\n"
            "        case P(x, y) if x == y: return 'diagonal'\n"
            "        case [a, *rest]: return (a, len(rest))\n"
            "        case {'k': v, **more}: return (v, more)\n"
            "        case str() as s: return s.upper()\n"
            "        case _: return None\n"
            "f.P = P\n"
        ),
        (
            "def check(candidate):\n"
            "    P = candidate.P\n"
            "    assert candidate(P(0, 3)) == ('axis', 3) and candidate(P(2, 2)) == 'diagonal'\n"
            "    assert candidate([1, 2, 3]) == (1, 2) and candidate({'k': 1, 'z': 2}) == (1, {'z': 2})\n"
            "    assert candidate('a') == 'A' and candidate(5) is None\n"
        ),
    ),
    "abstract base with registered virtual class": (
        (
            "from abc import ABC, abstractmethod\n"
            "class f(ABC):\n"
            "    @abstractmethod\n"
            "    def area(self): ...\n"
            "    @classmethod\n"
            "    def __subclasshook__(cls, C): return True if hasattr(C, 'area') else NotImplemented\n"
        ),
        (
            "def check(candidate):\n"
            "    class Square:\n"
            "        def area(self): return 4\n"
            "    assert isinstance(Square(), candidate) and issubclass(Square, candidate) and not isinstance(3, candidate)\n"
            "    try:\n"
            "        candidate()\n"
            "        assert False\n"
            "    except TypeError:\n"
            "        pass\n"
        ),
    ),
    "protocol checked at run time": (
        (
            "from typing import Protocol, runtime_checkable\n"
            "@runtime_checkable\n"
            "class f(Protocol):\n"
            "    def close(self) -> None: ...\n"
        ),
        (
            "def check(candidate):\n"
            "    import io\n"
            "    assert isinstance(io.StringIO(), candidate) and not isinstance(3, candidate)\n"
        ),
    ),
    "generic alias, typed dict, new type": (
        (
            "from typing import Generic, TypedDict, NewType, TypeVar, get_type_hints\n"
            "T = TypeVar('T')\n"
            "class Box(Generic[T]):\n"
            "    def __init__(self, x: T): self.x = x\n"
            "class D(TypedDict, total=False):\n"
            "    a: int\n"
            "U = NewType('U', int)\n"
            "def f(x: int) -> 'Box[int]': return Box[int](x)\n"
        ),
        (
            "def check(candidate):\n"
            "    import typing\n"
            "    assert candidate(3).x == 3 and typing.get_type_hints(candidate)['x'] is int\n"
        ),
    ),
    "enum flags with aliases": (
        (
            "from enum import Flag, auto, IntEnum, unique\n"
            "class f(Flag):\n"
            "    R = auto()\n"
            "    W = auto()\n"
            "    RW = R | W\n"
        ),
        (
            "def check(candidate):\n"
            "    assert candidate.R | candidate.W == candidate.RW and candidate.R in candidate.RW\n"
            "    assert not candidate.R & candidate.W\n"
            "    assert [m.name for m in candidate] == ['R', 'W'] and candidate(3) is candidate.RW\n"
        ),
    ),
    "lru cache with info and singledispatch": (
        (
            "import functools\n"
            "@functools.lru_cache(maxsize=None)\n"
            "def f(n): return n if n < 2 else f(n - 1) + f(n - 2)\n"
        ),
        (
            "def check(candidate):\n"
            "    assert candidate(80) == 23416728348467685\n"
            "    info = candidate.cache_info()\n"
            "    assert info.misses == 81 and info.currsize == 81\n"
            "    candidate.cache_clear()\n"
            "    assert candidate.cache_info().currsize == 0\n"
            "    assert candidate.__wrapped__(1) == 1\n"
        ),
    ),
    "memoryview, array and struct": (
        (
            "import array, struct\n"
            "def f(n):\n"
            "    a = array.array('i', range(n))\n"
            "    m = memoryview(a)\n"
            "    m[0] = 7\n"
            "    return a, m[1:3].tolist(), struct.unpack('<2h', struct.pack('<2h', 1, -1))\n"
        ),
        (
            "def check(candidate):\n"
            "    a, part, pair = candidate(4)\n"
            "    assert a.tolist() == [7, 1, 2, 3] and part == [1, 2] and pair == (1, -1) and a.itemsize == 4\n"
        ),
    ),
    "negative zero, infinities and fractions": (
        (
            "from fractions import Fraction\n"
            "import math\n"
            "def f(): return -0.0, math.inf, math.nan, Fraction(1, 3), 1e-320, complex(0, -0.0)\n"
        ),
        (
            "def check(candidate):\n"
            "    import math\n"
            "    z, i, n, q, tiny, c = candidate()\n"
            "    assert math.copysign(1, z) == -1 and i > 10**400 and n != n and q * 3 == 1 and 0 < tiny < 1e-300 and c == 0\n"
            "    assert q == 1 / candidate()[3] ** -1\n"
        ),
    ),
    "locale free formatting and unicode names": (
        (
            "def f(имя, *, größe=1):\n"
            "    return f'{имя!r:>8}|{größe:+08.2f}|{größe:,}|' + '\\N{GREEK SMALL LETTER ALPHA}'\n"
        ),
        (
            "def check(candidate):\n"
            "    assert candidate('a', größe=1234.5) == \"     'a'|+1234.50|1,234.5|α\"\n"
            "    assert candidate(имя='x').endswith('α')\n"
        ),
    ),
    "cyclic structures compare by identity": (
        ("def f():\n    a = [1]\n    a.append(a)\n    d = {}\n    d['d'] = d\n    return a, d\n"),
        (
            "def check(candidate):\n"
            "    a, d = candidate()\n"
            "    assert a[1] is a and d['d'] is d and len(a) == 2 and repr(a) == '[1, [...]]' and a[1][1][0] == 1\n"
        ),
    ),
    "heap with ties and lazy deletion": (
        (
            "import heapq\n"
            "class Item:\n"
            "    def __init__(self, p, name): self.p, self.name = p, name\n"
            "    def __lt__(self, o): return self.p < o.p\n"
            "class f:\n"
            "    def __init__(self): self.h = []\n"
            "    def push(self, p, n): heapq.heappush(self.h, Item(p, n))\n"
            "    def pop(self): return heapq.heappop(self.h).name\n"
            "    def __len__(self): return len(self.h)\n"
            "    def __bool__(self): return bool(self.h)\n"
        ),
        (
            "def check(candidate):\n"
            "    q = candidate()\n"
            "    assert not q\n"
            "    for p, n in [(3, 'c'), (1, 'a'), (2, 'b')]:\n"
            "        q.push(p, n)\n"
            "    assert len(q) == 3 and [q.pop() for _ in range(3)] == ['a', 'b', 'c'] and not q\n"
        ),
    ),
    "itertools pipelines returned lazily": (
        ("import itertools as it\ndef f(words):\n    return it.groupby(sorted(words, key=len), len)\n"),
        (
            "def check(candidate):\n"
            "    assert {k: list(g) for k, g in candidate(['a', 'bb', 'c', 'dd'])} == {1: ['a', 'c'], 2: ['bb', 'dd']}\n"
            "    assert next(candidate(['zz']))[0] == 2\n"
        ),
    ),
    "generator with cleanup by context manager": (
        (
            "import contextlib\n"
            "log = []\n"
            "@contextlib.contextmanager\n"
            "def f(name):\n"
            "    log.append('in ' + name)\n"
            "    try: yield log\n"
            "    except KeyError: log.append('swallowed')\n"
            "    finally: log.append('out')\n"
        ),
        (
            "def check(candidate):\n"
            "    with candidate('a') as got:\n"
            "        raise KeyError('x')\n"
            "    assert got == ['in a', 'swallowed', 'out']\n"
        ),
    ),
    "swallowing context manager in a class": (
        (
            "class f:\n"
            "    def __enter__(self): return self\n"
            "    def __exit__(self, kind, e, tb):\n"
            "        self.kind = kind\n"
            "        return kind is ZeroDivisionError\n"
        ),
        (
            "def check(candidate):\n"
            "    c = candidate()\n"
            "    with c:\n"
            "        1 / 0\n"
            "    assert c.kind is ZeroDivisionError\n"
            "    with candidate() as d:\n"
            "        pass\n"
            "    assert d.kind is None\n"
        ),
    ),
    "raising from with a chain": (
        ("def f(x):\n    try: return 1 / x\n    except ZeroDivisionError as e: raise ValueError('x') from e\n"),
        (
            "def check(candidate):\n"
            "    assert candidate(2) == 0.5\n"
            "    try:\n"
            "        candidate(0)\n"
            "    except ValueError as e:\n"
            "        assert isinstance(e.__cause__, ZeroDivisionError) and e.__traceback__ is not None\n"
            "        e.add_note('n')\n"
            "        assert e.__notes__ == ['n']\n"
            "    else:\n"
            "        raise AssertionError\n"
        ),
    ),
    "argparse and shlex": (
        (
            "import argparse, shlex\n"
            "def f(line):\n"
            "    p = argparse.ArgumentParser(prog='x', exit_on_error=False)\n"
            "    p.add_argument('--n', type=int, default=1)\n"
            "    p.add_argument('names', nargs='*')\n"
            "    a = p.parse_args(shlex.split(line))\n"
            "    return a.n, a.names\n"
        ),
        (
            "def check(candidate):\n"
            "    assert candidate(\"--n 3 'a b' c\") == (3, ['a b', 'c']) and candidate('') == (1, [])\n"
        ),
    ),
    "copy on write of arguments": (
        ("def f(grid):\n    for row in grid: row.reverse()\n    grid.sort()\n"),
        (
            "def check(candidate):\n"
            "    g = [[2, 1], [4, 0]]\n"
            "    assert candidate(g) is None and g == [[0, 4], [1, 2]]\n"
        ),
    ),
    "tests in doctest style by namedtuple": (
        ("from collections import namedtuple\nR = namedtuple('R', 'q r')\ndef f(a, b): return R(*divmod(a, b))\n"),
        (
            "def check(candidate):\n"
            "    assert candidate(7, 2) == (3, 1) and candidate(7, 2).q == 3 and candidate(7, 2)._replace(q=0) == (0, 1)\n"
            "    assert candidate(7, 2) < (4,)\n"
        ),
    ),
    "default dict of default dicts": (
        (
            "from collections import defaultdict\n"
            "def tree(): return defaultdict(tree)\n"
            "def f(paths):\n"
            "    t = tree()\n"
            "    for p in paths:\n"
            "        one = t\n"
            "        for part in p.split('/'): one = one[part]\n"
            "    return t\n"
        ),
        (
            "def check(candidate):\n"
            "    assert candidate(['a/b', 'a/c']) == {'a': {'b': {}, 'c': {}}}\n"
            "    assert sorted(candidate(['x/y'])['x']) == ['y']\n"
        ),
    ),
}
