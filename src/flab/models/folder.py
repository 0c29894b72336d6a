"""The files of a model's folder: JSON objects, weight files and their headers. Reads no weights and imports no torch."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from flab.errors import CheckpointError
from flab.files import read_regular
from flab.files.foreign import GGUF, PICKLE, PYTORCH, SAFETENSORS, foreign_file

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
WHOLE = "model.safetensors"
NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
)
UNGGUF = "give the Hugging Face folder that it was made from, with config.json and *.safetensors"
INDEX = "model.safetensors.index.json"
MOST_DEPTH = 100  # levels of lists and objects in a model's JSON
TOO_DEEP = "nested too deeply"
MOST_HEADER_BYTES = 100_000_000  # of a safetensors header; the format's own limit
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # what safetensors calls them, and torch


@dataclass(frozen=True)
class Stored:
    """One tensor as its file's header describes it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path = field(default=Path(), compare=False)
    start: int = field(default=0, compare=False)  # of its bytes in the file

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Its size in bytes, by the bits in the name of its dtype, such as BF16 or F8_E4M3."""
        bits = re.search(r"\d+", self.dtype)
        return self.numel * (int(bits[0]) if bits else 8) // 8


def resolve(source: str | os.PathLike[str]) -> Path:
    """Return the local folder of a model: the path itself, or the download of a hub id ``owner/name``.

    Raises:
        CheckpointError: there is no such folder and no such hub model.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    text = str(source)
    if path.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(f"no model folder at {text}: {_instead(path)}.")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "LICENSE*", "NOTICE*"]
        return Path(snapshot_download(text, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the user
        raise CheckpointError(
            f"no folder {text} here, and the hub did not deliver it ({type(error).__name__}): check the path or the network."
        ) from None


def _instead(path: Path) -> str:
    """Return what lies at a path that is not a folder, and what to give instead."""
    found = foreign_file(path)
    if found == SAFETENSORS or (path.is_file() and path.name in NAMES):
        return f"it is one file of a model; give its folder, {path.parent}"
    give = "give a folder with config.json and *.safetensors, or a hub id"
    if found == GGUF:
        return f"it is {GGUF.what}; {UNGGUF}"
    if found in (PYTORCH, PICKLE):
        return f"it is {found.what}; {give}, saved by transformers' save_pretrained in a place you trust"
    return f"it is {found.what}; {give}" if found is not None else give


def check_no_gguf(path: Path) -> None:
    """Raise CheckpointError if a folder holds a model for llama.cpp instead of one of transformers."""
    if not (path / "config.json").exists() and (files := sorted(path.glob("*.gguf"))):
        raise CheckpointError(f"{path} holds a model for llama.cpp ({files[0].name}): {UNGGUF}.")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: the file is missing, not a regular file, not JSON, nested too deeply, or not an object.
    """
    try:
        data = json.loads(read_regular(path).decode("utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: give the folder of a whole model.") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CheckpointError(f"{path} cannot be read as JSON ({reason}). Fetch it again.") from None
    except RecursionError:
        raise CheckpointError(f"{path} cannot be read as JSON ({TOO_DEEP}). Fetch it again.") from None
    if is_deep(data):
        raise CheckpointError(f"{path} cannot be read as JSON ({TOO_DEEP}). Fetch it again.")
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, expected an object. Fetch it again.")
    return data


def is_deep(value: Any, most: int = MOST_DEPTH) -> bool:
    """Return whether lists and objects are nested deeper than ``most`` levels.

    The parser accepts about a thousand levels, but copying such a value needs several calls for each level and fails.
    """
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(most):
        inside = (one.values() if isinstance(one, dict) else one for one in level)
        level = [inner for values in inside for inner in values if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True


def read_if_there(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if it is missing. Raises CheckpointError as :func:`read_object`."""
    return read_object(path) if path.is_file() else {}


def check_entries(path: Path) -> None:
    """Raise CheckpointError if the folder holds a pipe, a socket or a device, on which a reader would wait forever."""
    for entry in sorted(path.iterdir()):
        try:
            mode = entry.stat().st_mode
        except OSError:  # a broken link is reported where its file is needed
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise CheckpointError(
                f"{entry} is a pipe, a socket or a device, not a file: remove it, or fetch the model again."
            )


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of a folder: the whole one, or all that its index names. They are not opened.

    Raises:
        CheckpointError: there are none, only pickled ones, or one is missing.
    """
    # In the order of transformers: an index beside a whole file is a leftover and is not read.
    if (path / WHOLE).exists():
        return [path / WHOLE]
    if (path / INDEX).is_file():
        return _indexed(path)
    if others := sorted(file.name for file in path.glob("*.safetensors")):
        raise CheckpointError(
            f"{path} has {others[0]}, but neither {WHOLE} nor {INDEX}, which transformers reads: fetch the whole model."
        )
    if pickled := [p.name for pattern in PICKLED for p in path.glob(pattern)]:
        raise CheckpointError(
            f"{path} has only pickled weights ({pickled[0]}), which can run code: flab reads safetensors. "
            "Convert once with transformers' save_pretrained in a place you trust."
        )
    raise CheckpointError(f"{path} has no *.safetensors weights: give the folder of a whole model.")


def _indexed(path: Path) -> list[Path]:
    """Return the files that the index names, all of which lie in the folder."""
    weights = read_object(path / INDEX).get("weight_map")
    names = sorted(set(weights.values())) if isinstance(weights, dict) and _are_names(list(weights.values())) else []
    if not names:
        raise CheckpointError(
            f"{path / INDEX} is malformed: its weight_map does not name a file of this folder for each tensor. Fetch it again."
        )
    if missing := [name for name in names if not (path / name).is_file()]:
        raise CheckpointError(
            f"{path}: weight files named by the index are missing: {', '.join(missing)}. Fetch them again."
        )
    return [path / name for name in names]


def _are_names(values: Sequence[Any]) -> bool:
    return all(isinstance(name, str) and name and PurePath(name).name == name for name in values)


def header_of(file: Path) -> dict[str, Stored]:
    """Return the header of a safetensors file: its tensors by name.

    Raises:
        CheckpointError: the file is truncated, damaged or missing.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing, or is not a regular file: fetch it again.")
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            # A safetensors file is 8 bytes of length, a JSON header of that length, then the tensors one after another. The
            # header tells where the file must end, so a truncated download is found without reading the weights.
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(MOST_HEADER_BYTES, size - 8):
                raise ValueError("its header does not fit the file")
            entries = json.loads(handle.read(length))
        entries.pop("__metadata__", None)
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
        if 8 + length + max(ends, default=0) != size:
            raise ValueError(f"{size} bytes, its header names {8 + length + max(ends, default=0)}")
        return {
            name: Stored(
                str(entry["dtype"]), tuple(map(int, entry["shape"])), file, 8 + length + int(entry["data_offsets"][0])
            )
            for name, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is truncated or damaged ({error}). Fetch it again.") from None


def headers(path: Path) -> dict[str, Stored]:
    """Return the headers of all weight files of a folder: their tensors by name.

    Raises:
        CheckpointError: no weights, or a file is missing, truncated or damaged.
    """
    return {name: stored for file in weight_files(path) for name, stored in header_of(file).items()}
