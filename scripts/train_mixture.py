"""Makes a small mixture of experts from the bundled model: `python scripts/train_mixture.py FOLDER`.

The neurons of each FFN are sorted into overlapping experts by what they look at, beside a small shared expert, and the
whole is trained on code of the grammar with a loss that balances the experts. The model is for measurements and is not
committed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from flab import assets
from reference import corpus
from train_reference import Sequences

EXPERTS = 16
ACTIVE = 4
WIDTH = 48  # neurons of an expert
SHARED = 64
SHARES = {"code": 0.84, "thought": 0.04, "output": 0.08, "library": 0.04}


def main() -> None:
    """Parse the command line, make the model and train it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8, help="sequences of 256 tokens per step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(assets.model_path())
    packed = corpus.build(tokenizer, args.seed, ((args.steps * args.batch, SHARES),))
    model = upcycled(Qwen2ForCausalLM.from_pretrained(assets.model_path(), dtype=torch.float32))
    settings = TrainingArguments(
        output_dir=str(args.folder / "checkpoints"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=2e-3,
        adam_beta2=0.97,
        max_grad_norm=1.0,
        warmup_steps=20,
        lr_scheduler_type="linear",
        logging_steps=20,
        save_steps=100,
        save_total_limit=1,
        use_cpu=True,
        seed=args.seed,
        report_to="none",
        remove_unused_columns=False,
    )
    Trainer(model=model, args=settings, train_dataset=Sequences(packed)).train()
    model.config.output_router_logits = False
    model.config.use_cache = True
    model.save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)


def upcycled(dense: Qwen2ForCausalLM) -> Qwen2MoeForCausalLM:
    """Return a mixture whose attention, norms and embedding are the dense model's, and whose experts are its neurons."""
    sizes = {
        name: getattr(dense.config, name)
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rope_parameters",
            "max_position_embeddings", "tie_word_embeddings", "eos_token_id", "pad_token_id", "bos_token_id", "rms_norm_eps",
        )
    }  # fmt: skip
    config = Qwen2MoeConfig(
        **sizes,
        intermediate_size=dense.config.intermediate_size,
        moe_intermediate_size=WIDTH,
        shared_expert_intermediate_size=SHARED,
        num_experts=EXPERTS,
        num_experts_per_tok=ACTIVE,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=0.01,
    )
    model = Qwen2MoeForCausalLM(config)
    model.generation_config = dense.generation_config
    model.load_state_dict(dense.state_dict(), strict=False)
    for old, new in zip(dense.model.layers, model.model.layers, strict=True):
        split(old.mlp, new.mlp)
    return model


@torch.no_grad()
def split(dense: nn.Module, mixture: nn.Module) -> None:
    """Fill a mixture with the neurons of a dense FFN."""
    gate, up, down = dense.gate_proj.weight, dense.up_proj.weight, dense.down_proj.weight
    largest = (gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)).argsort(descending=True)
    shared, others = largest[:SHARED], largest[SHARED:]
    part = mixture.shared_expert
    for module, rows in ((part.gate_proj, gate), (part.up_proj, up)):
        module.weight.copy_(rows[shared])
    part.down_proj.weight.copy_(2 * down[:, shared])  # its gate is a half at first
    mixture.shared_expert_gate.weight.zero_()
    # Cosine k-means over what the neurons look at; each expert takes the neurons nearest to its centre.
    directions = nn.functional.normalize(gate[others], dim=1)
    centres = directions[:: len(others) // EXPERTS][:EXPERTS]
    for _ in range(20):
        nearest = (directions @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, directions)
        centres = nn.functional.normalize(sums + 1e-3 * centres, dim=1)
    members = [others[(directions @ centre).topk(WIDTH).indices] for centre in centres]
    mixture.experts.gate_up_proj.copy_(torch.stack([torch.cat([gate[m], up[m]]) for m in members]))
    # Each of the chosen experts counts for about one part in so many.
    mixture.experts.down_proj.copy_(torch.stack([ACTIVE * down[:, m] for m in members]))
    mixture.gate.weight.copy_(0.15 * centres)


if __name__ == "__main__":
    main()
