"""Messages are one safe line, whatever names and values they quote."""

import ast
import re
from pathlib import Path

import pytest

import flab as flab_package
from flab.cli.app import with_flags
from flab.cli.prune import show_check
from flab.errors import DataError, FlabError, plain, shortened
from flab.progress import add, console, reply, results, say, show, table_of
from support.command import assert_refused

HOSTILE = "\x1b[31mred\x07\x00\x9b0m \u202egnp.exe\u2028line\ud800 \x7f\u200b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a file  with  blanks", "a file  with  blanks"),
        ("  indented", "  indented"),
        ("two\n  lines\r\n\tand three\n", "two lines and three"),
        ("\x1b[2Jx", r"\x1b[2Jx"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2028b\u0085c\x1cd", r"a\u2028b\x85c\x1cd"),
        ("half \ud800", r"half \ud800"),
        ("naïve 漢字 🚀", "naïve 漢字 🚀"),
    ],
)
def test_control_characters_are_escaped_and_all_else_stays(text, expected):
    assert plain(text) == expected
    assert str(FlabError(text)) == expected


def test_long_words_and_long_messages_are_shortened():
    message = str(DataError(f"tensor {'x' * 10**6} is wrong"))
    assert message.startswith("tensor xxx")
    assert message.endswith("xxx is wrong")
    assert len(message) < 330
    assert len(plain("word " * 10**5)) <= 2000
    assert shortened("abcdefghijkl", 12) == "abcdefghijkl"
    assert shortened("abcdefghijklm", 12) == "abcd...jklm"


def test_what_is_said_and_shown_is_safe_too():
    table = table_of("Problems", ["id", "value"])
    add(table, HOSTILE, 1)
    with console.capture() as remarks, results.capture() as found:
        say(f"warning: {HOSTILE}")
        reply(f"saved {HOSTILE}")
        show(table)
    assert r"\x1b[31mred" in remarks.get()
    assert found.get().count(r"\x1b[31mred") == 2
    for said in (remarks.get(), found.get()):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\u200b\ud800]", said)


def test_an_error_that_was_raised_survives_pickling():
    import pickle

    error = DataError("a\nb")
    assert str(pickle.loads(pickle.dumps(error))) == "a b"


def test_what_a_check_found_is_shown_as_it_is():
    """Messages name files, and files may be named as rich writes colours."""
    loads = {
        "transformers": {"ok": True, "how": "loaded", "tokenizer": "[red]"},
        "vllm": {"tensor_parallel_sizes": [1], "how": "by its rules"},
        "llama.cpp": {"needs": "[bold]a name[/bold]", "how": "by its rules"},
        "k-quants": {"ok": False, "why": "[x]"},
    }
    checks = [{"name": "reloads", "ok": False, "detail": "no [red]file[/red]"}]
    with results.capture() as captured:
        show_check({"checks": checks, "loads_in": loads})
    for text in ("no [red]file[/red]", "loaded; [red]", "[bold]a name[/bold] (by", "[x]"):
        assert text in captured.get()


@pytest.mark.parametrize(
    ("command", "said", "shown"),
    [
        ("prune", "`max_length`: got 3", "--max-length: got 3"),
        ("prune", "`output_projection` is off", "--no-output-projection is off"),
        ("prune", "give what `flab apply` wrote", "give what `flab apply` wrote"),
        ("run", "x.yml: options: `dtype`: got 1", "x.yml: options: `dtype`: got 1"),
        ("recover", "Lower `learning_rate`", "Lower --learning-rate"),
        ("eval", "`tasks`: got none", "--task: got none"),
        ("eval", "`perturbations`: got 1", "--perturb: got 1"),
        ("sweep", "`budgets`: got none", "--remove: got none"),
        ("compare", "`margin_points`: got 0", "--margin: got 0"),
        ("export", "use `kind` bf16", "use --type bf16"),
        ("check", "`engines`: got 1; give `oldest`", "--run: got 1; give --oldest-python"),
        ("apply", "or cut alone (`refit`)", "or cut alone (--no-refit)"),
    ],
)
def test_a_field_in_a_message_is_the_flag_of_the_command(command, said, shown, monkeypatch):
    monkeypatch.setattr("sys.argv", ["flab", "--debug", command])
    assert with_flags(said) == shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "x", "--remove", "40%"], "--remove: got '40%', expected a number such as 0.4 (fraction of all"),
        (["plan", "x", "--remove", "0,4"], "--remove: got '0,4', expected a number such as 0.4 (fraction of all"),
        (["plan", "x", "--layers", "3.5"], "--layers: got '3.5', expected a whole number such as 8 (number of layers"),
        (["plan", "x", "--seed", "1e3"], "--seed: got '1e3', expected a whole number such as 1000 (seed of every"),
        (
            ["plan", "x", "--width", "1,000"],
            "--width: got '1,000', expected a whole number such as 1000 (number of FFN neurons",
        ),
        (["plan", "x", "--general", "none"], "--general: got 'none', expected a number such as 0.25 (fraction of"),
        (["eval", "x", "--limit", "ten"], "--limit: got 'ten', expected a whole number such as 8 (use only"),
        (["sweep", "x", "-o", "y", "--remove", "0.1", "20%"], "BUDGET: got '20%', expected a number such as 0.2 ("),
        (
            ["sweep", "x", "-o", "y", "--remove", "0.2,40%"],
            "--remove: got '0.2,40%', expected one number at a time, such as --remove 0.2 --remove 0.4.",
        ),
        (["compare", "a", "b", "--margin", "3%"], "--margin: got '3%', expected a number such as 3 (largest drop of"),
        (
            ["--threads", "two", "info", "x"],
            "--threads: got 'two', expected a whole number such as 8 (number of threads",
        ),
        (
            ["plan", "x", "--in-memory", "layer", "--device", "balanced"],
            "--in-memory layer holds one layer on one device",
        ),
        (["plan", "x", "--in-memory", "disk"], "--in-memory: got 'disk', allowed auto, model, layer."),
    ],
)
def test_a_number_in_a_wrong_form_is_quoted_beside_an_example(flab, arguments, said):
    assert assert_refused(flab(*arguments)).startswith(f"flab: {said}")


def test_what_is_said_names_the_flags_too(flab, monkeypatch):
    flab("info", "./none")  # sets the wording of this program
    monkeypatch.setattr("sys.argv", ["flab", "plan", "MODEL"])
    table = table_of("Warnings", ["text"])
    add(table, "raise `tokens`")
    with console.capture() as remarks, results.capture() as found:
        say("warning: raise `tokens`, see `flab plan`")
        reply("saved: raise `tokens`")
        show(table)
    assert "warning: raise --tokens, see `flab plan`" in remarks.get()
    assert found.get().count("--tokens") == 2


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"flab [a-z]+\W.*")  # a whole command line to type


def texts_for_people(tree):
    """What is raised, said or kept as a warning in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield ast.unparse(node.exc)
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("say", "say_once", "append", "unknown"):
                yield ast.unparse(node)


def test_the_library_names_fields_and_not_flags():
    """Its functions are called from Python as well; the command line turns fields into its options."""
    package = Path(flab_package.__file__).parent
    found = []
    for file in sorted(package.rglob("*.py")):
        if "cli" not in file.relative_to(package).parts:
            texts = texts_for_people(ast.parse(file.read_text(encoding="utf-8")))
            found += [(file.name, text) for text in texts if FLAG.search(COMMAND.sub("", text))]
    assert found == []
