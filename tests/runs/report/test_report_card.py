"""Model cards: metadata that the hub reads, honest words, and nobody else's card lost."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from flab.runs.report import make_report
from flab.runs.report.card import MARK, licence_of


def card_of(run, name="recovered"):
    return (run / name / "README.md").read_text(encoding="utf-8")


def test_the_hub_reads_the_metadata(run):
    make_report(run)
    data = ModelCard(card_of(run)).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("org/base", "transformers", "text-generation")
    assert (data.license, data.language) == ("other", "code")
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("problems", "pass@1", 0.5)


def test_a_local_base_is_no_hub_id(changed):
    run = changed("summary.json", lambda value: value.update(model="/home/somebody/models/secret"))
    make_report(run)
    assert ModelCard(card_of(run)).data.base_model is None
    assert "/home/somebody" not in card_of(run)
    assert "secret, 40.0 % smaller" in card_of(run)


def test_the_card_says_what_was_kept_and_how_it_was_made(run):
    make_report(run)
    text = card_of(run)
    assert "| problems | 0.500 | 0.500 (0.10 to 0.90) | 100.5 % (99.0 % to 102.6 %) | 1 / 2 | p = 0.75 |" in text
    assert "full training, 20 steps, 5,000 tokens of 100 rows, 2.18 min" in text
    assert "It was not trained afterwards." in card_of(run, "pruned")
    assert "| `abc123` |" in text


def test_the_tokenizer_class_is_the_one_that_the_check_found(changed):
    loads = {"transformers": {"ok": True, "tokenizer": "PreTrainedTokenizerFast"}}
    run = changed("run.json", lambda value: value["stages"]["recover"].update(loads_in=loads))
    make_report(run)
    assert 'PreTrainedTokenizerFast.from_pretrained("PATH")' in card_of(run)
    assert 'AutoTokenizer.from_pretrained("PATH")' in card_of(run, "pruned")
    assert "says whether another class is needed" in card_of(run, "pruned")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        ("Permission is hereby\ngranted, free of charge, ... THE SOFTWARE IS PROVIDED", "mit"),
        ("All rights reserved", "other"),
        ("", "other"),
    ],
)
def test_licences_are_recognised(text, word):
    assert licence_of(text) == word


def test_the_licence_is_the_folders(run):
    (run / "recovered/LICENSE").write_text("Apache License\nVersion 2.0")
    make_report(run)
    assert ModelCard(card_of(run)).data.license == "apache-2.0"


def test_a_foreign_card_stays_and_is_named(run):
    (run / "recovered/README.md").write_text("mine")
    report = make_report(run)
    assert card_of(run) == "mine"
    assert report["warnings"] == [
        "recovered/README.md was not written by flab report, so it is kept; move it away to get a card"
    ]
    assert "recovered/README.md" not in report["files"]
    assert MARK in card_of(run, "pruned")


def test_our_own_card_is_replaced(run):
    make_report(run)
    (run / "recovered/README.md").write_text(card_of(run) + "stale")
    report = make_report(run)
    assert "stale" not in card_of(run)
    assert report["warnings"] == []
