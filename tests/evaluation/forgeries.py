"""Programs that want a pass without solving the problem; ``test_attacks`` runs them.

Each is a program, or a program with tests of its own; without them ``TEST`` asks for the sum of two numbers.
"""

WRONG = "\ndef add(a, b):\n    return 0\n"
GOOD = "\ndef add(a, b):\n    return a + b\n"
TEST = "def check(candidate):\n    assert all([candidate(1, 2) == 3])\n    assert sorted([candidate(2, 2)]) == [4]\n"
MAGIC = "flab-" + "magic"  # in one piece only in the tests

# What a program can reach in its own process: the end of the pipe, and the writer of messages.
PEER = """import sys
frame = sys._getframe()
while 'peer' not in frame.f_locals:
    frame = frame.f_back
peer, wire = frame.f_locals['peer'], sys.modules['flab.evaluation.wire']
standins, proxies = sys.modules['flab.evaluation.standins'], sys.modules['flab.evaluation.proxies']
def proxy(number=7, look='', abilities=2**54 - 1):
    writer = wire.Writer(None)
    writer.out += b'r' + standins.ABILITIES.pack(abilities)
    writer.number(number), writer.text('add'), writer.text(look)
    return bytes(writer.out)
def value(base, others=()):
    writer = wire.Writer(None)
    writer.out += b'V'
    writer.number(8), writer.number(len(others))
    for text in (*others, 'value'):
        writer.text(text)
    writer.write(base)
    return bytes(writer.out)
def named(tag, text, rest=b''):
    writer = wire.Writer(None)
    writer.blob(tag, text.encode())
    return bytes(writer.out) + rest
NONE = bytes(4)
"""
SERVE = """
peer.channel.send(b'A', NONE + b'N')
peer.channel.receive()
peer.channel.send(b'A', NONE + proxy())
while True:
    peer.channel.receive()
    peer.channel.send(kind, answer)
"""


def answering(answer, kind="b'A'"):
    """A program that speaks the protocol itself and answers every call with the same bytes."""
    return f"{PEER}kind, answer = {kind}, {answer}\n{SERVE}"


EQUAL = (
    "    __eq__ = __ge__ = __le__ = __gt__ = __lt__ = __contains__ = __bool__ = lambda *a: True\n    __hash__ = None\n"
)
OBJECT = (
    f"class Any{{}}:\n"
    f"{EQUAL}    __sub__ = __rsub__ = __add__ = __radd__ = __abs__ = __getitem__ = lambda self, *a: self\n"
    "    __ne__ = lambda *a: False\n    __instancecheck__ = __subclasscheck__ = lambda *a: True\n"
)
LEARN = (
    "log = []\n"
    "receive = peer.channel.receive\n"
    "def listen():\n    kind, body = receive()\n    log.append(body)\n    return kind, body\n"
    "peer.channel.receive = listen\n"
)


def in_test(*lines):
    return "def check(candidate):\n" + "".join(f"    {line}\n" for line in lines)


TWICE = in_test(
    "try:",
    "    assert candidate(1, 2) == 7654321",
    "except AssertionError:",
    "    pass",
    "assert candidate(1, 2) == 7654321",
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
    "a true answer on every descriptor": (
        "import os\nfor fd in range(64):\n    try:\n        os.write(fd, b'A\\5\\0\\0\\0\\0\\0\\0\\0T' * 100)\n"
        "    except OSError:\n        pass\n" + WRONG
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
        "import __main__, os, sys\nfor name, module in list(sys.modules.items()):\n"
        "    if name.startswith('flab.'):\n        for key, thing in vars(module).items():\n"
        "            if callable(thing) and key in ('outcome_of', 'run_tests', 'describe', 'report', 'judge_program'):\n"
        "                setattr(module, key, lambda *a: ('passed', None))\nos._exit = lambda code: None\n" + WRONG
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
    "learning from a comparison": (
        PEER + LEARN + OBJECT.format("") + "def add(a, b):\n    for body in log:\n"
        "        at = body.find((7654000 >> 16).to_bytes(1, 'little') + bytes(5))\n"
        "        if at >= 2:\n            return int.from_bytes(body[at - 2:at + 6], 'little')\n    return Any()\n",
        TWICE,
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
    # signals to the judge
    "kill the judge": "import os\nos.kill(os.getppid(), 9)\n" + WRONG,
    "interrupt the judge": (
        "import os, signal\ndef add(a, b):\n"
        "    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM):\n"
        "        os.kill(os.getppid(), number)\n    return 0\n"
    ),
    "kill itself": "import os\nos.kill(os.getpid(), 9)\n",
    "limits of the judge": (
        "import os, resource\nfor limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):\n"
        "    try:\n        resource.prlimit(os.getppid(), limit, (0, 0))\n    except (OSError, ValueError):\n"
        "        pass\n" + WRONG
    ),
    "hostile error": "class E(Exception):\n    def __str__(self):\n        raise SystemExit(0)\ndef add(a, b):\n"
    "    raise E\n",
    "__del__": "import os\nclass D:\n    def __del__(self):\n        os._exit(0)\ndef add(a, b):\n    D()\n"
    "    return 0\n",
    # messages of its own making
    "value with its own ==": answering("NONE + value(0, ('__eq__',))"),
    "value with its own startswith": answering("NONE + value('0', ('startswith', 'partition'))"),
    "function by name": answering("NONE + named(b'n', 'os:system')"),
    "eval by name": answering("NONE + named(b'n', 'builtins:eval')"),
    "value by name": answering("NONE + named(b'v', 'os.getpid', b'*' + NONE)"),
    "an exception of the judge's": answering(
        "NONE + b'X' + b'\\1\\0\\0\\0' + named(b'', 'flab.evaluation.remote.Broken', NONE) + NONE + NONE + b'*' + NONE",
        "b'E'",
    ),
    "data as an exception": answering("NONE + b'N'", "b'E'"),
    "unknown kind": answering("NONE + b'T'", "b'?'"),
    "unknown tag": answering("NONE + b'~'"),
    "cut off": answering("NONE + b's\\xff\\0\\0\\0x'"),
    "an object never lent": answering("NONE + b'o\\0\\0\\0\\0'"),
    "changes to what was not sent": answering("b'\\1\\0\\0\\0\\xff\\0\\0\\0*' + NONE + b'N'"),
    "answering twice": answering("NONE + b'T'").replace(
        "peer.channel.send(kind, answer)", "peer.channel.send(kind, answer)\n" * 2
    ),
    "unasked questions": answering("named(b'', 'getattr') [1:] + NONE", "b'Q'"),
    "a number that is no number": answering("NONE + proxy(abilities=2**64 - 1, look='builtins.list')"),
}
