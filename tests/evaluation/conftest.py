"""Fixtures of the evaluation tests: one sandbox, one byte-level tokenizer, one pico model on the CPU."""

import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM

from flab.errors import SandboxError
from flab.sandbox import Sandbox

END = "<|end|>"


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
