"""``flab export gguf``: write the file, with llama-quantize if the type needs it, and the command that serves it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from flab.errors import OptionError, OutputError
from flab.files import PathLike, as_path, check_file, check_space, new_file, scratch_folder, write_text
from flab.models.chat import template_of
from flab.models.child import run_child
from flab.models.folder import resolve, weight_files
from flab.models.gguf.vocabulary import CONTROL
from flab.models.gguf.write import TYPES, Written, write_gguf

BY_LLAMA_QUANTIZE = ("q5_0", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs")
# Tokens that the printed command asks room for; a longer context needs memory for it.
SERVED_CONTEXT = 8192
CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""


def export_gguf(
    model: PathLike,
    output: PathLike,
    kind: str = "f16",
    pre: str | None = None,
    llama_quantize: PathLike | None = None,
    modelfile: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model's folder as a GGUF file; returns what ``flab export --json`` prints.

    Args:
        kind: one of :data:`TYPES`, which flab writes, or of :data:`BY_LLAMA_QUANTIZE`, for which llama.cpp's own program is
            run on an F16 file that is removed afterwards.
        pre: llama.cpp's name of the pre-tokenizer (tokenizer.ggml.pre), if flab does not know it.
        llama_quantize: the program; by default ``llama-quantize`` on the path.
        modelfile: write a Modelfile for Ollama beside the output.

    Raises:
        OptionError: a type, program or pre-tokenizer is not known, or the output exists.
        UnsupportedModelError: flab does not write this architecture or tokenizer.
    """
    folder = resolve(model)
    path = as_path(output)
    check_file(path, overwrite, [folder])
    recipe = path.with_name(f"{path.stem}.Modelfile")
    if modelfile:
        check_file(recipe, overwrite, [folder])
    size = sum(file.stat().st_size for file in weight_files(folder))
    if kind in TYPES:
        check_space(path, size)
        written = write_gguf(folder, path, kind, pre)
    else:
        written = _quantised(folder, path, kind, pre, _program(kind, llama_quantize))
    if modelfile:
        write_text(recipe, modelfile_of(written, folder))
    serve = {"llama.cpp": f"llama-server -m {path} -c {min(written.context, SERVED_CONTEXT)}"}
    if modelfile:
        serve["ollama"] = f"ollama create {path.stem} -f {recipe} && ollama run {path.stem}"
    return written.to_json() | {"serve": serve, "modelfile": str(recipe) if modelfile else None}


def _program(kind: str, given: PathLike | None) -> str:
    """Return the llama-quantize to run. Raises OptionError if the type is unknown or the program is not found."""
    if kind not in BY_LLAMA_QUANTIZE:
        raise OptionError(f"`kind`: got {kind!r}, allowed {', '.join((*TYPES, *BY_LLAMA_QUANTIZE))}.")
    found = shutil.which(str(as_path(given)) if given is not None else "llama-quantize")
    if found is None:
        place = f"at {given}" if given is not None else "on the path"
        raise OptionError(
            f"`kind` {kind} is made by llama.cpp's own llama-quantize, which is not found {place}: install llama.cpp, name the "
            f"program with `llama_quantize`, or write one of {', '.join(TYPES)}."
        )
    return found


def _quantised(folder: Path, path: Path, kind: str, pre: str | None, program: str) -> Written:
    """Write F16, and let llama-quantize convert it to the wanted type."""
    with scratch_folder(path) as work, new_file(path) as temporary:
        whole = work / "f16.gguf"
        written = write_gguf(folder, whole, "f16", pre)
        command = [program, str(whole), str(temporary), kind.upper()]
        done = run_child(command)
        if done.returncode or not temporary.stat().st_size:
            last = ((done.stderr or done.stdout).strip().splitlines() or ["no output"])[-1]
            raise OutputError(f"{program} ended with exit code {done.returncode}: {last}")
    written.path = path
    written.type = kind
    return written


def modelfile_of(written: Written, folder: Path) -> str:
    """Return a Modelfile for Ollama: the file, its context, where answers stop, and a template.

    Ollama's templates have their own language. A ChatML template is written in it. A model without a chat template gets the
    prompt as it is. Any other template is left to Ollama's own detection.
    """
    vocabulary = written.vocabulary
    ends = {vocabulary.ids[role] for role in ("eos", "eot") if role in vocabulary.ids}
    stops = [vocabulary.tokens[index] for index in sorted(ends) if vocabulary.types[index] == CONTROL]
    template = template_of(folder)
    lines = [f"FROM ./{written.path.name}", f"PARAMETER num_ctx {min(written.context, SERVED_CONTEXT)}"]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    if template is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    elif "<|im_start|>" in template:
        lines.append(f'TEMPLATE """{CHATML}"""')
    return "\n".join(lines) + "\n"
