"""Load and save standard Hugging Face models, and choose the precision in which they are run and cut.

No other module loads or saves a model. Only safetensors are read, and a model's own code runs only if the user asks for it.
:mod:`flab.pruning.verify` checks what was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from flab.errors import CheckpointError, OptionError
from flab.files import scratch_folder
from flab.models.families import Family, family_of, is_tied
from flab.models.layers import MIXED_MARK, multiplies_bfloat16
from flab.models.memory import free_bytes, trim
from flab.models.options import BALANCED, STORED_DTYPES, Options, settled
from flab.models.shards import ShardWriter, layout
from flab.models.source import ModelFolder, ModelSource, check_weights
from flab.models.stock import check_sidecars, copy_sidecars, rewrite_config
from flab.models.tensors import check_tensors, refuse_keys
from flab.models.tokenizer import first_line, load_tokenizer, quiet
from flab.models.weights import check_finite, leave_in_files, load_without, place_of
from flab.progress import say_once

MIXED = "mixed"  # the name of this precision in plans
NARROW = {"bfloat16": "BF16", "float16": "F16"}  # what safetensors calls them
MIXED_BYTES = 2**26  # from this size on, a model with 16-bit weights is cut in mixed precision
HEADROOM = 1.3  # memory that planning takes, in sizes of the model: streams and statistics come on top
SMALL_WEIGHTS_BYTES = 2 * 2**30  # below this a CPU computes in float32 whatever the stored dtype

# Settings that need sampling or beams, and the values that transformers accepts without these.
SAMPLING: dict[str, Any] = {
    "temperature": 1.0, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0, "top_k": 50, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}  # fmt: skip
BEAMS: dict[str, Any] = {"early_stopping": False, "length_penalty": 1.0}
# The types that a generation config may hold. transformers loads anything, and generation then fails.
GENERATION_KINDS: dict[str, Any] = (
    dict.fromkeys(
        ("eos_token_id", "pad_token_id", "bos_token_id", "num_beams", "num_return_sequences", "max_length"), int
    )
    | dict.fromkeys(("max_new_tokens", "min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size"), int)
    | dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty"), float | int)
    | {"stop_strings": str}
)
GENERATION_LISTS = ("eos_token_id", "stop_strings")  # may be several

torch_dtypes: dict[str, torch.dtype] = {name: getattr(torch, name) for name in STORED_DTYPES}


@dataclass
class Checkpoint:
    """A model in memory with its ground-truth tokenizer and the folder it came from."""

    path: Path
    model: Any  # transformers.PreTrainedModel
    tokenizer: Tokenizer
    named_ids: set[int] = field(default_factory=set)  # special tokens as transformers sees them
    warnings: list[str] = field(default_factory=list)


def read_config(source: ModelSource, trust_remote_code: bool = False) -> Any:
    """Return the transformers config of a folder that holds a model of a supported family.

    Raises:
        CheckpointError, UnsupportedModelError
    """
    folder = ModelFolder.open(source)
    path = folder.path
    raw = folder.raw
    if "auto_map" in raw and not trust_remote_code:
        raise CheckpointError(f"{path} asks to run its own code (auto_map): pass `trust_remote_code` if you trust it.")
    if isinstance(raw.get("model_type"), str):
        family_of(SimpleNamespace(**raw))  # before transformers allocates whatever an unknown config asks for
    check_weights(folder)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise CheckpointError(
            f"{path}/config.json is not a config that transformers knows: {first_line(error)}"
        ) from None
    family_of(config)
    return config


def fingerprint(source: ModelSource) -> str:
    """Return the SHA-256 of a folder or hub id; see ModelFolder."""
    return ModelFolder.open(source).fingerprint


def load(
    source: ModelSource,
    dtype: str = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    in_files: bool = False,
) -> Checkpoint:
    """Load a stock folder (or hub id) for reading or cutting, in eval mode, without gradients.

    ``dtype`` is "auto" (as stored), "float32", "bfloat16" or "float16"; ``device`` a torch device or "balanced"
    (accelerate spreads the layers over all devices). ``in_files`` leaves the layers' weights where they are stored, to be
    read one layer at a time (:mod:`flab.models.weights`).

    Raises:
        CheckpointError, UnsupportedModelError
    """
    folder = ModelFolder.open(source)
    path = folder.path
    config = read_config(folder, trust_remote_code)
    tokenizer, named_ids, warnings = load_tokenizer(path)
    if (highest := max(tokenizer.get_vocab().values(), default=0)) >= config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has more tokens than the embedding has rows (id {highest}, {config.vocab_size} rows). "
            "Fetch the model again."
        )
    layers = family_of(config).layers if in_files else ""
    model = load_model(folder, dtype, "cpu" if in_files else device, trust_remote_code, layers)
    if in_files:
        leave_in_files(model, model.get_submodule(layers), layers, folder.stored, torch.device(device))
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data if tensor.is_meta else tensor.data.to(device)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            check_finite(path, name, parameter)
    return Checkpoint(path, model, tokenizer, named_ids, warnings)


def load_model(
    source: ModelSource, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False, without: str = ""
) -> Any:
    """Load only the model, without the part ``without``. Raise an error unless every weight comes from the folder."""
    if dtype not in (*torch_dtypes, "auto"):
        raise OptionError(f"`dtype`: got {dtype!r}, allowed auto, {', '.join(torch_dtypes)}.")
    folder = ModelFolder.open(source)
    path = folder.path
    check_tensors(folder)  # before anything is read, which may take minutes
    dtype = folder.stored_dtype if dtype == "auto" else dtype  # "auto" of transformers is what the config says
    with quiet():
        try:
            given: dict[str, Any] = {
                "config": AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code),
                "dtype": torch_dtypes[dtype],
                "device_map": {"cpu": None, BALANCED: "auto"}.get(device, device),
                "use_safetensors": True,
                "trust_remote_code": trust_remote_code,
                "output_loading_info": True,
                "ignore_mismatched_sizes": True,  # they are named below
            }
            model, info = (
                load_without(folder, without, given) if without else AutoModelForCausalLM.from_pretrained(path, **given)
            )
        except MemoryError:
            raise
        except Exception as error:
            raise CheckpointError(f"{path} does not load: {first_line(error)}") from None
    # transformers only warns about these and fills missing weights with random numbers, which would be pruned too.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        wrong = sorted(name if isinstance(name, str) else str(name[0]) for name in info.get(kind, ()))
        refuse_keys(path, kind.replace("_", " "), wrong)
    return model.eval().requires_grad_(False)


def cast_parameters(model: Any, dtype: str) -> None:
    """Cast only the parameters, in place: ``model.to`` would round buffers (rotary frequencies) that are not saved."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch_dtypes[dtype])
    model.config.dtype = torch_dtypes[dtype]
    setattr(model, MIXED_MARK, False)


def try_saving(checkpoint: Checkpoint, family: Family) -> None:
    """Try to save config, generation config and tokenizer, and to read the files that will be copied, before the work.

    A generation config that transformers refuses to save is corrected first, with a warning.

    Raises:
        CheckpointError: one of them cannot be saved, or a file that belongs to the model cannot be read.
    """
    model = checkpoint.model
    path = checkpoint.path
    checkpoint.warnings += [*_settle_generation(path, model.generation_config), *check_sidecars(path)]
    # A config may say that weights are tied although the stored ones differ. The loaded model knows.
    model.config.tie_word_embeddings = is_tied(model, family)
    with scratch_folder() as folder, quiet():
        for what, write in (
            ("config.json", model.config.save_pretrained),
            ("generation_config.json", model.generation_config.save_pretrained),
            ("tokenizer.json", lambda where: checkpoint.tokenizer.save(str(Path(where) / "tokenizer.json"))),
        ):
            try:
                write(folder)
            except Exception as error:
                raise CheckpointError(f"{path}/{what} cannot be saved again: {first_line(error)}") from None


def _settle_generation(path: Path, config: Any) -> list[str]:
    """Remove from a generation config what transformers refuses to save. Greedy settings stay greedy."""
    _check_types(path, config)
    dropped = dict[str, None]()
    # Many published models carry sampling settings beside greedy decoding. transformers loads such a config but
    # refuses to save it.
    if config.do_sample is not True:
        dropped |= dict.fromkeys(
            name for name, usual in SAMPLING.items() if getattr(config, name, None) not in (None, usual)
        )
    if config.num_beams in (None, 1):
        dropped |= dict.fromkeys(
            name for name, usual in BEAMS.items() if getattr(config, name, None) not in (None, usual)
        )
        if config.do_sample is not True and (config.num_return_sequences or 1) > 1:
            dropped["num_return_sequences"] = None
    for name in dropped:
        setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise CheckpointError(f"{path}/generation_config.json cannot be saved again: {first_line(error)}") from None
    if not dropped:
        return []
    return [f"generation_config.json: {', '.join(dropped)} without sampling or beams have no effect and are left out"]


def _check_types(path: Path, config: Any) -> None:
    """Raise CheckpointError if a generation config holds a value of a wrong type, which only generation would notice."""
    for name, kind in GENERATION_KINDS.items():
        value = getattr(config, name, None)
        listed = value if isinstance(value, list) and name in GENERATION_LISTS else [value]
        if any(isinstance(one, bool) or not isinstance(one, kind) for one in listed if one is not None):
            wanted = {int: "a whole number", float | int: "a number", str: "text"}[kind]
            raise CheckpointError(
                f"{path}/generation_config.json: {name} is {value!r:.40}, expected {wanted}: correct it, or remove it."
            )


def save(
    checkpoint: Checkpoint, folder: Path, tokenizer_json: Mapping[str, Any] | None, writer: ShardWriter | None = None
) -> None:
    """Write model, tokenizer and all other files that a stock model needs into ``folder``.

    ``tokenizer_json`` is the rewritten tokenizer, or None to copy the source's tokenizer files. ``writer`` holds the tensors
    that are already written.
    """
    model = checkpoint.model
    family = family_of(model.config)
    with writer or ShardWriter(folder, layout(model, family)) as open_files:
        open_files.finish(model)
    model.config.tie_word_embeddings = is_tied(model, family)
    model.config.architectures = [type(model).__name__]
    with quiet():
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    rewrite_config(folder, model.config.tie_word_embeddings)
    copy_sidecars(checkpoint.path, folder, renumbered=tokenizer_json is not None)
    if tokenizer_json is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json, ensure_ascii=False), encoding="utf-8")


def compute_dtype(source: ModelSource, options: Options) -> str:
    """Return the precision to run a whole model in: the requested one, float32 for small models on a CPU, else the stored one."""
    options = settled(options)
    if options.dtype != "auto":
        return options.dtype
    small = ModelFolder.open(source).size_bytes < SMALL_WEIGHTS_BYTES
    return "float32" if options.device == "cpu" and small else "auto"


def same_precision(source: ModelSource, options: Options) -> Options:
    """Return options that name this model's precision, so that a smaller model is computed in the same one."""
    folder = ModelFolder.open(source)
    dtype = compute_dtype(folder, options)
    return replace(options, dtype=folder.stored_dtype if dtype == "auto" else dtype)


def open_model(
    source: ModelSource, options: Options, dtype: str | None = None, in_files: bool = False
) -> tuple[Checkpoint, Family]:
    """Load a model for cutting.

    Raises:
        CheckpointError, UnsupportedModelError
    """
    folder, options = ModelFolder.open(source), settled(options)
    dtype = dtype or compute_dtype(folder, options)
    checkpoint = load(folder, dtype, options.device, options.trust_remote_code, in_files)
    if any(p.is_meta and place_of(p) is None for p in checkpoint.model.parameters()):
        raise CheckpointError(f"{folder.path} does not fit on the devices here: use a larger one, or `device` cpu.")
    return checkpoint, family_of(checkpoint.model.config)


def cutting_dtype(source: ModelSource, options: Options) -> str:
    """Return the precision to plan and cut in: as asked, else ``mixed`` for bfloat16 weights if the device multiplies them.

    Mixed precision multiplies inside a layer in bfloat16 and keeps the residual stream and all statistics in float32. The
    stream of a real model holds activations thousands of times larger than the rest, and in bfloat16 they would round the
    rest away. Models of a few million parameters are cut in float32, which costs them little.
    """
    folder, options = ModelFolder.open(source), settled(options)
    if options.dtype != "auto" or options.device == BALANCED:
        return compute_dtype(folder, options)
    if folder.size_bytes < MIXED_BYTES:
        return "float32"
    mixed = folder.dtypes == {"BF16"} and multiplies_bfloat16(options.device)
    return MIXED if mixed else compute_dtype(folder, options)


def open_to_cut(
    source: ModelSource, options: Options, dtype: str | None = None, in_files: bool = False
) -> tuple[Checkpoint, Family]:
    """Load a model to read and cut it layer by layer. Its layers keep their stored 16-bit type if all weights have it.

    With ``in_files`` the layers' weights stay in their files, on any single device.

    Everything else is in float32. :class:`flab.models.layers.LayerRunner` widens one layer at a time, or multiplies in the
    layers' own 16 bits if ``dtype`` is "mixed". To call the model as a whole,
    :meth:`~flab.models.layers.LayerRunner.widen` it first.

    Raises:
        CheckpointError, UnsupportedModelError
    """
    folder, options = ModelFolder.open(source), settled(options)
    computing = dtype or cutting_dtype(folder, options)
    stored = folder.stored_dtype
    mixed = computing == MIXED
    # Layers may stay in 16 bits only if every stored tensor is in that dtype: widening one at a time is then
    # lossless.
    narrow = mixed or (computing == "float32" and options.device != BALANCED and folder.dtypes == {NARROW.get(stored)})
    in_files = in_files and options.device != BALANCED
    checkpoint, family = open_model(folder, options, stored if narrow else computing, in_files)
    try_saving(checkpoint, family)
    if narrow:
        inside = {id(p) for p in checkpoint.model.get_submodule(family.layers).parameters()}
        for parameter in checkpoint.model.parameters():
            # a copy, because the mapped file stays in memory as long as one of its tensors does
            parameter.data = parameter.data.clone() if id(parameter) in inside else parameter.data.float()
    if mixed and family.experts:  # mixed precision does not cover the products of all experts at once
        checkpoint.model.set_experts_implementation("eager")
    setattr(checkpoint.model, MIXED_MARK, mixed)
    return checkpoint, family


@dataclass(frozen=True)
class Held:
    """What planning holds in memory at a time, ``model`` or ``layer``, and the bytes that decide it."""

    in_memory: str
    whole_bytes: int
    free_bytes: int | None  # None if the system does not say


def held_in_memory(source: ModelSource, options: Options) -> Held:
    """Return what planning holds in memory: what the options request, or the whole model if it fits."""
    options = settled(options)
    needed, there = whole_bytes(source, options), free_bytes(options.device)
    asked = options.in_memory
    if asked == "auto":
        fits = options.device == BALANCED or there is None or needed <= there
        asked = "model" if fits else "layer"
    return Held(asked, needed, there)


def whole_bytes(source: ModelSource, options: Options) -> int:
    """Return the bytes that planning needs to hold the whole model."""
    folder, options = ModelFolder.open(source), settled(options)
    computing = cutting_dtype(folder, options)
    wide = computing == "float32" and folder.dtypes != {NARROW.get(folder.stored_dtype)}
    # A model that is computed in float32 but stored in 16 bits takes four bytes for each number in memory.
    stored = sum(tensor.numel for tensor in folder.stored.values()) * 4 if wide else folder.size_bytes
    return int(HEADROOM * stored)


def one_layer_at_a_time(source: ModelSource, options: Options) -> bool:
    """Return whether to hold one layer in memory at a time: if requested, or, with a message, if the model does not fit."""
    held = held_in_memory(source, options)
    if held.in_memory == "layer" and options.in_memory == "auto":
        say_once(
            f"the model needs about {held.whole_bytes / 1e9:.1f} GB and {(held.free_bytes or 0) / 1e9:.1f} GB are free: one "
            "layer at a time is read from its files, and KL alone decides between finalists (see `in_memory`)"
        )
    return held.in_memory == "layer"


def free(checkpoint: Checkpoint) -> None:
    """Free a model before the next one is loaded."""
    checkpoint.model = None
    trim()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
