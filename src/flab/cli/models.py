"""``flab families``, ``text`` and ``export``: which models can be cut, the text model inside a multimodal one, and a model in the
format of a serving engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flab.cli.early import check_model
from flab.cli.options import Json, Model, Output, emit
from flab.errors import OptionError
from flab.files import as_path, check_file, check_folder
from flab.models.source import ModelFolder, text_config

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
        typer.Option(help="The pre-tokenizer's name in llama.cpp (tokenizer.ggml.pre), if flab does not know it."),
    ] = None,
    llama_quantize: Annotated[
        Path | None, typer.Option(help="Path of the llama-quantize program. Default: the one on PATH.")
    ] = None,
    modelfile: Annotated[
        bool,
        typer.Option("--modelfile", metavar=" ", help="Write a Modelfile for Ollama beside the output."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite/--no-overwrite", metavar=" ", help="Replace the output if it exists."),
    ] = False,
    json_: Json = False,
) -> None:
    """Write a model as one file for a serving engine.

    The command that serves the file is printed.
    """
    from flab.progress import reply, say

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
        reply(
            f"{len(made['fallbacks'])} of {made['tensors']} tensors are kept in F16: their rows are not a multiple of 32"
        )
    reply(
        f"wrote {made['output']}: {made['bytes'] / 1e6:,.1f} MB, {made['type']}, {made['tokens']:,} tokens, "
        f"pre-tokenizer {made['pre_tokenizer']}"
    )
    for engine, command in made["serve"].items():
        reply(f"serve with {engine}: {command}")


FAMILIES_EXAMPLE = "Example: flab families --json"


def families(json_: Json = False) -> None:
    """List the model families that can be pruned.

    Also lists families that are refused, and what is missing for each.
    """
    from flab.models.families import REFUSED

    rows = family_rows()
    refused = [{"model_type": name, "missing": missing} for name, missing in sorted(REFUSED.items())]
    if json_:
        emit({"families": rows, "refused": refused})
        return
    from flab.progress import add, show, table_of

    table = table_of("Families", ["model_type", "cuts", "transformers", "llama.cpp"])
    for row in rows:
        add(table, row["model_type"], ", ".join(row["cuts"]), f"{row['transformers']} and later", row["llama.cpp"])
    show(table)
    table = table_of("Refused", ["model_type", "flab lacks"])
    for row in refused:
        add(table, row["model_type"], row["missing"])
    show(table)


def family_rows() -> list[dict[str, Any]]:
    """Return one row for each family, by name."""
    from flab.models.compatibility import PERIODIC
    from flab.models.families import FAMILIES
    from flab.models.gguf.architectures import ARCHITECTURES
    from flab.pruning.plan import DENSE, MIXTURE

    return [
        {
            "model_type": name,
            # The layers of a hybrid differ in size, and all of them stay.
            "cuts": [
                cut
                for cut in (MIXTURE if family.experts else DENSE)
                if not (cut == "layers" and family.linear_attention)
            ],
            "transformers": family.since,
            "llama.cpp": "flab export gguf" if name in ARCHITECTURES else PERIODIC if family.periodic else "not tried",
        }
        for name, family in sorted(FAMILIES.items())
    ]


TEXT_EXAMPLE = "Example: flab text MULTIMODAL -o TEXT"


def text(model: Model, output: Output, json_: Json = False) -> None:
    """Take the text model out of a multimodal model.

    The vision part is left out. The result is an ordinary model, which you can
    prune like any other.
    """
    out = as_path(output)
    # Nothing in such a folder tells that flab wrote it, so there is no --overwrite.
    check_folder(out, None, [model])
    check_model(model, any_family=True)
    if as_path(model).is_dir():
        text_config(ModelFolder.open(model))
    from flab.models.text_part import write_text_part
    from flab.progress import reply

    made = write_text_part(model, out)
    if json_:
        emit(
            {
                "output": str(made.folder),
                "model_type": made.model_type,
                "parameters": made.parameters,
                "left_out": made.left_out,
            }
        )
        return
    reply(f"saved {made.folder}: {made.model_type}, {made.parameters:,} parameters")
    for name, parameters in made.left_out.items():
        reply(f"left out: {name}, {parameters:,} parameters")
