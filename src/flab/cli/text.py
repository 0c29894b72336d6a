"""``flab text``: the text model inside a multimodal one, which can be pruned."""

from __future__ import annotations

from flab.cli.early import check_model
from flab.cli.options import Json, Model, Output, emit
from flab.files import as_path, check_folder
from flab.models.source import ModelFolder, text_config

TEXT_EXAMPLE = "Example: flab text MULTIMODAL -o TEXT"


def text(model: Model, output: Output, json_: Json = False) -> None:
    """Take the text model out of a multimodal model.

    The vision part is left out. The result is an ordinary model: prune it as any other.
    """
    out = as_path(output)
    # Nothing in such a folder tells that flab wrote it, so there is no --overwrite.
    check_folder(out, None, [model])
    check_model(model)
    if as_path(model).is_dir():
        text_config(ModelFolder.open(model))
    from flab.models.text_part import write_text_part
    from flab.progress import say

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
    say(f"saved {made.folder}: {made.model_type}, {made.parameters:,} parameters")
    for name, parameters in made.left_out.items():
        say(f"left out: {name}, {parameters:,} parameters")
