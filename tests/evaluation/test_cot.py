"""BLEU against sacrebleu and by hand, exact match, and rows."""

import math

import pytest
import sacrebleu

from flab import assets
from flab.evaluation.cot import corpus_bleu, score_cot
from flab.evaluation.metrics import corpus_bleu_of_counts, wilson_interval
from flab.evaluation.tasks import Explanation, make_task, read_task
from flab.models.engines.protocol import Generation


def task_of(*references):
    return make_task("c", "cot", [Explanation(str(n), "p", text) for n, text in enumerate(references)], "c.jsonl")


def made(text, reason="stop"):
    return Generation(text, len(text.split()), reason)


def score(texts, references):
    return score_cot(task_of(*references), [[made(text)] for text in texts])


@pytest.fixture(scope="module")
def fixture_texts():
    """The bundled references, and texts with words left out, changed and added."""
    references = [item.cot for item in read_task(assets.cot_path()).items]
    texts = []
    for number, reference in enumerate(references):
        words = reference.split()
        del words[number % len(words)]
        words.insert((7 * number) % len(words), "list,")
        texts.append(" ".join(words[: max(2, len(words) - number % 4)]))
    return texts, references


def test_bleu_is_sacrebleus_own(fixture_texts):
    texts, references = fixture_texts
    summary = score(texts, references).summary
    stripped = [one.strip() for one in references]
    paper = sacrebleu.BLEU(tokenize="none", smooth_method="none", force=True)
    default = sacrebleu.BLEU()
    assert summary["bleu_paper"] == paper.corpus_score(texts, [stripped]).score
    assert summary["bleu_default"] == default.corpus_score(texts, [stripped]).score
    assert summary["bleu_default"] == sacrebleu.corpus_bleu(texts, [stripped]).score
    assert 20 < summary["bleu_paper"] < 95
    assert summary["bleu_paper_signature"] == str(paper.get_signature())
    assert "tok:none|smooth:none" in summary["bleu_paper_signature"]
    assert "tok:13a|smooth:exp" in summary["bleu_default_signature"]


def test_counts_of_the_rows_give_the_corpus_score(fixture_texts):
    found = score(*fixture_texts)
    sums = [sum(values) for values in zip(*(row["bleu_counts"] for row in found.rows), strict=True)]
    import numpy as np

    assert corpus_bleu_of_counts(np.array(sums, dtype=float)) == pytest.approx(found.summary["bleu_paper"], abs=1e-9)


def test_bleu_by_hand():
    """Precisions 4/5, 3/4, 2/3, 1/2 and no brevity penalty: (1/5) ** (1/4); then 4 words of 5: exp(-1/4)."""
    assert score(["a b c d x"], ["a b c d e"]).summary["bleu_paper"] == pytest.approx(100 * 0.2**0.25)
    assert score(["a b c d"], ["a b c d e"]).summary["bleu_paper"] == pytest.approx(100 * math.exp(-0.25))
    assert score(["a b c d e"], ["a b c d e"]).summary["bleu_paper"] == pytest.approx(100)
    assert score(["x y"], ["a b c d e"]).summary["bleu_paper"] == 0
    assert score([""], ["a b c d e"]).summary["bleu_paper"] == 0


def test_rows_and_classes():
    found = score_cot(
        task_of("a b c d e", "a", "b", "c"),
        [[made("\n a b c d e \n")], [made("b")], [made(" ")], [made("c d", "length")]],
    )
    assert [row["outcome"] for row in found.rows] == ["passed", "different", "empty", "length"]
    assert found.rows[0]["bleu"] == pytest.approx(100)
    assert found.rows[0]["text"] == "\n a b c d e \n"
    assert found.summary["exact_match"] == 0.25
    assert found.summary["interval_95"] == list(wilson_interval(1, 4))
    assert (found.summary["passed"], found.summary["total"], found.summary["num_truncated"]) == (1, 4, 1)


def test_one_long_word_and_other_scripts_score_quietly(caplog):
    texts = ["x" * 100_000, "漢字 。", "a .", "- \n b"] * 30
    found = score(texts, texts)
    assert found.summary["exact_match"] == 1
    assert not caplog.records


def test_several_samples_share_their_reference():
    found = score_cot(task_of("a b c d", "e f g h"), [[made("a b c d"), made("a b c x")], [made("e f g h"), made("")]])
    together = corpus_bleu(["a b c d", "a b c x", "e f g h", ""], ["a b c d", "a b c d", "e f g h", "e f g h"])
    assert found.summary["bleu_paper"] == together["bleu_paper"]
    assert (found.summary["exact_match"], found.summary["num_samples"]) == (0.5, 2)


def test_public_references_score_100(data_folder):
    file = data_folder / "humaneval_cot.csv"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    task = read_task(file)
    summary = score_cot(task, [[made(item.cot)] for item in task.items]).summary
    assert summary["bleu_paper"] == pytest.approx(100)
    assert summary["passed"] == 164
