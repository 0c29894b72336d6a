"""FFN neurons: criteria that score every neuron of every layer, the choice of the best, and the cut.

Neuron j is column j of the output projection together with its rows of the input projections; ``a_tj`` is its activation at token
t. ``elimination`` is not here: it needs the refit's statistics (:mod:`flab.pruning.refit.walk`).

Legend: L layers, F neurons, N real tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from flab.models.families import Family, calls_of, embedding_of, ffn_inputs, layers_of, linear
from flab.models.weights import filed
from flab.progress import say, track
from flab.pruning.cuts import CriterionInput


class NeuronSearch(CriterionInput):
    """The input of a neuron criterion."""

    @property
    def width(self) -> int:
        return self.outputs[0].in_features

    @property
    def outputs(self) -> list[nn.Linear]:
        """The FFN's output projection of every layer."""
        family = self.runner.family
        return [linear(layer, family.ffn_out) for layer in layers_of(self.runner.model, family)]


def score_activation(search: NeuronSearch) -> torch.Tensor:
    """(L, F): sum over tokens of ``a_tj^2``, times ``||W_down[:, j]||^2``; the energy that the neuron adds to the stream.

    All tokens belong to the kept vocabulary, because it is cut first. COMPACT's common activations require this.
    """
    states = [search.runner.embed(batch) for batch in search.batches]
    scores = []
    for index, out in enumerate(track(search.outputs, "Neuron activations", unit="layers")):
        total = torch.zeros(search.width, dtype=torch.float64, device=search.runner.device(index))
        # The activations are what enters the output projection. Only the sums of their squares are kept.
        with search.runner.at_work(index):
            for place, batch in enumerate(search.batches):
                with calls_of(out) as calls:
                    states[place] = search.runner.layer(index, states[place])
                total += calls[0][0][batch.valid].float().pow(2).sum(0).double()
            # A neuron writes a_tj W_down[:, j] into the stream, so its energy is the product of the two squared norms.
            scores.append((total * out.weight.float().pow(2).sum(0).double()).cpu())
    return torch.stack(scores)


def _score_gradient(
    search: NeuronSearch, loss_of: Callable[[torch.Tensor], torch.Tensor], power: int, title: str
) -> torch.Tensor:
    """(L, F): sum over tokens of ``|a_tj * d loss / d a_tj| ** power``, in float64."""
    model = search.runner.model
    totals = [torch.zeros(search.width, dtype=torch.float64) for _ in search.outputs]
    embedding = embedding_of(model, search.runner.family)
    if next(filed(model), None) is not None:
        size = sum(parameter.numel() for parameter in model.parameters()) * search.runner.dtype.itemsize
        say(f"this criterion needs gradients through all layers: the whole model is read, {size / 1e9:.1f} GB")
    search.runner.widen(search.runner.dtype)  # gradients want more than 16 bits
    for batch in track(search.batches, title, unit="batches"):
        # No parameter requires gradients. The embedded text does, so that a graph is built through all activations.
        inputs = embedding(batch.ids.to(embedding.weight.device)).detach().requires_grad_(True)
        with contextlib.ExitStack() as stack, torch.enable_grad():
            calls = [stack.enter_context(calls_of(out)) for out in search.outputs]
            logits = model(inputs_embeds=inputs, use_cache=False).logits[batch.valid].float()
            activations = [first[0] for first, *_ in calls]
            # Through causal attention, a token's activations also affect the losses of later tokens. The gradient
            # includes that.
            gradients = torch.autograd.grad(loss_of(logits), activations)
        for total, activation, gradient in zip(totals, activations, gradients, strict=True):
            # First-order Taylor: setting a_tj to zero changes the loss by about -a_tj * d loss / d a_tj. Taking
            # the power before the sum over tokens keeps effects of opposite sign from cancelling.
            product = (activation.detach().float() * gradient.float())[batch.valid]
            total += product.abs().pow(power).sum(0).double().cpu()
    return torch.stack(totals)


def score_fisher(search: NeuronSearch) -> torch.Tensor:
    """(L, F): the KL's second-order term, ``sum_t (a_tj * d log p(y) / d a_tj)^2`` with labels y drawn from the model.

    The first-order term of a KL is zero at the uncut model, so it cannot rank neurons.
    """
    generator = torch.Generator().manual_seed(search.seed)

    def log_likelihood(logits_NV: torch.Tensor) -> torch.Tensor:
        # Labels from the model's own distribution make this the Fisher information, not the gradient on the text. They
        # are drawn on the CPU, so that one seed means the same labels on every device.
        labels = torch.multinomial(logits_NV.detach().softmax(-1).cpu(), 1, generator=generator).to(logits_NV.device)
        return logits_NV.log_softmax(-1).gather(1, labels).sum()

    return _score_gradient(search, log_likelihood, 2, "Fisher information")


def score_entropy(search: NeuronSearch) -> torch.Tensor:
    """(L, F): ``sum_t |a_tj * dH / d a_tj|``, H the entropy of the output distribution (HFPrune)."""

    def entropy(logits_NV: torch.Tensor) -> torch.Tensor:
        log_p = logits_NV.log_softmax(-1)
        return -(log_p.exp() * log_p).sum()

    return _score_gradient(search, entropy, 1, "Entropy gradients")


def score_magnitude(search: NeuronSearch) -> torch.Tensor:
    """(L, F): product of the norms of the neuron's column and rows. Reads no text."""
    family = search.runner.family
    scores = []
    # For an input of norm 1 the neuron adds at most this to the stream, because |act(z)| <= |z|.
    for index, out in enumerate(search.outputs):
        with search.runner.at_work(index) as layer:
            score = out.weight.double().norm(dim=0)
            for matrix in ffn_inputs(layer, family):
                # The bias is left out, because only the weights scale with the input.
                score = score * matrix[:, : out.out_features].double().norm(dim=1)
            scores.append(score.cpu())
    return torch.stack(scores)


def score_random(search: NeuronSearch) -> torch.Tensor:
    """(L, F): seeded noise, the baseline that any criterion must beat."""
    generator = torch.Generator().manual_seed(search.seed)
    return torch.rand(len(search.outputs), search.width, generator=generator, dtype=torch.float64)


def score_first(search: NeuronSearch) -> torch.Tensor:
    """(L, F): the neurons with the lowest indices win, as in the paper's public scripts."""
    return -torch.arange(search.width, dtype=torch.float64).expand(len(search.outputs), -1)


# A new criterion needs one function above, one row here, and its name in NEURON_CRITERION_NAMES of
# ``flab.pruning.recipe``, which the command line reads without importing torch. A test compares the two. The default,
# ``elimination``, has no row, because it reads the statistics of the refit: ``Gram.eliminate`` in
# ``flab.pruning.refit.gram``.
NEURON_CRITERIA: dict[str, Callable[[NeuronSearch], torch.Tensor]] = {
    "activation": score_activation,
    "fisher": score_fisher,
    "entropy": score_entropy,
    "magnitude": score_magnitude,
    "random": score_random,
    "first": score_first,
}


def choose_neurons(scores_F: torch.Tensor, width: int) -> list[int]:
    """Return the ``width`` neurons with the highest scores, ascending; ties go to the lower index."""
    # A stable sort keeps equal scores in the order of their index.
    order = torch.argsort(scores_F, descending=True, stable=True)
    return sorted(order[:width].tolist())


def cut_ffn(layer: nn.Module, family: Family, neurons: Sequence[int]) -> None:
    """Keep only these neurons of one layer, in place."""
    # A neuron is a row of each input projection, with its bias, and a column of the output projection. The output's bias
    # belongs to no neuron and stays.
    width = linear(layer, family.ffn_out).in_features
    rows = [*neurons, *(width + neuron for neuron in neurons)] if family.fused else neurons
    for path in family.ffn_in:
        module = linear(layer, path)
        index = torch.tensor(rows, device=module.weight.device)
        module.weight = nn.Parameter(module.weight.data.index_select(0, index), requires_grad=False)
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.data[index], requires_grad=False)
        module.out_features = len(rows)
    out = linear(layer, family.ffn_out)
    out.weight = nn.Parameter(_columns(out.weight.data, neurons), requires_grad=False)
    out.in_features = len(neurons)
    ffn = layer.get_submodule(family.ffn)
    if hasattr(ffn, "intermediate_size"):
        ffn.intermediate_size = len(neurons)  # type: ignore[assignment]


def _columns(matrix: torch.Tensor, kept: Sequence[int]) -> torch.Tensor:
    """Return a copy with these columns only."""
    if not matrix.is_cpu:
        return matrix.index_select(1, torch.tensor(kept, device=matrix.device))
    # On a CPU numpy takes columns four times as fast as torch. It has no bfloat16, so it is given the numbers as integers.
    bits = matrix.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[matrix.dtype.itemsize]).numpy()
    return torch.from_numpy(bits.take(kept, axis=1)).view(matrix.dtype)
