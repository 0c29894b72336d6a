"""Arguments that several commands take, and how commands print: one JSON object on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto spreads the layers over all devices.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: the precision to compute in.")]
Unsandboxed = Annotated[
    bool,
    typer.Option(
        help="Where no isolation works, run tests with resource limits alone: files and network are open to them."
    ),
]
Trust = Annotated[bool, typer.Option(help="Run code that the model folder brings.")]
Overwrite = Annotated[bool, typer.Option(help="Replace the output if it exists.")]
ShardOf = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Make only part I of N of the answers; without it: merge and go on."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]


def emit(value: Mapping[str, Any]) -> None:
    """Print one object on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")


def say_shard(report: Mapping[str, Any]) -> None:
    """Where a shard's answers are, and what is left to do."""
    from flab.progress import say

    left = report["wanted"] - report["generated"]
    rest = f"{left} are missing of other shards" if left else "none is missing: repeat without --shard to go on"
    done = f"{report['generated']} of {report['wanted']} answers are there"
    say(f"shard {report['shard']} is done: {report['file']}; {done}, {rest}")
