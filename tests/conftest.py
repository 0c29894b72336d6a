"""Fixtures that tests of several rooms share: pico checkpoints (built once a session), data, commands, a sandbox."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM

from flab import Options, prune
from flab.cli import app
from flab.errors import SandboxError
from flab.recovery.settings import Training
from flab.sandbox import Sandbox
from support import pico

END = "<|end|>"
settings.register_profile("flab", deadline=None)  # a busy machine is no failure
settings.load_profile("flab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what runs in one process where tests run side by side: a file; and all of the sandbox, which counts processes."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        item.add_marker(pytest.mark.xdist_group("sandbox" if folder == "sandbox" else str(item.path)))


@pytest.fixture(autouse=True, scope="session")
def _little_general_text() -> Iterator[None]:
    """Bits per byte on 2 kB: the figure itself is tested where it is measured."""
    import flab.evaluation.bits_per_byte

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flab.evaluation.bits_per_byte, "GENERAL_BYTES", 2000)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_reports() -> Iterator[None]:
    """No lines of progress in what is read of stderr, however busy the machine is; they have tests of their own."""
    import flab.progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flab.progress, "REPORT_SECONDS", 1e6)
        yield


@pytest.fixture
def verify_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """``prune`` verifies in this process: a fresh one takes seconds and has its own tests."""
    import flab.pruning.pipeline
    from flab.pruning.verify import verify

    monkeypatch.setattr(flab.pruning.pipeline, "check", lambda folder, against: verify(Path(folder), Path(against)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Pico models gain nothing from more, and threads that wait for a busy core make them crawl."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pico_folder(tmp_path_factory: pytest.TempPathFactory):
    """Build (once) and give the folder of a family's pico checkpoint."""
    root, built = tmp_path_factory.mktemp("pico"), {}

    def give(family: str = "qwen2", **settings: object) -> Path:
        key = family + "".join(f"-{k}-{v}" for k, v in sorted(settings.items()))
        if key not in built:
            built[key] = pico.build(family, root / key, **settings)
        return built[key]

    return give


@pytest.fixture(scope="session")
def calibration_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small instruction file in JSONL."""
    return pico.write_calibration(tmp_path_factory.mktemp("calibration") / "rows.jsonl")


@pytest.fixture(scope="session")
def recipe(calibration_file: Path):
    """A recipe over the small instruction file that takes a second."""
    from flab import Recipe

    def give(**changes: object) -> Recipe:
        return Recipe(**{"calibration": calibration_file, **pico.QUICK, **changes})

    return give


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen2 pico model that has learned the calibration rows, so that its layers do real work."""
    return pico.train(pico.build("qwen2", tmp_path_factory.mktemp("trained") / "model"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The public benchmark files: FLAB_DATA, or shared/data next to the repository."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FLAB_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no benchmark files in {folder}: set FLAB_DATA")
    return folder


@pytest.fixture
def flab(monkeypatch, capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flab", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as caught:
                app.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        code = caught.value.code
        out, err = capsys.readouterr()
        return (code if isinstance(code, int) else 0), out, err

    return run


@pytest.fixture(scope="session")
def sandbox():
    try:
        return Sandbox.detect()
    except SandboxError as error:
        pytest.skip(f"no namespaces on this machine: {error}")


def make_tokenizer(vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    corpus = ["def add(a, b):\n    return a + b\n\n\nclass Thing:\n    def get(self):\n        return self.value\n"]
    tokenizer.train_from_iterator(corpus * 4, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer(290)


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=290,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        **sizes,
        **changes,
    )
    return Qwen2ForCausalLM(config).float().eval()


@pytest.fixture
def model():
    model = make_model()
    model.generation_config.eos_token_id = 0
    model.generation_config.pad_token_id = None
    return model


@pytest.fixture
def prompts():
    rng = random.Random(0)
    words = ["def ", "add", "(a, b)", ":\n    ", "return ", "a + b", "\n", "é", "class "]
    return ["".join(rng.choices(words, k=rng.randint(1, 25))) for _ in range(9)]


@pytest.fixture(scope="session")
def pruned_folder(trained_folder: Path, recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained pico model with half of its body gone, not refitted, so that there is something to recover."""
    out = tmp_path_factory.mktemp("pruned") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flab.pruning.pipeline.check", lambda folder, against: {"ok": True, "checks": [], "loads_in": {}})
        prune(trained_folder, out, recipe(remove=0.4, refit="none", output_projection=False, finalists=1), Options())
    return out


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the pico grammar."""
    return pico.write_calibration(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture
def training():
    """A training of a second or two."""

    def give(**changes: object) -> Training:
        quick = {"steps": 6, "length": 64, "batch": 4, "micro_batch": 4, "evaluations": 3, "held_out": 0.2}
        return Training(**{**quick, **changes})

    return give


@pytest.fixture
def check_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify in this process: a fresh one takes seconds and has its own tests."""
    from flab.pruning.verify import verify

    monkeypatch.setattr("flab.recovery.train.check", lambda folder, against: verify(Path(folder), Path(against)))
