"""Vocabulary: the closure's promise on covered text, no text lost, every id rewritten, tied heads tied."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from flab.errors import BudgetError, UnsupportedModelError
from flab.models.checkpoint import Checkpoint, load
from flab.models.families import family_of, is_tied, shape_of
from flab.models.options import Options
from flab.models.tokenizer import TokenizerModel, rewrite_tokenizer
from flab.pruning.cuts.vocabulary import (
    choose_vocabulary,
    closed,
    count_tokens,
    covered_tokens,
    cut_vocabulary,
    named_ids,
    required_tokens,
)
from flab.pruning.planner import Planner
from flab.pruning.recipe import Recipe
from flab.pruning.vocabulary import Counts, Needs, plan_vocabulary
from support import pico

CORPUS = pico.CODE[:6]  # fewer words than the tokenizer was trained on
WORDS = sorted({w for text in CORPUS for w in text.split()})
SPECIALS = ["<unk>", "<s>", "</s>"]


def byte_level(ignore_merges: bool = False) -> Tokenizer:
    tok = Tokenizer.from_str(pico.tokenizer().to_str())
    if ignore_merges:  # and a token that no merge derives
        data = json.loads(tok.to_str())
        data["model"]["ignore_merges"] = True
        added = {token["content"] for token in data["added_tokens"]}
        vocab = {t: i for t, i in data["model"]["vocab"].items() if t not in added}
        vocab["Ġunderivable"] = len(vocab)
        data["model"]["vocab"] = vocab
        for number, token in enumerate(data["added_tokens"]):
            token["id"] = len(vocab) + number
        tok = Tokenizer.from_str(json.dumps(data))
    return tok


def byte_fallback() -> Tokenizer:
    """Like a SentencePiece BPE converted for Llama 2: metaspaces, and bytes for what has no piece."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    symbols = [*SPECIALS, *(f"<0x{b:02X}>" for b in range(256))]
    tok.train_from_iterator(pico.CODE, trainers.BpeTrainer(vocab_size=420, special_tokens=symbols, max_token_length=8))
    data = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in SPECIALS]
    tok = Tokenizer.from_str(json.dumps(data))
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tok


def unigram() -> Tokenizer:
    tok = Tokenizer(models.Unigram())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tok.train_from_iterator(pico.CODE + pico.OTHER, trainer)
    return tok


MAKERS = {
    "byte-level": byte_level,
    "ignore-merges": lambda: byte_level(ignore_merges=True),
    "byte-fallback": byte_fallback,
    "unigram": unigram,
}


class Cut:
    """An original tokenizer, the pruned one, and new id -> old id."""

    def __init__(self, old: Tokenizer, corpus: list[str]) -> None:
        self.old, model = old, TokenizerModel(old)
        counts = count_tokens(old, corpus)
        self.counted = set(counts)
        required = model.alphabet() | set(model.added.values())
        self.kept = model.order(covered_tokens(model, counts, required))
        self.data = rewrite_tokenizer(model, self.kept)
        self.new = Tokenizer.from_str(json.dumps(self.data))

    def split(self, text: str) -> tuple[list[int], list[int]]:
        """Ids by the original, and by the pruned one mapped back."""
        old = self.old.encode(text, add_special_tokens=False).ids
        return old, [self.kept[i] for i in self.new.encode(text, add_special_tokens=False).ids]

    def there_and_back(self, text: str) -> tuple[str, str]:
        return tuple(
            t.decode(t.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
            for t in (self.old, self.new)
        )


@pytest.fixture(scope="module")
def cuts() -> dict[str, Cut]:
    corpora = {"ignore-merges": [*CORPUS, "x underivable y"]}
    return {name: Cut(make(), corpora.get(name, CORPUS)) for name, make in MAKERS.items()}


every_kind = pytest.mark.parametrize("kind", sorted(MAKERS))


@every_kind
def test_something_is_cut_and_ids_follow_the_original_order(cuts, kind):
    cut = cuts[kind]
    assert len(cut.kept) < cut.old.get_vocab_size()
    assert len(cut.kept) == len(set(cut.kept)) == cut.new.get_vocab_size()
    assert all(cut.new.id_to_token(i) == cut.old.id_to_token(k) for i, k in enumerate(cut.kept))
    base = [k for k in cut.kept if cut.old.id_to_token(k) not in SPECIALS + pico.SPECIAL]
    assert base == sorted(base)


@every_kind
def test_corpus_is_split_as_before(cuts, kind):
    for text in CORPUS:
        old, new = cuts[kind].split(text)
        assert new == old
        assert len(old) > 5


@every_kind
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), glue=st.sampled_from([" ", "\n", "", "\t", "  "])
)
def test_every_covered_text_is_split_as_before(cuts, kind, words, glue):
    """New text from old words makes token sequences that the corpus never had; where all are kept nothing may change."""
    cut = cuts[kind]
    old, new = cut.split(glue.join(words))
    if set(old) <= set(cut.kept):
        assert new == old
    else:
        assert new != old


def test_an_underivable_token_survives(cuts):
    cut = cuts["ignore-merges"]
    old, new = cut.split("x underivable y")
    assert new == old
    assert "Ġunderivable" in {cut.old.id_to_token(i) for i in old}


def test_without_the_closure_covered_text_falls_apart():
    """The same counts without the intermediate pieces: shows that the tests above can fail."""
    tok = byte_level()
    model, counts = TokenizerModel(tok), count_tokens(byte_level(), CORPUS)
    kept = model.order({*counts, *model.alphabet(), *model.added.values()})
    new = Tokenizer.from_str(json.dumps(rewrite_tokenizer(model, kept)))
    lengths = [len(t.encode(text, add_special_tokens=False).ids) for text in CORPUS for t in (tok, new)]
    assert sum(lengths[1::2]) > 1.2 * sum(lengths[::2])


def random_texts(count: int) -> list[str]:
    """Half random bytes read as UTF-8 with replacement or as Latin-1, half random code points."""
    chooser = random.Random(3)
    texts = []
    for number in range(count):
        size = chooser.randrange(1, 25)
        if number % 2:
            data = chooser.randbytes(size)
            texts.append(data.decode("latin-1") if number % 4 == 1 else data.decode("utf-8", errors="replace"))
        else:
            limit = (0x7F, 0x24F, 0xFFFF, 0x10FFFF)[number // 2 % 4]
            points = (chooser.randrange(limit) for _ in range(size))
            texts.append("".join(chr(p) for p in points if not 0xD800 <= p <= 0xDFFF))
    return texts


@every_kind
def test_any_text_survives_as_with_the_original(cuts, kind):
    lost = [t for t in random_texts(10_000) if len(set(cuts[kind].there_and_back(t))) > 1]
    if kind == "unigram":  # has no bytes to fall back on: only covered characters survive
        covered = {c for text in CORPUS for c in text}
        lost = [t for t in lost if set(t) <= covered]
    assert not lost


def test_any_text_survives_exactly_up_to_normalisation(cuts):
    for text in random_texts(10_000):
        assert cuts["byte-level"].there_and_back(text)[1] == unicodedata.normalize("NFC", text)


def test_unigram_scores_stay(cuts):
    cut = cuts["unigram"]
    before = dict(json.loads(cut.old.to_str())["model"]["vocab"])
    after = cut.data["model"]["vocab"]
    assert all(before[piece] == score for piece, score in after)
    assert after[cut.data["model"]["unk_id"]][0] == "<unk>"


def test_merges_as_strings_and_as_lists_are_the_same(cuts):
    model = TokenizerModel(byte_level())
    as_strings = TokenizerModel(byte_level())
    as_strings.data["model"]["merges"] = [" ".join(pair) for pair in model.merges]
    as_strings.merges = [tuple(m.split(" ")) for m in as_strings.data["model"]["merges"]]
    kept = cuts["byte-level"].kept
    merges = rewrite_tokenizer(model, kept)["model"]["merges"]
    assert isinstance(merges[0], list)
    assert rewrite_tokenizer(as_strings, kept)["model"]["merges"] == [" ".join(pair) for pair in merges]
    assert 0 < len(merges) < len(model.merges)
    order = [model.merges.index(tuple(m)) for m in merges]
    assert order == sorted(order)


@every_kind
def test_closed_sets_are_closed(cuts, kind):
    model, kept = TokenizerModel(cuts[kind].old), set(cuts[kind].kept)
    assert closed(model, kept) == kept


def test_min_count_drops_rare_tokens():
    model, counts = TokenizerModel(byte_level()), count_tokens(byte_level(), CORPUS)
    sizes = [len(covered_tokens(model, counts, model.alphabet(), n)) for n in (1, 3, 10**6)]
    assert sizes[0] > sizes[1] > sizes[2] == 256


def test_prefixes_and_other_models_are_refused():
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        TokenizerModel(wordpiece)
    with pytest.raises(UnsupportedModelError, match="prefixes or suffixes"):
        TokenizerModel(Tokenizer(models.BPE({"a": 0}, [], end_of_word_suffix="</w>")))


def test_the_choice_is_the_same_under_every_hash_seed(tmp_path):
    (tmp_path / "tokenizer.json").write_text(byte_level().to_str())
    script = (
        "import sys, json; from tokenizers import Tokenizer; from flab.pruning.cuts.vocabulary import *\n"
        "from flab.models.tokenizer import TokenizerModel, rewrite_tokenizer\n"
        "t = Tokenizer.from_file(sys.argv[1] + '/tokenizer.json'); m = TokenizerModel(t)\n"
        "c = count_tokens(t, json.loads(sys.argv[2])); k = choose_vocabulary(m, c, m.alphabet() | set(m.added.values()), 384)\n"
        "print(json.dumps([k, rewrite_tokenizer(m, m.order(covered_tokens(m, c, k)))]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path), json.dumps(CORPUS)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONHASHSEED": seed}) for seed in "17"
    ]
    first, second = (p.communicate(timeout=120)[0] for p in running)
    assert first == second
    assert len(json.loads(first)[0]) == 384


# --- sizes ---


def bench(folder: Path, corpus: list[str] = CORPUS) -> tuple[Checkpoint, Counts]:
    checkpoint = load(folder)
    return checkpoint, Counts.of(checkpoint.tokenizer, corpus, [])


def tokens_of(checkpoint: Checkpoint, asked: Recipe, counts: Counts, expected=dict) -> list[int]:
    """The kept tokens of a recipe, new id -> old id."""
    shape = shape_of(checkpoint.model, family_of(checkpoint.model.config))
    return plan_vocabulary(Needs(checkpoint, asked, counts), shape, asked.remove, asked.pins(shape), expected)


def test_a_multiple_of_64_is_reached_by_real_tokens(pico_folder, recipe):
    checkpoint, counts = bench(pico_folder("qwen2"))
    kept = tokens_of(checkpoint, recipe(remove=0.5), counts)
    assert len(kept) == 384
    assert all(checkpoint.tokenizer.id_to_token(i) is not None for i in kept)
    covered = Cut(checkpoint.tokenizer, CORPUS).counted
    assert covered <= set(kept)


def test_a_small_budget_keeps_the_whole_vocabulary(pico_folder, recipe):
    checkpoint, counts = bench(pico_folder("qwen2"))
    family = family_of(checkpoint.model.config)
    kept = tokens_of(checkpoint, recipe(remove=0.0), counts)
    assert kept == list(range(shape_of(checkpoint.model, family).vocabulary))


def test_a_pin_below_the_floor_is_refused_with_the_floor(pico_folder, recipe):
    checkpoint, counts = bench(pico_folder("qwen2"))
    pinned = recipe(vocabulary=100)
    with pytest.raises(BudgetError, match=r"`vocabulary` 100 is below the floor of \d+ tokens") as caught:
        tokens_of(checkpoint, pinned, counts)
    floor = int(str(caught.value).split("floor of ")[1].split()[0])
    at_floor = recipe(vocabulary=floor)
    kept = tokens_of(checkpoint, at_floor, counts)
    assert len(kept) == floor


def test_what_cannot_be_met_is_said_before_the_model_is_asked(pico_folder, recipe, monkeypatch):
    monkeypatch.setattr("flab.pruning.vocabulary.LARGE_VOCABULARY", 100)
    asked = []
    monkeypatch.setattr("flab.pruning.planner.model_counts", lambda *_: asked.append(1))
    for impossible in ({"vocabulary": 100}, {"remove": 0.999}):
        with pytest.raises(BudgetError):
            Planner(pico_folder("qwen2"), recipe(**impossible), Options()).open_bench()
    assert asked == []


def test_a_large_vocabulary_keeps_what_the_model_expects(pico_folder, recipe, monkeypatch):
    """A token that no text holds stays if the model would write it; with little room it replaces one that was seen once."""
    checkpoint, counts = bench(pico_folder("qwen2"))
    asked = recipe(remove=0.5)
    by_text = tokens_of(checkpoint, asked, counts)
    unseen = max(set(TokenizerModel(checkpoint.tokenizer).text_of) - set(by_text))
    before = tokens_of(checkpoint, asked, counts, lambda: {unseen: 10.0})
    assert unseen not in before  # a vocabulary of this size is chosen by its text alone
    monkeypatch.setattr("flab.pruning.vocabulary.LARGE_VOCABULARY", 100)
    kept = tokens_of(checkpoint, asked, counts, lambda: {unseen: 10.0})
    assert unseen in kept
    assert Cut(checkpoint.tokenizer, CORPUS).counted <= set(kept)


def test_frequent_tokens_come_before_rare_ones():
    model = TokenizerModel(byte_level())
    derived = [i for i, t in model.text_of.items() if len(t) == 2 and i not in model.alphabet()]
    favourite = derived[-1]
    kept = choose_vocabulary(model, Counter({favourite: 5}), model.alphabet(), 257)
    assert set(kept) == model.alphabet() | {favourite}


# --- ids in the folder's files ---


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_every_named_id_stays_and_is_renumbered(family, pico_folder):
    checkpoint = load(pico_folder(family))
    model, row = checkpoint.model, family_of(checkpoint.model.config)
    model.generation_config.bad_words_ids = [[430, 3], [7]]
    model.generation_config.suppress_tokens = [9, 431]
    model.generation_config.forced_eos_token_id = None
    old = {key: [i for k, i in named_ids(c.to_dict()) if k == key] for c in (model.generation_config,) for key in
           ("eos_token_id", "pad_token_id", "bad_words_ids", "suppress_tokens")}  # fmt: skip
    kept = sorted({i for ids in old.values() for i in ids} | {0, 1, 2})
    tied, before = is_tied(model, row), shape_of(model, row)
    cut_vocabulary(model, row, kept)
    new = model.generation_config
    assert [kept[i] for i in new.eos_token_id] == old["eos_token_id"]
    assert len(new.eos_token_id) == 2
    assert kept[new.pad_token_id] == old["pad_token_id"][0]
    assert [[kept[i] for i in word] for word in new.bad_words_ids] == [[430, 3], [7]]
    assert [kept[i] for i in new.suppress_tokens] == [9, 431]
    assert kept[model.config.eos_token_id] == old["eos_token_id"][0]
    assert model.config.vocab_size == len(kept)
    assert is_tied(model, row) == tied == (family == "qwen2")
    storages = {p.untyped_storage().data_ptr() for p in (model.model.embed_tokens.weight, model.lm_head.weight)}
    assert len(storages) == (1 if tied else 2)
    assert before.total - shape_of(model, row).total == (before.vocabulary - len(kept)) * 32 * (1 if tied else 2)


def test_ids_beyond_the_vocabulary_leave_no_empty_list_that_would_end_no_answer(pico_folder):
    checkpoint = load(pico_folder())
    model, row = checkpoint.model, family_of(checkpoint.model.config)
    size = model.config.vocab_size
    model.generation_config.eos_token_id = [size + 1, size + 2]
    model.generation_config.bad_words_ids = [[size + 1], [7]]
    end = model.config.eos_token_id
    kept = [*range(10), end]
    cut_vocabulary(model, row, kept)
    assert model.generation_config.eos_token_id is None
    assert model.generation_config.bad_words_ids == [[7]]
    assert kept[model.config.eos_token_id] == end


def test_named_ids_are_found_at_any_depth():
    data = {"eos_token_id": [1, 2], "nested": {"pad_token_id": 3, "hidden_size": 99}, "bad_words_ids": [[4], [5, 6]]}
    data |= {"image_token_ids": [7], "bos_token_id": None, "use_cache": True, "forced_decoder_ids": [[8, 9]]}
    assert [i for _, i in named_ids(data)] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_what_the_folder_names_is_required(pico_folder, tmp_path):
    folder = pico.build("qwen2", tmp_path / "model")
    tok = pico.tokenizer()
    rare = tok.token_to_id("Ġжив") or next(
        i for t, i in sorted(tok.get_vocab().items(), key=lambda p: -p[1]) if t not in pico.SPECIAL
    )
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"bad_words_ids": [[rare]]}))
    required = required_tokens(folder, tok, [5])
    assert {rare, 5, *(tok.token_to_id(t) for t in pico.SPECIAL)} <= required
    assert set(tok.encode("user\nassistant\n", add_special_tokens=False).ids) <= required
    without = required_tokens(pico_folder("qwen2"), tok, [])
    assert rare not in without


def test_the_chat_template_gives_the_same_tokens(pico_folder):
    checkpoint = load(pico_folder("qwen2"))
    model = TokenizerModel(checkpoint.tokenizer)
    required = required_tokens(checkpoint.path, checkpoint.tokenizer, checkpoint.named_ids)
    kept = model.order(covered_tokens(model, count_tokens(checkpoint.tokenizer, CORPUS), required))
    new = Tokenizer.from_str(json.dumps(rewrite_tokenizer(model, kept)))
    for role in ("system", "user", "assistant", "tool"):
        text = f"<|im_start|>{role}\n{CORPUS[0]}<|im_end|>\n<|im_start|>assistant\n"
        assert [kept[i] for i in new.encode(text).ids] == checkpoint.tokenizer.encode(text).ids
    assert new.token_to_id("<|im_end|>") == kept.index(checkpoint.tokenizer.token_to_id("<|im_end|>"))


def processor(kind: str, tok: Tokenizer):
    start, end = ((t, tok.token_to_id(t)) for t in pico.SPECIAL[:2])
    if kind == "template":
        return processors.TemplateProcessing(single=f"{start[0]} $A {end[0]}", special_tokens=[start, end])
    if kind == "sequence":
        return processors.Sequence([processors.ByteLevel(trim_offsets=False), processor("template", tok)])
    return {"roberta": processors.RobertaProcessing, "bert": processors.BertProcessing}[kind](end, start)


@pytest.mark.parametrize("kind", ["template", "sequence", "roberta", "bert"])
def test_post_processors_give_the_renumbered_ids(kind):
    tok = byte_level()
    tok.post_processor = processor(kind, tok)
    cut = Cut(tok, CORPUS)
    old, new = tok.encode(CORPUS[0]).ids, cut.new.encode(CORPUS[0]).ids
    assert [cut.kept[i] for i in new] == old
    assert old[0] == tok.token_to_id(pico.SPECIAL[0])
    assert old != new


def test_added_tokens_in_the_middle_of_the_vocabulary():
    """Some tokenizers add tokens that the base vocabulary holds already: they keep their place."""
    tok = byte_level()
    tok.add_tokens([AddedToken("def", normalized=False)])
    cut = Cut(tok, CORPUS)
    old, new = cut.split("def add_items(values):")
    assert new == old
    assert cut.new.token_to_id("def") == cut.kept.index(tok.token_to_id("def"))


def test_logit_bias_of_a_head_is_cut_too(pico_folder):
    checkpoint = load(pico_folder("llama"))
    model = checkpoint.model
    model.lm_head.bias = torch.nn.Parameter(torch.arange(434.0), requires_grad=False)
    cut_vocabulary(model, family_of(model.config), [2, 5, 431, 433])
    assert model.lm_head.bias.tolist() == [2.0, 5.0, 431.0, 433.0]
