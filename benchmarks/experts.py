"""What each criterion and each refit keeps when experts go: python benchmarks/experts.py FOLDER

FOLDER is a mixture that scripts/train_mixture.py made. KL on comparison tokens and greedy pass@1 on the bundled test
problems, for a quarter and a half of the experts removed, all else kept. Prints Markdown.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from flab import assets
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


class Lab:
    """The mixture, its calibration data and the problems."""

    def __init__(self, folder: Path, tokens: int, seed: int, problems: int) -> None:
        whole = Planner(folder, Recipe(), Options())
        shape = whole.open_bench(0.0)[0].shape
        recipe = Recipe(remove=0, tokens=tokens, seed=seed, vocabulary=shape.vocabulary, layers=shape.layers)
        bench, checkpoint = Planner(folder, recipe, Options()).open_bench()
        self.folder, self.seed, self.shape, self.data = folder, seed, shape, bench.material.data
        self.runner = LayerRunner(checkpoint.model, bench.family)
        self.scores: dict[str, torch.Tensor] = {}
        self.problems, self.sandbox = read_task(assets.problems_path(), "code").problems[:problems], Sandbox.detect()

    def measure(self, criterion: str, kept: int, refit: str) -> tuple[float, float]:
        """KL and pass@1 with ``kept`` experts in each layer."""
        if criterion not in self.scores:
            self.scores[criterion] = EXPERT_CRITERIA[criterion](ExpertSearch(self.runner, self.data.fit, self.seed))
        built, family = open_to_cut(self.folder, Options())
        cut = Cut(range(self.shape.layers), kept, refit, scores=self.scores[criterion])
        _, walk = carve(built.model, family, cut, self.data.fit, self.data.compare)
        kl, _ = walk.divergence(scorer_of(built.model))
        result = run_problems(built, self.problems, self.sandbox, batch_size=len(self.problems))
        return kl, sum(result.passed) / len(result.rows)


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--quarters", type=int, nargs="+", default=[3, 2], help="of the experts that stay")
    parser.add_argument("--refits", nargs="+", default=["none", "simple", "residual"])
    parser.add_argument("--criteria", nargs="+", default=list(EXPERT_CRITERIA))
    args = parser.parse_args()
    print("| experts | criterion | refit | seed | KL | pass@1 | seconds |\n|---|---|---|---|---|---|---|", flush=True)
    for seed in args.seeds:
        lab = Lab(args.folder, args.tokens, seed, args.problems)
        whole = lab.shape.experts
        cases = [("none", "reap", whole)]
        cases += [(r, c, whole * part // 4) for part in args.quarters for c in args.criteria for r in args.refits]
        for refit, criterion, kept in cases:
            start = time.time()
            kl, success = lab.measure(criterion, kept, refit)
            cells = (
                f"{kept} of {whole}",
                criterion,
                refit,
                seed,
                f"{kl:.4f}",
                f"{success:.3f}",
                f"{time.time() - start:.0f}",
            )
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
