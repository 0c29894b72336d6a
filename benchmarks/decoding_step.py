"""Where a decoding step's time goes, and what other caches and masks would change: python benchmarks/decoding_step.py

Without --model it is a random model of 28 tiny layers: nearly all of its time is the work of the CPU around the kernels.
Each way keeps a batch of its own, and all take a step in turn, so that other work on the machine meets them alike. A line
of the table gives the operations of a step that are no views (on a GPU, about its kernels), the median step in
milliseconds, the median ratio to flab's step with its quartiles, and the steps with the same tokens. ``again`` is flab's
step once more, which shows the noise. On a CPU the time is the process's; on a GPU it is the clock's, kernels included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, DynamicLayer, Qwen2Config, StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from flab.models.engines.protocol import Encoded
from flab.models.engines.transformers import Batch, contiguous_head_input
from flab.models.memory import is_gpu

SPARE = 64  # positions by which a buffer grows
WARM_UP = 5  # steps that are not timed


class GrowingLayer(DynamicLayer):
    """Keys and values in buffers with room for more tokens, instead of a longer copy in each step."""

    buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *more: Any, **named: Any) -> Any:
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        if self.buffers is None or end > self.buffers[0].shape[2]:
            longer = super().update(key_states, value_states, *more, **named)
            self.buffers = tuple(torch.nn.functional.pad(one, (0, 0, 0, SPARE)) for one in longer)
        else:
            self.buffers[0][:, :, start:end] = key_states
            self.buffers[1][:, :, start:end] = value_states
        self.keys, self.values = (one[:, :, :end] for one in self.buffers)
        return self.keys, self.values


class GrowingBatch(Batch):
    """A batch with such layers where the cache would have plain ones."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.cache.layers = [GrowingLayer() if type(one) is DynamicLayer else one for one in self.cache.layers]


class StaticBatch(Batch):
    """A batch with transformers' cache of a fixed size: every step attends to all of it, behind the mask."""

    def __init__(self, model: Any, rows: Sequence[Encoded], pad_id: int) -> None:
        super().__init__(model, rows, pad_id)
        longest = max(len(row.ids) for row in rows) + max(row.budget for row in rows)
        self.cache = StaticCache(config=model.config, max_cache_len=longest)


class CompiledBatch(StaticBatch):
    """Such a batch whose steps are compiled, all in one shape. ``reduce-overhead`` replays CUDA graphs on a GPU."""

    def __init__(self, model: Any, rows: Sequence[Encoded], pad_id: int, mode: str) -> None:
        super().__init__(model, rows, pad_id)
        self.compiled = torch.compile(model.forward, dynamic=False, mode=mode)

    def _forward(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        if ids_BT.shape[1] > 1:
            return super()._forward(ids_BT, positions_BT)
        # A mask of the cache's whole length keeps its shape from step to step.
        room = self.cache.layers[0].keys.shape[2] - self.mask_BT.shape[1]
        given = {"attention_mask": torch.nn.functional.pad(self.mask_BT, (0, room)), "position_ids": positions_BT}
        given |= {"past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
        return self.compiled(input_ids=ids_BT, **given).logits[:, -1].clone()


class NoMaskBatch(Batch):
    """A batch that passes no mask; only for prompts of one length."""

    def _forward(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        given = {"position_ids": positions_BT, "past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
        return self.model(input_ids=ids_BT, **given).logits[:, -1]


@contextmanager
def additive_mask(on: bool) -> Iterator[None]:
    """Hand the layers zeros and minus infinities, as the kernels want them, instead of a boolean mask that each converts."""

    def made(*given: Any, dtype: torch.dtype, **named: Any) -> torch.Tensor | None:
        mask = sdpa_mask(*given, **named)
        zero = torch.zeros((), dtype=dtype, device=named["device"])
        return None if mask is None else torch.where(mask, zero, -torch.inf)

    if on:
        ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = made
    try:
        yield
    finally:
        if on:
            del ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]


class Operations(TorchDispatchMode):
    """Counts operations that make a tensor of their own."""

    num = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [one.alias_info for one in function._schema.returns]
        view = any(one is not None and not one.is_write for one in aliases) or "_unsafe_view" in str(function)
        self.num += not view
        return function(*args, **(kwargs or {}))


class Way:
    """One way to take a step, with its own batch."""

    def __init__(self, title: str, batch: Batch, additive: bool = False) -> None:
        self.title, self.batch, self.additive = title, batch, additive
        self.tokens_B = batch.read_prompts().argmax(dim=-1)
        self.seconds: list[float] = []
        self.num_same = 0

    def step(self, clock: Any) -> None:
        with additive_mask(self.additive):
            start = clock()
            self.tokens_B = self.batch.read_tokens(self.tokens_B, self.batch.running).argmax(dim=-1)
            self.tokens_B.tolist()  # flab's loop waits for the tokens as well
            self.seconds.append(clock() - start)

    def operations(self) -> int:
        with additive_mask(self.additive), Operations() as seen:
            self.batch.read_tokens(self.tokens_B, self.batch.running)
        return seen.num


def ways(model: Any, rows: Sequence[Encoded], mode: str | None = None) -> list[Way]:
    """flab's step first: the others are compared with it. What fits no padded batch is left out if there is padding."""
    found = [Way("flab", Batch(model, rows, 0)), Way("again", Batch(model, rows, 0))]
    if len({len(row.ids) for row in rows}) == 1:
        found.append(Way("no mask", NoMaskBatch(model, rows, 0)))
    else:
        found.append(Way("additive mask", Batch(model, rows, 0), additive=True))
    found += [Way("growing buffers", GrowingBatch(model, rows, 0)), Way("static cache", StaticBatch(model, rows, 0))]
    return [*found, Way(f"compiled, {mode}", CompiledBatch(model, rows, 0, mode))] if mode else found


def count_operations(model: Any, rows: Sequence[Encoded]) -> dict[str, int]:
    """The operations of one step of each way; in inference mode, torch would show several as one."""
    with torch.no_grad():
        return {way.title: way.operations() for way in ways(model, rows)}


def table(found: Sequence[Way], operations: dict[str, int]) -> list[str]:
    """Markdown lines."""
    lines = ["| way | operations | ms | ratio | quartiles | same tokens |", "|---|---|---|---|---|---|"]
    for way in found:
        taken = way.seconds[WARM_UP:]
        ratios = [own / first for own, first in zip(taken, found[0].seconds[WARM_UP:], strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        same = f"{way.num_same}/{len(way.seconds)}"
        cells = (way.title, operations.get(way.title, ""), f"{1000 * median(taken):.2f}", f"{middle:.3f}")
        lines.append("| " + " | ".join(map(str, (*cells, f"{low:.3f}-{high:.3f}", same))) + " |")
    return lines


def load(given: argparse.Namespace) -> Any:
    """The model of the folder, or a random one."""
    dtype = getattr(torch, given.dtype)
    if given.model:
        return AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype).eval().to(given.device)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config(num_hidden_layers=given.layers, vocab_size=512, max_position_embeddings=4096, **sizes)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().to(given.device)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--layers", type=int, default=28, help="of the random model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--prompt", type=int, default=40, help="tokens of the shortest prompt")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compile", metavar="MODE", help="also a compiled step, say `default` or `reduce-overhead`")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> None:
    """Measure each number of rows with prompts of one length, and with each prompt a token longer than the last."""
    given = arguments()
    torch.set_num_threads(given.threads)
    model = load(given)
    clock = time.perf_counter if is_gpu(given.device) else time.process_time
    for num_rows, growth in [(num_rows, growth) for num_rows in given.rows for growth in (0, 1)]:
        budget = given.steps + 2
        rows = [Encoded([5] * (given.prompt + growth * at), budget, (), 0) for at in range(num_rows)]
        operations = count_operations(model, rows)
        with torch.inference_mode(), contiguous_head_input(model):
            found = ways(model, rows, given.compile)
            for step in range(given.steps):
                for way in found[:: 1 if step % 2 else -1]:
                    way.step(clock)
                for way in found:
                    way.num_same += torch.equal(way.tokens_B, found[0].tokens_B)
            lines = table(found, operations)
        print(
            f"\n{num_rows} rows, {'padded' if growth else 'not padded'}, {given.steps} steps\n",
            *lines,
            sep="\n",
            flush=True,
        )
    print(
        f"\n{given.device}, {given.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
