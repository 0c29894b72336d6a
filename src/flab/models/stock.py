"""The output folder as other programs read it: a config in the forms of transformers 4 and 5, and the files of the source that
a stock model needs, by name. No torch.

Weights, indexes and tokenizers of other programs (``tekken.json``, ``params.json``), traces of training, scripts, and files
that a link takes from outside the model's folder are not copied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flab.errors import CheckpointError
from flab.files import TEMPLATES, TOKENIZER_FILES, is_legal, read_regular
from flab.models.folder import read_if_there, read_object

FULL = "full_attention"
WINDOW = "sliding_attention"


def rewrite_config(folder: Path, tied: bool) -> None:
    """Add the names of transformers 4 to the config, and drop what a stock model does not need.

    ``tied`` is whether embedding and head are one tensor in the weights.
    """
    config = read_object(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(both_forms(config, tied), indent=2, sort_keys=True) + "\n")


def both_forms(config: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Return the config with ``rope_theta``, ``rope_scaling`` and ``torch_dtype`` at the top, as transformers 4 reads them."""
    made = {name: value for name, value in config.items() if name not in ("auto_map", "quantization_config")}
    made["tie_word_embeddings"] = tied
    if "num_local_experts" in made:  # a Qwen3 mixture has the other name in transformers 4
        made.setdefault("num_experts", made["num_local_experts"])
    if "dtype" in made:
        made["torch_dtype"] = made["dtype"]
    rope = made.get("rope_parameters")
    if isinstance(rope, Mapping) and isinstance(rope.get(FULL), Mapping):  # one set for each kind of attention
        window = rope.get(WINDOW)
        if isinstance(window, Mapping) and "rope_theta" in window:
            made["rope_local_base_freq"] = window["rope_theta"]
        rope = rope[FULL]
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        made |= _older_rope(rope)
    # transformers 4 derives the kinds of layers from this number, so it has to agree with the list.
    layers = made.get("layer_types")
    if isinstance(layers, list) and made.get("max_window_layers") is not None:
        made["max_window_layers"] = full_layers(layers)
    return made


def _older_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return one set of rotary parameters as transformers 4 has them."""
    apart = ("rope_theta", "partial_rotary_factor")
    made: dict[str, Any] = {name: rope[name] for name in apart if name in rope}
    scaling = {name: value for name, value in rope.items() if name not in apart}
    kind = scaling.get("rope_type", "default")
    # Phi-3 in transformers 4 demands exactly these three fields.
    if kind == "longrope":
        if "original_max_position_embeddings" in rope:
            made["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
        scaling = {"type": kind} | {name: rope[name] for name in ("short_factor", "long_factor")}
    made["rope_scaling"] = None if kind == "default" else scaling
    return made


def full_layers(layer_types: list[str]) -> int:
    """Return how many layers attend to everything before the first one with a window."""
    return next((place for place, kind in enumerate(layer_types) if kind != FULL), len(layer_types))


def rewrite_tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer's config without code and stale ids, and with a class that transformers 4 knows too."""
    made = {name: value for name, value in config.items() if name not in ("auto_map", "added_tokens_decoder")}
    # transformers 5 gives the class a name that 4 does not know.
    if made.get("tokenizer_class") == "TokenizersBackend":
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    # A list in transformers 5, a mapping of names in 4.
    if isinstance(made.get("extra_special_tokens"), list):
        made.setdefault("additional_special_tokens", made.pop("extra_special_tokens"))
    return made


def copy_sidecars(source: Path, folder: Path, renumbered: bool) -> list[str]:
    """Copy templates, legal texts and the tokenizer's files. Returns a warning for each legal text that is left out.

    ``renumbered`` says that token ids are new; then only the tokenizer's config is copied.

    Raises:
        CheckpointError: a template or a tokenizer file is a link to a place outside the model's folder.
    """
    warnings = check_links(source)
    for file in sorted(source.iterdir()):
        if file.name in TEMPLATES and file.is_dir():
            (folder / file.name).mkdir()
            for template in sorted(file.glob("*.jinja")):
                shutil.copyfile(template, folder / file.name / template.name)
        elif file.is_file() and _travels(file, source, renumbered):
            shutil.copyfile(file, folder / file.name)
    if (source / "tokenizer_config.json").is_file():
        _copy_tokenizer_config(source / "tokenizer_config.json", folder / "tokenizer_config.json")
    return warnings


def _copy_tokenizer_config(source: Path, target: Path) -> None:
    """Write the tokenizer's config for both versions of transformers, byte for byte if it needs no change."""
    config = read_object(source)
    rewritten = rewrite_tokenizer_config(config)
    if rewritten == config:
        shutil.copyfile(source, target)
    else:
        target.write_text(json.dumps(rewritten, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _travels(file: Path, source: Path, renumbered: bool) -> bool:
    """Return whether a file of the source is copied as it is."""
    if is_legal(file.name):
        return is_inside(file, source)
    return file.name in TEMPLATES or (file.name in TOKENIZER_FILES and not renumbered)


def check_sidecars(source: Path) -> list[str]:
    """Check that all files that are copied can be read. Returns a warning for each legal text that is left out.

    Raises:
        CheckpointError: one lies outside of the model's folder, is not JSON, or is not UTF-8 text.
    """
    warnings = check_links(source)
    # A file that cannot be read or saved fails now, and not after hours of planning.
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        read_if_there(source / name)
    for template in (source / "chat_template.jinja", *source.glob("additional_chat_templates/*.jinja")):
        try:
            _ = read_regular(template).decode("utf-8") if template.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{template} is not UTF-8 text that can be read ({error}). Fetch it again.") from None
    return warnings


def check_links(source: Path) -> list[str]:
    """Return a warning for each legal text that lies outside the model's folder; it is not copied.

    Raises:
        CheckpointError: a template or a tokenizer file lies outside.
    """
    warnings = []
    templates = [*source.glob("*"), *source.glob("additional_chat_templates/*.jinja")]
    for file in sorted(file for file in templates if not is_inside(file, source)):
        needed = file.name in (*TEMPLATES, *TOKENIZER_FILES[1:]) or file.suffix == ".jinja"
        if needed:
            raise CheckpointError(
                f"{file} is a link to {file.resolve()}, outside of the model's folder: put the file itself there."
            )
        if is_legal(file.name):
            warnings.append(
                f"{file.name} is a link to {file.resolve()}, outside of the model's folder, and is not copied"
            )
    return warnings


def is_inside(file: Path, source: Path) -> bool:
    """Return whether a file (with links resolved) is in the folder, or in the hub cache of which the folder is a snapshot."""
    # In the hub's cache every file of a snapshot is a link to a blob outside of the snapshot, two folders up;
    # those are the model's own.
    target = file.resolve()
    folder = source.resolve()
    cache = folder.parents[1] if folder.parent.name == "snapshots" else folder
    return folder in target.parents or cache in target.parents
