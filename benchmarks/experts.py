"""What each criterion and each refit keeps when experts go: python benchmarks/experts.py FOLDER [FOLDER ...]

Each FOLDER is a mixture that scripts/train_mixture.py made, with a seed of its own. KL on comparison tokens and greedy pass@1
on the bundled test problems, for a quarter and a half of the experts removed, all else kept. Prints Markdown: a row per model
as soon as it is measured, and at the end one per case over all models. Every row is compared, problem by problem, with REAP's
criterion at a quarter without a refit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from flab import assets
from flab.evaluation.metrics import mcnemar_exact, paired_counts, wilson_interval
from flab.evaluation.tasks import read_task
from flab.models.checkpoint import open_to_cut
from flab.models.layers import LayerRunner
from flab.models.options import Options
from flab.models.scorer import scorer_of
from flab.pruning.cuts.experts import EXPERT_CRITERIA, ExpertSearch
from flab.pruning.finalists import run_problems
from flab.pruning.planner import Planner
from flab.pruning.recipe import Recipe
from flab.pruning.refit.walk import Cut
from flab.pruning.surgeon import carve
from flab.sandbox import Sandbox

HEAD = "| experts | criterion | refit | model | KL | passed | gained, lost | p | seconds |\n|---|---|---|---|---|---|---|---|---|"


class Case(NamedTuple):
    """What is kept, chosen and refitted how; ``quarters`` of the experts stay."""

    quarters: int
    criterion: str
    refit: str


REFERENCE = Case(3, "reap", "none")


@dataclass(frozen=True)
class Outcome:
    """What one model keeps in one case."""

    kl: float
    passed: list[bool]


class Lab:
    """A mixture, its calibration data and the problems."""

    def __init__(self, folder: Path, tokens: int, seed: int, problems: int) -> None:
        whole = Planner(folder, Recipe(), Options())
        shape = whole.open_bench(0.0)[0].shape
        recipe = Recipe(remove=0, tokens=tokens, seed=seed, vocabulary=shape.vocabulary, layers=shape.layers)
        bench, checkpoint = Planner(folder, recipe, Options()).open_bench()
        self.folder, self.seed, self.shape, self.data = folder, seed, shape, bench.material.data
        self.runner = LayerRunner(checkpoint.model, bench.family)
        self.scores: dict[str, torch.Tensor] = {}
        self.problems, self.sandbox = read_task(assets.problems_path(), "code").problems[:problems], Sandbox.detect()

    def measure(self, case: Case) -> Outcome:
        """Cut the mixture, and return its KL and which problems it solves."""
        if case.criterion not in self.scores:
            search = ExpertSearch(self.runner, self.data.fit, self.seed)
            self.scores[case.criterion] = EXPERT_CRITERIA[case.criterion](search)
        built, family = open_to_cut(self.folder, Options())
        kept = self.shape.experts * case.quarters // 4
        cut = Cut(range(self.shape.layers), kept, case.refit, scores=self.scores[case.criterion])
        _, walk = carve(built.model, family, cut, self.data.fit, self.data.compare)
        kl, _ = walk.divergence(scorer_of(built.model))
        result = run_problems(built, self.problems, self.sandbox, batch_size=len(self.problems))
        return Outcome(kl, list(result.passed))


def row(case: Case, model: str, outcomes: Sequence[Outcome], references: Sequence[Outcome]) -> str:
    """Return a line for the outcomes of one case, with the counts of problems that only it, or only the reference, solves."""
    passed = [one for outcome in outcomes for one in outcome.passed]
    low, high = wilson_interval(sum(passed), len(passed))
    kls = [outcome.kl for outcome in outcomes]
    spread = f" ({min(kls):.4f} to {max(kls):.4f})" if len(kls) > 1 else ""
    counts = paired_counts(passed, [one for outcome in references for one in outcome.passed])
    cells = (
        f"{case.quarters} of 4 quarters",
        case.criterion,
        case.refit,
        model,
        f"{sum(kls) / len(kls):.4f}{spread}",
        f"{sum(passed) / len(passed):.3f} [{low:.3f}, {high:.3f}]",
        f"+{counts.only_a} -{counts.only_b}",
        f"{mcnemar_exact(counts.only_a, counts.only_b):.2g}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a row as soon as it is measured, then one per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--quarters", type=int, nargs="+", default=[3, 2], help="of the experts that stay")
    parser.add_argument("--refits", nargs="+", default=["none", "simple", "residual"])
    parser.add_argument("--criteria", nargs="+", default=list(EXPERT_CRITERIA))
    args = parser.parse_args()
    cases = [Case(q, c, r) for q in args.quarters for c in args.criteria for r in args.refits]
    cases = [REFERENCE, Case(4, "reap", "none"), *(case for case in cases if case != REFERENCE)]
    found: dict[Case, list[Outcome]] = {case: [] for case in cases}
    print(HEAD, flush=True)
    for seed, folder in enumerate(args.folders):
        lab = Lab(folder, args.tokens, seed, args.problems)
        for case in cases:
            start = time.process_time()
            found[case].append(lab.measure(case))
            print(
                row(case, folder.name, found[case][-1:], found[REFERENCE][-1:]),
                f"{time.process_time() - start:.0f} |",
                flush=True,
            )
    for case in cases:
        print(row(case, "all", found[case], found[REFERENCE]), "|")


if __name__ == "__main__":
    main()
