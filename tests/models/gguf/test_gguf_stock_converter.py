"""A written file beside that of llama.cpp's own converter: the same tensors, tokens and settings, before and after pruning.

``make engines`` fetches the converter and runs these tests. FLAB_ENGINES_PYTHON names the Python that runs it, and
FLAB_CONVERTER its convert_hf_to_gguf.py. The converter knows a tokenizer by the hash of some ids, and neither the pico
tokenizer nor a cut vocabulary is known to it: it is told the name of the pre-tokenizer, and nothing else.
"""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
from gguf import GGUFReader

from flab.models.gguf.write import write_gguf

pytestmark = pytest.mark.engines
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "starcoder2")
CONVERT = """
import runpy, sys
from pathlib import Path
script, name = sys.argv.pop(1), sys.argv.pop(1)
sys.path.insert(0, str(Path(script).parent))
sys.argv[0] = script
from conversion.base import TextModel
if name:
    TextModel.get_vocab_base_pre = lambda self, tokenizer: name
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="session")
def convert():
    """Convert a folder with llama.cpp's own script; returns the finished process."""
    python, script = (os.environ.get(name) for name in ("FLAB_ENGINES_PYTHON", "FLAB_CONVERTER"))
    if not python or not script:
        pytest.skip(
            "llama.cpp's converter is not here: run make engines, or set FLAB_ENGINES_PYTHON and FLAB_CONVERTER"
        )

    def give(folder, output, pre=""):
        command = [python, "-c", CONVERT, script, pre, str(folder), "--outtype", "f32", "--outfile", str(output)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return give


def read(path):
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if "general." not in name}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def assert_equal(own_path, stock_path):
    """All that the converter writes stands in the file, but for the file's own counts."""
    (own, own_tensors), (stock, stock_tensors) = read(own_path), read(stock_path)
    assert set(own_tensors) == set(stock_tensors)
    for name, tensor in stock_tensors.items():
        assert own_tensors[name].tensor_type == tensor.tensor_type, name
        assert np.array_equal(own_tensors[name].data, tensor.data), name
    settings = {name: value for name, value in stock.items() if not name.startswith("GGUF.")}
    assert {"tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"} <= set(settings)
    assert {name: own.get(name) for name in settings} == settings


@pytest.mark.parametrize("pruned", [False, True], ids=["original", "pruned"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_holds_what_llama_cpps_converter_writes(convert, pico_folder, smaller, tmp_path, family, pruned):
    folder = smaller(family) if pruned else pico_folder(family)
    written = write_gguf(folder, tmp_path / "own.gguf", "f32")
    done = convert(folder, tmp_path / "stock.gguf", written.vocabulary.pre)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_equal(tmp_path / "own.gguf", tmp_path / "stock.gguf")


def test_unaided_the_converter_refuses_a_cut_vocabulary(convert, smaller, tmp_path):
    """The reason for an export of flab's own."""
    done = convert(smaller("qwen2"), tmp_path / "stock.gguf")
    assert done.returncode != 0
    assert "BPE pre-tokenizer was not recognized" in done.stderr
