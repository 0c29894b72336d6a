"""Run a serving engine on texts and prompts. This is a script for an interpreter with the engine, which need not have flab.

Run as ``PYTHON -I worker.py ENGINE PATH``. It reads one JSON object from stdin with ``texts`` to tokenise, ``prompts`` (lists
of ids) to continue greedily by ``new_tokens``, and the number of ``threads`` and the ``context`` to use. The last line that
it prints is one JSON object with ``version``, ``tokens`` (ids of each text, null if the engine has no tokeniser of its own)
and ``answers`` (ids; texts with the ids of their ``prompts`` if the engine takes and gives no ids), or with ``error``, and
``missing`` if the engine is not installed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def post(address: str, body: Json) -> Json:
    """Return a server's answer to a JSON body."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        made: Json = json.load(reply)
    return made


def llama_cpp(path: str, asked: Json) -> Json:
    """llama.cpp's own server, in this process, asked over HTTP; ``path`` is a GGUF file."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = asked["context"]
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.port = 0
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["threads"]
    # Keys and values as exact as the weights: by default, and in flash attention, they are rounded to 16 bits.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    address = server.listening_address

    # Special tokens that a text names are looked for, as transformers does.
    wanted = {"add_special": True, "parse_special": True}
    tokens = [post(f"{address}/tokenize", {"content": text, **wanted})["tokens"] for text in asked["texts"]]
    greedy = {
        "n_predict": asked["new_tokens"],
        "temperature": 0.0,
        "top_k": 1,
        "cache_prompt": False,
        "return_tokens": True,
    }
    answers = [post(f"{address}/completion", {"prompt": ids, **greedy})["tokens"] for ids in asked["prompts"]]
    return {"version": getattr(xllamacpp, "__version__", xllamacpp.BUILD_INFO), "tokens": tokens, "answers": answers}


def ctranslate2(path: str, asked: Json) -> Json:
    """CTranslate2; ``path`` is the model's folder, which its converter reads with transformers."""
    import ctranslate2 as library
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as made:
        TransformersConverter(path).convert(str(Path(made) / "model"), quantization=None)
        generator = library.Generator(str(Path(made) / "model"), device="cpu", compute_type="float32")
        tokenizer = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
        prompts = [[tokenizer.id_to_token(index) for index in ids] for ids in asked["prompts"]]
        results = [
            generator.generate_batch(
                [prompt], max_length=asked["new_tokens"], sampling_topk=1, include_prompt_in_result=False
            )[0]
            for prompt in prompts
        ]
    return {
        "version": library.__version__,
        "tokens": None,
        "answers": [list(result.sequences_ids[0]) for result in results],
    }


def free_memory() -> float:
    """Return the fraction of free memory, of the GPU if there is one."""
    import psutil
    import torch

    if torch.cuda.is_available():
        # vLLM takes a share of all memory, not of what is free, and fails if other programs hold more than the rest.
        free, total = torch.cuda.mem_get_info()
        return float(free / total)
    memory = psutil.virtual_memory()
    return float(memory.available / memory.total)


def check_heads(path: str) -> None:
    """Raise ValueError if vLLM on the CPU does not accept heads of this size. Its engine would die without a message."""
    import torch

    if torch.cuda.is_available():
        return
    try:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    except ImportError:  # another version keeps it elsewhere
        return
    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    # vLLM would find this in a process of its own, at the first prompt, and its message would be lost.
    taken = CPUAttentionBackend.get_supported_head_sizes()
    if size not in taken:
        raise ValueError(
            f"vLLM on the CPU takes heads of {', '.join(map(str, taken))} numbers; this model's have {size}, which pruning "
            "does not change: run it on a GPU, or in another engine"
        )


def vllm(path: str, asked: Json) -> Json:
    """vLLM, on the CPU or a GPU; ``path`` is the model's folder."""
    import vllm as library

    check_heads(path)
    # vLLM takes a share of all memory, 0.92 by default, and refuses to start if less is free. The prompts need little.
    model = library.LLM(
        path,
        dtype="float32",
        max_model_len=asked["context"],
        enforce_eager=True,
        gpu_memory_utilization=0.8 * free_memory(),
    )
    tokenizer = model.get_tokenizer()
    settings = library.SamplingParams(temperature=0.0, max_tokens=asked["new_tokens"])
    results = model.generate([{"prompt_token_ids": ids} for ids in asked["prompts"]], settings)
    model.llm_engine.engine_core.shutdown()  # its processes would outlive this one
    return {
        "version": library.__version__,
        "tokens": [list(tokenizer.encode(text)) for text in asked["texts"]],
        "answers": [list(result.outputs[0].token_ids) for result in results],
    }


def transformers_serve(path: str, asked: Json) -> Json:
    """The server of transformers, asked over HTTP; ``path`` is the model's folder. It accepts and returns only texts."""
    import transformers
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ModuleNotFoundError("transformers serve is not installed: pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    # Where the system can, the server ends with this process, which ends with flab if that is killed.
    bound = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    start = [*bound, sys.executable, "-I", "-m", "transformers.cli.transformers", "serve", path]
    settings = ["--device", "cpu", "--dtype", "float32", "--port", port]
    server = subprocess.Popen([*start, *settings], stdout=sys.stderr)
    try:
        wait_for(f"http://localhost:{port}/health", server)
        # The server splits a prompt by this tokenizer. A prompt is a text that may have been cut inside a word, so its ids
        # are those of the text that is sent.
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        prompts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in asked["prompts"]]
        greedy = {"model": path, "temperature": 0.0, "max_tokens": asked["new_tokens"]}
        address = f"http://localhost:{port}/v1/completions"
        answers = [post(address, {"prompt": prompt, **greedy})["choices"][0]["text"] for prompt in prompts]
    finally:
        server.kill()
    return {
        "version": transformers.__version__,
        "tokens": [tokenizer(text)["input_ids"] for text in asked["texts"]],
        "prompts": [tokenizer(prompt)["input_ids"] for prompt in prompts],
        "answers": answers,
    }


def wait_for(address: str, server: subprocess.Popen[bytes], seconds: int = 600) -> None:
    """Return as soon as a server answers. Raises RuntimeError if it ends or takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended (exit {server.returncode})")
        try:
            urllib.request.urlopen(address, timeout=10).close()
        except OSError:  # it does not listen yet
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"the server did not answer in {seconds} seconds")


ENGINES = {"llama.cpp": llama_cpp, "ctranslate2": ctranslate2, "vllm": vllm, "transformers-serve": transformers_serve}


def answer(engine: str, path: str, asked: Json) -> Json:
    """Return the engine's result. An engine that is not installed is ``missing``; any other failure is its ``error``."""
    try:
        return ENGINES[engine](path, asked)
    except ModuleNotFoundError as error:
        return {"error": str(error), "missing": True}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    result = answer(sys.argv[1], sys.argv[2], json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a server's threads need not be waited for
