"""The bundled reference model's corpus, tokenizer and data files: split, right answers, reproducibility."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from pathlib import Path

import pytest

from flab import assets

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from reference import bundle, corpus, grammar, languages, measure, samples, vocabulary  # noqa: E402

SPLITS = ("train", "calibration", "recovery", "test")
TESTS = (assets.problems_path(), assets.cot_path(), assets.outputs_path())
MODEL = assets.model_path()
needs_model = pytest.mark.skipif(not (MODEL / "README.md").is_file(), reason="the model is not built yet")


def in_file(path: Path) -> set[str]:
    return {row["composition"] for row in measure.read_rows(path)}


def function(code: str, name: str):
    scope: dict = {}
    exec(code, scope)
    return scope[name]


def test_no_composition_is_in_two_splits():
    names = [names for split in SPLITS for names in grammar.compositions(split)]
    assert len(names) == len(set(names))
    assert all(len(names) == 2 for split in SPLITS[1:] for names in grammar.compositions(split))


def test_every_operation_is_taught_inside_other_compositions():
    pairs = [names for names in grammar.compositions("train") if len(names) == 2]
    assert {name for names in pairs for name in names} == set(grammar.OPERATIONS)


def test_bundled_files_keep_to_their_split():
    files = {"calibration": [assets.calibration_path()], "recovery": [assets.recovery_path()], "test": TESTS}
    for split, paths in files.items():
        allowed = {">".join(names) for names in grammar.compositions(split)}
        assert all(in_file(path) <= allowed for path in paths)


def test_training_samples_keep_to_the_train_split():
    rng = random.Random(3)
    allowed = set(grammar.compositions("train"))
    for _ in range(500):
        assert tuple(op.name for op in corpus.draw_training_task(rng).operations) in allowed


@pytest.mark.parametrize("op", grammar.OPERATIONS.values(), ids=lambda op: op.name)
def test_all_ways_to_write_an_operation_agree_with_its_evaluator(op):
    rng = random.Random(op.name)
    for k in op.ks:
        task = grammar.Task((op,), (k,))
        for template in op.code:
            lines = grammar.fill(template, "data", "result", k).split("\n")
            tail = ["return result"] if len(lines) > 1 else [f"return {lines.pop()}"]
            run = function("def f(data):\n" + "".join(f"    {line}\n" for line in lines + tail), "f")
            for value in grammar.example_inputs(task, rng, 20):
                assert repr(run(value)) == repr(task.evaluate(value)), (template, value)


def test_every_composition_can_be_written_and_is_right():
    rng = random.Random(5)
    for split in SPLITS:
        for names in grammar.compositions(split):
            row = samples.code_row(grammar.draw_task(names, rng), "", rng)
            code = row["prompt"] + row["canonical_solution"]
            function(code + row["test"], "check")(function(code, row["entry_point"]))
            assert row["test"].count("assert") >= 5


def test_bundled_solutions_pass_their_tests_in_a_bare_interpreter():
    rows = measure.read_rows(assets.problems_path())
    cases = [(row["prompt"] + row["canonical_solution"], row["test"], row["entry_point"]) for row in rows]
    assert len(rows) == len({code for code, _, _ in cases}) == 200
    program = f"for code, test, name in {cases!r}:\n    s = {{}}\n    exec(code + test, s)\n    s['check'](s[name])\n"
    assert measure.passes(program)
    assert not measure.passes("assert False")


def test_bundled_outputs_are_right():
    rows = measure.read_rows(assets.outputs_path())
    assert all(repr(function(r["code"], "f")(eval(r["input"]))) == r["output"] for r in rows)


def test_bundled_files_are_what_the_scripts_write(tmp_path):
    bundle.write_all(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (assets.HERE / path.name).read_bytes(), path.name


def test_same_seed_gives_the_same_samples():
    def drawn(seed: int) -> str:
        rng = random.Random(seed)
        made = [make(rng) for make in corpus.MAKERS.values() for _ in range(50)]
        return json.dumps([made, languages.sentences(20, rng)])

    assert drawn(1) == drawn(1) != drawn(2)


def test_standard_library_parts_do_not_overlap():
    train, held_out = set(assets.train_stdlib()), set(assets.held_out_stdlib())
    assert not train & held_out
    assert 0.1 < len(held_out) / len(train | held_out) < 0.3


@needs_model
def test_same_seed_gives_the_same_corpus_bytes():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    phases = ((40, corpus.PHASES[0][1]),)
    first, second, other = (corpus.build(tokenizer, seed, phases) for seed in (1, 1, 2))
    assert corpus.digest(first) == corpus.digest(second) != corpus.digest(other)
    assert first[0].shape == first[1].shape == (40, corpus.LENGTH)


@needs_model
def test_tokenizer_is_the_same_either_way():
    assert vocabulary.disagreements(MODEL) == []


@needs_model
def test_model_is_small_and_not_mostly_embeddings():
    from safetensors import safe_open

    with safe_open(MODEL / "model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
        dtypes = {str(file.get_tensor(name).dtype) for name in sizes}
    assert dtypes == {"torch.bfloat16"}
    assert sum(sizes.values()) * 2 <= 14e6
    assert sizes["model.embed_tokens.weight"] / sum(sizes.values()) <= 0.20


@needs_model
def test_model_card_hashes_match_the_files():
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    hashes = dict(re.findall(r"^\| `([\w./]+)` \| `([0-9a-f]{64})` \|$", card, re.MULTILINE))
    assert {"model.safetensors", "tokenizer.json", "problems.jsonl"} <= set(hashes)
    for name, digest in hashes.items():
        path = MODEL / name if (MODEL / name).is_file() else assets.HERE / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, name
