"""Generation with a transformers model in memory, one batch at a time. Finished rows leave the batch.

Prompts are padded on the left, and keys and values are cached. After each token, rows that met a stop string, an end
token or their limit leave the cache, so the batch shrinks. The loop is ours because ``model.generate`` carries finished
rows to the end and supports neither stop strings nor seeds of single rows; ``docs/generation.md`` has the measurement.
Greedy answers equal those of one prompt at a time except for near-ties between two tokens, which depend on the batch
size and the dtype. Compare models with the same ones.

It never cuts a prompt unasked, applies nothing of the model's generation settings but its end tokens, and knows no
beams, penalties or assistants. Shapes: B rows still running, T tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flab.models.engines.protocol import (
    Decoding,
    Encoded,
    Generation,
    Request,
    encode_requests,
    evaluation_mode,
    finish_rows,
    untruncated,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TransformersGenerator:
    """A Hugging Face causal LM and the raw ``tokenizers.Tokenizer`` of its folder."""

    name = "transformers"

    def __init__(self, model: Any, tokenizer: Tokenizer, eos_ids: Sequence[int] | None = None) -> None:
        self.model = model
        self.tokenizer = untruncated(tokenizer)
        self.eos_ids = list(eos_ids) if eos_ids is not None else model_eos_ids(model)

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Generation]:
        """Complete one batch. Raises DataError for a prompt that does not fit the context."""
        import torch

        if not requests:
            return []
        context = getattr(self.model.config, "max_position_embeddings", None) or None
        rows = encode_requests(self.tokenizer, requests, decoding.max_new_tokens, context)
        with torch.inference_mode(), evaluation_mode(self.model), contiguous_head_input(self.model):
            made = self._run(rows, decoding)
        return finish_rows(self.tokenizer, rows, made, self.eos_ids)

    def _run(self, rows: list[Encoded], decoding: Decoding) -> list[list[int]]:
        """Return the new tokens of each row, including the one that ended it."""
        batch = Batch(self.model, rows, pad_id=(self.eos_ids or [0])[0])
        choose = Chooser(rows, decoding)
        watch = StopWatch(self.tokenizer, rows)
        made: list[list[int]] = [[] for _ in rows]
        logits_BV = batch.read_prompts()
        # Each step chooses a token for all running rows, drops those that ended, and reads the tokens of the others.
        while True:
            tokens_B = choose(logits_BV, batch.running)
            for row, token in zip(batch.running, tokens_B.tolist(), strict=True):
                made[row].append(token)
            kept = [at for at, row in enumerate(batch.running) if not self._ended(rows[row], made[row])]
            # End tokens are recognised by id. Stop strings may begin in the middle of a token, so they need the text.
            stopped = watch.stopped([(batch.running[at], made[batch.running[at]]) for at in kept])
            kept = [at for at, stop in zip(kept, stopped, strict=True) if not stop]
            if not kept:
                return made
            logits_BV = batch.read_tokens(tokens_B, kept)

    def _ended(self, row: Encoded, made: list[int]) -> bool:
        return made[-1] in self.eos_ids or len(made) >= row.budget


@contextmanager
def contiguous_head_input(model: Any) -> Iterator[None]:
    """Copy what enters the head into contiguous memory.

    Otherwise the last prompt tokens are a slice of the hidden states, for which PyTorch's linear layer copies the whole head
    once per row. That takes gigabytes, and on a CPU 6 (float32) to 230 (bfloat16) times as long as the product itself.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


class Batch:
    """The rows that are still running, with their cache. ``running`` holds their places in the whole batch."""

    def __init__(self, model: Any, rows: Sequence[Encoded], pad_id: int) -> None:
        import torch
        from transformers import DynamicCache

        self.model = model
        self.running = list(range(len(rows)))
        self.cache = DynamicCache(config=model.config)
        # Padding on the left, so that the last column holds the last prompt token of every row.
        width = max(len(row.ids) for row in rows)
        padding = [width - len(row.ids) for row in rows]
        device = input_device(model)
        ids = [[pad_id] * pad + row.ids for pad, row in zip(padding, rows, strict=True)]
        mask = [[0] * pad + [1] * len(row.ids) for pad, row in zip(padding, rows, strict=True)]
        self.ids_BT = torch.tensor(ids, device=device)
        self.mask_BT = torch.tensor(mask, device=device)

    def read_prompts(self) -> Any:
        """Fill the cache with the prompts. Return the logits of the first new tokens."""
        # Positions count only a row's real tokens; padding gets position 0 and is masked.
        positions_BT = (self.mask_BT.cumsum(1) - 1).clamp(min=0)
        self.next_B1 = positions_BT[:, -1:] + 1
        return self._forward(self.ids_BT, positions_BT)

    def read_tokens(self, tokens_B: Any, kept: list[int]) -> Any:
        """Drop all rows except those at ``kept`` and append their tokens. Return the logits of the next tokens."""
        import torch

        tokens_B = tokens_B.to(self.mask_BT.device)
        # Rows that ended leave the cache too, so that a step costs only what still runs.
        if len(kept) < len(self.running):
            # An index on the CPU selects on every device that the layers may be on.
            at = torch.tensor(kept)
            # Layer by layer, because a hybrid's cache has layers of two kinds.
            for layer in self.cache.layers:
                # The state of linear attention has no such method, and its reordering selects as well.
                select = getattr(layer, "batch_select_indices", None) or layer.reorder_cache
                select(at)
            self.mask_BT = self.mask_BT[at]
            self.next_B1 = self.next_B1[at]
            tokens_B = tokens_B[at]
            self.running = [self.running[index] for index in kept]
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(kept), 1)], dim=1)
        logits_BV = self._forward(tokens_B[:, None], self.next_B1)
        self.next_B1 = self.next_B1 + 1
        return logits_BV

    def _forward(self, ids_BT: Any, positions_BT: Any) -> Any:
        output = self.model(
            input_ids=ids_BT,
            attention_mask=self.mask_BT,
            position_ids=positions_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


class Chooser:
    """Picks each row's next token: the likeliest, or one drawn with the row's own random numbers.

    A draw is the inverse of the distribution function *in the order of the ids*, so that noise of the size of
    rounding, which swaps near-tied tokens in a sorted order, does not change it.
    """

    def __init__(self, rows: Sequence[Encoded], decoding: Decoding) -> None:
        self.temperature = decoding.temperature
        self.top_p = decoding.top_p
        self.randoms = [random.Random(row.seed) for row in rows]

    def __call__(self, logits_BV: Any, running: Sequence[int]) -> Any:
        """Token ids of the rows at ``running``, shape B."""
        import torch

        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        # The running sum over the ids is the distribution function; the token is where it passes the row's random number.
        logits_BV = logits_BV.float() / self.temperature
        mass_BV = self._nucleus(logits_BV.softmax(dim=-1)).cumsum(dim=-1, dtype=torch.float64)
        draws = [self.randoms[row].random() for row in running]
        draws_B1 = torch.tensor(draws, dtype=torch.float64, device=mass_BV.device)[:, None] * mass_BV[:, -1:]
        tokens_B = torch.searchsorted(mass_BV, draws_B1, right=True)[:, 0]
        return tokens_B.clamp(max=mass_BV.shape[1] - 1)

    def _nucleus(self, shares_BV: Any) -> Any:
        """Set all probabilities to zero except those of the fewest likeliest tokens that together hold ``top_p``."""
        if self.top_p == 1:
            return shares_BV
        # A token stays if the more likely ones together hold less than top_p, so the first one always does.
        sorted_BV, order_BV = shares_BV.sort(dim=-1, descending=True, stable=True)
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        return shares_BV.scatter(1, order_BV, sorted_BV.masked_fill(before_BV >= self.top_p, 0.0))


class StopWatch:
    """Tells which rows have just completed one of their stop strings.

    Only the last tokens are decoded, all rows in one call: a stop string of n bytes ends in at most n tokens.
    """

    def __init__(self, tokenizer: Tokenizer, rows: Sequence[Encoded]) -> None:
        self.tokenizer = tokenizer
        self.stops = [row.stop for row in rows]
        self.windows = [max((len(text.encode()) for text in row.stop), default=0) + 4 for row in rows]

    def stopped(self, made: Sequence[tuple[int, list[int]]]) -> list[bool]:
        """Return whether the tail of each row's new tokens, given with the row's place, holds one of its stop strings."""
        tails = [ids[-self.windows[row] :] if self.stops[row] else [] for row, ids in made]
        texts = self.tokenizer.decode_batch(tails, skip_special_tokens=False)
        return [any(map(text.__contains__, self.stops[row])) for text, (row, _) in zip(texts, made, strict=True)]


def input_device(model: Any) -> Any:
    """Return the device for token ids. With ``device_map="auto"`` a model is on several, and its input matrix may be on none."""
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    offloaded = embedding.weight.device.type == "meta"
    return hook.execution_device if hook is not None and offloaded else embedding.weight.device


def model_eos_ids(model: Any) -> list[int]:
    """Return the model's end tokens: an int, a list or nothing, in its generation settings or its config."""
    for holder in (getattr(model, "generation_config", None), model.config):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return [ids] if isinstance(ids, int) else list(ids)
    return []
