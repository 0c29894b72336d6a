"""The refit: closed-form corrections of what stays, layer by layer, each seeing the error of all that was cut before it.

At kept layer i, whose next kept layer is j, the FFN's output projection is fitted to the *original's* residual stream where
it enters layer j, so the contribution of removed layers is part of the target. The attention's output projection is fitted
to the original's stream before the FFN of layer i. Only Gram and cross matrices of one layer are held, in float64.
No layer gains a bias, and shapes stay standard. Weights are fitted in units of the stream
(:mod:`flab.models.branch`): a family's multiplier, or a norm behind the projection, is part of the problem. The expensive
refits (:mod:`flab.pruning.refit.newton`, :mod:`flab.pruning.refit.reconstruction`) continue from there, layer by layer.

Legend: N tokens, D hidden size, P features (FFN neurons or attention outputs, one more where the layer has a bias).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from flab.models.families import activation_of, attention_out, extended, ffn_inputs, linear, norm_at, with_bias
from flab.models.layers import Batch, LayerRunner, by_rows
from flab.models.memory import trim
from flab.models.mixture import mixture_of
from flab.models.scorer import Scorer
from flab.pruning.cuts.neurons import choose_neurons
from flab.pruning.objective import kl_divergence
from flab.pruning.refit.curvature import product_dtype
from flab.pruning.refit.descent import Example, Examples, descend
from flab.pruning.refit.experts import mixture_tokens, new_mixture
from flab.pruning.refit.gram import Gram
from flab.pruning.refit.new_layer import Cut, FfnSolution, NewLayer, replace_weights
from flab.pruning.refit.newton import MOST_TOKENS, FfnProblem, Tokens, newton_refit
from flab.pruning.refit.reconstruction import Rows, reconstruct
from flab.pruning.refit.streams import Streams
from flab.pruning.refit.weights import TokenWeights
from flab.pruning.refits import REFITS


class Walk:
    """One pass over the kept layers, with the streams of the original and of the pruned model side by side.

    Iterating yields a :class:`NewLayer` per kept layer. The walk no longer needs the original layer then, so the consumer may
    cut it in place. Afterwards :meth:`divergence` gives the KL.
    """

    def __init__(
        self,
        runner: LayerRunner,
        cut: Cut,
        fit: Sequence[Batch],
        compare: Sequence[Batch],
        streams: Streams | None = None,
    ) -> None:
        self.runner = runner
        self.cut = cut
        self.steps = REFITS[cut.kind]
        self.streams = streams or Streams(0)
        self.batches = [*fit, *compare]
        self.num_fit = len(fit)
        self.weights = TokenWeights(fit, cut.scaling)
        # Two residual streams pass through the layers side by side: the original's, which every fit aims at, and that of the
        # model pruned so far, which each refitted layer will really read. Comparison batches pass along for the KL at the
        # end.
        self.original = [runner.embed(batch) for batch in self.batches]
        self.pruned = list(self.original)
        self.clean = True  # both streams are still one
        self.likely_ridge: float | None = None  # of the last FFN; neighbouring layers need similar ridges

    @torch.no_grad()
    def __iter__(self) -> Iterator[NewLayer]:
        # The layer that reads a kept layer's output: the next kept one, or the head after the last.
        following = [*self.cut.kept_layers[1:], len(self.runner.layers)]
        first = self.cut.kept_layers[0]
        for index in range(first):
            self._skip(index)
            self.clean = False
        for place, (index, after) in enumerate(zip(self.cut.kept_layers, following, strict=True)):
            with self.runner.at_work(index):
                new = self._layer(place, index, after)
            trim()
            yield new

    def _original_mid(self, index: int) -> list[torch.Tensor]:
        """Return the original's stream before the FFN of a layer."""
        return self.streams.get((index, "before FFN"), lambda: [self.runner.mid(index, h) for h in self.original])

    def _advance_original(self, index: int, mid: list[torch.Tensor]) -> None:
        self.original = self.streams.get(
            (index, "after"), lambda: [self.runner.after_ffn(index, hidden) for hidden in mid]
        )

    def _skip(self, index: int) -> None:
        """Pass the original's stream through a layer that the pruned model does not have."""
        with self.runner.at_work(index):
            self._advance_original(index, self._original_mid(index))

    def _pass_original(self, index: int, after: int, mid: list[torch.Tensor]) -> bool:
        """Pass the original's stream on to the next kept layer; return whether nothing is cut up to there."""
        untouched = (
            self.clean and after == index + 1 and self.cut.width == self._count(index) and not self.cut.narrowing
        )
        self._advance_original(index, mid)
        # Removed layers still change the original's stream. After this loop it is what the next kept layer should read,
        # so this layer's FFN also learns to do their work.
        for skipped in range(index + 1, after):
            self._skip(skipped)
        if untouched:
            self.pruned = list(self.original)
        self.clean = untouched
        return untouched

    def _layer(self, place: int, index: int, after: int) -> NewLayer:
        original_mid = self._original_mid(index)
        # The attention comes first, so that the FFN's problem sees the stream that the new attention leaves.
        attention, mid, attention_ridge = self._attention(place, index, original_mid)
        if self._pass_original(index, after, original_mid):
            same = torch.empty(0) if self.runner.family.experts else with_bias(self._ffn(index)).double()
            return NewLayer(index, list(range(self.cut.width)), same, attention, 0.0, attention_ridge)
        # The simple refit reproduces the FFN's own output on the original's stream and ignores earlier cuts.
        fitted_to_itself = original_mid if self.steps.target == "own" else None
        del original_mid
        if self.runner.family.experts:
            new = NewLayer(index, [], torch.empty(0), attention, 0.0, attention_ridge)
            return self._mixture(place, new, mid, fitted_to_itself or mid)
        solution = self._ffn_refit(place, index, mid, fitted_to_itself)
        trim()
        new = NewLayer(index, solution.neurons, solution.weights, attention, solution.ridge, attention_ridge)
        if self.steps.ffn is not None:
            move = {"newton": self._newton, "descent": self._descent}[self.steps.ffn]
            new = move(place, new, mid, solution)
        del solution
        # Convert from units of the stream to the weights that the checkpoint stores.
        new = replace(new, ffn_out=self.runner.ffn_branch(index).own(new.ffn_out))
        if self.steps.layer:
            new = self._reconstructed(place, new)
        if new.state is None:
            self._advance_pruned(new, mid)
        return new

    def _mixture(self, place: int, new: NewLayer, mid: list[torch.Tensor], entering: list[torch.Tensor]) -> NewLayer:
        """Choose what stays of a mixture, fit it to the stream ``entering``, and pass the pruned stream through it."""
        kept = self._choose(place, new.index, None)
        mixture = mixture_of(self.runner.layers[new.index], self.runner.family).only(kept)
        tokens = None
        if self.steps.target is not None or (self.cut.narrowing is not None and self.cut.narrowing.neurons is None):
            fit = self.batches[: self.num_fit]
            own = self.steps.target == "own"
            tokens = mixture_tokens(self.runner, new.index, fit, self.weights, entering, self.original, own)
        mixture, inside, ridge, short = new_mixture(mixture, tokens, self.steps, self.cut.narrowing, place)
        new = replace(new, neurons=kept, inside=inside, mixture=mixture, ridge_ffn=ridge, num_short=short)
        if self.steps.layer:
            new = self._reconstructed(place, new)
        if new.state is None:
            self.pruned = [self.runner.after_mixture(new.index, hidden, mixture) for hidden in mid]
        return new

    def _count(self, index: int) -> int:
        """Return how many neurons, or experts, a layer has."""
        family = self.runner.family
        return mixture_of(self.runner.layers[index], family).count if family.experts else self._ffn(index).in_features

    def _ffn(self, index: int) -> nn.Linear:
        return linear(self.runner.layers[index], self.runner.family.ffn_out)

    def _attention(
        self, place: int, index: int, original_mid: list[torch.Tensor]
    ) -> tuple[torch.Tensor | None, list[torch.Tensor], float]:
        """Refit the attention's output projection. Returns it, the pruned stream before the FFN, and the ridge."""
        if self.clean or not self.cut.output_projection or not self.steps.attention:
            mid = original_mid if self.clean else [self.runner.mid(index, h) for h in self.pruned]
            return None, mid, 0.0
        branch = self.runner.attention_branch(index)
        old = branch.weights()
        caught = []
        gram = Gram(old, self.cut.scaling)
        typical = self.weights.typical(original_mid)
        # Regress what is missing from the original's stream before the FFN on what enters the output projection. The target
        # holds the error of all earlier cuts, so the attention makes up for part of it.
        for n, batch in enumerate(self.batches):
            features = extended(self.runner.attention_features(index, self.pruned[n]), old.shape[1])
            caught.append(features)
            if n < self.num_fit:
                before = original_mid[n].to(features.device)
                missing = before - self.pruned[n].to(features.device)
                for held_out, rows, weight in self.weights.parts(batch, before, typical):
                    scaled, target, _ = branch.problem(features[rows], missing[rows])
                    gram.add(scaled * weight.to(scaled.dtype), target * weight, held_out)
        weights, ridge = gram.solve(
            range(old.shape[1]), self.cut.ridge_attention[place] if self.cut.ridge_attention else None
        )
        weights = branch.own(weights)
        return weights, self._attended(index, caught, weights), ridge

    def _attended(self, index: int, features: list[torch.Tensor], weights: torch.Tensor) -> list[torch.Tensor]:
        """Return the pruned stream before the FFN, computed with new weights of the attention's output projection."""
        branch = self.runner.attention_branch(index)
        # The stream continues with rounded weights, as the saved model will compute it.
        new = weights.to(attention_out(self.runner.layers[index], self.runner.family).weight.dtype)
        return [self.pruned[n].to(f.device) + branch(nn.functional.linear(f, new)) for n, f in enumerate(features)]

    def _ffn_refit(
        self, place: int, index: int, mid: list[torch.Tensor], original_mid: list[torch.Tensor] | None
    ) -> FfnSolution:
        """Choose the neurons that stay, and solve for the output projection's new weights."""
        gram, examples = self._ffn_statistics(index, mid, original_mid)
        trim()
        neurons = self._choose(place, index, gram)
        weights, ridge, correction = self._ffn_weights(place, index, neurons, gram)
        return FfnSolution(neurons, weights, ridge, correction, examples)

    def _ffn_statistics(
        self, index: int, mid: list[torch.Tensor], original_mid: list[torch.Tensor] | None
    ) -> tuple[Gram | None, Examples | None]:
        """Sum up the statistics of the FFN's output projection, if anything needs them.

        The descent refit also gets the tokens themselves: the inputs and the outputs of the uncut FFN.
        """
        branch = self.runner.ffn_branch(index)
        old = branch.weights()
        targets = old.shape[0]
        descent = self.steps.ffn == "descent"
        # Elimination and the fit read the Gram matrix. Without either, no pass over the tokens is needed.
        decided = (
            self.cut.neurons is not None
            or self.cut.scores is not None
            or self.cut.width == self._ffn(index).in_features
        )
        if self.steps.target is None and decided:
            return None, None
        # The target of a token is the original's stream where the next kept layer reads it, less the pruned stream before
        # this FFN. It includes the work of removed neurons and removed layers, and the error so far.
        # The descent refit also needs the solution for the layer's own output: the same sums with twice the targets.
        gram = Gram(torch.cat([old, old]) if descent else old, self.cut.scaling, targets)
        norm = norm_at(self.runner.layers[index], self.runner.family.ffn_norm)
        typical = self.weights.typical(self.original)
        examples: list[Example] = []
        for n, batch in enumerate(self.batches[: self.num_fit]):
            entering = mid[n] if original_mid is None else original_mid[n]
            for held_out, rows, weight in self.weights.parts(batch, self.original[n].to(entering.device), typical):
                hidden = entering[rows]
                features = [self.runner.ffn_features(index, some) for some in by_rows(hidden, old.shape[1])]
                features_NP = extended(torch.cat(features), old.shape[1])
                del features
                missing = self.original[n].to(rows.device)[rows] - hidden
                features_NP, target, size = branch.problem(features_NP, missing)
                if original_mid is not None:
                    target = nn.functional.linear(features_NP, old.to(features_NP.dtype))
                if descent:
                    inputs = norm(hidden).to(product_dtype(weight))
                    own = nn.functional.linear(features_NP, old.to(features_NP.dtype))
                    example = Example(inputs, own, target.to(own.dtype), weight, held_out)
                    examples.append(example if size is None else example.unscaled(size))
                    target = torch.cat([target, own], dim=1)
                gram.add(features_NP.mul_(weight.to(features_NP.dtype)), target * weight, held_out)
                del features_NP, target
        return gram, Examples.of(examples) if descent else None

    def _choose(self, place: int, index: int, gram: Gram | None) -> list[int]:
        if self.cut.neurons is not None:
            return list(self.cut.neurons[place])
        width = self._count(index)
        if self.cut.width == width:
            return list(range(width))
        if self.cut.scores is not None:
            return choose_neurons(self.cut.scores[index], self.cut.width)
        assert gram is not None
        return gram.eliminate(self.cut.width, forced=range(width, gram.weight.shape[1]))

    def _ffn_weights(
        self, place: int, index: int, neurons: list[int], gram: Gram | None
    ) -> tuple[torch.Tensor, float, torch.Tensor | None]:
        """Solve for the kept columns. Returns the weights, the ridge, and the part that makes up for earlier cuts."""
        old = self.runner.ffn_branch(index).weights()
        width = self._ffn(index).in_features
        # The bias, if there is one, is the column after the last neuron, and always stays.
        columns = [*neurons, *range(width, old.shape[1])]
        if gram is None or self.steps.target is None:
            return old[:, columns].double(), 0.0, None
        solved, ridge = gram.solve(
            columns, self.cut.ridge_ffn[place] if self.cut.ridge_ffn else None, self.likely_ridge
        )
        self.likely_ridge = ridge
        # For descent the Gram matrix holds two problems of the same features: the stream's targets, then the FFN's own
        # output. The difference of their solutions makes up for earlier cuts.
        weights = solved[: len(old)]
        return weights, ridge, weights - solved[len(old) :] if len(solved) > len(old) else None

    def _newton(self, place: int, new: NewLayer, mid: list[torch.Tensor], solution: FfnSolution) -> NewLayer:
        """Refit the FFN's kept neurons by as many Gauss-Newton steps as held-out tokens allow."""
        layer = self.runner.layers[new.index]
        family = self.runner.family
        start = [m.float() for m in (*ffn_inputs(layer, family, new.neurons), solution.weights)]
        act = activation_of(layer, family)
        fit, held = (
            FfnProblem(act, self._tokens(new.index, mid, held_out, len(new.neurons))) for held_out in (False, True)
        )
        moved, taken = newton_refit(start, fit, held, self.cut.newton_steps[place] if self.cut.newton_steps else None)
        return replace(new, ffn_in=moved[:-1], ffn_out=moved[-1].double(), newton_steps=taken)

    def _descent(self, place: int, new: NewLayer, mid: list[torch.Tensor], solution: FfnSolution) -> NewLayer:
        """Refit the FFN's kept neurons by mini-batches, if held-out tokens agree."""
        layer = self.runner.layers[new.index]
        family = self.runner.family
        inputs = [matrix.float() for matrix in ffn_inputs(layer, family, new.neurons)]
        assert solution.examples is not None
        assert solution.correction is not None
        moved, taken = descend(
            [*inputs, solution.weights.float()],
            activation_of(layer, family),
            solution.examples,
            [*inputs, solution.correction.float()],
            self.cut.descended[place] if self.cut.descended else None,
        )
        return replace(new, ffn_in=moved[:-1], ffn_out=moved[-1].double(), descended=True) if taken else new

    def _reconstructed(self, place: int, new: NewLayer) -> NewLayer:
        """Refit all weights of the layer and pass the pruned stream through it. Returns ``new`` unchanged if rejected."""
        old = self.runner.layers[new.index]
        rates = self.cut.reconstruction_rates
        if rates and not rates[place]:
            return new
        # This works on a copy, because the old layer is still needed if held-out rows reject the outcome.
        start = copy.deepcopy(old)
        replace_weights(start, self.runner.family, new)
        made, rate = reconstruct(
            start.float(),
            lambda layer, hidden: self.runner.run(new.index, hidden, layer),
            list(self._rows(new.index)),
            rates[place] if rates else None,
        )
        if not rate:
            return new
        made = made.to(attention_out(old, self.runner.family).weight.dtype)
        with torch.no_grad():
            self.pruned = [self.runner.run(new.index, hidden, made) for hidden in self.pruned]
        return replace(new, state=made.state_dict(), reconstruction_rate=rate)

    def _rows(self, index: int) -> Iterator[Rows]:
        """Yield the inputs and the wanted outputs of the layer: the pruned stream, and the original's behind it."""
        typical = self.weights.typical(self.original)
        for n, batch in enumerate(self.batches[: self.num_fit]):
            inputs = self.pruned[n].to(self.runner.device(index)).float()
            targets, valid, held = (x.to(inputs.device) for x in (self.original[n], batch.valid, batch.held_out))
            damped = self.weights.damped(targets.flatten(0, 1), typical).view(valid.shape)
            # Whole rows pass through the layer, so tokens that must not count get the weight 0.
            weight = batch.weight.to(inputs.device) * valid * damped.pow(2)
            yield Rows(inputs, targets, weight * ~held, weight * held)

    def _tokens(self, index: int, mid: list[torch.Tensor], held_out: bool, width: int) -> list[Tokens]:
        """Return the inputs and wanted outputs of this layer's FFN, for the real tokens of the fitted or the held-out rows."""
        norm = norm_at(self.runner.layers[index], self.runner.family.ffn_norm)
        found = []
        branch = self.runner.ffn_branch(index)
        tokens = sum(batch.num_tokens for batch in self.batches[: self.num_fit])
        typical = self.weights.typical(self.original)
        stride = max(1, -(-tokens // MOST_TOKENS))  # batches are sorted by length, so every n-th one covers all lengths
        for n in range(0, self.num_fit, stride):
            batch = self.batches[n]
            for part, rows, weight in self.weights.parts(batch, self.original[n].to(mid[n].device), typical):
                if part == held_out:
                    here = mid[n][rows]
                    wanted = self.original[n].to(mid[n].device)[rows]
                    missing = (wanted - here).float()
                    if branch.norm is not None:
                        # The steps run through the real FFN without the norm behind it. The target is therefore multiplied by the
                        # size that the norm divides by, and the weight divided by it, so a token counts as much as before.
                        _, missing, size = branch.problem(self.runner.ffn_features(index, here), missing)
                        assert size is not None
                        missing = missing * size
                        weight = weight / size
                    tokens_of = (norm(here).float(), missing, weight)
                    found += [Tokens(*some) for some in zip(*(by_rows(x, width) for x in tokens_of), strict=True)]
        return found

    def _advance_pruned(self, new: NewLayer, mid: list[torch.Tensor]) -> None:
        """Pass the pruned stream through the new FFN."""
        layer = self.runner.layers[new.index]
        dtype = self._ffn(new.index).weight.dtype
        out = new.ffn_out.to(dtype)
        into = [m.to(dtype) for m in new.ffn_in or ffn_inputs(layer, self.runner.family, new.neurons)]
        for n, hidden in enumerate(mid):
            self.pruned[n] = self.runner.after_ffn(new.index, hidden, into, out)

    @torch.no_grad()
    def divergence(self, head: nn.Linear | Scorer) -> tuple[float, float]:
        """Return the KL in nats per token of the comparison batches: over all tokens, and over answer tokens (nan if none)."""
        kls = []
        answers = []
        for n in range(self.num_fit, len(self.batches)):
            valid = self.batches[n].valid
            # Both streams are behind the last layer now: the final norm and the head give the two distributions.
            reference, hidden = (self.runner.finish(stream[n])[valid] for stream in (self.original, self.pruned))
            kls.append(kl_divergence(head, reference, hidden).double().cpu())
            answers.append(self.batches[n].answer[valid])
        kl = torch.cat(kls)
        answer = torch.cat(answers)
        return float(kl.mean()), float(kl[answer].mean()) if bool(answer.any()) else float("nan")
