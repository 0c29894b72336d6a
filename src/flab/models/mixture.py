"""One layer's mixture of experts, as transformers 5 holds it: the matrices of all experts as 3-D tensors, and a router.

The experts of a token and their weights are read where the model's own routing calls the experts. This works for softmax
and sigmoid, normalised or not, with shared experts or without.

Legend: N tokens, D hidden size, E experts, K experts of one token, F neurons of one expert.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flab.models.families import Family, calls_of
from flab.models.weights import copied, entries, in_memory

COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")  # what modules call the number of experts


@dataclass(frozen=True)
class Routing:
    """The experts of each token, their weights, and the output of the mixture."""

    experts: torch.Tensor  # (N, K)
    weights: torch.Tensor  # (N, K)
    output: torch.Tensor  # (N, D), of the whole FFN

    def tokens_of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which tokens pass through an expert, (n,), and its weight in each, (n, 1)."""
        # ``place`` is the place of this expert among a token's K experts, and so of its weight.
        tokens, place = torch.where(self.experts == expert)
        return tokens, self.weights[tokens, place, None]


class _CalledError(Exception):
    """Carries the arguments of the experts' call past the rest of the FFN."""


class Mixture:
    """The FFN of one layer as its experts."""

    def __init__(self, ffn: nn.Module, family: Family) -> None:
        self.ffn = ffn
        self.family = family

    @property
    def experts(self) -> Any:
        """The module that holds all experts."""
        return self.ffn.get_submodule(self.family.experts)

    @property
    def router(self) -> nn.Module:
        """The module with a row for each expert."""
        return self.ffn.get_submodule(self.family.router)

    @property
    def count(self) -> int:
        """The number of experts."""
        return len(self.experts.down_proj)

    @property
    def width(self) -> int:
        """Neurons of one expert."""
        return int(self.experts.down_proj.shape[2])

    def route(self, hidden_ND: torch.Tensor) -> Routing:
        """Run the FFN on its inputs, after the norm, and record the arguments of the experts' call."""
        # The router's arithmetic differs between families. Its decision is read at the call of the experts, whose
        # arguments are the same in every family: the hidden states, the chosen experts and their weights.
        with calls_of(self.experts) as calls:
            output = self.ffn(hidden_ND[None])
        output = output[0] if isinstance(output, tuple) else output
        _, experts, weights = calls[0]
        return Routing(experts, weights, output[0])

    def route_among(self, kept: Sequence[int], hidden_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the experts of each token, (N, K) of all experts, and their weights, (N, K), if only these experts existed."""

        def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
            raise _CalledError(args)

        index = torch.tensor(kept, device=hidden_ND.device)
        rows = {
            f"{self.family.router}.{name}": parameter[index]
            for name, parameter in self.router.named_parameters()
            if len(parameter) == self.count
        }
        handle = self.experts.register_forward_pre_hook(stop)
        try:
            torch.func.functional_call(self.ffn, rows, hidden_ND[None])
        except _CalledError as called:
            _, places, weights = called.args[0]
            return index[places], weights
        finally:
            handle.remove()
        raise AssertionError("the experts were not called")

    def features(self, expert: int, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return the input of one expert's output projection, (N, F)."""
        gate, up = nn.functional.linear(hidden_ND, self.experts.gate_up_proj[expert]).chunk(2, dim=-1)
        return self.experts.act_fn(gate) * up  # type: ignore[no-any-return]

    def output(self, expert: int, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return one expert's output before it is weighted, (N, D)."""
        return nn.functional.linear(self.features(expert, hidden_ND), self.experts.down_proj[expert])

    def only(self, kept: Sequence[int]) -> Mixture:
        """Return a copy with these experts only. The router keeps their rows and its other settings."""
        before = self.count
        # Every tensor with a row per expert loses rows, including the router's bias.
        indexed = {id(p) for module in (self.experts, self.router) for p in module.parameters() if len(p) == before}
        made = self._with(lambda p: entries(p, kept) if id(p) in indexed else copied(p))
        for module in made.ffn.modules():
            for name in COUNTS:
                if getattr(module, name, None) == before:
                    setattr(module, name, len(kept))
        return made

    def narrowed(self, neurons: Sequence[Sequence[int]]) -> Mixture:
        """Return a copy whose experts have these of their neurons only. Router and shared experts keep their sizes."""
        # A neuron is a row of the gate, the same row of the projection that it gates, and a column of the output projection.
        before = self.width
        rows = [[*kept, *(before + neuron for neuron in kept)] for kept in neurons]
        changes = {
            id(self.experts.gate_up_proj): lambda whole: _inside(whole, rows, 1),
            id(self.experts.down_proj): lambda whole: _inside(whole, neurons, 2),
        }
        made = self._with(lambda p: changes.get(id(p), copied)(p))
        if hasattr(made.experts, "intermediate_dim"):
            made.experts.intermediate_dim = made.width
        return made

    def cast(self, dtype: torch.dtype) -> Mixture:
        """Return a copy in another dtype."""
        return self._with(lambda p: nn.Parameter(p.data.to(dtype, copy=True), requires_grad=False))

    def _with(self, change: Callable[[nn.Parameter], nn.Parameter]) -> Mixture:
        """Return a copy with these parameters, without copying the present experts."""
        # A deep copy skips what its memo lists as copied.
        noted = {id(parameter): change(parameter) for parameter in self.ffn.parameters()}
        return Mixture(copy.deepcopy(self.ffn, dict[int, Any](noted)), self.family)


def _inside(parameter: nn.Parameter, kept: Sequence[Sequence[int]], dimension: int) -> nn.Parameter:
    """Return a copy with these entries of a dimension, for each expert its own; one that lies in files is read."""
    whole = in_memory(parameter).data
    size = list(whole.shape)
    size[dimension] = len(kept[0])
    made = whole.new_empty(size)
    # One expert at a time, so that no second copy of all of them is held.
    for expert, places in enumerate(kept):
        made[expert] = whole[expert].index_select(dimension - 1, torch.tensor(places, device=whole.device))
    return nn.Parameter(made, requires_grad=False)


def mixture_of(layer: nn.Module, family: Family) -> Mixture:
    """Return the mixture of a layer of a family that has experts."""
    return Mixture(layer.get_submodule(family.ffn), family)
