"""Programs that are right, each with tests that hold when both run in one interpreter; ``test_correct`` runs them."""

CORRECT = {
    "generator": (
        "def f(n):\n    a, b = 0, 1\n    for _ in range(n):\n        yield a\n        a, b = b, a + b\n",
        "import types\nassert list(candidate(6)) == [0, 1, 1, 2, 3, 5]\nit = candidate(3)\nassert iter(it) is it\n"
        "assert next(it) == 0 and next(it) == 1 and next(it) == 1 and next(it, 'end') == 'end'\n"
        "assert 5 in candidate(10) and 4 not in candidate(10)\nassert isinstance(it, types.GeneratorType)\n"
        "assert all(a == b for a, b in zip(candidate(3), [0, 1, 1]))\nassert sum(candidate(5)) == 7",
    ),
    "endless generator": (
        "import itertools\ndef f():\n    yield from itertools.count(1)\n",
        "import itertools\nassert list(itertools.islice(candidate(), 3)) == [1, 2, 3]",
    ),
    "map, filter, zip and views": (
        "def f(d):\n    return map(str, d), filter(None, d), zip(d, d), d.keys(), d.values(), d.items()\n",
        "m, f, z, k, v, i = candidate({0: 'a', 1: 'b'})\nassert list(m) == ['0', '1'] and list(f) == [1]\n"
        "assert dict(z) == {0: 0, 1: 1}\n"
        "assert k == {0, 1} and i == {(0, 'a'), (1, 'b')} and sorted(v) == ['a', 'b']\n"
        "assert len(k) == 2 and k == {0: 'a', 1: 'b'}.keys()",
    ),
    "closure": (
        "def f(n):\n    def add(x, *, twice=False):\n        return (x + n) * (1 + twice)\n    return add\n",
        "add = candidate(2)\nassert callable(add) and add(3) == 5 and add(3, twice=True) == 10\n"
        "assert list(map(candidate(1), [1, 2])) == [2, 3]\nassert add.__name__ == 'add'",
    ),
    "decorator and lambda": (
        "def f(func):\n    def inner(*args):\n        return func(*args) * 2\n    return inner\n",
        "assert candidate(lambda x: x + 1)(2) == 6\n@candidate\ndef g(a, b):\n    return a + b\nassert g(1, 2) == 6",
    ),
    "functools": (
        "from functools import lru_cache, partial\n@lru_cache\ndef f(a, b=1):\n    'Adds.'\n"
        "    return partial(lambda x, y: x + y, a)\n",
        "import inspect\n"
        "assert candidate(1)(2) == 3 and candidate.cache_info().misses == 1 and candidate.__doc__ == 'Adds.'\n"
        "assert list(inspect.signature(candidate.__wrapped__).parameters) == ['a', 'b']",
    ),
    "copies, paths and threads of the tests": (
        "import pathlib\nclass P:\n    def __init__(self):\n        self.x = [1]\n"
        "def f(x):\n    return P() if x is None else pathlib.PurePosixPath(str(x))\n",
        "import copy, pathlib\nfrom concurrent.futures import ThreadPoolExecutor\np = candidate(None)\n"
        "q, r = copy.deepcopy(p), copy.copy(p)\nassert q.x == [1] and q is not p and r is not p\n"
        "with ThreadPoolExecutor(4) as pool:\n    paths = list(pool.map(candidate, range(20)))\n"
        "assert paths == [pathlib.PurePosixPath(str(i)) for i in range(20)]",
    ),
    "memo of a recursive test function": (
        "def f(func):\n    memo = {}\n    def inner(n):\n        if n not in memo:\n            memo[n] = func(n)\n"
        "        return memo[n]\n    return inner\n",
        "@candidate\ndef fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\nassert fib(30) == 832040",
    ),
    "class": (
        "class Stack:\n    size = 3\n    def __init__(self, items=()):\n        self.items = list(items)\n"
        "    def push(self, x):\n        self.items.append(x)\n        return self\n    def __len__(self):\n"
        "        return len(self.items)\n    def __getitem__(self, i):\n        return self.items[i]\n"
        "    def __iter__(self):\n        return iter(self.items)\n    def __str__(self):\n"
        "        return f'Stack({self.items})'\n    __repr__ = __str__\n    @property\n    def top(self):\n"
        "        return self.items[-1]\n    @classmethod\n    def of(cls, *items):\n        return cls(items)\n"
        "class Child(Stack):\n    pass\nf = Stack\n",
        "s = candidate()\nassert not s and len(s) == 0\ns.push(1).push(2)\nassert s and len(s) == 2 and s.top == 2\n"
        "assert str(s) == repr(s) == f'{s}' == 'Stack([1, 2])'\nassert list(s) == [1, 2] and s[0] == 1 and 2 in s\n"
        "assert candidate.of(1, 2).items == [1, 2] and candidate.size == 3\nassert isinstance(s, candidate)\n"
        "assert isinstance(Child(), Stack) and not isinstance(s, Child) and issubclass(Child, Stack)\n"
        "assert not isinstance(3, Stack)\nassert type(s).__name__ == 'Stack'\ns.color = 'red'\n"
        "assert s.color == 'red'\n"
        "assert hasattr(s, 'push') and not hasattr(s, 'pop')\ndel s.color\nassert not hasattr(s, 'color')\n"
        "assert not callable(s)\ntry:\n    s.nothing\nexcept AttributeError as e:\n    assert 'nothing' in str(e)",
    ),
    "linked nodes": (
        "class Node:\n    def __init__(self, v, next=None):\n        self.v, self.next = v, next\n"
        "def f(node):\n    last = None\n    while node:\n        node.next, last, node = last, node, node.next\n"
        "    return last\n",
        "head = Node(1, Node(2, Node(3)))\nfound = candidate(head)\nvalues = []\nwhile found is not None:\n"
        "    values.append(found.v)\n    last, found = found, found.next\n"
        "assert values == [3, 2, 1] and last is head",
    ),
    "class of the tests": (
        "def f(node):\n    node.seen = True\n    return node.v + (f(node.left) if node.left else 0)\n",
        "class Tree:\n    def __init__(self, v, left=None):\n        self.v, self.left = v, left\n"
        "    def double(self):\n        return 2 * self.v\n"
        "t = Tree(1, Tree(2))\nassert candidate(t) == 3 and t.seen and t.left.seen",
    ),
    "object of the tests comes back": (
        "def f(x):\n    return x, [x]\n",
        "class Thing:\n    pass\nt = Thing()\nassert candidate(t)[0] is t and candidate(t)[1][0] is t",
    ),
    "dataclass, enum and operators": (
        "from dataclasses import dataclass\nfrom enum import Enum, IntEnum\n@dataclass(order=True, frozen=True)\n"
        "class P:\n    x: int\n    y: int = 0\n    def __add__(self, o):\n"
        "        return P(self.x + o.x, self.y + o.y)\n"
        "class C(Enum):\n    RED = 1\nclass I(IntEnum):\n    ONE = 1\ndef f(x):\n    return P(x)\n",
        "assert candidate(1) == P(1, 0) and candidate(1) != P(2)\nassert (candidate(1) + P(2, 3)) == P(3, 3)\n"
        "assert P(1) < P(2) and sorted([P(2), P(1)])[0] == P(1)\n"
        "assert {P(1): 'a'}[P(1)] == 'a' and len({P(1), P(1)}) == 1\n"
        "assert C.RED is C.RED and C(1) == C.RED and C.RED.name == 'RED' and C['RED'].value == 1\n"
        "assert I.ONE == 1 and I.ONE.name == 'ONE' and isinstance(I.ONE, int)\nassert [c for c in C] == [C.RED]\n"
        "assert repr(candidate(1)) == 'P(x=1, y=0)'\nassert candidate(1) != 1 and candidate(1) is not None",
    ),
    "named tuple": (
        "from collections import namedtuple\nT = namedtuple('T', 'name count')\ndef f(n):\n    return T('a', n)\n",
        "t = candidate(2)\nassert t == ('a', 2) and t.name == 'a' and t.count == 2 and isinstance(t, tuple)\n"
        "name, count = t\nassert count == 2 and t[1] == 2 and repr(t) == \"T(name='a', count=2)\"\n"
        "assert t == T('a', 2) and t._asdict() == {'name': 'a', 'count': 2} and t in [('a', 2)]",
    ),
    "derived from plain classes": (
        "class L(list):\n    def total(self):\n        return sum(self)\nclass D(dict):\n"
        "    def __getattr__(self, k):\n        return self[k]\nclass S(str):\n    def shout(self):\n"
        "        return self.upper() + '!'\ndef f():\n    return L([1, 2]), D(a=1), S('x')\n",
        "l, d, s = candidate()\nassert l == [1, 2] and [1, 2] == l and l.total() == 3 and l + [3] == [1, 2, 3]\n"
        "l.append(4)\nassert l == [1, 2, 4] and len(l) == 3 and isinstance(l, list) and 4 in l and l[-1] == 4\n"
        "assert d == {'a': 1} and d['a'] == 1 and d.a == 1 and s == 'x' and s.shout() == 'X!' and s + 'y' == 'xy'",
    ),
    "in place": (
        "def f(l, d, s, b, n):\n    l.reverse(); l.append([9]); d['k'] = l; s.add(3); b.extend(b'z'); n[0].append(1)\n",
        "l, d, s, b, n = [1, 2], {}, {1}, bytearray(b'a'), [[]]\ninner = n[0]\n"
        "assert candidate(l, d, s, b, n) is None\n"
        "assert l == [2, 1, [9]] and d == {'k': [2, 1, [9]]} and d['k'] is l\n"
        "assert s == {1, 3} and b == b'az' and n == [[1]] and inner == [1] and n[0] is inner",
    ),
    "in place with an exception": (
        "def f(l):\n    l.pop()\n    raise ValueError('late')\n",
        "l = [1, 2]\ntry:\n    candidate(l)\nexcept ValueError:\n    pass\nassert l == [1]",
    ),
    "in place of collections": (
        "def f(q, c, o, m):\n    q.appendleft(0); c.update('aa'); o.move_to_end('x'); m['n'].append(1)\n",
        "from collections import Counter, OrderedDict, defaultdict, deque\n"
        "q, c, o, m = deque([1], 5), Counter('a'), OrderedDict(x=1, y=2), defaultdict(list)\ncandidate(q, c, o, m)\n"
        "assert q == deque([0, 1]) and q.maxlen == 5 and c['a'] == 3 and list(o) == ['y', 'x'] and m == {'n': [1]}",
    ),
    "the argument returned": (
        "def f(l):\n    l.sort()\n    return l\n",
        "l = [3, 1]\nassert candidate(l) is l and l == [1, 3]",
    ),
    "aliases and cycles": (
        "def f(l):\n    l[0].append(1)\n    x = []\n    x.append(x)\n    return [l[0]] * 2, x\n",
        "row = []\nl = [row, row]\n(a, b), x = candidate(l)\n"
        "assert row == [1] and l[0] is l[1] and a is b is row and x[0] is x",
    ),
    "callbacks": (
        "def f(key, items, seen):\n    for item in items:\n        seen(item)\n    return sorted(items, key=key)\n",
        "seen = []\nassert candidate(lambda x: -x, [1, 3, 2], seen.append) == [3, 2, 1] and seen == [1, 3, 2]\n"
        "assert candidate(key=abs, items=[-2, 1], seen=print) == [1, -2]\n"
        "assert candidate(str.lower, ['B', 'a'], len) == ['a', 'B']",
    ),
    "callbacks that call back": (
        "def f(n, g):\n    return 1 if n == 0 else n * g(n - 1)\n",
        "def g(n):\n    return candidate(n, g)\nassert candidate(20, g) == 2432902008176640000",
    ),
    "errors of callbacks": (
        "def f(g):\n    try:\n        return g()\n    except KeyError as e:\n        return f'caught {e}'\n",
        "def bad():\n    raise KeyError('k')\nassert candidate(bad) == \"caught 'k'\"\nclass Own(Exception):\n"
        "    pass\n"
        "def own():\n    raise Own('mine')\ntry:\n    candidate(own)\n    assert False\nexcept Own as e:\n"
        "    assert str(e) == 'mine'",
    ),
    "callbacks in threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(g, items):\n"
        "    with ThreadPoolExecutor(4) as pool:\n        return list(pool.map(g, items))\n",
        "assert candidate(lambda x: x * x, range(20)) == [x * x for x in range(20)]",
    ),
    "exceptions": (
        "import json\nclass Low(Exception):\n    def __init__(self, left):\n"
        "        super().__init__(f'left: {left}')\n"
        "        self.left = left\nclass Lower(Low):\n    pass\ndef f(x):\n    if x == 0:\n"
        "        raise ValueError('bad', 1)\n"
        "    if x == 1:\n        raise Lower(7)\n    if x == 2:\n        return {}['k']\n    if x == 3:\n"
        "        return 1 / 0\n"
        "    if x == 4:\n        return [][1]\n    if x == 5:\n        return json.loads('{')\n    if x == 6:\n"
        "        open('/no/file')\n    if x == 7:\n        assert x == 8, 'not eight'\n    if x == 8:\n"
        "        return f(x)\n"
        "    raise TypeError\n",
        "import json\ndef caught(x, kind):\n    try:\n        candidate(x)\n    except kind as e:\n"
        "        return e\n    assert False\n"
        "assert caught(0, ValueError).args == ('bad', 1)\ne = caught(1, Low)\n"
        "assert str(e) == 'left: 7' and e.left == 7 and type(e).__name__ == 'Lower'\nassert isinstance(e, Lower)\n"
        "assert str(caught(2, KeyError)) == \"'k'\"\nassert str(caught(3, ZeroDivisionError)) == 'division by zero'\n"
        "assert caught(4, LookupError)\n"
        "assert caught(5, json.JSONDecodeError) and 'char' in str(caught(5, ValueError))\n"
        "assert caught(6, FileNotFoundError).errno == 2 and caught(6, OSError).filename == '/no/file'\n"
        "assert 'not eight' in str(caught(7, AssertionError))\n"
        "assert 'recursion' in str(caught(8, RecursionError))\nassert caught(9, TypeError).args == ()",
    ),
    "exception as a value": (
        "def f(x):\n    return ValueError('v') if x else ValueError\n",
        "assert isinstance(candidate(1), ValueError) and str(candidate(1)) == 'v' and candidate(0) is ValueError",
    ),
    "numbers": (
        "import math\ndef f(x):\n    return x\n",
        "import math\nnan = candidate(float('nan'))\nassert nan != nan and candidate(float('-inf')) == -math.inf\n"
        "assert math.copysign(1, candidate(-0.0)) == -1.0 and candidate(0.1) + 0.2 == 0.30000000000000004\n"
        "for n in (0, -1, 2**62, 2**63, 2**64, -2**63, -2**63 - 1, 10**400, -10**400, 255, 256, -128, -129):\n"
        "    assert candidate(n) == n and type(candidate(n)) is int\n"
        "assert candidate(True) is True and candidate(1+2j) == 1+2j\n"
        "assert candidate([2**70] * 10) == [2**70] * 10 and candidate([0.5] * 99) == [0.5] * 99\n"
        "assert candidate([True] * 10)[0] is True and candidate(range(2, 9, 3)) == range(2, 9, 3)",
    ),
    "texts": (
        "def f(x):\n    return x\n",
        "for s in ('', 'é', '\\ud800', '\\x00', '🎉' * 3, 'a\\u2028b'):\n"
        "    assert candidate(s) == s and candidate([s]) == [s]\n"
        "assert candidate(b'\\xff\\x00') == b'\\xff\\x00' and candidate(bytearray(b'x')) == bytearray(b'x')",
    ),
    "containers": (
        "def f(x):\n    return x\n",
        "for v in ([], (), {}, set(), frozenset(), [[]], {'a': {1: (2, [3])}}, {(1, 2): {3}}, {frozenset({1}): None},\n"
        "          {None: ..., True: NotImplemented}, [None] * 20, tuple(range(50)), {1.5: 'x', b'k': slice(1, 2)}):\n"
        "    assert candidate(v) == v and type(candidate(v)) is type(v)\n"
        "assert list(candidate({3: 1, 1: 2})) == [3, 1]\n"
        "deep = []\nfor _ in range(300):\n    deep = [deep]\nassert candidate(deep) == deep",
    ),
    "values of the library": (
        "from collections import Counter, defaultdict, OrderedDict, deque\nfrom datetime import *\n"
        "from decimal import Decimal\n"
        "from fractions import Fraction\ndef f(x):\n    d = defaultdict(list)\n    d['a'].append(1)\n"
        "    return [Counter(x), d, OrderedDict(a=1), deque(x), Decimal('0.1'), Fraction(1, 3), date(2020, 2, 29),\n"
        "            datetime(2020, 1, 2, 3, 4, 5, 6, timezone.utc), time(1, 2), timedelta(1, 2, 3)]\n",
        "c, d, o, q, m, r, day, at, t, dt = candidate('aab')\n"
        "assert c == {'a': 2, 'b': 1} and c.most_common(1) == [('a', 2)]\n"
        "assert d == {'a': [1]} and d['new'] == [] and o == {'a': 1} and list(q) == ['a', 'a', 'b']\n"
        "assert m * 10 == 1 and r * 3 == 1 and day.day == 29 and at.tzinfo and at.microsecond == 6\n"
        "assert t.minute == 2 and dt.days == 1 and d == defaultdict(list, {'a': [1], 'new': []})\n"
        "assert Decimal('0.3') == m * 3 and isinstance(day, date) and Counter('aab') == c",
    ),
    "recursion": (
        "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n",
        "assert candidate(900) == 900",
    ),
    "deeper recursion": (
        "import sys\nsys.setrecursionlimit(20000)\ndef f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n",
        "assert candidate(15000) == 15000",
    ),
    "state between calls": (
        "count = 0\nseen = []\ndef f():\n    global count\n    count += 1\n    seen.append(count)\n    return count\n",
        "assert candidate() == 1 and candidate() == 2 and count == 2 and seen == [1, 2]",
    ),
    "names of the program": (
        "import math\nfrom math import sqrt as root, pi\nimport os.path\nfrom datetime import *\nLIMIT = 7\n"
        "table = {'a': [1]}\n"
        "def helper(x):\n    return x + 1\ndef f(x):\n    return helper(x) * LIMIT\n",
        "assert f(1) == candidate(1) == 14 and helper(1) == 2 and LIMIT == 7 and table['a'] == [1]\n"
        "assert math.sqrt(4) == root(4) == 2 and 3 < pi < 4\n"
        "assert os.path.join('a', 'b') == 'a/b' and date(2020, 1, 1).year == 2020",
    ),
    "a name like a builtin": (
        "def sum(a, b):\n    return a + b\nf = sum\n",
        "assert candidate(1, 2) == 3",
    ),
    "prints a lot": (
        "def f(n):\n    for i in range(n):\n        print('line', i, '\\r\\x00 A Q E passed')\n    return n\n",
        "assert candidate(20000) == 20000",
    ),
    "large data": (
        "def f(rows):\n    return [row[::-1] for row in rows], {str(i): i for i in range(20000)}\n",
        "rows = [[i * j for j in range(200)] for i in range(500)]\na, b = candidate(rows)\n"
        "assert a[3][0] == 3 * 199 and b['77'] == 77 and len(b) == 20000",
    ),
    "many calls": (
        "def f(x):\n    return x * 2\n",
        "assert all(candidate(i) == 2 * i for i in range(10000))",
    ),
    "context manager": (
        "class f:\n    def __init__(self):\n        self.log = []\n    def __enter__(self):\n"
        "        self.log.append('in')\n"
        "        return self\n    def __exit__(self, kind, error, trace):\n        self.log.append(str(error))\n",
        "with candidate() as c:\n    assert c.log == ['in']\nassert c.log == ['in', 'None']\ntry:\n"
        "    with candidate() as d:\n        raise KeyError('k')\nexcept KeyError:\n    pass\n"
        "assert d.log == ['in', \"'k'\"]",
    ),
    "coroutine": (
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + 1\n",
        "import asyncio\nassert asyncio.run(candidate(1)) == 2",
    ),
    "iterators as arguments": (
        "def f(it):\n    return [x for x in it]\n",
        "assert candidate(iter([1, 2])) == [1, 2] and candidate(x * x for x in range(3)) == [0, 1, 4]\n"
        "assert candidate(map(str, [1])) == ['1'] and candidate({1: 2}.keys()) == [1]\n"
        "assert candidate(reversed([1, 2])) == [2, 1]",
    ),
    "types as arguments": (
        "def f(x, kind):\n    return isinstance(x, kind), kind\n",
        "from collections import Counter\n"
        "assert candidate(1, int) == (True, int) and candidate([], dict) == (False, dict)\n"
        "assert candidate(Counter(), Counter)[0] and candidate(1, (int, str))[0]",
    ),
    "match and pattern": (
        "import re\ndef f(p, s):\n    return re.match(p, s)\n",
        "assert candidate('a(b)', 'ab').group(1) == 'b' and candidate('x', 'a') is None and candidate('a', 'a')",
    ),
    "random is seeded": (
        "import random\ndef f(word):\n    l = list(word)\n    random.shuffle(l)\n    return ''.join(l)\n",
        "assert sorted(candidate('hello')) == sorted('hello')",
    ),
    "floats nearly equal": (
        "def f(x):\n    return x ** 0.5\n",
        "import math\nassert abs(candidate(2) - 1.41421356) < 1e-6 and math.isclose(candidate(9), 3)\n"
        "assert round(candidate(2), 2) == 1.41 and candidate(4) == 2 and '%.1f' % candidate(4) == '2.0'",
    ),
    "future annotations and typing": (
        "from __future__ import annotations\nfrom typing import List, Optional\n"
        "def f(x: List[int]) -> Optional[int]:\n    return x[0] if x else None\n",
        "def check(candidate):\n    values: List[int] = [1]\n"
        "    assert candidate(values) == 1 and candidate([]) is None",
    ),
}
