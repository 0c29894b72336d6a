"""Checks the documentation against the program: help texts, options, make targets, examples and links.

Every block after a line ``<!-- help: flab plan -->`` must be what that command prints with ``--help``; ``--write`` renews
them. Every ``flab`` command in code must name a real command with real options, every ``make`` target must exist, every
Python example must compile (those with ``>>>`` must also give what they say), every relative link must lead somewhere.
It runs no command but ``--help``.
"""

from __future__ import annotations

import doctest
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import flab

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
HELP = re.compile(r"(<!-- help: flab(.*?) -->\n```text\n)(.*?)(```)", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMANDS = (
    "demo",
    "info",
    "families",
    "text",
    "plan",
    "apply",
    "prune",
    "check",
    "eval",
    "compare",
    "data",
    "recover",
    "run",
    "export",
    "measure",
    "sweep",
    "report",
)


@functools.cache
def help_of(command: str) -> str:
    """What ``flab COMMAND --help`` prints at 80 columns."""
    program = [str(Path(sys.executable).parent / "flab"), *command.split(), "--help"]
    env = {**os.environ, "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=env)
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def renewed(text: str) -> str:
    """The page with every help block as the program prints it."""
    return HELP.sub(lambda match: match[1] + help_of(match[2].strip()) + match[4], text)


def commands_in(text: str) -> Iterator[str]:
    """Every ``flab`` command line in fenced shell blocks and in inline code."""
    shells = "\n".join(body for kind, body in FENCE.findall(text) if kind in ("console", "bash", "sh"))
    for line in shells.replace("\\\n", " ").splitlines():
        yield from (part.strip() for part in re.split(r"&&|\|", line.removeprefix("$ ")))
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def wrong_commands(text: str) -> Iterator[str]:
    """Commands and options that the program does not have, and make targets that the Makefile does not have."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in commands_in(text):
        words = line.split("#")[0].split()
        if words[:1] == ["make"] and len(words) > 1 and words[1] not in targets:
            yield f"no make target: {line}"
        if words[:1] != ["flab"] or len(words) < 2 or words[1].startswith("-"):
            continue
        if words[1] not in COMMANDS:
            yield f"no such command: {line}"
            continue
        options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_of(words[1])))
        yield from (f"no option {w} in: {line}" for w in words[2:] if re.match(r"--?[a-z]", w) and w not in options)


def wrong_examples(text: str, page: str) -> Iterator[str]:
    """Python blocks that do not compile, and examples that give something else than they say."""
    for kind, body in FENCE.findall(text):
        if kind != "python":
            continue
        if ">>>" in body:
            test = doctest.DocTestParser().get_doctest(body, {}, page, page, 0)
            report: list[str] = []
            failed = doctest.DocTestRunner(verbose=False).run(test, out=report.append).failed
            yield from ["".join(report)] if failed else []
            continue
        try:
            compile(body, page, "exec")
        except SyntaxError as error:
            yield f"example does not compile: {error}"
        yield from (f"flab.{n} does not exist" for n in re.findall(r"\bflab\.(\w+)\(", body) if not hasattr(flab, n))


def dead_links(text: str, page: Path) -> Iterator[str]:
    """Relative links to files that are not there."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", text)):
        if "://" not in target and not (page.parent / target).exists():
            yield f"dead link: {target}"


def main() -> int:
    """Check every page; with ``--write`` renew the help blocks first."""
    problems = []
    for page in PAGES:
        text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
        if "--write" in sys.argv[1:]:
            page.write_text(text := renewed(text), encoding="utf-8")
        found = ["a help block is stale: run python docs/check_help.py --write"] if renewed(text) != text else []
        found += [*wrong_commands(text), *wrong_examples(text, name), *dead_links(text, page)]
        problems += [f"{name}: {problem}" for problem in found]
    print("\n".join(problems) or f"docs: {len(PAGES)} pages agree with the program")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
