"""What each component, each criterion and each form of the refit does on the bundled model: python benchmarks/criteria.py

One process, one calibration set, nothing trained as a whole: KL on comparison tokens, greedy pass@1 on the 200 test problems and
bits per byte of other code. Prints Markdown (and writes it where --output says).
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from flab import assets
from flab.evaluation.bits_per_byte import general_bits_per_byte
from flab.evaluation.tasks import read_task
from flab.models.checkpoint import Checkpoint, open_to_cut
from flab.models.families import head_of
from flab.models.layers import LayerRunner
from flab.models.options import Options
from flab.pruning.calibration import CalibrationSet
from flab.pruning.cuts.layers import LAYER_CRITERIA, LayerSearch
from flab.pruning.cuts.neurons import NEURON_CRITERIA, NeuronSearch
from flab.pruning.cuts.vocabulary import cut_vocabulary
from flab.pruning.finalists import run_problems
from flab.pruning.planner import Planner
from flab.pruning.recipe import Recipe
from flab.pruning.refit.new_layer import Cut
from flab.pruning.surgeon import carve
from flab.sandbox import Sandbox

REFITS = {
    "none": ("none", False),
    "residual + projection": ("residual", True),
    "newton": ("newton", True),
}
MORE_REFITS = {
    "simple": ("simple", False),
    "residual": ("residual", False),
    "reconstruction": ("reconstruction", True),
}  # beside the default criterion only
COMPONENTS: dict[str, dict[str, int]] = {
    "vocabulary, layers and FFN": {},
    "FFN": {"vocabulary": 4096, "layers": 7},
    "layers": {"vocabulary": 4096, "width": 640},
    "layers and FFN": {"vocabulary": 4096},
}


@dataclass
class Table:
    """Rows of Markdown, printed as they come."""

    lines: list[str]

    def add(self, *cells: object) -> None:
        line = "| " + " | ".join(f"{c:.4f}" if isinstance(c, float) else str(c) for c in cells) + " |"
        self.lines.append(line)
        print(line, flush=True)

    def head(self, title: str, *columns: str) -> None:
        self.lines += ["", f"### {title}", ""]
        print("\n".join(self.lines[-3:]))
        self.add(*columns)
        self.add(*["---"] * len(columns))


class Lab:
    """The bundled model with its vocabulary cut once, ready to be carved again and again."""

    def __init__(self, recipe: Recipe) -> None:
        self.bench, checkpoint = Planner(assets.model_path(), recipe, Options()).open_bench()
        self.model, self.data = checkpoint.model, self.bench.material.data
        self.problems, self.sandbox = read_task(assets.problems_path(), "code").problems, Sandbox.detect()

    def measure(self, cut: Cut, data: CalibrationSet | None = None) -> tuple[float, float, float]:
        """KL, pass@1 and bits per byte of one cut."""
        data = data or self.data
        built, family = open_to_cut(assets.model_path(), Options())
        cut_vocabulary(built.model, family, self.bench.material.kept)
        _, walk = carve(built.model, family, cut, data.fit, data.compare)
        built.tokenizer = self.bench.material.tokenizer
        kl, _ = walk.divergence(head_of(built.model, family))
        return kl, *self.outcome(built)

    def outcome(self, built: Checkpoint) -> tuple[float, float]:
        """pass@1 and bits per byte of a model."""
        result = run_problems(built, self.problems, self.sandbox)
        return sum(result.passed) / len(result.rows), general_bits_per_byte(built)

    def removals(self, criterion: str, count: int) -> list[tuple[int, ...]]:
        """The removed sets for 1 .. count layers."""
        path = LAYER_CRITERIA[criterion](LayerSearch(LayerRunner(self.model, self.bench.family), self.data.fit))
        return [next(path) for _ in range(count)]

    def scores(self, criterion: str) -> torch.Tensor | None:
        """Scores of all neurons, None for elimination."""
        if criterion == "elimination":
            return None
        return NEURON_CRITERIA[criterion](NeuronSearch(LayerRunner(self.model, self.bench.family), self.data.fit))

    def without(self, removed: tuple[int, ...]) -> list[int]:
        return [i for i in range(self.bench.shape.layers) if i not in removed]


def neurons(lab: Lab, table: Table) -> None:
    """Half of the width, all layers: every criterion under every refit."""
    width = lab.bench.shape.width // 2
    table.head(
        f"Neurons: width {width} of {lab.bench.shape.width}, all layers",
        "criterion",
        "refit",
        "KL",
        "pass@1",
        "bits/byte",
    )
    for criterion in (*NEURON_CRITERIA, "elimination"):
        scores = lab.scores(criterion)
        for name, (kind, projection) in (REFITS | (MORE_REFITS if scores is None else {})).items():
            cut = Cut(range(lab.bench.shape.layers), width, kind, projection, scores)
            table.add(criterion, name, *lab.measure(cut))


def layers(lab: Lab, table: Table) -> None:
    """One to three layers out: every criterion, cut alone and with the refit."""
    table.head("Layers", "criterion", "removed", "KL (cut alone)", "KL (refit)", "pass@1 (refit)")
    for criterion in LAYER_CRITERIA:
        for removed in lab.removals(criterion, 3):
            kept, width = lab.without(removed), lab.bench.shape.width
            alone = lab.measure(Cut(kept, width, "none", False))
            refitted = lab.measure(Cut(kept, width))
            table.add(criterion, removed, alone[0], refitted[0], refitted[1])


def components(lab: Lab, table: Table, remove: float = 0.4) -> None:
    """One budget, met by all components or by some: planned each time as ``flab plan`` does."""
    columns = ("parameters", "tokens", "layers x width", "KL", "pass@1", "bits/byte")
    table.head(f"{remove:.0%} removed from", "component", *columns)
    for name, pins in COMPONENTS.items():
        plan, built, _ = Planner(assets.model_path(), Recipe(remove=remove, **pins), Options()).plan()
        sizes = f"{plan.layers.after} x {plan.width.after}"
        table.add(
            name, plan.parameters_after, plan.vocabulary.after, sizes, plan.kl_nats_per_token, *lab.outcome(built)
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="also write the Markdown here")
    parser.add_argument("--tokens", type=int, default=Recipe.tokens)
    arguments = parser.parse_args()
    start, table = time.time(), Table([])
    lab = Lab(Recipe(remove=0.22, tokens=arguments.tokens))
    table.head("Vocabulary cut only", "tokens", "KL of the cut", "pass@1", "bits/byte")
    whole = Cut(range(lab.bench.shape.layers), lab.bench.shape.width, "none", False)
    _, success, bits = lab.measure(whole)
    table.add(len(lab.bench.material.kept), lab.bench.material.kl_vocabulary, success, bits)
    components(lab, table)
    neurons(lab, table)
    layers(lab, table)
    closing = f"\n{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
    closing += f"torch {torch.__version__}, {lab.data.num_fit_tokens} tokens fitted, {time.time() - start:.0f} s"
    table.lines.append(closing)
    print(closing)
    if arguments.output:
        arguments.output.write_text("\n".join(table.lines).lstrip() + "\n")


if __name__ == "__main__":
    main()
