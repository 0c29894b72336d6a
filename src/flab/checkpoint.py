"""Stock Hugging Face folders in and out: the only module that touches model folders.

Safetensors only; ``trust_remote_code`` is off unless the user asks. It does not verify what was written: see :mod:`flab.verify`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from flab.errors import CheckpointError, OptionError
from flab.families import family_of
from flab.plans import STORED_DTYPES

PROBES = (
    "def add(a, b):\n    return a + b  # sum\n",
    "for i in range(10):\n\tprint(f'{i:>3}', x[i] != None)\n\n\n",
    "Straße, naïve café, Привет, 漢字かな, العربية, हिन्दी 🚀\r\n",
    "  leading and  double   spaces, CamelCase snake_case 3.14159e-10 0xFF",
)
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What is rewritten, replaced by tokenizer.json, or must not travel: llama.cpp prefers a stale tokenizer.model.
NOT_COPIED = {
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "plan.json",
    "kept_tokens.json", "README.md",
}  # fmt: skip
COPIED_SUFFIXES = {".jinja", ".txt", ".md", ".json", ""}

torch_dtypes: dict[str, torch.dtype] = {name: getattr(torch, name) for name in STORED_DTYPES}


@dataclass
class Checkpoint:
    """A model in memory with its ground-truth tokenizer and the folder it came from."""

    path: Path
    model: Any  # transformers.PreTrainedModel
    tokenizer: Tokenizer
    named_ids: set[int] = field(default_factory=set)  # special tokens as transformers sees them
    warnings: list[str] = field(default_factory=list)


def resolve(source: str | os.PathLike[str]) -> Path:
    """The local folder of a model: the path itself, or the download of a hub id ``owner/name``.

    Raises:
        CheckpointError: when there is no such folder and no such hub model.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    text = str(source)
    if path.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(
            f"no model folder at {text}: give a folder with config.json and *.safetensors, or a hub id."
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "LICENSE*", "NOTICE*"]
        return Path(snapshot_download(text, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the user
        raise CheckpointError(
            f"no folder {text} here, and the hub did not deliver it ({type(error).__name__}): check the path or the network."
        ) from None


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder, all of those that its index names.

    Raises:
        CheckpointError: none there, only pickled ones, one missing, or one truncated.
    """
    found = sorted(path.glob("*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        if missing := [name for name in names if not (path / name).is_file()]:
            raise CheckpointError(
                f"{path}: weight files named by the index are missing: {', '.join(missing)}. Fetch them again."
            )
        found = [path / name for name in names]
    if not found:
        pickled = [p.name for pattern in PICKLED for p in path.glob(pattern)]
        if pickled:
            raise CheckpointError(
                f"{path} has only pickled weights ({pickled[0]}), which can run code: flab reads safetensors. "
                "Convert once with transformers' save_pretrained in a place you trust."
            )
        raise CheckpointError(f"{path} has no *.safetensors weights: give the folder of a whole model.")
    for file in found:
        try:
            with safe_open(file, "pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is truncated or damaged ({error}). Fetch it again.") from None
    return found


def weight_dtypes(path: Path) -> set[str]:
    """The dtypes of all tensors in a folder's safetensors files, by safetensors' own names (``BF16``, ``F32``, ...)."""
    found = set[str]()
    for file in weight_files(path):
        with safe_open(file, "pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: give the folder of a whole model.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}). Fetch it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, expected an object. Fetch it again.")
    return data


def read_config(path: Path, trust_remote_code: bool = False) -> Any:
    """The transformers config of a folder, of a supported family.

    Raises:
        CheckpointError, UnsupportedModelError
    """
    raw = _read_json(path / "config.json")
    if "auto_map" in raw and not trust_remote_code:
        raise CheckpointError(f"{path} asks to run its own code (auto_map): pass --trust-remote-code if you trust it.")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise CheckpointError(f"{path}/config.json is not a config transformers knows: {_first_line(error)}") from None
    family_of(config)
    return config


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def fingerprint(path: Path) -> str:
    """SHA-256 over config, weights and tokenizer: two folders with the same one behave alike."""
    digest = hashlib.sha256()
    files = [path / "config.json", *weight_files(path), path / "tokenizer.json"]
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def load(
    source: str | os.PathLike[str], dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False
) -> Checkpoint:
    """Load a stock folder (or hub id) for reading or cutting, in eval mode, without gradients.

    ``dtype`` is "auto" (as stored), "float32", "bfloat16" or "float16"; ``device`` a torch device or "auto"
    (accelerate spreads the layers over all devices).

    Raises:
        CheckpointError, UnsupportedModelError
    """
    path = resolve(source)
    config = read_config(path, trust_remote_code)
    weight_files(path)
    tokenizer, named_ids, warnings = load_tokenizer(path, config)
    model = load_model(path, dtype, device, trust_remote_code)
    if tokenizer.get_vocab_size() > model.get_input_embeddings().num_embeddings:
        raise CheckpointError(
            f"{path}: the tokenizer has more tokens than the embedding has rows. Fetch the model again."
        )
    return Checkpoint(path, model, tokenizer, named_ids, warnings)


def load_model(path: Path, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False) -> Any:
    """The model alone; every weight comes from the folder or this raises."""
    if dtype not in (*torch_dtypes, "auto"):
        raise OptionError(f"--dtype: got {dtype!r}, allowed auto, {', '.join(torch_dtypes)}.")
    with quiet():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=torch_dtypes.get(dtype, "auto"),
                device_map=None if device == "cpu" else device,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        except MemoryError:
            raise
        except Exception as error:
            raise CheckpointError(f"{path} does not load: {_first_line(error)}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if wrong := sorted(map(str, info.get(kind, ()))):
            names = ", ".join(wrong[:3]) + (", …" if len(wrong) > 3 else "")
            raise CheckpointError(
                f"{path}: {len(wrong)} {kind.replace('_', ' ')} in the weights ({names}). Fetch it again."
            )
    return model.eval().requires_grad_(False)


def load_tokenizer(path: Path, config: Any) -> tuple[Tokenizer, set[int], list[str]]:
    """The ground-truth tokenizer, the ids transformers gives a role, and what AutoTokenizer gets wrong."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{path} has no tokenizer.json: save the tokenizer once with transformers to get one.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        raise CheckpointError(f"{file} is damaged ({_first_line(error)}). Fetch it again.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with quiet():
        try:
            auto = AutoTokenizer.from_pretrained(path)
        except Exception as error:
            return tokenizer, set(), [f"AutoTokenizer cannot load {path.name}: {_first_line(error)}"]
    named = {i for i in [*auto.all_special_ids, *auto.get_added_vocab().values()] if i is not None}
    return (
        tokenizer,
        {i for i in named if i < tokenizer.get_vocab_size()},
        tokenizer_warnings(tokenizer, auto),
    )


def tokenizer_warnings(truth: Tokenizer, auto: Any) -> list[str]:
    """One line when AutoTokenizer does not split the probe texts as tokenizer.json does."""
    differ = [
        p for p in PROBES if auto.encode(p, add_special_tokens=False) != truth.encode(p, add_special_tokens=False).ids
    ]
    if not differ:
        return []
    return [
        f"AutoTokenizer builds {type(auto).__name__}, which splits {len(differ)} of {len(PROBES)} probe texts otherwise than "
        "tokenizer.json: flab uses tokenizer.json; load it with transformers.PreTrainedTokenizerFast.from_pretrained."
    ]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' own loading chatter and bars off; errors still raise."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def cast_parameters(model: Any, dtype: str) -> None:
    """Cast the parameters alone, in place: ``model.to`` would round buffers (rotary frequencies) that are not saved."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch_dtypes[dtype])
    model.config.dtype = torch_dtypes[dtype]


def save(checkpoint: Checkpoint, folder: Path, tokenizer_json: Mapping[str, Any] | None) -> None:
    """Write model, tokenizer and what else the source folder holds into ``folder``, all of it stock.

    ``tokenizer_json`` is the rewritten tokenizer, or None to copy the source's tokenizer files as they are.
    """
    with quiet():
        checkpoint.model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    source = checkpoint.path
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in NOT_COPIED and file.suffix in COPIED_SUFFIXES:
            shutil.copyfile(file, folder / file.name)
    if tokenizer_json is None:
        for name in sorted(
            NOT_COPIED
            - {
                "config.json",
                "generation_config.json",
                "model.safetensors.index.json",
                "plan.json",
                "README.md",
            }
        ):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json, ensure_ascii=False), encoding="utf-8")
    if (source / "tokenizer_config.json").is_file():
        config = _read_json(source / "tokenizer_config.json")
        config.pop("added_tokens_decoder", None)  # stale ids would win over tokenizer.json
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
