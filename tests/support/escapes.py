"""Programs that want to use up the machine or to reach what is outside; ``test_attacks`` runs them.

An escape solves the problem only if it got what it wanted, so that a pass would be an escape. Its braces name the
canaries of ``test_attacks``.
"""

from support.forgeries import WRONG, in_test

BOMBS = {
    "busy loop": "while True: pass\n",
    "deaf to SIGXCPU": "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\nwhile True: pass\n",
    "sleep": "import time\ntime.sleep(600)\n",
    "stop the judge": "import os, time\nos.kill(os.getppid(), 19)\ntime.sleep(600)\n",
    "raise the limits": (
        "import resource\nfor limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC):\n    try:\n"
        "        resource.setrlimit(limit, (-1, -1))\n    except (OSError, ValueError):\n        pass\n"
        "while True: pass\n"
    ),
    "memory": "def add(a, b):\n    return [bytearray(2**20) for _ in range(10**6)]\n",
    "one huge block": "def add(a, b):\n    return 'x' * 2**40\n",
    "fork": "import os, time\ntry:\n    while True:\n        if not os.fork():\n            time.sleep(600)\n"
    "except OSError:\n    pass\n" + WRONG,
    "threads": "import threading, time\ntry:\n    while True:\n"
    "        threading.Thread(target=time.sleep, args=(600,)).start()\n"
    "except RuntimeError:\n    pass\n" + WRONG,
    "output": "import os\nfor _ in range(400):\n    os.write(1, b'x' * 2**20)\n" + WRONG,
    "disk": "at = 0\ntry:\n    while True:\n        open(f'/tmp/{at}', 'wb').write(bytes(2**20))\n        at += 1\n"
    "except OSError:\n    pass\n" + WRONG,
    "files": "at = 0\ntry:\n    while True:\n        open(f'/tmp/{at}', 'w').close()\n        at += 1\n"
    "except OSError:\n    pass\n"
    "def add(a, b):\n    return a + b if at > 5000 else 0\n",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b):\n    return add(b, a)\n",
    "huge integer": "def add(a, b):\n    return 1 << 10**8\n",
    "integer to text": ("def add(a, b):\n    return 10**1000000\n", in_test("assert str(candidate(1, 2)) == '3'")),
    "deep nesting": "def add(a, b):\n    x = []\n    for _ in range(10**5):\n        x = [x]\n    return x\n",
    "colliding keys": "def add(a, b):\n    return {i * (2**61 - 1) for i in range(1, 60)} if a else 0\n",
    "endless length": "class L:\n    __len__ = lambda self: 2**62\n    __getitem__ = lambda self, i: 0\n"
    "def add(a, b):\n    return L()\n",
    "slow equality": "import time\nclass L(list):\n    def __iter__(self):\n        time.sleep(600)\n"
    "def add(a, b):\n    return L()\n",
}
ESCAPES = {
    "read": "won = open({path!r}).read() == 'intact'",
    "write": "open({path!r}, 'w').write('broken'); won = True",
    "append": "open({path!r}, 'a').write('broken'); won = True",
    "remove": "os.remove({path!r}); won = True",
    "rename": "os.rename({path!r}, {path!r} + '.old'); won = True",
    "create beside": "open({folder!r} + '/new', 'w').close(); won = True",
    "change mode": "os.chmod({path!r}, 0o000); won = True",
    "list": "won = bool(os.listdir({folder!r}))",
    "symlink": "os.symlink({path!r}, '/tmp/s'); won = open('/tmp/s').read() == 'intact'",
    "symlink to a folder": "os.symlink({folder!r}, '/tmp/d'); open('/tmp/d/new', 'w').close(); won = True",
    "hard link": "os.link({path!r}, '/tmp/h'); won = True",
    "dots": "won = os.path.exists('/tmp/../../../..' + {path!r})",
    "old root": "won = os.path.exists('/old' + {path!r})",
    "through /proc": "won = any(os.path.exists(f'/proc/{{p}}/root' + {path!r}) for p in ('self', 1, {own_pid}))",
    "the environment": "won = 'FLAB_CANARY' in os.environ or 'FLAB_CANARY' in subprocess.getoutput('env')",
    "the users' list": "won = bool(open('/etc/passwd').read())",
    "loopback": "socket.create_connection(('127.0.0.1', {port}), 1); won = True",
    "datagram": "s = socket.socket(type=2); s.connect(('127.0.0.1', {port})); s.send(b'x'); s.recv(1); won = True",
    "raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); won = True",
    "abstract socket": "socket.socket(socket.AF_UNIX).connect('\\0{mark}'); won = True",
    "unix socket": "socket.socket(socket.AF_UNIX).connect({folder!r} + '/s'); won = True",
    "kill a process of ours": "os.kill({pid}, 9); won = True",
    "kill us": "os.kill({own_pid}, 0); won = True",
    "kill everyone": "os.kill(-1, 9)",
    "kill the group": "os.killpg(0, 9)",
    "other processes": "won = bool([p for p in range(2, 40000) if p not in (os.getpid(), os.getppid()) and alive(p)])",
    "chroot": "os.mkdir('/tmp/j'); os.chroot('/tmp/j'); won = True",
    "chroot as root of a namespace": (
        "libc.unshare(0x10000000); os.mkdir('/tmp/j'); d = os.open('/', os.O_RDONLY); os.chroot('/tmp/j'); os.fchdir(d)\n"
        "    for _ in range(64):\n        os.chdir('..')\n    os.chroot('.'); won = os.path.exists({path!r})"
    ),
    "mount over": "won = libc.mount(b'none', b'/usr', b'tmpfs', 0, None) == 0",
    "remount writable": "libc.mount(None, b'/', None, 32, None); open('/flab', 'w').close(); won = True",
    "unmount": "libc.umount2(b'/', 2); libc.umount2(b'/usr', 2); won = os.path.exists({path!r})",
    "device": "os.mknod('/tmp/disk', 0o60660, os.makedev(8, 0)); won = True",
    "set-uid file": "os.setuid(0) if os.getuid() else os.setgroups([1]); won = True",
    "join our namespaces": "won = any(libc.setns(fd, 0) == 0 for fd in range(64))",
    "write into the interpreter": "open(os.__file__, 'a').close(); won = True",
    "write into /usr": "open('/usr/flab', 'w').close(); won = True",
    "daemon": (
        "os.fork() or (os.setsid(), os.fork() and os._exit(0), time.sleep(0.5),\n"
        "                  open({path!r}, 'w').write('broken'), os._exit(0))"
    ),
    "core dump": "libc.prctl(4, 1); os.abort()",
}
# The attack runs in an interpreter of its own, which no guard watches: what stops it is the kernel.
CHILD = """import ctypes, os, resource, socket, subprocess, time
libc, won = ctypes.CDLL(None), False
def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
try:
    {attack}
except Exception:
    pass
print('flab-' + 'won' if won else 'lost', flush=True)
"""


def in_child(attack):
    """A program that adds right only if its child reached what the attack wants."""
    source = CHILD.replace("{attack}", attack)
    return (
        "import subprocess, sys\n"
        f"done = subprocess.run([sys.executable, '-c', {source!r}], capture_output=True, text=True)\n"
        "won = 'flab-' + 'won' in done.stdout\n"
        "def add(a, b):\n    return a + b if won else None\n"
    )
