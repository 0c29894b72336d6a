"""transformers in batches: equal to one at a time in every family, rows leave early, nothing of the model changed."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from flab.errors import CheckpointError, DataError, OptionError
from flab.models.chat import chat_template
from flab.models.engines.protocol import Decoding, Request, cut_at_stop, encode_requests, generate_all
from flab.models.engines.transformers import (
    StopWatch,
    TransformersGenerator,
    input_device,
    model_eos_ids,
)
from flab.models.families import FAMILIES
from support import pico

WINDOWS = [  # family and settings; the last three attend to the last 8 positions only
    *((family, {}) for family in pico.FAMILY_SETTINGS),
    ("mistral", {"sliding_window": 8}),
    ("starcoder2", {"sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
]


def ask(prompts, stop=()):
    return [Request(prompt, tuple(stop)) for prompt in prompts]


def complete(generator, prompts, tokens, stop=(), batch_size=32, **settings):
    decoding = Decoding(max_new_tokens=tokens, batch_size=batch_size, **settings)
    return generate_all(generator, ask(prompts, stop), decoding)


def greedy_by_hand(model, tokenizer, prompt, num_tokens):
    """Greedy decoding without a cache, padding, or any of transformers' generation code."""
    ids = tokenizer.encode(prompt).ids
    made = []
    with torch.no_grad():
        for _ in range(num_tokens):
            logits = model(torch.tensor([ids + made])).logits[0, -1]
            made.append(int(logits.argmax()))
            if made[-1] == 0:
                break
    return made


def pieces_of(generations):
    """Stop strings that do occur."""
    pieces = {made.text[at : at + 2] for made in generations for at in (9, 14)}
    return sorted(piece for piece in pieces if len(piece) == 2 and piece.isascii())[:3]


@pytest.mark.parametrize(("family", "settings"), WINDOWS, ids=lambda value: str(value))
def test_batches_equal_model_generate_one_at_a_time(pico_folder, family, settings):
    model = AutoModelForCausalLM.from_pretrained(pico_folder(family, **settings)).eval()
    if family != "gemma2":  # whose softmax is in float32, in which the mask of a float64 model is minus infinity
        model = model.double()
    if FAMILIES[family].experts:  # whose products are grouped by default, which float64 has no kernel for
        model.set_experts_implementation("eager")
    tokenizer, rng = pico.tokenizer(), random.Random(3)
    prompts = [text[: rng.randint(1, len(text))] for text in pico.CODE]
    made = complete(TransformersGenerator(model, tokenizer), prompts, 20, batch_size=6)
    for prompt, one in zip(prompts, made, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        new = alone[0, ids.shape[1] :].tolist()
        assert one.num_tokens == len(new)
        ended = new[-1] in model.generation_config.eos_token_id
        assert one.text == tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=False)


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_batches_equal_greedy_by_hand(model, tokenizer, prompts, batch_size):
    together = complete(TransformersGenerator(model, tokenizer), prompts, 14, batch_size=batch_size)
    for prompt, generation in zip(prompts, together, strict=True):
        made = greedy_by_hand(model, tokenizer, prompt, 14)
        ended = made[-1] == 0
        assert generation.num_tokens == len(made)
        assert generation.finish_reason == ("eos" if ended else "length")
        assert generation.text == tokenizer.decode(made[:-1] if ended else made, skip_special_tokens=False)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_stop_strings_cut_exactly(model, tokenizer, prompts, batch_size):
    generator = TransformersGenerator(model, tokenizer)
    free = complete(generator, prompts, 24)
    stop = pieces_of(free)
    cut = complete(generator, prompts, 24, stop, batch_size)
    assert any(made.finish_reason == "stop" for made in cut)
    for without, made in zip(free, cut, strict=True):
        assert made.text == cut_at_stop(without.text, stop)
        if made.text == without.text:
            assert made == without
        else:
            assert made.finish_reason == "stop"
            assert made.num_tokens <= without.num_tokens


def test_rows_of_one_batch_have_stop_strings_of_their_own(model, tokenizer, prompts):
    generator = TransformersGenerator(model, tokenizer)
    free = complete(generator, prompts, 24)
    stops = [pieces_of([one])[:1] for one in free]
    assert len({tuple(stop) for stop in stops}) > 3
    requests = [Request(prompt, tuple(stop)) for prompt, stop in zip(prompts, stops, strict=True)]
    made = generator.generate(requests, Decoding(max_new_tokens=24))
    assert [one.text for one in made] == [cut_at_stop(one.text, stop) for one, stop in zip(free, stops, strict=True)]


def test_finished_rows_leave_the_batch(model, tokenizer, prompts):
    generator = TransformersGenerator(model, tokenizer)
    free = complete(generator, prompts, 24)
    requests = [
        Request(p, (one.text[2 * at : 2 * at + 3],)) for at, (p, one) in enumerate(zip(prompts, free, strict=True))
    ]
    sizes, forward = [], model.forward

    def counting(*args, **kwargs):
        sizes.append(kwargs["input_ids"].shape[0])
        return forward(*args, **kwargs)

    model.forward = counting
    made = generator.generate(requests, Decoding(max_new_tokens=24))
    lengths = [one.num_tokens for one in made]
    assert len(set(lengths)) > 2
    assert sizes == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_the_head_reads_contiguous_rows(model, tokenizer, prompts):
    # A slice of the hidden states would make PyTorch copy the whole head once for each row of the batch.
    seen = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].is_contiguous()))
    requests = [Request(prompt, ()) for prompt in prompts]
    TransformersGenerator(model, tokenizer).generate(requests, Decoding(max_new_tokens=3))
    hook.remove()
    assert seen == [True] * 3
    assert not head._forward_pre_hooks


def test_the_watch_sees_a_stop_string_at_the_token_that_completes_it(tokenizer):
    rows = encode_requests(tokenizer, [Request("x", ("\ndef ", "long stop string")), Request("x", ())], 9, None)
    watch, ids, other = StopWatch(tokenizer, rows), tokenizer.encode("ab\ndef c").ids, tokenizer.encode("\ndef ").ids
    seen = [watch.stopped([(0, ids[:n])])[0] for n in range(1, len(ids) + 1)]
    assert seen == ["\ndef " in tokenizer.decode(ids[:n]) for n in range(1, len(ids) + 1)]
    assert watch.stopped([(1, other), (0, ids)]) == [False, True]


def test_end_tokens_come_from_the_model(model):
    assert model_eos_ids(model) == [0]
    model.generation_config.eos_token_id = [3, 4]
    assert model_eos_ids(model) == [3, 4]
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    assert model_eos_ids(model) == []


def test_an_end_token_ends_the_row(model, tokenizer, prompts):
    free = complete(TransformersGenerator(model, tokenizer, eos_ids=[]), prompts[:1], 8)[0]
    made = greedy_by_hand(model, tokenizer, prompts[0], 8)
    end = made[3]
    ended = complete(TransformersGenerator(model, tokenizer, eos_ids=[end]), prompts[:1], 8)[0]
    assert ended.finish_reason == "eos"
    assert ended.num_tokens == made.index(end) + 1
    assert free.text.startswith(ended.text)


def test_model_and_settings_come_back(model, tokenizer, prompts):
    model.train()
    model.model.layers[0].eval()
    settings = model.generation_config
    settings.repetition_penalty = 5.0
    made = complete(TransformersGenerator(model, tokenizer), prompts[:2], 12)
    assert model.training
    assert not model.model.layers[0].training
    assert model.generation_config is settings
    model.eval()
    by_hand = [greedy_by_hand(model, tokenizer, prompt, 12) for prompt in prompts[:2]]
    assert [one.num_tokens for one in made] == list(map(len, by_hand))


def test_a_prompt_longer_than_the_context_raises(model, tokenizer):
    with pytest.raises(DataError, match=r"'zzz.* has \d+ tokens, but the context is 256"):
        complete(TransformersGenerator(model, tokenizer), ["ok", "z" * 300], 4)


def test_a_truncating_tokenizer_does_not_truncate(model, tokenizer, prompts):
    cutting = type(tokenizer).from_str(tokenizer.to_str())
    cutting.enable_truncation(3)
    cutting.enable_padding()
    plain = complete(TransformersGenerator(model, tokenizer), prompts, 4)
    assert complete(TransformersGenerator(model, cutting), prompts, 4) == plain
    assert cutting.truncation is not None


def test_the_budget_ends_at_the_context(model, tokenizer):
    long = "z" * (256 - 3)
    assert len(tokenizer.encode(long).ids) == 253
    made = complete(TransformersGenerator(model, tokenizer, eos_ids=[]), [long, "z"], 10)
    assert [one.num_tokens for one in made] == [3, 10]
    assert {one.finish_reason for one in made} == {"length"}


def test_nothing_in_nothing_out(model, tokenizer):
    assert TransformersGenerator(model, tokenizer).generate([], Decoding()) == []


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_sample_does_not_depend_on_its_batch(model, tokenizer, prompts, top_p):
    generator = TransformersGenerator(model.double(), tokenizer)
    requests = [Request(prompt, (), seed) for prompt in prompts[:4] for seed in (1, 2, 3)]
    settings = {"max_new_tokens": 15, "temperature": 1.5, "top_p": top_p}
    alone = generate_all(generator, requests, Decoding(batch_size=1, **settings))
    together = generate_all(generator, requests[::-1], Decoding(batch_size=12, **settings))[::-1]
    assert alone == together
    assert len({made.text for made in alone}) > 8
    assert alone == generate_all(generator, requests, Decoding(batch_size=5, **settings))


def test_samples_follow_the_distribution(model, tokenizer):
    """Frequencies of one token over 3000 seeds against softmax; five standard errors."""
    generator, temperature, top_p = TransformersGenerator(model, tokenizer, eos_ids=[]), 2.0, 0.6
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode("def add").ids])).logits[0, -1]
    shares, order = (logits / temperature).softmax(-1).sort(descending=True)
    size = int((shares.cumsum(0) < top_p).sum()) + 1
    expected = shares[:size] / shares[:size].sum()
    requests = [Request("def add", (), seed) for seed in range(3000)]
    made = generate_all(generator, requests, Decoding(1, temperature, top_p, batch_size=1000))
    texts = [tokenizer.decode([token], skip_special_tokens=False) for token in order[:size].tolist()]
    for text in set(texts):
        share = sum(p for p, own in zip(expected.tolist(), texts, strict=True) if own == text)
        seen = sum(one.text == text for one in made) / 3000
        assert abs(seen - share) < 5 * (share * (1 - share) / 3000) ** 0.5 + 1e-9
    assert {one.text for one in made} <= set(texts)


def test_a_small_nucleus_is_greedy(model, tokenizer, prompts):
    generator = TransformersGenerator(model, tokenizer)
    nearly = complete(generator, prompts, 12, temperature=0.7, top_p=1e-6)
    assert nearly == complete(generator, prompts, 12)


def test_an_offloaded_model_gets_its_inputs_where_it_runs(model, tokenizer, prompts):
    from accelerate import cpu_offload

    plain = complete(TransformersGenerator(model, tokenizer), prompts, 6, ["a"])
    assert input_device(model) == torch.device("cpu")
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.device.type == "meta"
    assert complete(TransformersGenerator(model, tokenizer), prompts, 6, ["a"]) == plain


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gives_the_same(model, tokenizer, prompts):
    plain = complete(TransformersGenerator(model.double(), tokenizer), prompts, 12, ["a"], temperature=1.0)
    made = complete(TransformersGenerator(model.cuda(), tokenizer), prompts, 12, ["a"], temperature=1.0)
    assert made == plain


MESSAGES = [{"role": "user", "content": "hello"}]


def test_the_chat_template_is_rendered_as_transformers_does(pico_folder):
    render = chat_template(pico_folder("qwen2"), pico.tokenizer())
    assert render(MESSAGES) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_in_the_config_and_a_start_token(tmp_path, tokenizer):
    from tokenizers import processors

    own = type(tokenizer).from_str(tokenizer.to_str())
    own.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    template = "{{ bos_token }}{{ messages[0].content }}{% if enable_thinking is defined %}!{% endif %}"
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": template}]
    config = tmp_path / "tokenizer_config.json"
    for value in (f'"{template}"', str(named).replace("'", '"')):
        config.write_text(f'{{"bos_token": {{"content": "<|end|>"}}, "chat_template": {value}}}')
        assert chat_template(tmp_path, own)(MESSAGES) == "hello!"
        assert chat_template(tmp_path, tokenizer)(MESSAGES) == "<|end|>hello!"


def test_no_template_is_none_and_a_broken_one_is_an_option_error(tmp_path, tokenizer):
    assert chat_template(tmp_path, tokenizer) is None
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('only tools') }}")
    with pytest.raises(OptionError, match=r"does not render \(only tools\): use `template` none, or another `preset`"):
        chat_template(tmp_path, tokenizer)(MESSAGES)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json cannot be read as JSON"):
        chat_template(tmp_path, tokenizer)
