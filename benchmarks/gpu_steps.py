"""The steps of the GPU pack (``gpu.py``): each measures one thing, needs nothing of the others, and returns plain data.

Models have random weights: what is measured is time, memory and energy, which do not depend on their values. Every timed block
waits for the device before its clock starts and before it stops. Legend: B rows, T positions.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, Qwen2Config, TrainerCallback

from flab import Measuring, Options, Recipe, Training, apply, assets, measure, plan
from flab.evaluation.prompts import requests_for
from flab.evaluation.tasks import read_task
from flab.files import TOKENIZER_FILES, new_folder
from flab.footprint.power import metered
from flab.models.checkpoint import Checkpoint
from flab.models.engines.protocol import Decoding, generate_all
from flab.models.engines.transformers import TransformersGenerator
from flab.models.families import family_of, shape_of
from flab.models.memory import is_gpu, peak, reset_peak
from flab.models.shape import Shape
from flab.recovery.examples import Examples
from flab.recovery.memory import measured_peak, predicted_peak
from flab.recovery.trainer import make_trainer

ROOT = Path(__file__).parents[1]
DATASHEET = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}  # dense bfloat16 FLOP/s and bytes/s of the SXM parts


@dataclass(frozen=True)
class Size:
    """A model's shape, the share that is removed, and how much work each step does on it."""

    hidden: int
    layers: int
    width: int
    heads: int
    key_value_heads: int
    vocabulary: int
    smaller_layers: int
    smaller_width: int
    tokens: int  # calibration tokens of the plan
    length: int  # tokens of a row
    rows: int  # rows of one forward, and of one training step
    problems: int  # that are answered
    new_tokens: int
    steps: int  # of training
    rounds: int  # of each timing
    seconds: float  # least time over which energy is metered
    matrix: int  # side of the product that the device's rate is measured on
    max_batch: int
    lora_rank: int
    tests: tuple[str, ...]


SIZES = {
    # Qwen2.5-Coder-7B's shape. Its vocabulary is left at 32,768, because random weights say nothing of which tokens may go.
    "7b": Size(
        hidden=3584, layers=28, width=18944, heads=28, key_value_heads=4, vocabulary=32768,
        smaller_layers=26, smaller_width=15232,
        tokens=128 * 512, length=512, rows=16, problems=128, new_tokens=64, steps=5, rounds=2, seconds=4.0, matrix=8192,
        max_batch=64, lora_rank=64,
        tests=("tests/pruning/test_devices.py", "tests/models/engines/test_transformers.py"),
    ),
    "pico": Size(
        hidden=32, layers=4, width=640, heads=4, key_value_heads=2, vocabulary=4224, smaller_layers=3, smaller_width=480,
        tokens=1024, length=64, rows=2, problems=2, new_tokens=4, steps=3, rounds=1, seconds=0.01, matrix=64,
        max_batch=2, lora_rank=2,
        tests=("tests/pruning/test_devices.py",),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a step works: its size, its device, and a folder for models."""

    size: Size
    device: str
    work: Path

    @property
    def options(self) -> Options:
        """The device; the precision is what flab chooses for weights in bfloat16."""
        return Options(device=self.device, overwrite=True)


# --- what the steps share ---


def wait(device: str) -> None:
    """Let the device finish what it was given."""
    if is_gpu(device):
        torch.cuda.synchronize()


@contextmanager
def timed(device: str) -> Iterator[dict[str, float]]:
    """Time a block; ``seconds`` is there once it is over."""
    clock: dict[str, float] = {}
    wait(device)
    start = time.perf_counter()
    yield clock
    wait(device)
    clock["seconds"] = time.perf_counter() - start


def config_of(size: Size, smaller: bool) -> Qwen2Config:
    """The model's config; the smaller one has fewer layers and neurons."""
    return Qwen2Config(
        hidden_size=size.hidden,
        num_hidden_layers=size.smaller_layers if smaller else size.layers,
        intermediate_size=size.smaller_width if smaller else size.width,
        vocab_size=size.vocabulary,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )


def random_model(place: Place, smaller: bool = False) -> Any:
    """A model in bfloat16, made on the device, where random numbers cost nothing."""
    torch.manual_seed(0)
    with torch.device(place.device):
        return AutoModelForCausalLM.from_config(config_of(place.size, smaller), dtype=torch.bfloat16).eval()


def folder_of(place: Place, smaller: bool = False) -> Path:
    """A saved random model with the bundled tokenizer; made by the first step that asks for it."""
    folder = place.work / ("smaller" if smaller else "original")
    if folder.exists():
        return folder
    with new_folder(folder, overwrite=False) as new:
        random_model(place, smaller).save_pretrained(new)
        for name in TOKENIZER_FILES:
            if (assets.model_path() / name).is_file():
                (new / name).write_bytes((assets.model_path() / name).read_bytes())
    if is_gpu(place.device):
        torch.cuda.empty_cache()
    return folder


def shape_of_size(size: Size, smaller: bool = False) -> Shape:
    """The shape of a model of this size; its weights take no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(size, smaller))
    return shape_of(model, family_of(model.config))


def median_rate(place: Place, work: Callable[[], object], amount: float) -> float:
    """``amount`` per second of the median of five calls, after one that warms up."""
    work()
    seconds = []
    for _ in range(5):
        with timed(place.device) as clock:
            work()
        seconds.append(clock["seconds"])
    return amount / sorted(seconds)[2]


def product_rate(place: Place) -> float:
    """FLOP/s of a large product in bfloat16: what a peak comes to here."""
    side = place.size.matrix
    a, b = (torch.randn(side, side, device=place.device, dtype=torch.bfloat16) for _ in range(2))
    return median_rate(place, lambda: a @ b, 2.0 * side**3)


def copy_rate(place: Place) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.zeros(16 * place.size.matrix**2, device=place.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return median_rate(place, lambda: target.copy_(source), 2.0 * source.numel())


# --- the steps ---


def device(place: Place) -> dict[str, Any]:
    """The device's measured rates, the share of them that a plain forward reaches, and the energy that it takes."""
    size = place.size
    model, shape = random_model(place), shape_of_size(size)
    ids_BT = torch.randint(0, size.vocabulary, (size.rows, size.length), device=place.device)
    products, bandwidth = product_rate(place), copy_rate(place)
    reset_peak(place.device)
    with torch.inference_mode():
        tokens_per_second = median_rate(place, lambda: model.model(ids_BT, use_cache=False), float(ids_BT.numel()))
        read = 0
        with metered(place.device, estimate=False) as energy:
            start = time.perf_counter()
            while not read or time.perf_counter() - start < size.seconds:
                model.model(ids_BT, use_cache=False)
                wait(place.device)
                read += ids_BT.numel()
    flops = shape.flops_per_token(0, size.layers, size.width, size.length // 2)
    name = torch.cuda.get_device_name() if is_gpu(place.device) else "CPU"
    sheet = next((rates for key, rates in DATASHEET.items() if key in name), None)
    joules = energy.figure
    return {
        "name": name,
        "product_flops_per_second": products,
        "copy_bytes_per_second": bandwidth,
        "datasheet": None if sheet is None else {"flops_per_second": sheet[0], "bytes_per_second": sheet[1]},
        "forward_tokens_per_second": tokens_per_second,
        "forward_flops_per_token": flops,
        "forward_share_of_product_rate": tokens_per_second * flops / products,
        "forward_share_of_datasheet": None if sheet is None else tokens_per_second * flops / sheet[0],
        "peak_bytes": peak(place.device)[0],
        "energy": joules.to_json(),
        "joules_per_token_read": None if joules.value is None else joules.value / read,
    }


def planning(place: Place) -> dict[str, Any]:
    """Plan 22 % and apply the plan; seconds, memory, and the share of the device's product rate that the plan reaches.

    Only what no plan can do without is counted: two readings of all tokens (the original's stream and the smaller model's) and
    the statistics of each FFN. The search and the solving are not, so the true share is higher.
    """
    size, model = place.size, folder_of(place)
    recipe = Recipe(
        remove=0.22,
        vocabulary=size.vocabulary,
        tokens=size.tokens,
        search_tokens=max(256, size.tokens // 16),
        max_length=size.length,
        finalists=1,
    )
    rate, shape = product_rate(place), shape_of_size(size)
    reset_peak(place.device)
    with timed(place.device) as planned:
        decided = plan(model, recipe, place.options)
    plan_bytes, method = peak(place.device)
    tokens = decided.calibration["fit_tokens"]
    readings = 2 * tokens * shape.flops_per_token(0, size.layers, size.width, size.length // 2)
    statistics = 2 * tokens * size.layers * size.width * (size.width + size.hidden)
    found = {
        "removed_fraction": decided.removed_fraction,
        "parameters": decided.parameters_before,
        "fit_tokens": tokens,
        "layers": decided.layers.sizes(),
        "width": decided.width.sizes(),
        "refit": decided.refit.kind,
        "neurons": decided.criteria["neurons"],
        "compute_dtype": decided.model["compute_dtype"],
        "plan_seconds": planned["seconds"],
        "plan_seconds_by_stage": decided.seconds,
        "plan_peak_bytes": plan_bytes,
        "memory_method": method,
        "counted_flops": readings + statistics,
        "product_flops_per_second": rate,
        "share_of_product_rate": (readings + statistics) / planned["seconds"] / rate,
    }
    reset_peak(place.device)
    with timed(place.device) as applied:
        apply(model, decided, place.work / "applied", place.options)
    return found | {"apply_seconds": applied["seconds"], "apply_peak_bytes": peak(place.device)[0]}


def answering(place: Place) -> dict[str, Any]:
    """Tokens per second of an evaluation's generation, as ``flab eval`` batches it; nothing is scored."""
    size = place.size
    tokenizer = Tokenizer.from_file(str(assets.model_path() / "tokenizer.json"))
    generator = TransformersGenerator(random_model(place), tokenizer, eos_ids=())
    task = read_task(assets.problems_path(), "code", size.problems)
    requests = [replace(request, stop=()) for _, request in requests_for(task, "completion")]
    decoding = Decoding(max_new_tokens=size.new_tokens, batch_size=64)
    generator.generate(requests[:2], replace(decoding, max_new_tokens=2))  # warms up
    reset_peak(place.device)
    with timed(place.device) as clock:
        made = generate_all(generator, requests, decoding)
    written = sum(one.num_tokens for one in made)
    return {
        "problems": len(requests),
        "new_tokens": written,
        "seconds": clock["seconds"],
        "tokens_per_second": written / clock["seconds"],
        "peak_bytes": peak(place.device)[0],
    }


class _Steps(TrainerCallback):  # type: ignore[misc]
    """When each training step ended, the device's work included."""

    def __init__(self, device: str) -> None:
        self.device, self.ends = device, []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait(self.device)
        self.ends.append(time.perf_counter())


def recovering(place: Place) -> dict[str, Any]:
    """LoRA distillation of the original into the smaller model: tokens per second, and memory beside the formula."""
    size, options = place.size, place.options
    student, teacher = (Checkpoint(Path(), random_model(place, smaller), None) for smaller in (True, False))
    teacher.model.requires_grad_(False)
    parameters = sum(p.numel() for p in student.model.parameters())
    training = Training(
        method="lora",
        steps=size.steps,
        length=size.length,
        batch=size.rows,
        micro_batch=size.rows,
        lora_rank=size.lora_rank,
        gradient_checkpointing=True,
        evaluations=1,
    )
    rows = training_rows(size, size.rows * size.steps)
    examples = Examples(rows, rows[:1], {})
    reset_peak(place.device)
    trainer = make_trainer(student, teacher, examples, training, parameters, place.work / "training", options)
    trainer.plan_steps(training, size.steps, 0.0, resumed=True)
    trainer.args.save_strategy = trainer.args.eval_strategy = "no"
    trainer.args.load_best_model_at_end = False
    kept = [one for one in trainer.callback_handler.callbacks if "Early" not in type(one).__name__]
    trainer.callback_handler.callbacks = kept
    steps = _Steps(place.device)
    trainer.add_callback(steps)
    trainer.train()
    seconds = [end - start for start, end in zip(steps.ends, steps.ends[1:], strict=False)]  # the first step warms up
    tokens = size.rows * size.length * len(seconds)
    return {
        "parameters": parameters,
        "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "tokens_per_second": tokens / sum(seconds),
        "seconds_per_step": seconds,
        "tokens_per_step": size.rows * size.length,
        "predicted_bytes": predicted_peak(student.model, teacher.model, training, parameters),
        **measured_peak(trainer.args.device),
        "final_loss": trainer.state.log_history[-1].get("train_loss"),
    }


def training_rows(size: Size, count: int) -> list[dict[str, Any]]:
    """Full rows of random tokens, all of them targets."""
    ids = torch.randint(0, size.vocabulary, (count, size.length)).tolist()
    return [
        {"input_ids": one, "targets": one, "seq_lengths": [size.length], "row": number}
        for number, one in enumerate(ids)
    ]


def speed(place: Place) -> dict[str, Any]:
    """``flab measure`` of the smaller model beside the original: gains at one answer and at many, predicted and measured."""
    size = place.size
    settings = Measuring(
        prompt_tokens=size.length // 4,
        new_tokens=max(2, size.new_tokens // 4),
        rounds=size.rounds,
        max_batch=size.max_batch,
        window_seconds=size.seconds,
    )
    report = measure(folder_of(place, smaller=True), folder_of(place), settings, place.options)
    for model in report["models"]:
        del model["path"]
    return report


def tests(place: Place) -> dict[str, Any]:
    """The tests that need a CUDA device; without one they skip.

    Raises:
        RuntimeError: a test failed.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-k", "cuda or gpu"]
    done = subprocess.run([*command, *place.size.tests], cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
    if done.returncode not in (0, 5):  # 5: no test is chosen
        raise RuntimeError(f"pytest ended with {done.returncode}: {last}\n{done.stdout[-3000:]}")
    return {"outcome": last, "files": list(place.size.tests)}


def facts(size: Size) -> dict[str, Any]:
    """What the figures are of."""
    whole, smaller = shape_of_size(size), shape_of_size(size, smaller=True)
    return asdict(size) | {"parameters": whole.total, "smaller_parameters": smaller.total}
