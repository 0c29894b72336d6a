"""Makes the bundled reference model from nothing: `python scripts/train_reference.py`.

Corpus and tokenizer from the grammar in scripts/reference, training on the CPU with the transformers Trainer,
then the benchmark files, the scores and the model card. Stopped runs resume from their last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from reference import bundle, card, corpus, grammar, languages, measure, vocabulary

SEED = 20
ASSETS = Path(__file__).parents[1] / "src" / "flab" / "assets"
DECAY_SHARE = 0.5


def main() -> None:
    """Parses the command line and runs every stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ASSETS / "model")
    parser.add_argument("--work", type=Path, default=Path("/tmp/flab-reference"), help="checkpoints go here")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=16, help="sequences of 256 tokens per step")
    parser.add_argument("--note", default="", help="a paragraph for the model card")
    args = parser.parse_args()
    set_seed(SEED)
    tokenizer = kept_tokenizer(args.work / "tokenizer")
    packed = corpus.build(tokenizer, SEED)
    print(f"corpus: {len(packed[0])} sequences, sha256 {corpus.digest(packed)}", flush=True)
    save(trained(tokenizer, packed, args), tokenizer, args.output)
    bundle.write_all(ASSETS)
    scores = measure.scores(args.output, ASSETS)
    print(json.dumps(scores))
    card.write(args.output, ASSETS, facts(tokenizer, packed, args), scores)


def trained(tokenizer: PreTrainedTokenizerBase, packed: corpus.Packed, args: argparse.Namespace) -> Qwen2ForCausalLM:
    """The model after all steps; what an earlier run left in the work folder is not done again."""
    done = get_last_checkpoint(args.work)
    if done != str(args.work / f"checkpoint-{args.steps}"):
        started, clock = time.time(), args.work / "seconds"
        make_trainer(make_model(tokenizer), packed, args).train(resume_from_checkpoint=done)
        before = float(clock.read_text()) if clock.is_file() else 0
        clock.write_text(str(before + time.time() - started))
    return Qwen2ForCausalLM.from_pretrained(args.work / f"checkpoint-{args.steps}")


def facts(tokenizer: PreTrainedTokenizerBase, packed: corpus.Packed, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of the run that the model card states."""
    checkpoint, tokens = args.work / f"checkpoint-{args.steps}", args.steps * args.batch * corpus.LENGTH
    rng = random.Random(SEED)
    samples = ["".join(t for t, _ in make(rng)) for make in corpus.MAKERS.values() for _ in range(1000)]
    split_sizes = {split: len(grammar.compositions(split)) for split, _ in grammar.SPLIT_PERCENT}
    return {
        "unused": vocabulary.unused_share(tokenizer, [*samples, *corpus.library_texts()]),
        "note": args.note,
        "tests": split_sizes["test"],
        "compositions": sum(split_sizes.values()),
        "training": {
            "seed": SEED,
            "corpus sha256": f"`{corpus.digest(packed)}`",
            "steps": f"{args.steps:,} of {args.batch} sequences of {corpus.LENGTH} tokens",
            "tokens": f"{tokens:,}",
            "wall time": f"{float((args.work / 'seconds').read_text()) / 60:.0f} minutes",
            "final loss": f"{card.last_losses(checkpoint):.3f} (mean over the last 200 steps, learned tokens only)",
        },
    }


def kept_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the run in progress, so that a resumed run keeps its vocabulary; made where there is none."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        make_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def make_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer, trained on samples of the grammar, library code and made-up sentences."""
    rng = random.Random(SEED)
    tasks = ["".join(t for t, _ in make(rng)) for make in corpus.MAKERS.values() for _ in range(4000)]
    return vocabulary.train_tokenizer([*tasks, *corpus.library_texts(), *languages.sentences(60_000, rng)])


def make_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """An untrained Qwen2 of 4.06 M parameters, 19.4 % of them embeddings."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=7,
        intermediate_size=640,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    return Qwen2ForCausalLM(config)


class Sequences(torch.utils.data.Dataset):
    """The packed corpus as the Trainer wants it."""

    def __init__(self, packed: corpus.Packed) -> None:
        self.ids, self.labels = packed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids, labels = (torch.tensor(table[index], dtype=torch.long) for table in (self.ids, self.labels))
        return {"input_ids": ids, "labels": labels}


def make_trainer(model: Qwen2ForCausalLM, packed: corpus.Packed, args: argparse.Namespace) -> Trainer:
    """The stock Trainer: AdamW, warm-up, a plateau and a long decay, compiled, in float32."""
    settings = TrainingArguments(
        output_dir=str(args.work),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=3e-3,
        adam_beta2=0.97,
        weight_decay=0.05,
        max_grad_norm=1.0,
        warmup_steps=150,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": int(args.steps * DECAY_SHARE), "decay_type": "linear"},
        logging_steps=20,
        save_steps=200,
        save_total_limit=3,
        torch_compile=True,
        use_cpu=True,
        seed=SEED,
        train_sampling_strategy="sequential",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    return Trainer(model=model, args=settings, train_dataset=Sequences(packed))


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a stock model folder in bfloat16."""
    model = model.to(torch.bfloat16)
    model.config.use_cache = True  # the Trainer turns it off
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(vocabulary.TURN_END)]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
