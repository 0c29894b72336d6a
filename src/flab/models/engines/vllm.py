"""Generation with vLLM behind the same seam: ``pip install vllm``, a GPU, and a model folder.

Prompts go in as token ids and answers come out as token ids, both made with the folder's own ``tokenizer.json``; vLLM
reads the same one from a folder of its own, because ``AutoTokenizer`` brings another pre-tokenizer for some families
and stop strings are matched on its text. Each request has its seed; samples differ from those of transformers.

The tests use a stand-in. In a manual run on vLLM 0.32 for the CPU, it gave the same answers as transformers to five
HumanEval prompts with SmolLM2-135M in float32.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flab.errors import OptionError
from flab.files import scratch_folder
from flab.models.engines.protocol import (
    Decoding,
    Encoded,
    Generation,
    Request,
    encode_requests,
    finish_rows,
    untruncated,
)
from flab.models.folder import read_if_there, read_object
from flab.models.memory import free_bytes, is_gpu
from flab.models.source import check_tokenizer


def free_share() -> dict[str, float]:
    """Return vLLM's setting for the share of memory to take: on the CPU four fifths of what is free."""
    free = free_bytes("cpu")
    if is_gpu("auto") or free is None:
        return {}
    # By default vLLM takes 0.92 of all memory, and does not start if less is free.
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"gpu_memory_utilization": 0.8 * free / total}


class VllmGenerator:
    """A model folder in vLLM; ``engine`` goes to ``vllm.LLM`` as it is (dtype, tensor_parallel_size, …)."""

    name = "vllm"

    def __init__(self, path: Path, **engine: Any) -> None:
        """Load the model.

        Raises:
            OptionError: vLLM is not installed.
            CheckpointError: the folder has no config.json or no tokenizer.json.
        """
        from tokenizers import Tokenizer

        self._vllm = import_vllm()
        config = read_object(path / "config.json")
        settings = read_if_there(path / "generation_config.json")
        check_tokenizer(path)
        self.tokenizer = untruncated(Tokenizer.from_file(str(path / "tokenizer.json")))
        ends = settings.get("eos_token_id", config.get("eos_token_id"))
        self.eos_ids: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        self.context = engine.get("max_model_len") or config.get("max_position_embeddings")
        # The folder lives as long as the generator: vLLM may read the tokenizer again at any time.
        scratch = contextlib.ExitStack()
        folder = scratch.enter_context(scratch_folder())
        weakref.finalize(self, scratch.close)
        plain_tokenizer_folder(path, folder)
        self.engine = self._vllm.LLM(
            model=str(path),
            **{"tokenizer": str(folder), "generation_config": "vllm", **free_share(), **engine},
        )

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        """Complete one batch; DataError for a prompt that does not fit the context."""
        if not requests:
            return []
        rows = encode_requests(self.tokenizer, requests, decoding.max_new_tokens, self.context)
        settings = [self._settings(row, decoding) for row in rows]
        # Prompts as ids, so that both engines read exactly the same tokens.
        outputs = self.engine.generate([{"prompt_token_ids": row.ids} for row in rows], settings, use_tqdm=False)
        made = [list(output.outputs[0].token_ids) for output in outputs]
        return finish_rows(self.tokenizer, rows, made, self.eos_ids)

    def _settings(self, row: Encoded, decoding: Decoding) -> Any:
        return self._vllm.SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            max_tokens=row.budget,
            stop=list(row.stop),
            stop_token_ids=self.eos_ids,
            seed=row.seed,
            skip_special_tokens=False,
        )


def import_vllm() -> Any:
    """Return the vllm package; OptionError with what to install if it is missing."""
    try:
        import vllm  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise OptionError(
            f"`backend` vllm: vLLM is not installed ({error}); pip install vllm, or use transformers."
        ) from None
    return vllm


def plain_tokenizer_folder(source: Path, target: Path) -> None:
    """Write a folder from which ``AutoTokenizer`` builds exactly what ``tokenizer.json`` says."""
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    settings = read_if_there(source / "tokenizer_config.json")
    settings.pop("added_tokens_decoder", None)  # stale ids would win over tokenizer.json
    settings.pop("auto_map", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (target / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
