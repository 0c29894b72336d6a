"""Perturbations of the docstring: its format, and typing errors in its prose.

Prose are lines of words outside doctests (``>>>`` and what follows, up to a blank line) that hold no code; only
prose is wrapped again or misspelt. Comment lines in the docstring's place count as one.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from random import Random

from flab.evaluation.perturbations.programs import (
    Docstring,
    Edit,
    Program,
    find_docstring,
    read_program,
    same_code,
    words_of,
)
from flab.evaluation.tasks import Problem

CODE_MARKS = re.compile(r"[=<>\[\]{}\\|➞→]|\w\(|^\s*(?:[-*•]|\d+[.):])\s")
QUOTED = re.compile(r"\"[^\"]*\"|(?<!\w)'[^']*'(?!\w)|`[^`]*`")
WORD = re.compile(r"(?<![\w'\"`.\-])[A-Za-z]{4,}(?![\w'\"`(\[\-])")
MIN_PROSE_WORDS = 4
WIDTHS = (50, 60, 72, 100)
NOISE_SHARE = 0.15  # of the words that can be misspelt; one at least


def docstring_format(problem: Problem, rng: Random) -> Problem | None:
    """Turn the docstring into comments or back, change its quotes, or wrap its prose to another width."""
    program = read_program(problem)
    if program is None:
        return None
    docstring = find_docstring(program)
    if docstring is None:
        return _checked(program, _to_docstring(program))
    # Formats are tried in random order, and the first that changes the text but not the code is taken.
    for make in rng.sample(FORMATS, len(FORMATS)):
        made = _checked(program, make(program, docstring, rng))
        if made is not None:
            return made
    return None


def docstring_noise(problem: Problem, rng: Random) -> Problem | None:
    """Misspell some words of the docstring's prose: swap, drop or double letters, or change case or white space."""
    program = read_program(problem)
    docstring = find_docstring(program) if program is not None else None
    if program is None or docstring is None:
        return None
    words = _misspellable(program, docstring)
    if not words:
        return None
    chosen = rng.sample(words, max(1, round(NOISE_SHARE * len(words))))
    edits = [Edit(start, end, _misspelt(program.text[start:end], rng)) for start, end in sorted(chosen)]
    return _checked(program, program.edited(edits))


def _checked(program: Program, made: Problem | None) -> Problem | None:
    """Return the problem if it differs and its code does not."""
    if made is None or made == program.problem:
        return None
    again = read_program(made)
    return made if again is not None and same_code(program.tree, again.tree) else None


def prose_lines(content: str) -> list[tuple[int, str]]:
    """Return lines of prose with their offsets in the content."""
    found = []
    offset = 0
    in_doctest = False
    for line in content.split("\n"):
        text = line.strip()
        # A doctest lasts to the next blank line, so what follows ``>>>`` is the expected output and no prose.
        in_doctest = bool(text) and (in_doctest or text.startswith((">>>", "...")))
        plain = QUOTED.sub(" ", text)
        if not in_doctest and not CODE_MARKS.search(plain) and len(re.findall(r"[A-Za-z]+", plain)) >= MIN_PROSE_WORDS:
            found.append((offset, line))
        offset += len(line) + 1
    return found


def _to_comments(program: Program, docstring: Docstring, rng: Random) -> Problem | None:
    """Turn the string into comment lines."""
    lines = textwrap.dedent(docstring.indent + docstring.content.strip("\n")).rstrip().split("\n")
    first = docstring.content.strip("\n").split("\n")[0]
    if not docstring.content.startswith("\n"):
        lines = [first.strip(), *textwrap.dedent("\n".join(docstring.content.split("\n")[1:])).rstrip().split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    text = "\n".join((docstring.indent + "# " + line).rstrip() for line in lines).lstrip(" \t")
    return program.edited([Edit(docstring.start, docstring.end, text)])


def _to_docstring(program: Program) -> Problem | None:
    """Turn the comment lines that open the body into a string."""
    opening = re.compile(r"(?:[ \t]+#.*\n(?:[ \t]*\n)*(?=[ \t]+#)|[ \t]+#.*\n)+")
    header_end = program.text.find("\n", _signature_end(program)) + 1
    found = opening.match(program.text, header_end)
    if not header_end or found is None or found.end() > program.boundary:
        return None
    lines = found[0].splitlines()
    indent = lines[0][: lines[0].index("#")]
    texts = [line.strip()[1:].removeprefix(" ") for line in lines]
    body = "\n".join([texts[0], *((indent + text).rstrip() for text in texts[1:])])
    quote = '"""' if '"""' not in body else "'''"
    if quote in body or "\\" in body or body.startswith(quote[0]):
        return None
    return program.edited([Edit(found.start(), found.end(), f"{indent}{quote}{body}\n{indent}{quote}\n")])


def _signature_end(program: Program) -> int:
    """Return the offset where the signature ends, before the colon."""
    arguments = program.function.args
    returns = program.function.returns
    parts = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *arguments.defaults]
    more = [one for one in (arguments.vararg, arguments.kwarg, returns) if one is not None]
    start = program.span(program.function)[0]
    return max([start, *(program.span(one)[1] for one in [*parts, *more])])


def _other_quotes(program: Program, docstring: Docstring, rng: Random) -> Problem | None:
    quote = "'''" if docstring.quote == '"""' else '"""'
    if quote in docstring.content or docstring.content[-1:] == quote[0]:
        return None
    text = docstring.prefix + quote + docstring.content + quote
    return program.edited([Edit(docstring.start, docstring.end, text)])


def _reflowed(program: Program, docstring: Docstring, rng: Random) -> Problem | None:
    """Wrap each paragraph of prose to another width."""
    width = rng.choice(WIDTHS)
    edits = []
    for start, lines in _paragraphs(docstring.content):
        indent = lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())] if len(lines) > 1 else docstring.indent
        lead = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
        words = " ".join(line.strip() for line in lines)
        wrapper = textwrap.TextWrapper(width, lead, indent, break_long_words=False, break_on_hyphens=False)
        text = wrapper.fill(words)
        at = docstring.content_start + start
        edits.append(Edit(at, at + len("\n".join(lines)), text))
    return program.edited(edits)


def _paragraphs(content: str) -> list[tuple[int, list[str]]]:
    """Return prose lines that follow one another at one indent (the first line's is its own), with their offsets."""
    found: list[tuple[int, list[str]]] = []
    end = -1
    indent = ""
    for offset, line in prose_lines(content):
        own = line[: len(line) - len(line.lstrip())]
        if offset == end and (own == indent or (len(found[-1][1]) == 1 and found[-1][0] == 0)):
            found[-1][1].append(line)
        else:
            found.append((offset, [line]))
        end = offset + len(line) + 1
        indent = own
    return found


FORMATS: list[Callable[[Program, Docstring, Random], Problem | None]] = [_to_comments, _other_quotes, _reflowed]


def _misspellable(program: Program, docstring: Docstring) -> list[tuple[int, int]]:
    """Return offsets of words of prose that are not names of the program and not quoted."""
    code = program.text[: docstring.start] + program.text[docstring.end :]
    names = words_of(code)
    found = []
    for offset, line in prose_lines(docstring.content):
        at = docstring.content_start + offset
        masked = QUOTED.sub(lambda match: "0" * len(match[0]), line)
        found += [(at + m.start(), at + m.end()) for m in WORD.finditer(masked) if m[0] not in names]
    return found


def _misspelt(word: str, rng: Random) -> str:
    """Return the word with one typing error among its inner letters, so that it stays readable."""
    at = rng.randrange(1, len(word) - 2)
    kind = rng.choice(("swap", "drop", "double", "case", "space"))
    if kind == "swap" and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == "drop":
        return word[:at] + word[at + 1 :]
    if kind == "case":
        return word.swapcase() if word.islower() else word[0].swapcase() + word[1:]
    return word + " " if kind == "space" else word[:at] + word[at] * 2 + word[at + 1 :]
