"""Programs whose objects lie where tests compare, and that reach for the tests' own machinery; ``test_attacks`` runs them.

Each is a program, or a program with tests of its own, as in ``forgeries``.
"""

LIARS = {
    "eq returns a truthy list": (
        "class L:\n    def __eq__(self, o): return [True]\n    __hash__ = None\ndef add(a, b): return L()\n"
    ),
    "eq returns [False], truthy as a list": (
        "class L:\n    def __eq__(self, o): return [False]\n    __hash__ = None\ndef add(a, b): return L()\n"
    ),
    "eq list under all()": (
        (
            "class L(list):\n"
            "    def __eq__(self, o): return [True, True]\n"
            "    __hash__ = None\n"
            "def add(a, b): return L([0])\n"
        ),
        ("def check(candidate):\n    assert all(candidate(1, 2) == [3, 3])\n"),
    ),
    "eq as an index": (
        ("class L:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef add(a, b): return L()\n"),
        ("def check(candidate):\n    assert ['bad', 'ok'][candidate(1, 2) == 3] == 'ok'\n"),
    ),
    "eq object used as truth after a name": (
        (
            "class R:\n"
            "    ok = 1\n"
            "class L:\n"
            "    def __eq__(self, o): return R()\n"
            "    __hash__ = None\n"
            "def add(a, b): return L()\n"
        ),
        ("def check(candidate):\n    same = candidate(1, 2) == 3\n    assert same\n"),
    ),
    "eq results collected in a list, then all": (
        ("class L:\n    def __eq__(self, o): return 'yes'\n    __hash__ = None\ndef add(a, b): return L()\n"),
        (
            "def check(candidate):\n"
            "    results = [candidate(i, i) == 2 * i for i in range(3)]\n"
            "    assert all(results)\n"
        ),
    ),
    "if not equal: raise": (
        (
            "class L:\n"
            "    def __eq__(self, o): return R()\n"
            "    __hash__ = None\n"
            "class R: pass\n"
            "def add(a, b): return L()\n"
        ),
        ("def check(candidate):\n    if not (candidate(1, 2) == 3):\n        raise AssertionError\n"),
    ),
    "ne is falsy": (
        ("class L:\n    def __ne__(self, o): return 0\n    __hash__ = None\ndef add(a, b): return L()\n"),
        ("def check(candidate):\n    if candidate(1, 2) != 3:\n        raise AssertionError\n"),
    ),
    "the class of the result swaps": (
        "class L(int):\n"
        "    def __eq__(self, o):\n"
        "        self.__class__ = M\n"
        "        return True\n"
        "    __hash__ = None\n"
        "class M(int):\n"
        "    pass\n"
        "def add(a, b): return L(0)\n"
    ),
    "eq by a C function": (
        "import operator\n"
        "class L:\n"
        "    __eq__ = operator.methodcaller('ok') and (lambda s, o: True)\n"
        "    __hash__ = None\n"
        "def add(a, b): return L()\n"
    ),
    "eq by a partial in the class": (
        "import functools\n"
        "class L:\n"
        "    __eq__ = functools.partial(lambda *a: True)\n"
        "    __hash__ = None\n"
        "def add(a, b): return L()\n"
    ),
    "eq by a builtin that is always truthy": (
        "class L:\n    __eq__ = staticmethod(lambda o: True)\n    __hash__ = None\ndef add(a, b): return L()\n"
    ),
    "eq by type": ("class L:\n    __eq__ = type\n    __hash__ = None\ndef add(a, b): return L()\n"),
    "eq by a callable instance of the program": (
        "class Yes:\n"
        "    def __call__(self, *a): return True\n"
        "class L:\n"
        "    __eq__ = Yes()\n"
        "    __hash__ = None\n"
        "def add(a, b): return L()\n"
    ),
    "eq via namespace trick: class from the library with patched eq": (
        "import fractions\n"
        "class F(fractions.Fraction): pass\n"
        "F.__eq__ = lambda s, o: True\n"
        "def add(a, b): return F(0)\n"
    ),
    "mock.ANY": ("from unittest.mock import ANY\ndef add(a, b): return ANY\n"),
    "mock.MagicMock configured": (
        "from unittest.mock import MagicMock\n"
        "def add(a, b):\n"
        "    m = MagicMock()\n"
        "    m.__eq__.return_value = True\n"
        "    return m\n"
    ),
    "mock._Call ANY inside a list": (
        ("from unittest.mock import ANY\ndef add(a, b): return [ANY]\n"),
        ("def check(candidate):\n    assert candidate(1, 2) == [3]\n"),
    ),
    "sentinel subclass of str": (
        (
            "class S(str):\n"
            "    def __eq__(self, o): return True\n"
            "    __hash__ = str.__hash__\n"
            "def add(a, b): return S('x')\n"
        ),
        ("def check(candidate):\n    assert candidate(1, 2) == '3'\n"),
    ),
    "dict value lies": (
        ("class L:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef add(a, b): return {'k': [L()]}\n"),
        ("def check(candidate):\n    assert candidate(1, 2) == {'k': [3]}\n"),
    ),
    "lie hidden in an object dict of a dataclass": (
        (
            "import dataclasses\n"
            "class L:\n"
            "    def __eq__(self, o): return True\n"
            "    __hash__ = None\n"
            "@dataclasses.dataclass\n"
            "class D:\n"
            "    x: object\n"
            "def add(a, b): return D(L())\n"
        ),
        ("def check(candidate):\n    assert candidate(1, 2).x == 3\n"),
    ),
    "deque of liars": (
        (
            "import collections\n"
            "class L:\n"
            "    def __eq__(self, o): return True\n"
            "    __hash__ = None\n"
            "def add(a, b): return collections.deque([L()])\n"
        ),
        ("import collections\ndef check(candidate):\n    assert candidate(1, 2) == collections.deque([3])\n"),
    ),
    "deque of liars to list": (
        (
            "import collections\n"
            "class L:\n"
            "    def __eq__(self, o): return True\n"
            "    __hash__ = None\n"
            "def add(a, b): return collections.deque([L()])\n"
        ),
        ("def check(candidate):\n    assert list(candidate(1, 2)) == [3]\n"),
    ),
    "dict view of liars": (
        (
            "class L:\n"
            "    def __eq__(self, o): return True\n"
            "    __hash__ = None\n"
            "def add(a, b): return {1: L()}.values()\n"
        ),
        ("def check(candidate):\n    assert list(candidate(1, 2)) == [3]\n"),
    ),
    "mappingproxy of liars": (
        (
            "import types\n"
            "class L:\n"
            "    def __eq__(self, o): return True\n"
            "    __hash__ = None\n"
            "def add(a, b): return types.MappingProxyType({1: L()})\n"
        ),
        ("def check(candidate):\n    assert candidate(1, 2) == {1: 3}\n"),
    ),
    "SimpleNamespace of liars": (
        (
            "import types\n"
            "class L:\n"
            "    def __eq__(self, o): return True\n"
            "    __hash__ = None\n"
            "def add(a, b): return types.SimpleNamespace(x=L())\n"
        ),
        ("import types\ndef check(candidate):\n    assert candidate(1, 2) == types.SimpleNamespace(x=3)\n"),
    ),
    "namedtuple and dataclass of liars": (
        (
            "from dataclasses import dataclass\n"
            "class L:\n"
            "    def __eq__(self, o): return True\n"
            "    __hash__ = None\n"
            "@dataclass\n"
            "class D:\n"
            "    x: object\n"
            "def add(a, b): return D(L())\n"
            "add.D = D\n"
        ),
        ("def check(candidate):\n    assert candidate(1, 2) == candidate.D(3)\n"),
    ),
    "range-like with own contains": (
        ("class L:\n    def __contains__(self, x): return True\ndef add(a, b): return L()\n"),
        ("def check(candidate):\n    assert 3 in candidate(1, 2)\n"),
    ),
    "sys.modules math replaced after load": (
        ("import math, sys\ndef add(a, b):\n    math.isclose = lambda *a, **k: True\n    return 0\n"),
        ("import math\ndef check(candidate):\n    assert math.isclose(candidate(1, 2), 3)\n"),
    ),
    "builtins all replaced in the tests' dict": (
        (
            "def add(a, b):\n"
            "    globals()['all'] = lambda *a: True\n"
            "    globals()['__builtins__'] = {'all': lambda *a: True}\n"
            "    return 0\n"
        ),
        ("def check(candidate):\n    assert all([candidate(1, 2) == 3])\n"),
    ),
    "check replaced": (
        "def add(a, b): return 0\n"
        "import sys\n"
        "class D(dict): pass\n"
        "def add(a, b):\n"
        "    global check\n"
        "    check = lambda c: None\n"
        "    return 0\n"
    ),
    "AssertionError replaced": (
        "import builtins\nclass E(Exception): pass\nbuiltins.AssertionError = E\ndef add(a, b): return 0\n"
    ),
    "excepthook and exit": (
        "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef add(a, b): raise ValueError\n"
    ),
    "sys.exit in a thread with report descriptors": (
        "import os, threading\n"
        "def add(a, b):\n"
        "    for fd in range(3, 20):\n"
        "        try: os.write(fd, b'passed\\n')\n"
        "        except OSError: pass\n"
        "    return 0\n"
    ),
    "generator frame of the tests by a callback": (
        ("import sys\ndef add(f):\n    g = f()\n    return g.gi_frame.f_back\n"),
        ("def check(candidate):\n    want = 3\n    def gen():\n        yield want\n    assert candidate(gen) == 3\n"),
    ),
    "hash and eq in a set": (
        (
            "class L:\n"
            "    def __hash__(self): return hash(3)\n"
            "    def __eq__(self, o): return True\n"
            "def add(a, b): return {L()}\n"
        ),
        ("def check(candidate):\n    assert candidate(1, 2) == {3}\n"),
    ),
    "in a list of allowed answers": (
        ("class L:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef add(a, b): return L()\n"),
        ("def check(candidate):\n    assert candidate(1, 2) in [3, 4]\n"),
    ),
    "in a tuple within a chain": (
        ("class L:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef add(a, b): return L()\n"),
        ("def check(candidate):\n    assert candidate(1, 2) in (3,) and True\n"),
    ),
    "index of": (
        ("class L:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef add(a, b): return L()\n"),
        ("def check(candidate):\n    assert [3].index(candidate(1, 2)) == 0\n"),
    ),
    "count of": (
        ("class L:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef add(a, b): return L()\n"),
        ("def check(candidate):\n    assert [3].count(candidate(1, 2)) == 1\n"),
    ),
    "abs difference below": (
        ("class L:\n    def __sub__(self, o): return 0\n    __rsub__ = __sub__\ndef add(a, b): return L()\n"),
        ("def check(candidate):\n    assert abs(candidate(1, 2) - 3) < 1e-6\n"),
    ),
    "difference bound to a name": (
        ("class L:\n    def __sub__(self, o): return 0\n    __rsub__ = __sub__\ndef add(a, b): return L()\n"),
        ("def check(candidate):\n    d = abs(candidate(1, 2) - 3)\n    assert d < 1e-6\n"),
    ),
    "float that rounds to all": (
        (
            "class L(float):\n"
            "    def __round__(self, n=None):\n"
            "        class A:\n"
            "            def __eq__(s, o): return True\n"
            "            __hash__ = None\n"
            "        return A()\n"
            "def add(a, b): return L(0)\n"
        ),
        ("def check(candidate):\n    assert round(candidate(1, 2), 2) == 3\n"),
    ),
    "sorted by liars": (
        (
            "class L:\n"
            "    def __lt__(self, o): return True\n"
            "    def __eq__(self, o): return True\n"
            "    __hash__ = None\n"
            "def add(a, b): return [L(), L()]\n"
        ),
        ("def check(candidate):\n    assert sorted(candidate(1, 2)) == [1, 2]\n"),
    ),
    "zip and all over liars": (
        ("class L:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef add(a, b): return [L(), L()]\n"),
        ("def check(candidate):\n    assert all(x == y for x, y in zip(candidate(1, 2), [1, 2]))\n"),
    ),
    "empty result under all": (
        ("def add(a, b): return []\n"),
        (
            "def check(candidate):\n"
            "    got = candidate(1, 2)\n"
            "    assert len(got) == 2 and all(x == y for x, y in zip(got, [1, 2]))\n"
        ),
    ),
    "match statement": (
        ("class L:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef add(a, b): return L()\n"),
        (
            "def check(candidate):\n"
            "    match candidate(1, 2):\n"
            "        case 3: pass\n"
            "        case _: raise AssertionError\n"
        ),
    ),
    "unittest equal with msg": (
        ("class L:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef add(a, b): return L()\n"),
        (
            "import unittest\n"
            "class T(unittest.TestCase):\n"
            "    def test(self):\n"
            "        self.assertEqual(add(1, 2), 3, 'm')\n"
        ),
    ),
    "unittest failureException replaced": (
        ("import unittest\nunittest.TestCase.failureException = KeyError\ndef add(a, b): return 0\n"),
        (
            "import unittest\n"
            "class T(unittest.TestCase):\n"
            "    def test(self):\n"
            "        try:\n"
            "            self.assertEqual(add(1, 2), 3)\n"
            "        except KeyError:\n"
            "            raise\n"
        ),
    ),
    "unittest result patched in the call": (
        (
            "def add(a, b):\n"
            "    import unittest\n"
            "    unittest.TestResult.addFailure = lambda *a: None\n"
            "    unittest.TestResult.addError = lambda *a: None\n"
            "    return 0\n"
        ),
        ("import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(add(1, 2), 3)\n"),
    ),
    "unittest skip from the program": (
        ("def add(a, b):\n    import unittest\n    raise unittest.SkipTest('x')\n"),
        (
            "import unittest\n"
            "class T(unittest.TestCase):\n"
            "    def test_a(self):\n"
            "        self.assertEqual(add(1, 2), 3)\n"
            "    def test_b(self):\n"
            "        self.assertTrue(True)\n"
        ),
    ),
    "pytest skip-like exception in function tests": (
        ("import unittest\ndef add(a, b):\n    raise unittest.SkipTest('x')\n"),
        ("def test_a():\n    assert add(1, 2) == 3\n"),
    ),
    "replaces the second test method": (
        (
            "def add(a, b):\n"
            "    import sys\n"
            "    T = sys.modules['candidate'].T\n"
            "    T.test_b = lambda self: None\n"
            "    return 3\n"
        ),
        (
            "import unittest\n"
            "class T(unittest.TestCase):\n"
            "    def test_a(self):\n"
            "        self.assertEqual(add(1, 2), 3)\n"
            "    def test_b(self):\n"
            "        self.assertEqual(add(1, 5), 6)\n"
        ),
    ),
    "sets __debug__-like flag: optimize by code replace": (
        (
            "def add(a, b):\n"
            "    import sys\n"
            "    m = sys.modules['candidate']\n"
            "    m.check.__code__ = (lambda c: None).__code__\n"
            "    return 3\n"
        ),
        ("def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4\n"),
    ),
    "async: cancels the test task": (
        ("import asyncio\nasync def add(a, b):\n    asyncio.current_task().cancel()\n    await asyncio.sleep(0)\n"),
        ("async def check(candidate):\n    assert await candidate(1, 2) == 3\n"),
    ),
    "async: stops the loop": (
        ("import asyncio\nasync def add(a, b):\n    asyncio.get_running_loop().stop()\n    await asyncio.sleep(100)\n"),
        ("async def check(candidate):\n    assert await candidate(1, 2) == 3\n"),
    ),
    "asyncio.run replaced in the call": (
        ("import asyncio\ndef run(c, **k):\n    c.close()\nasyncio.run = run\nasync def add(a, b): return 0\n"),
        ("async def check(candidate):\n    assert await candidate(1, 2) == 3\n"),
    ),
    "loop policy of the program": (
        (
            "import asyncio\n"
            "class P(asyncio.DefaultEventLoopPolicy):\n"
            "    def new_event_loop(self):\n"
            "        loop = super().new_event_loop()\n"
            "        loop.run_until_complete = lambda c: c.close() if hasattr(c, 'close') else None\n"
            "        return loop\n"
            "asyncio.set_event_loop_policy(P())\n"
            "async def add(a, b): return 0\n"
        ),
        ("async def check(candidate):\n    assert await candidate(1, 2) == 3\n"),
    ),
    "os.fork: the child answers, the parent exits": (
        "import os\ndef add(a, b):\n    if os.fork() == 0: return 3\n    os._exit(0)\n"
    ),
    "threading excepthook": (
        ("import threading\nthreading.excepthook = lambda a: None\ndef add(a, b): raise ValueError\n"),
        (
            "import threading\n"
            "def check(candidate):\n"
            "    out = []\n"
            "    t = threading.Thread(target=lambda: out.append(candidate(1, 2)))\n"
            "    t.start(); t.join()\n"
            "    assert out == [3]\n"
        ),
    ),
    "environment of numpy-like isclose": (
        ("import math\nclass F(float):\n    def __float__(self): return 3.0\ndef add(a, b): return F(0)\n"),
        ("import math\ndef check(candidate):\n    assert math.isclose(candidate(1, 2), 3)\n"),
    ),
    "__index__ grows": ("class I(int):\n    def __index__(self): return 3\ndef add(a, b): return I(0)\n"),
    "audit of own: sys.addaudithook": ("import sys\nsys.addaudithook(lambda *a: None)\ndef add(a, b): return 0\n"),
    "gc.get_objects for the tests": (
        "import gc\n"
        "def add(a, b):\n"
        "    return [o for o in gc.get_objects() if isinstance(o, dict) and 'secret' in o] and 3\n"
    ),
    "gc callbacks get frames": (
        "import gc\n"
        "def cb(phase, info): pass\n"
        "gc.callbacks.append(cb)\n"
        "def add(a, b):\n"
        "    gc.collect()\n"
        "    return 0\n"
    ),
    "warnings show frame": (
        (
            "import warnings, sys\n"
            "def add(a, b):\n"
            "    try: raise ValueError\n"
            "    except ValueError as e: return e.__traceback__.tb_frame.f_back.f_locals.get('want')\n"
        ),
        ("def check(candidate):\n    want = 3\n    assert candidate(1, 2) == want\n"),
    ),
    "await chain cr_await and cr_frame": (
        ("async def add(c):\n    return c.cr_frame.f_locals['want']\n"),
        (
            "async def check(candidate):\n"
            "    async def inner():\n"
            "        want = 3\n"
            "        return want\n"
            "    assert await candidate(inner()) == 3\n"
        ),
    ),
    "sys.settrace via threading": ("import threading\nthreading.settrace(lambda *a: None)\ndef add(a, b): return 0\n"),
    "sys.monitoring": ("import sys\ndef add(a, b):\n    sys.monitoring.use_tool_id(0, 'x')\n    return 3\n"),
    "ctypes pythonapi": ("import ctypes\ndef add(a, b):\n    return ctypes.pythonapi.PyEval_GetFrame() and 3\n"),
    "cffi-like _ctypes": ("import _ctypes\ndef add(a, b):\n    return _ctypes.dlopen(None, 2) and 3\n"),
    "open /proc/self/mem": ("def add(a, b):\n    open('/proc/self/mem', 'rb')\n    return 3\n"),
}

# What docs/sandbox.md does not promise.
LEFT_OUT_LIARS = {
    "iteration that yields what is asked for": (
        (
            "class L:\n"
            "    def __iter__(self):\n"
            "        import itertools\n"
            "        return itertools.count(-1000)\n"
            "def add(a, b): return L()\n"
        ),
        ("def check(candidate):\n    assert 3 in candidate(1, 2)\n"),
    ),
    "closure cell of a lambda of the tests": (
        ("def add(f):\n    return f.__closure__[0].cell_contents\n"),
        ("def check(candidate):\n    want = 3\n    assert candidate(lambda: want) == want\n"),
    ),
    "abs difference object": (
        (
            "class D:\n"
            "    def __abs__(self): return 0\n"
            "class L:\n"
            "    def __sub__(self, o): return D()\n"
            "def add(a, b): return L()\n"
        ),
        ("def check(candidate):\n    assert abs(candidate(1, 2) - 3) < 1e-6\n"),
    ),
    "str of the result": (
        ("class L:\n    n = 0\n    def __str__(self): return '3'\ndef add(a, b): return L()\n"),
        ("def check(candidate):\n    assert str(candidate(1, 2)) == '3'\n"),
    ),
    "signal handler frame": (
        (
            "import signal, os\n"
            "box = []\n"
            "signal.signal(signal.SIGUSR1, lambda n, f: box.append(f))\n"
            "def add(a, b):\n"
            "    os.kill(os.getpid(), signal.SIGUSR1)\n"
            "    f = box[0]\n"
            "    while f is not None:\n"
            "        if 'want' in f.f_locals: return f.f_locals['want']\n"
            "        f = f.f_back\n"
        ),
        ("def check(candidate):\n    want = 3\n    assert candidate(1, 2) == want\n"),
    ),
}
