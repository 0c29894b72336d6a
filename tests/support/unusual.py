"""Unusual programs that are right: whatever plain Python says of them, the sandbox says too; ``test_correct`` runs them."""

UNUSUAL = {
    "curry": (
        (
            "def f(fn):\n    n=fn.__code__.co_argcount\n    def g(*a):\n"
            "        return fn(*a) if len(a)>=n else (lambda *b: g(*a,*b))\n    return g\n"
        ),
        ("def check(candidate):\n    assert candidate(lambda a,b,c: a+b+c)(1)(2)(3) == 6\n"),
    ),
    "curry test def": (
        ("def f(fn):\n    n=fn.__code__.co_argcount\n    return n\n"),
        (
            "def check(candidate):\n    def add(a, b):\n        assert a\n        return a+b\n"
            "    assert candidate(add) == 2\n"
        ),
    ),
    "signature": (
        ("import inspect\ndef f(fn):\n    return len(inspect.signature(fn).parameters)\n"),
        ("def check(candidate):\n    assert candidate(lambda a,b: 0) == 2\n"),
    ),
    "print_exc": (
        (
            "import traceback,io,sys\ndef f():\n    try:\n        1/0\n    except ZeroDivisionError:\n"
            "        return traceback.format_exc()\n"
        ),
        ('def check(candidate):\n    assert "ZeroDivisionError" in candidate()\n'),
    ),
    "print_stack": (
        ("import traceback,io\ndef f():\n    s=io.StringIO(); traceback.print_stack(file=s); return s.getvalue()\n"),
        ("def check(candidate):\n    assert candidate()\n"),
    ),
    "logging exc": (
        (
            "import logging\ndef f():\n    try:\n        1/0\n    except Exception:\n"
            '        logging.exception("x"); logging.warning("y", stack_info=True)\n    return 1\n'
        ),
        ("def check(candidate):\n    assert candidate() == 1\n"),
    ),
    "warn": (
        (
            "import warnings\ndef f():\n    with warnings.catch_warnings(record=True) as w:\n"
            '        warnings.simplefilter("always")\n        warnings.warn("x", stacklevel=2)\n'
            "    return len(w)\n"
        ),
        ("def check(candidate):\n    assert candidate() == 1\n"),
    ),
    "namedtuple": (
        (
            "from collections import namedtuple\nfrom typing import NamedTuple\nfrom enum import Enum\n"
            'import dataclasses\nP=namedtuple("P","a b",defaults=[1])\nE=Enum("E","A B")\n'
            'D=dataclasses.make_dataclass("D",["x"])\nclass N(NamedTuple):\n    a:int\ndef f():\n'
            "    return P(2),E.A,D(1),N(1)\n"
        ),
        ('def check(candidate):\n    p,e,d,n=candidate()\n    assert p==(2,1) and e.name=="A" and d.x==1 and n.a==1\n'),
    ),
    "ctypes int": (
        ("import ctypes\ndef f(x):\n    return ctypes.c_int32(x).value\n"),
        ("def check(candidate):\n    assert candidate(2**31) == -2**31\n"),
    ),
    "ctypes array": (
        (
            "import ctypes\nclass f:\n    def __init__(s):\n        s.a=(4*ctypes.py_object)(); s.n=0\n"
            "    def append(s,x):\n        s.a[s.n]=x; s.n+=1\n    def __getitem__(s,i): return s.a[i]\n"
        ),
        ('def check(candidate):\n    d=candidate()\n    d.append("x")\n    assert d[0] == "x"\n'),
    ),
    "money": (
        ("class f(int):\n    def __eq__(s,o): return int(s)==int(o)\n    __hash__=int.__hash__\n"),
        ("def check(candidate):\n    assert candidate(2)==2 and candidate(2)!=3\n"),
    ),
    "approx": (
        ("class f:\n    def __init__(s,v): s.v=v\n    def __eq__(s,o): return abs(s.v-o)<1e-6\n"),
        ("def check(candidate):\n    assert candidate(0.3)==0.1+0.2\n    assert not candidate(1)==2\n"),
    ),
    "mod": (
        (
            "class f:\n    def __init__(s,v,m): s.v=v%m; s.m=m\n"
            "    def __eq__(s,o): return s.v==(o.v if isinstance(o,f) else o%s.m)\n"
        ),
        ("def check(candidate):\n    assert candidate(5,2)==1 and candidate(5,2)==3 and candidate(4,2) == 0\n"),
    ),
    "caseless": (
        (
            "class f(str):\n    def __eq__(s,o): return s.lower()==o.lower()\n"
            "    def __hash__(s): return hash(s.lower())\n"
        ),
        ('def check(candidate):\n    assert candidate("Ab")=="aB" and candidate("x")!="y"\n'),
    ),
    "anyset": (
        ("class f:\n    def __contains__(s,x): return x>=0\n"),
        ("def check(candidate):\n    assert 5 in candidate()\n    assert -1 not in candidate()\n"),
    ),
    "vec": (
        (
            "class f:\n    def __init__(s,x,y): s.x,s.y=x,y\n"
            "    def __sub__(s,o): return f(s.x-o.x,s.y-o.y)\n"
            "    def __abs__(s): return (s.x**2+s.y**2)**.5\n"
            "    def __eq__(s,o): return (s.x,s.y)==(o.x,o.y)\n"
        ),
        (
            "def check(candidate):\n    assert abs(candidate(3,4)-candidate(0,0)-candidate(0,0)) == 5.0\n"
            "    assert candidate(1,2)-candidate(1,1)==candidate(0,1)\n"
        ),
    ),
    "neginf": (
        (
            "class f:\n    def __lt__(s,o): return True\n    def __gt__(s,o): return False\n"
            "    def __eq__(s,o): return isinstance(o,f)\n"
        ),
        ("def check(candidate):\n    assert candidate() < 5 and not candidate() > 5 and candidate()==candidate()\n"),
    ),
    "null": (
        ("class f:\n    def __eq__(s,o): return o is None or isinstance(o,f)\n    def __bool__(s): return False\n"),
        ("def check(candidate):\n    assert candidate() == None and not candidate()\n"),
    ),
    "proxy": (
        (
            'class f:\n    def __init__(s,o): object.__setattr__(s,"o",o)\n'
            "    def __getattr__(s,n): return getattr(s.o,n)\n    def __eq__(s,x): return s.o==x\n"
            "    def __len__(s): return len(s.o)\n"
        ),
        ("def check(candidate):\n    p=candidate([1,2])\n    assert p==[1,2] and p.index(2)==1 and len(p)==2\n"),
    ),
    "ne only": (
        (
            "class f:\n    def __init__(s,v): s.v=v\n    def __ne__(s,o): return s.v!=o.v\n"
            "    def __eq__(s,o): return s.v==o.v\n"
        ),
        ("def check(candidate):\n    assert candidate(1)!=candidate(2) and candidate(1)==candidate(1)\n"),
    ),
    "eq raises": (
        (
            'class f:\n    def __eq__(s,o):\n        if not isinstance(o,f): raise TypeError("no")\n'
            "        return True\n"
        ),
        (
            "def check(candidate):\n    assert candidate()==candidate()\n    try:\n        candidate()==1\n"
            "        assert False\n    except TypeError:\n        pass\n"
        ),
    ),
    "sympy like": (
        (
            "class E:\n    def __init__(s,n): s.n=n\n    def __eq__(s,o): return Eq(s,o)\n"
            "    def __hash__(s): return hash(s.n)\nclass Eq:\n    def __init__(s,a,b): s.a,s.b=a,b\n"
            "    def __bool__(s): return isinstance(s.b,E) and s.a.n==s.b.n\ndef f(n): return E(n)\n"
        ),
        ('def check(candidate):\n    assert candidate("x")==candidate("x") and not candidate("x")==candidate("y")\n'),
    ),
    "query builder always truthy": (
        (
            'class Col:\n    def __init__(s,n): s.n=n\n    def __eq__(s,o): return (s.n,"=",o)\n'
            "    def __hash__(s): return 1\ndef f(n): return Col(n)\n"
        ),
        ('def check(candidate):\n    assert (candidate("a") == 3) == ("a","=",3)\n'),
    ),
    "abs name": (
        ("def f(x):\n    return x\ndef total(xs):\n    return sum(xs)\nsum_=total\n"),
        ("def check(candidate):\n    assert total([1,2])==3 and candidate(1)==1\n"),
    ),
    "sys stdout": (
        (
            "import sys,io\nbuf=io.StringIO()\ndef f(x):\n    old=sys.stdout; sys.stdout=buf\n    print(x)\n"
            "    sys.stdout=old\n    return buf.getvalue()\n"
        ),
        ('def check(candidate):\n    assert candidate("a")=="a\\n"\n'),
    ),
    "patch input": (
        ("def f():\n    return int(input())+1\n"),
        (
            "def check(candidate):\n    from unittest.mock import patch\n"
            '    with patch("builtins.input", return_value="4"):\n        assert candidate()==5\n'
        ),
    ),
    "set input": (
        ("def f():\n    return int(input())+1\n"),
        (
            "def check(candidate):\n    import builtins\n    old=builtins.input\n"
            '    builtins.input=lambda *a: "4"\n    assert candidate()==5\n'
        ),
    ),
    "stdin": (
        ("import sys\ndef f():\n    return sys.stdin.readline()\n"),
        (
            'def check(candidate):\n    import io,sys\n    sys.stdin=io.StringIO("a\\n")\n'
            '    assert candidate()=="a\\n"\n'
        ),
    ),
    "capture": (
        ('def f():\n    print("hi")\n'),
        (
            "def check(candidate):\n    import io,contextlib\n    s=io.StringIO()\n"
            "    with contextlib.redirect_stdout(s):\n        candidate()\n"
            '    assert s.getvalue()=="hi\\n"\n'
        ),
    ),
    "patch module func": (
        ("import time\ndef f():\n    return time.time()\n"),
        (
            "def check(candidate):\n    from unittest import mock\n"
            '    with mock.patch("time.time", return_value=5):\n        assert candidate()==5\n'
        ),
    ),
    "patch own": (
        ("def helper(): return 1\ndef f():\n    return helper()\n"),
        (
            "def check(candidate):\n    from unittest import mock\n"
            "    with"
            ""
            ' mock.patch.object(__import__("sys").modules[candidate.__module__],"helper",return_value=7):\n'
            "        assert candidate()==7\n    assert candidate()==1\n"
        ),
    ),
    "globals patch": (
        ("counter=0\ndef f():\n    global counter\n    counter+=1\n    return counter\n"),
        ("def check(candidate):\n    global counter\n    counter=10\n    assert candidate()==11\n"),
    ),
    "id": (
        ("def f(xs):\n    return len({id(x) for x in xs})\n"),
        ("def check(candidate):\n    assert candidate([[],[]])==2\n"),
    ),
    "weakref gc": (
        (
            "import gc,weakref\nclass A: pass\ndef f():\n"
            "    a=A(); a.a=a; r=weakref.ref(a); del a; gc.collect(); return r() is None\n"
        ),
        ("def check(candidate):\n    assert candidate()\n"),
    ),
    "exec": (
        ('def f(s):\n    d={}\n    exec(compile(s,"<string>","exec"),d)\n    return d["x"]\n'),
        ('def check(candidate):\n    assert candidate("x=3")==3\n'),
    ),
    "eval": (
        ("def f(s): return eval(s)\n"),
        ('def check(candidate):\n    assert candidate("1+2")==3\n'),
    ),
    "ast": (
        ("import ast\ndef f(s): return [type(n).__name__ for n in ast.walk(ast.parse(s))]\n"),
        ('def check(candidate):\n    assert "Add" in candidate("1+2")\n'),
    ),
    "dis": (
        ("import dis\ndef f(): return len(list(dis.get_instructions(lambda x: x+1)))>0\n"),
        ("def check(candidate):\n    assert candidate()\n"),
    ),
    "doctest": (
        (
            'import doctest\ndef g(x):\n    """\n    >>> g(1)\n    2\n    """\n    return x+1\ndef f():\n'
            "    return doctest.testmod().failed\n"
        ),
        ("def check(candidate):\n    assert candidate()==0\n"),
    ),
    "meta": (
        (
            "class M(type):\n    def __call__(cls,*a):\n"
            "        o=super().__call__(*a); o.tag=1; return o\nclass f(metaclass=M): pass\n"
        ),
        ("def check(candidate):\n    assert candidate().tag==1\n"),
    ),
    "abc hook": (
        (
            "from abc import ABCMeta\nclass f(metaclass=ABCMeta):\n    @classmethod\n"
            '    def __subclasshook__(c,o): return hasattr(o,"quack") or NotImplemented\n'
        ),
        (
            "def check(candidate):\n    class D:\n        def quack(self): pass\n"
            "    assert isinstance(D(),candidate) and not isinstance(3,candidate)\n"
        ),
    ),
    "protocol": (
        (
            "from typing import Protocol, runtime_checkable\n@runtime_checkable\nclass P(Protocol):\n"
            "    def go(self): ...\nclass f:\n    def go(self): pass\n"
        ),
        ("def check(candidate):\n    assert isinstance(candidate(),P) and not isinstance(1,P)\n"),
    ),
    "dataclass order": (
        ('from dataclasses import dataclass\n@dataclass(order=True,frozen=True)\nclass f:\n    a:int\n    b:str="x"\n'),
        (
            "def check(candidate):\n"
            '    assert candidate(1)<candidate(2) and candidate(1)==candidate(1,"x") and'
            " sorted([candidate(2),candidate(1)])[0].a==1 and len({candidate(1),candidate(1)})==1\n"
        ),
    ),
    "async cm": (
        (
            "import asyncio\nasync def f():\n    async with asyncio.timeout(1):\n"
            "        return await asyncio.to_thread(lambda: 4)\n"
        ),
        ("def check(candidate):\n    import asyncio\n    assert asyncio.run(candidate())==4\n"),
    ),
    "contextvars": (
        (
            'import contextvars\nv=contextvars.ContextVar("v",default=1)\ndef f():\n'
            "    c=contextvars.copy_context(); c.run(v.set,2); return v.get(), c[v]\n"
        ),
        ("def check(candidate):\n    assert candidate()==(1,2)\n"),
    ),
    "functools wraps": (
        (
            "import functools\ndef deco(fn):\n    @functools.wraps(fn)\n    def w(*a): return fn(*a)+1\n"
            '    return w\n@deco\ndef f(x):\n    "doc"\n    return x\n'
        ),
        (
            "def check(candidate):\n"
            '    assert candidate(1)==2 and candidate.__doc__=="doc" and candidate.__wrapped__(1)==1\n'
        ),
    ),
    "partial": (
        ("import functools\nf=functools.partial(pow,2)\n"),
        ("def check(candidate):\n    assert candidate(3)==8\n"),
    ),
    "builtin": (
        ("f=sorted\n"),
        ("def check(candidate):\n    assert candidate([2,1])==[1,2]\n"),
    ),
    "lambda": (
        ("f=lambda x:x\n"),
        ("def check(candidate):\n    assert candidate(1)==1\n"),
    ),
    "callable obj": (
        ("class A:\n    def __call__(s,x): return x\nf=A()\n"),
        ("def check(candidate):\n    assert candidate(1)==1\n"),
    ),
    "monkey stdlib": (
        (
            "import json\n_old=json.dumps\ndef dumps(o): return _old(o,sort_keys=True)\njson.dumps=dumps\n"
            "def f(o): return json.dumps(o)\n"
        ),
        ('def check(candidate):\n    assert candidate({"b":1,"a":2})==\'{"a": 2, "b": 1}\'\n'),
    ),
    "own print": (
        ("def print(*a): out.append(a)\nout=[]\ndef f(x):\n    print(x)\n    return out\n"),
        ("def check(candidate):\n    assert candidate(1)==[(1,)]\n"),
    ),
    "own list": (
        ("class list_:\n    pass\ndef f(): return list_\n"),
        ('def check(candidate):\n    assert candidate().__name__=="list_"\n'),
    ),
    "unlim": (
        ("import sys\nsys.setrecursionlimit(5000)\ndef f(n): return 0 if n==0 else 1+f(n-1)\n"),
        ("def check(candidate):\n    assert candidate(4000)==4000\n"),
    ),
    "recur err": (
        ("def f(n): return f(n+1)\n"),
        (
            "def check(candidate):\n    try:\n        candidate(0)\n        assert False\n"
            "    except RecursionError:\n        pass\n"
        ),
    ),
    "fork stdin": (
        ('import subprocess\ndef f(): return subprocess.check_output(["sort"],input=b"b\\na\\n")\n'),
        ('def check(candidate):\n    assert candidate()==b"a\\nb\\n"\n'),
    ),
    "shared mem": (
        (
            "from multiprocessing import shared_memory\ndef f():\n"
            "    s=shared_memory.SharedMemory(create=True,size=10); s.buf[0]=5; v=s.buf[0]; s.close();"
            " s.unlink(); return v\n"
        ),
        ("def check(candidate):\n    assert candidate()==5\n"),
    ),
    "mp manager": (
        (
            "from multiprocessing import Manager\ndef f():\n    with Manager() as m:\n"
            "        l=m.list([1]); l.append(2); return list(l)\n"
        ),
        ("def check(candidate):\n    assert candidate()==[1,2]\n"),
    ),
    "mp value": (
        (
            "from multiprocessing import Process, Value\ndef w(v):\n    with v.get_lock(): v.value+=1\n"
            'def f():\n    v=Value("i",0)\n    ps=[Process(target=w,args=(v,)) for _ in range(3)]\n'
            "    [p.start() for p in ps]; [p.join() for p in ps]\n    return v.value\n"
        ),
        ("def check(candidate):\n    assert candidate()==3\n"),
    ),
    "socketpair": (
        (
            "import socket,threading\ndef f():\n"
            '    s=socket.socket(); s.bind(("127.0.0.1",0)); s.listen()\n'
            '    t=threading.Thread(target=lambda: s.accept()[0].sendall(b"x")); t.start()\n'
            "    c=socket.create_connection(s.getsockname()); d=c.recv(1); t.join(); return d\n"
        ),
        ('def check(candidate):\n    assert candidate()==b"x"\n'),
    ),
    "frame idiom free": (
        (
            'import sys\ndef f():\n    try:\n        raise ValueError("x")\n    except ValueError:\n'
            "        return sys.exc_info()[2].tb_lineno\n"
        ),
        ("def check(candidate):\n    assert candidate()==4\n"),
    ),
    "mmap": (
        ('import mmap\ndef f():\n    m=mmap.mmap(-1,10); m[:2]=b"ab"; return m[:2]\n'),
        ('def check(candidate):\n    assert candidate()==b"ab"\n'),
    ),
    "locale dt": (
        (
            "import datetime,zoneinfo\n"
            "def f(): return datetime.datetime(2020,1,1,tzinfo=datetime.timezone.utc).isoformat()\n"
        ),
        ('def check(candidate):\n    assert candidate()=="2020-01-01T00:00:00+00:00"\n'),
    ),
    "generator in all": (
        ("def f(n):\n    return (x for x in range(n))\n"),
        ("def check(candidate):\n    assert all(x>=0 for x in candidate(3)) and sum(candidate(4))==6\n"),
    ),
    "big compare": (
        ("def f(n): return list(range(n))\n"),
        ("def check(candidate):\n    assert candidate(10**6)==list(range(10**6))\n"),
    ),
    "nested big": (
        ("def f(n): return [[i] for i in range(n)]\n"),
        ("def check(candidate):\n    assert candidate(10**5)==[[i] for i in range(10**5)]\n"),
    ),
    "obj list big": (
        (
            "class A:\n    def __init__(s,v): s.v=v\n    def __eq__(s,o): return s.v==o.v\n"
            "def f(n): return [A(i) for i in range(n)]\n"
        ),
        ("def check(candidate):\n    assert candidate(10**5)==candidate(10**5)\n"),
    ),
}
