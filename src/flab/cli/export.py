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
    format_: Annotated[str, typer.Argument(metavar="FORMAT", help="gguf, the format of llama.cpp and Ollama.")],
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    type_: Annotated[
        str,
        typer.Option(
            "--type",
            help="f32, f16, bf16 or q8_0; others, such as q4_k_m, are made by llama.cpp's own llama-quantize.",
        ),
    ] = "f16",
    pre: Annotated[
        str | None,
        typer.Option(help="llama.cpp's name of the pre-tokenizer (tokenizer.ggml.pre), if flab does not know it."),
    ] = None,
    llama_quantize: Annotated[
        Path | None, typer.Option(help="The llama-quantize program; by default the one on the path.")
    ] = None,
    modelfile: Annotated[
        bool, typer.Option("--modelfile", help="Write a Modelfile for Ollama beside the output.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--no-overwrite", help="Replace the output if it exists.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write a model for a serving engine, and print the command that serves it."""
    from flab.progress import say

    if format_ not in FORMATS:
        raise OptionError(f"FORMAT: got {format_!r}, allowed {', '.join(FORMATS)}.")
    check_file(as_path(output), overwrite, (model,))
    check_model(model)
    from flab.models.gguf.export import export_gguf

    made = export_gguf(model, output, type_, pre, llama_quantize, modelfile, overwrite)
    if json_:
        emit(made)
        return
    for warning in made["warnings"]:
        say(f"warning: {warning}")
    if made["fallbacks"]:
        say(f"{len(made['fallbacks'])} of {made['tensors']} tensors are kept in F16: their rows are no multiple of 32")
    say(
        f"wrote {made['output']}: {made['bytes'] / 1e6:,.1f} MB, {made['type']}, {made['tokens']:,} tokens, "
        f"pre-tokenizer {made['pre_tokenizer']}"
    )
    for engine, command in made["serve"].items():
        say(f"serve with {engine}: {command}")
