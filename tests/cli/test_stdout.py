"""The result of a command is on stdout, so that it can be kept and piped; what it says of its work is on stderr."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest

import flab.cli
from flab.cli import app
from flab.cli.evaluate import show_comparison
from flab.progress import reply

COMMANDS = sorted(Path(flab.cli.__file__).parent.glob("*.py"))


def calls(tree: ast.AST) -> list[tuple[str, str]]:
    """Every call of ``say`` in a module: the function that holds it and the text that it begins with."""
    found = []
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "say":
                found.append((function.name, ast.unparse(node.args[0])))
    return found


def test_only_warnings_and_remarks_of_a_command_are_on_stderr():
    said = [one for path in COMMANDS for one in calls(ast.parse(path.read_text(encoding="utf-8")))]
    remarks = [(name, text) for name, text in said if not text[1:].startswith(("'warning: ", '"warning: '))]
    assert [name for name, _ in remarks] == ["_gold"], remarks  # that a model is not opened
    assert len(said) >= 4


def test_a_comparison_keeps_what_else_differs_beside_its_figures(capsys):
    side = {"run": "RUN", "identity": {}}
    differences = [{"field": "seed", "a": 0, "b": 1}]
    report = {"a": side, "b": side, "differences": differences, "tasks": [], "pooled": None, "robustness": []}
    show_comparison({**report, "only_in_a": ["code"], "only_in_b": []})
    out, err = capsys.readouterr()
    assert "WARNING: the runs differ in seed: 0 in A, 1 in B" in out
    assert "not in B, or there with other items: code" in out
    assert err == ""


def test_what_the_encoding_of_stdout_lacks_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["flab", "--version"])
    with pytest.raises(SystemExit):
        app.main()
    reply("3 µs")
    sys.stdout.flush()
    assert written.getvalue().decode("ascii").splitlines()[1:] == [r"3 \xb5s"]
