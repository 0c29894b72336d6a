"""Chain of thought: corpus BLEU-4 against the references, in two tokenisations, and exact match.

The generation and the reference are compared as they are, stripped at both ends. Nothing is cut, so the preset's
stop strings decide where a generation ends. With several samples the corpus holds every sample next to its item's
reference. BLEU is on sacrebleu's scale of 0 to 100.

``bleu_paper``
    words split at white space, no smoothing: what the paper's nlg-eval computes (Papineni et al. 2002).
``bleu_default``
    sacrebleu's own settings (Post 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics.bleu import BLEU

from flab.evaluation.score import Score, base_summary, check_shape, failure_class, row_for
from flab.evaluation.tasks import Explanation, TaskFile
from flab.models.engines.protocol import Generation


def score_cot(task: TaskFile, generations: Sequence[Sequence[Generation]]) -> Score:
    """Score a task of kind cot; a row passes if it equals its reference, and carries its own BLEU."""
    check_shape(len(task.items), generations)
    # The BLEU of one sentence uses sacrebleu's smoothing, and only the orders that the sentence has.
    sentence = BLEU(tokenize="none", effective_order=True)
    rows = []
    texts = []
    references = []
    for item, samples in zip(task.items, generations, strict=True):
        assert isinstance(item, Explanation), "not a task of kind cot"
        for number, made in enumerate(samples):
            texts.append(made.text.strip())
            references.append(item.cot.strip())
            rows.append(_row(item.task_id, number, made, references[-1], sentence))
    summary = base_summary(rows)
    summary["exact_match"] = summary["pass@1"]
    return Score(task.name, task.kind, summary | corpus_bleu(texts, references), rows)


def corpus_bleu(texts: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Return both BLEU scores of a corpus, each with sacrebleu's signature."""
    scores: dict[str, Any] = {}
    for name, metric in metrics().items():
        scores[name] = metric.corpus_score(list(texts), [list(references)]).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def metrics() -> dict[str, BLEU]:
    """Return the two settings. ``force`` silences a warning about text that is already split at white space."""
    return {"bleu_paper": BLEU(tokenize="none", smooth_method="none", force=True), "bleu_default": BLEU(force=True)}


def _row(task_id: str, sample: int, made: Generation, reference: str, sentence: BLEU) -> dict[str, Any]:
    """Return a row with the counts behind BLEU, so that a comparison can resample items without the texts."""
    text = made.text.strip()
    found = sentence.sentence_score(text, [reference])
    outcome = "passed" if text == reference else failure_class(text, made.finish_reason, "different")
    counts = [found.sys_len, found.ref_len, *found.counts, *found.totals]
    return row_for(task_id, sample, made, text == reference, outcome, bleu=found.score, bleu_counts=counts)
