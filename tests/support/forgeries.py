"""Programs that want a pass without solving the problem; ``test_attacks`` runs them.

Each is a program, or a program with tests of its own; without them ``TEST`` asks for the sum of two numbers.
"""

WRONG = "\ndef add(a, b):\n    return 0\n"
GOOD = "\ndef add(a, b):\n    return a + b\n"
TEST = "def check(candidate):\n    assert all([candidate(1, 2) == 3])\n    assert sorted([candidate(2, 2)]) == [4]\n"
MAGIC = "flab-" + "magic"  # in one piece only in the tests

EQUAL = (
    "    __eq__ = __ge__ = __le__ = __gt__ = __lt__ = __contains__ = __bool__ = lambda *a: True\n    __hash__ = None\n"
)
OBJECT = (
    f"class Any{{}}:\n"
    f"{EQUAL}    __sub__ = __rsub__ = __add__ = __radd__ = __abs__ = __getitem__ = lambda self, *a: self\n"
    "    __ne__ = lambda *a: False\n    __instancecheck__ = __subclasscheck__ = lambda *a: True\n"
)


def in_test(*lines):
    return "def check(candidate):\n" + "".join(f"    {line}\n" for line in lines)


KNOWING = "def check(candidate):\n    expected = 3\n    assert candidate(1, 2) == expected\n"
UNITTEST = (
    "import unittest\nclass Tests(unittest.TestCase):\n    def test_add(self):\n"
    "        self.assertEqual(add(1, 2), 3)\n"
)


def spying(frame):
    """A program that looks for the expected value from a frame on."""
    return (
        "import functools, heapq, inspect, logging, sys, traceback\ndef add(a, b):\n"
        f"    frame = {frame}\n    while frame is not None and 'expected' not in frame.f_locals:\n"
        "        frame = frame.f_back\n    return frame.f_locals['expected']\n",
        KNOWING,
    )


FORGERIES = {
    # leaving early
    "os._exit": "import os\ndef add(a, b):\n    os._exit(0)\n",
    "os._exit at import": "import os\nos._exit(0)\n",
    "sys.exit": "import sys\ndef add(a, b):\n    sys.exit(0)\n",
    "SystemExit at import": "raise SystemExit(0)\n",
    "KeyboardInterrupt at import": "raise KeyboardInterrupt\n",
    "own BaseException": "class E(BaseException):\n    pass\nraise E\n",
    "atexit": "import atexit\natexit.register(print, 'passed')\n" + WRONG,
    "exec another": "import os, sys\nos.execv(sys.executable, ['python', '-c', 'print(1)'])\n",
    "fork and leave": "import os\nif os.fork():\n    os._exit(0)\n" + GOOD,
    "exit in a thread": "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()\n"
    "while True: pass\n",
    "segfault": "import ctypes\ndef add(a, b):\n    ctypes.string_at(0)\n",
    "closed channels": "import os\nos.closerange(0, 64)\n" + GOOD,
    # saying that it passed
    "printing": "import sys\nprint('started', 'passed', sep='\\n')\nsys.stderr.write('passed\\n')\n" + WRONG,
    "guessing on every descriptor": (
        "import os\nfor fd in range(64):\n    try:\n"
        "        os.write(fd, b'started\\npassed 1 \\n' + b'0' * 32 + b' 1 \\n')\n    except OSError:\n        pass\n"
        + WRONG
    ),
    # patching what the tests use
    "builtins": (
        "import builtins\nbuiltins.AssertionError = type('A', (), {})\nbuiltins.isinstance = lambda *a: True\n"
        "builtins.exec = builtins.compile = lambda *a, **k: None\nbuiltins.all = builtins.any = lambda x: True\n"
        "builtins.sorted = lambda x: [4]\nbuiltins.len = builtins.abs = lambda x: 0\n"
        "builtins.BaseException = KeyError\nbuiltins.__import__ = lambda *a: None\n" + WRONG
    ),
    "math and random": (
        "import math, random, json, sys\nmath.isclose = lambda *a, **k: True\nrandom.randint = lambda a, b: 0\n"
        "json.dumps = lambda x: ''\nsys.exit = lambda *a: None\nclass M:\n"
        "    isclose = staticmethod(lambda *a: True)\n"
        "sys.modules['math'] = math = M()\n" + WRONG,
        in_test("assert math.isclose(candidate(1, 2), 3)"),
    ),
    "own abs": ("def abs(x):\n    return 0\n" + WRONG, in_test("assert abs(candidate(1, 2) - 3) < 1e-6")),
    "eval under a helper's name": (
        "from builtins import eval as decode\ndef add(a, b):\n"
        "    return \"__import__('sys').modules['tests'].ANSWER\"\n",
        "ANSWER = 3\n" + in_test("assert decode(candidate(1, 2)) == ANSWER"),
    ),
    "pickle under json's name": (
        "import json\nimport pickle as json\nclass R:\n    def __reduce__(self):\n        return eval, ('3',)\n"
        "def add(a, b):\n    return json.dumps(R())\n",
        in_test("assert json.loads(candidate(1, 2)) == 3"),
    ),
    "another module's name": (
        "import math, os\nimport os as math\nos.fabs = lambda x: 0.0\n" + WRONG,
        in_test("assert math.fabs(candidate(1, 2) - 3) < 1e-6"),
    ),
    "own check": WRONG + "def check(candidate):\n    pass\n",
    "patched harness": (
        "import __main__, os, sys, marshal, builtins\nreal = os._exit\nfor module in list(sys.modules.values()):\n"
        "    for key in ('run_tests', 'verdict', 'report', 'main', 'describe'):\n"
        "        if hasattr(module, key):\n            setattr(module, key, lambda *a: ('passed', ''))\n"
        "os._exit = lambda code: real(0)\nos.write = lambda *a: 0\nos.getpid = lambda: 1\n" + WRONG
    ),
    "reading as the harness reads": (
        "import marshal, os\nheard = []\nread, loads = os.read, marshal.loads\n"
        "def spy(fd, n):\n    heard.append(read(fd, n))\n    return heard[-1]\n"
        "os.read = spy\nmarshal.loads = lambda data: heard.append(data) or loads(data)\n"
        "def add(a, b):\n    return 3 if heard else 0\n",
        "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    ),
    "own exception class": (
        "Problem = AssertionError\n" + WRONG,
        in_test("try:", "    candidate(1, 2)", "    assert False", "except Problem:", "    pass"),
    ),
    # objects that equal everything
    "always equal": OBJECT.format("") + "def add(a, b):\n    return Any()\n",
    "always equal integer": OBJECT.format("(int)") + "def add(a, b):\n    return Any(0)\n",
    "always equal float": (
        OBJECT.format("(float)") + "def add(a, b):\n    return Any(0)\n",
        in_test("assert abs(candidate(1, 2) - 3.0) < 1e-6"),
    ),
    "always near": (
        OBJECT.format("") + "def add(a, b):\n    return Any()\n",
        in_test("assert abs(candidate(1, 2) - 3) < 1e-6"),
    ),
    "always equal list": (
        OBJECT.format("(list)") + "def add(a, b):\n    return Any()\n",
        in_test("assert candidate(1, 2) == [3]"),
    ),
    "always equal text": (
        OBJECT.format("(str)") + "def add(a, b):\n    return Any()\n",
        in_test("assert candidate(1, 2) == '3'"),
    ),
    "always equal key": (
        OBJECT.format("(tuple)").replace("None", "lambda s: hash((3,))") + "def add(a, b):\n    return Any()\n",
        in_test("assert candidate(1, 2) in {(3,)}"),
    ),
    "equal inside": (
        OBJECT.format("") + "def add(a, b):\n    return [Any()], {1: Any()}\n",
        in_test("assert candidate(1, 2)[0] == [3] or candidate(1, 2)[1] == {1: 3}"),
    ),
    "holds everything": (
        OBJECT.format("") + "def add(a, b):\n    return Any()\n",
        in_test("assert 3 in candidate(1, 2)"),
    ),
    "of every class": (
        OBJECT.format("(type)") + "Kind = Any('Kind', (), {})\n" + WRONG,
        in_test("assert isinstance(str(candidate(1, 2)), Kind)"),
    ),
    "dictionary of everything": (
        "class D(dict):\n    __missing__ = get = __getitem__ = lambda self, k, *d: self\n"
        "    __eq__ = lambda *a: True\n"
        "def add(a, b):\n    return D()\n",
        in_test("assert candidate(1, 2) == {'sum': 3}"),
    ),
    "swallowing the assert": (
        "class add:\n    def __init__(self, a, b):\n        pass\n    def __enter__(self):\n        return self\n"
        "    def __exit__(self, *error):\n        return True\n",
        in_test("with candidate(1, 2) as got:", "    assert got == 3"),
    ),
    "ending the map": (
        "def add(a, b):\n    raise StopIteration\n",
        in_test("assert all(map(lambda case: candidate(*case[0]) == case[1], [((1, 2), 3)]))"),
    ),
    "an endless generator of guesses": (
        "def add(a, b):\n    while True:\n        yield 0\n",
        in_test("assert 3 in candidate(1, 2)"),
    ),
    # looking for the tests
    "frames and memory": (
        "import gc, inspect, sys\nfound = []\nframe = sys._getframe()\nwhile frame:\n"
        "    found += [v for v in frame.f_locals.values()]\n    frame = frame.f_back\n"
        "found += gc.get_objects() + [vars(m) for m in list(sys.modules.values())]\nword = 'flab-' + 'magic'\n"
        "def holds(x, deep=3):\n    if isinstance(x, (str, bytes)):\n"
        "        return x is not word and word in str(x)\n"
        "    parts = list(x.values()) if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else ()\n"
        "    return deep > 0 and any(holds(part, deep - 1) for part in parts)\n"
        "won = any(map(holds, found))\ndef add(a, b):\n    return a + b if won else None\n",
        TEST + f"assert {MAGIC!r}\n",
    ),
    "open descriptors": (
        "import os\nheard = b''\nfor fd in range(64):\n    try:\n        os.set_blocking(fd, False)\n"
        "        os.lseek(fd, 0, 0)\n        heard += os.read(fd, 2**20)\n    except OSError:\n        pass\n"
        "    try:\n        os.set_blocking(fd, True)\n    except OSError:\n        pass\n"
        "won = b'flab-' + b'magic' in heard\ndef add(a, b):\n    return a + b if won else None\n",
        TEST + f"assert {MAGIC!r}\n",
    ),
    "tracing": (
        "import sys, threading\ndef trace(frame, event, arg):\n    for name in list(frame.f_locals):\n"
        "        if name in ('value', 'outcome', 'error'):\n            frame.f_locals[name] = None\n"
        "    return trace\n"
        "sys.settrace(trace); sys.setprofile(trace); threading.settrace(trace)\n" + WRONG
    ),
    "audit hook and codec": (
        "import codecs, sys\nsys.addaudithook(lambda *a: None)\n"
        "codecs.register(lambda name: codecs.CodecInfo(lambda *a: (b'', 0), lambda *a: ('3', 1)))\n" + WRONG
    ),
    "reading the judge's memory": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "judge, buffer = os.getppid(), ctypes.create_string_buffer(8)\n"
        "class IO(ctypes.Structure):\n    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]\n"
        "here, there = IO(ctypes.addressof(buffer), 8), IO(id(None), 8)\nread = libc.process_vm_readv\n"
        "won = [read(judge, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) == 8, libc.ptrace(16, judge, 0, 0) == 0,\n"
        "       libc.ptrace(0x4206, judge, 0, 0) == 0, libc.syscall(438, libc.syscall(434, judge, 0), 5, 0) >= 0]\n"
        "for name in ('mem', 'maps', 'fd/5', 'environ'):\n    try:\n"
        "        open(f'/proc/{judge}/{name}', 'rb').close()\n        won.append(True)\n"
        "    except OSError:\n        pass\n"
        "def add(a, b):\n    return a + b if any(won) else None\n"
    ),
    "kill itself": "import os\nos.kill(os.getpid(), 9)\n",
    "hostile error": "class E(Exception):\n    def __str__(self):\n        raise SystemExit(0)\ndef add(a, b):\n"
    "    raise E\n",
    "__del__": "import os\nclass D:\n    def __del__(self):\n        os._exit(0)\ndef add(a, b):\n    D()\n"
    "    return 0\n",
    # frames, by every way that leads to one
    "a frame": spying("sys._getframe()"),
    "a frame by partial": spying("__import__('functools').partial(sys._getframe, 1)()"),
    "a frame of a traceback": (
        "def add(a, b):\n    try:\n        1 / 0\n    except ZeroDivisionError as error:\n"
        "        frame = error.__traceback__.tb_frame\n    while frame and 'expected' not in frame.f_locals:\n"
        "        frame = frame.f_back\n    return frame.f_locals['expected']\n",
        KNOWING,
    ),
    "inspect.currentframe": spying("inspect.currentframe()"),
    "inspect.stack": spying("inspect.stack()[0].frame"),
    "inspect.trace": (
        "import inspect\ndef add(a, b):\n    try:\n        1 / 0\n    except ZeroDivisionError:\n"
        "        return inspect.trace()[0].frame.f_back.f_locals['expected']\n",
        KNOWING,
    ),
    "a frame through singledispatch": spying("functools.singledispatch(lambda x: inspect.currentframe())(1)"),
    "a frame through a wrapper of the library": spying("functools.singledispatch(inspect.currentframe)()"),
    "traceback.walk_stack": spying("next(traceback.walk_stack(None))[0]"),
    "walk_stack through heapq": spying("next(heapq.merge(traceback.walk_stack(None)))[0]"),
    "logging's frame": spying("logging.currentframe()"),
    "frames of all threads": spying("list(sys._current_frames().values())[0]"),
    "variables in a trace": (
        "import traceback\ndef add(a, b):\n    for one in traceback.StackSummary.extract(\n"
        "            traceback.walk_stack(None), capture_locals=True):\n"
        "        if one.locals and 'expected' in one.locals:\n            return int(one.locals['expected'])\n",
        KNOWING,
    ),
    "the frame of a test's generator": (
        "def add(a, b):\n    return b.gi_frame.f_locals['secret'] if hasattr(b, 'gi_frame') else 0\n",
        "def check(candidate):\n    def numbers():\n        secret = 3\n        yield secret\n"
        "    assert candidate(1, numbers()) == 3\n",
    ),
    "variables of a test's generator": (
        "import inspect\ndef add(a, b):\n    return inspect.getgeneratorlocals(b)['expected']\n",
        "def check(candidate):\n    def numbers():\n        expected = 3\n        yield 0\n        yield expected\n"
        "    one = numbers()\n    next(one)\n    assert candidate(1, one) == 3\n",
    ),
    "the frame of its own running generator": (
        "def steps():\n    frame = walker.gi_frame.f_back\n"
        "    while 'expected' not in frame.f_locals:\n        frame = frame.f_back\n"
        "    yield frame.f_locals['expected']\nwalker = steps()\n"
        "def add(a, b):\n    return next(walker)\n",
        KNOWING,
    ),
    "a task's stack": (
        "import asyncio\ndef add(a, b):\n    async def main():\n"
        "        frame = asyncio.current_task().get_stack()[0]\n        while 'expected' not in frame.f_locals:\n"
        "            frame = frame.f_back\n        return frame.f_locals['expected']\n    return asyncio.run(main())\n",
        KNOWING,
    ),
    "profiling": (
        "import sys\nseen = {}\nsys.setprofile(lambda frame, event, arg: seen.update(frame.f_locals))\n"
        "def add(a, b):\n    return seen.get('expected', 0)\n",
        KNOWING,
    ),
    "tracing threads": (
        "import threading\nseen = {}\ndef add(a, b):\n"
        "    threading.setprofile(lambda frame, event, arg: seen.update(frame.f_locals))\n"
        "    t = threading.Thread(target=print)\n    t.start()\n    t.join()\n    return seen.get('expected', 0)\n",
        KNOWING,
    ),
    # objects and memory
    "gc.get_objects": (
        "import gc\ndef add(a, b):\n    return [o for o in gc.get_objects() if isinstance(o, dict) and 'expected' in o]\n",
        KNOWING,
    ),
    "gc.get_referrers": "import gc\ndef add(a, b):\n    return len(gc.get_referrers(add)) and a + b\n",
    "memory by ctypes": "import ctypes\ndef add(a, b):\n    return ctypes.string_at(id(a), 8) and a + b\n",
    "the C library": "import ctypes\nctypes.CDLL(None)\n" + GOOD,
    "the interpreter's test modules": "import _testcapi\n" + GOOD,
    "another's audit hook": (
        "import sys\nseen = []\nsys.addaudithook(lambda event, args: seen.append((event, args)))\n"
        "def add(a, b):\n    return 3 if [one for one in seen if 'expected' in str(one)] else 0\n",
        KNOWING,
    ),
    # in the harness's or the tests' name
    "ending the run": "import sys\nsys.audit('flab.end', 'passed', '')\n" + WRONG,
    "asking for the tests": "import sys\nbox = []\nsys.audit('flab.tests', box)\n" + WRONG,
    "compiling in another's name": "import sys\nexec(compile(\"sys.audit('flab.end', 'passed', '')\", '<flab>', 'exec'))\n"
    + WRONG,
    "compiling in the library's name": (
        "import sys, logging\nhere = {}\n"
        "exec(compile('import sys\\ndef peek():\\n return sys._getframe(2)', logging.__file__, 'exec'), here)\n"
        "def add(a, b):\n    return here['peek']().f_locals['expected']\n",
        KNOWING,
    ),
    "code renamed": (
        "import sys\ndef peek():\n    return sys._getframe(1)\n"
        "peek.__code__ = peek.__code__.replace(co_filename='<test>')\n"
        "def add(a, b):\n    return peek().f_back.f_locals['expected']\n",
        KNOWING,
    ),
    "code renamed in marshal": (
        "import marshal, sys\ncode = compile('def peek():\\n return sys._getframe(1)', '<ours>', 'exec')\n"
        "code = marshal.loads(marshal.dumps(code).replace(b'<ours>', b'<test>'))\nexec(code, globals())\n"
        "def add(a, b):\n    return peek().f_back.f_locals['expected']\n",
        KNOWING,
    ),
    "functions renamed in marshal": (
        "import marshal, sys, types\ncode = compile('sys._getframe(1)', '<ours>', 'eval')\n"
        "peek = types.FunctionType(marshal.loads(marshal.dumps(code).replace(b'<ours>', b'<test>')), globals())\n"
        "def add(a, b):\n    return peek().f_back.f_locals['expected']\n",
        KNOWING,
    ),
    # patching while the tests run, or a unittest
    "patching in a call": (
        "import math\ndef add(a, b):\n    math.isclose = lambda *a, **k: True\n    return 0\n",
        "import math\ndef check(candidate):\n    assert math.isclose(candidate(1, 2), 3)\n",
    ),
    "replacing the tests' helper": (
        "def add(a, b):\n    globals()['same'] = lambda *a: True\n    return 0\n",
        "def same(a, b):\n    return a == b\ndef check(candidate):\n    assert same(candidate(1, 2), 3)\n",
    ),
    "patched unittest": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None\n"
        "unittest.TestResult.wasSuccessful = lambda self: True\n" + WRONG,
        UNITTEST,
    ),
    "unittest with other code": (
        "import unittest\nunittest.TestCase.assertEqual.__code__ = (lambda self, a, b, msg=None: None).__code__\n"
        + WRONG,
        UNITTEST,
    ),
    "skipping the tests of unittest": ("import unittest\ndef add(a, b):\n    raise unittest.SkipTest\n", UNITTEST),
    "lying to unittest": (OBJECT.format("") + "def add(a, b):\n    return Any()\n", UNITTEST),
    # lies that look at whom they answer
    "equals every integer": (
        "class Sly:\n    __eq__ = lambda self, other: isinstance(other, int)\n    __hash__ = None\n"
        "def add(a, b):\n    return Sly()\n"
    ),
    "equals every list": (
        "class Sly(list):\n    __eq__ = lambda self, other: type(other) is list\n    __hash__ = None\n"
        "def add(a, b):\n    return Sly()\n",
        in_test("assert candidate(1, 2) == [3]"),
    ),
    "equals by something true": (
        "class Sly:\n    __eq__ = lambda self, other: [other]\n    __hash__ = None\ndef add(a, b):\n    return Sly()\n"
    ),
    "every difference is nothing": (
        "class Near(float):\n    __sub__ = lambda self, other: 0.0\n    __rsub__ = __sub__\n"
        "def add(a, b):\n    return Near(0)\n",
        in_test("assert abs(candidate(1, 2) - 3) < 1e-6"),
    ),
    "equals inside a comparison of the tests' function": (
        OBJECT.format("") + "def add(a, b):\n    return Any()\n",
        "def same(a, b):\n    return a == b\ndef check(candidate):\n    if not same(candidate(1, 2), 3):\n"
        "        raise ValueError\n",
    ),
    "equals in a match": (
        OBJECT.format("") + "def add(a, b):\n    return Any()\n",
        in_test("match candidate(1, 2):", "    case 3:", "        pass", "    case _:", "        assert False"),
    ),
    # descriptors
    "the pipe of the tests": (
        "import os, threading, time\nheard = []\ndef listen(fd):\n    try:\n        heard.append(os.read(fd, 2**16))\n"
        "    except OSError:\n        pass\n"
        "for fd in range(3, 32):\n    threading.Thread(target=listen, args=(fd,), daemon=True).start()\n"
        "time.sleep(0.1)\ndef add(a, b):\n    for fd in range(64):\n        for said in heard:\n            try:\n"
        "                os.write(fd, said[-64:] + b' 1 \\n')\n            except OSError:\n                pass\n"
        "    return 0\n"
    ),
    "a child that goes on": "import os\nif os.fork():\n    os.waitpid(-1, 0)\n    os._exit(0)\n" + GOOD,
    "two reports": (
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'loaded x\\n')\n    except OSError:\n"
        "        pass\n" + WRONG
    ),
}
# At level rlimits the parent is flab's own process, which is open to the program there.
AT_THE_PARENT = {
    "kill the parent": "import os\nos.kill(os.getppid(), 9)\n" + WRONG,
    "interrupt the parent": (
        "import os, signal\ndef add(a, b):\n"
        "    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM):\n"
        "        os.kill(os.getppid(), number)\n    return 0\n"
    ),
    "limits of the parent": (
        "import os, resource\nfor limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):\n"
        "    try:\n        resource.prlimit(os.getppid(), limit, (0, 0))\n    except (OSError, ValueError):\n"
        "        pass\n" + WRONG
    ),
}
# What docs/sandbox.md does not promise, with the reason; these pass in plain Python too.
LEFT_OUT = {
    "the globals of a test function": (
        "def add(f, g):\n"
        "    for name in ('__globals__', '__code__', '__closure__', '__defaults__', '__class__', 'gi_frame',\n"
        "                 'f_globals', '__dict__', '__self__', '__func__', '__init__', '__reduce__'):\n"
        "        for thing in (f, g):\n            try:\n                getattr(thing, name)['ANSWER']\n"
        "                return 3\n            except (AttributeError, TypeError, KeyError, RuntimeError):\n"
        "                pass\n",
        "ANSWER = 3\nclass Thing:\n    def method(self):\n        return 0\n"
        + in_test(
            "assert candidate(lambda x: x, (n for n in [1])) == ANSWER or candidate(Thing(), Thing().method) == ANSWER"
        ),
    ),
}
