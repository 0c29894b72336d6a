"""``flab export``: a model in the format of a serving engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flab.cli.early import check_model
from flab.cli.options import Json, Model, emit
from flab.errors import OptionError
from flab.files import as_path, check_file

EXPORT_EXAMPLE = "Example: flab export gguf SMALLER -o model.gguf --type q8_0"
FORMATS = ("gguf",)


def export(
    format_: Annotated[
        str, typer.Argument(metavar="FORMAT", help="Format to write: gguf, which llama.cpp and Ollama read.")
    ],
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PATH", help="Path of the file to write.")],
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Type of the weights: f32, f16, bf16, q8_0 or q4_0. For others, such as q4_k_m, flab runs llama-quantize.",
        ),
    ] = "f16",
    pre: Annotated[
        str | None,
        typer.Option(
            help="Name that llama.cpp gives the pre-tokenizer (tokenizer.ggml.pre), if flab does not know it."
        ),
    ] = None,
    llama_quantize: Annotated[
        Path | None, typer.Option(help="Path of the llama-quantize program. Default: the one on the path.")
    ] = None,
    modelfile: Annotated[
        bool, typer.Option("--modelfile", help="Write a Modelfile for Ollama beside the output.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--no-overwrite", help="Replace the output if it exists.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write a model as one file for a serving engine.

    The command that serves the file is printed.
    """
    from flab.progress import say

    if format_ not in FORMATS:
        raise OptionError(f"FORMAT: got {format_!r}, allowed {', '.join(FORMATS)}.")
    check_file(as_path(output), overwrite, (model,))
    check_model(model)
    from flab.models.gguf.export import export_gguf

    made = export_gguf(model, output, kind, pre, llama_quantize, modelfile, overwrite)
    if json_:
        emit(made)
        return
    for warning in made["warnings"]:
        say(f"warning: {warning}")
    if made["fallbacks"]:
        say(
            f"{len(made['fallbacks'])} of {made['tensors']} tensors are kept in F16: their rows are not a multiple of 32"
        )
    say(
        f"wrote {made['output']}: {made['bytes'] / 1e6:,.1f} MB, {made['type']}, {made['tokens']:,} tokens, "
        f"pre-tokenizer {made['pre_tokenizer']}"
    )
    for engine, command in made["serve"].items():
        say(f"serve with {engine}: {command}")
