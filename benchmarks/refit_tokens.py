"""How the refit of one FFN depends on the calibration tokens: python benchmarks/refit_tokens.py MODEL --calibration ROWS

One layer of an uncut model, its own output as target: a fraction of the neurons is cut, the rest is refitted on more and more
windows, and the error on windows that no fit reads is printed relative to the output's size, as Markdown. The first token of
every window is left out. It takes minutes for a model of 135 M parameters, and shows how many tokens a real model needs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional

from flab.models.families import activation_of, ffn_inputs, linear
from flab.models.layers import LayerRunner
from flab.models.options import Options
from flab.pruning.cuts.neurons import choose_neurons
from flab.pruning.planner import Planner
from flab.pruning.recipe import Recipe
from flab.pruning.refit.descent import Examples, descend
from flab.pruning.refit.gram import Gram


def collect(runner: LayerRunner, batches: list, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the FFN after its norm, and its features, (N, D) and (N, F), without the first token of each window."""
    entering, features = [], []
    norm = runner.layers[layer].get_submodule(runner.family.ffn_norm)
    for place in torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist():
        batch = batches[place]  # they are sorted by length
        hidden = runner.embed(batch)
        for index in range(layer):
            hidden = runner.layer(index, hidden)
        with runner.at_work(layer):
            projection = linear(runner.layers[layer], runner.family.attention_out)
            mid = hidden + projection(runner.attention_features(layer, hidden))
            valid = batch.valid.clone()
            valid[:, 0] = False
            entering.append(norm(mid[valid]))
            features.append(runner.ffn_features(layer, mid[valid]))
    return torch.cat(entering).float(), torch.cat(features).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, help="as of flab plan")
    parser.add_argument("--layer", type=int, default=14)
    parser.add_argument("--keep", type=float, default=0.6875, help="fraction of the neurons that stay")
    parser.add_argument("--tokens", type=int, nargs="+", default=[12_000, 25_000, 50_000, 70_000])
    given = parser.parse_args()
    recipe = Recipe(remove=0.3, calibration=given.calibration, tokens=int(max(given.tokens) * 1.8), general=0.5)
    bench, checkpoint = Planner(given.model, recipe, Options()).open_bench()
    runner = LayerRunner(checkpoint.model, bench.family)
    data = bench.material.data
    layer = runner.layers[given.layer]
    down = linear(layer, bench.family.ffn_out).weight.float()
    inputs, features = collect(runner, data.fit, given.layer)
    wanted = features @ down.T
    judged_inputs, judged = collect(runner, data.compare, given.layer)
    target = judged @ down.T
    size = float(target.pow(2).sum())

    def error(output: torch.Tensor) -> float:
        return float((target - output).pow(2).sum()) / size

    def closed_form(fit: torch.Tensor, kept: list[int]) -> torch.Tensor:
        gram = Gram(down)
        held = torch.arange(len(fit)) % 8 == 7
        gram.add(features[fit[~held]], wanted[fit[~held]], held_out=False)
        gram.add(features[fit[held]], wanted[fit[held]], held_out=True)
        return gram.solve(kept, None)[0].float()

    width = int(given.keep * down.shape[1])
    print("| tokens | no refit | closed form, activation | closed form, elimination | descent |\n|---|---|---|---|---|")
    for tokens in given.tokens:
        fit = torch.arange(min(tokens, len(inputs)))
        energy = features[fit].pow(2).sum(0) * down.pow(2).sum(0)
        by_activation = choose_neurons(energy, width)
        gram = Gram(down)
        gram.add(features[fit], wanted[fit], held_out=False)
        by_elimination = gram.eliminate(width)
        cells = [error(judged[:, by_activation] @ down[:, by_activation].T)]
        cells.append(error(judged[:, by_activation] @ closed_form(fit, by_activation).T))
        solved = closed_form(fit, by_elimination)
        cells.append(error(judged[:, by_elimination] @ solved.T))
        start = [*(matrix.float() for matrix in ffn_inputs(layer, bench.family, by_elimination)), solved]
        examples = Examples(
            inputs[fit], wanted[fit], wanted[fit], torch.ones(len(fit), 1), torch.arange(len(fit)) % 8 == 7
        )
        nothing = [*start[:-1], torch.zeros_like(solved)]
        moved, _ = descend(start, activation_of(layer, bench.family), examples, nothing)
        act = activation_of(layer, bench.family)(functional.linear(judged_inputs, moved[0]))
        for up in moved[1:-1]:
            act = act * functional.linear(judged_inputs, up)
        cells.append(error(act @ moved[-1].T))
        print(f"| {len(fit):,} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
