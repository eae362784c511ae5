"""One forward pass in float64 and its derivatives, a row at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from hbpcompiler.rules.shared.twice import right_derivatives
from hbpcompiler.system.seeded import seed_global

Loss = Callable[..., Tensor]
Inputs = Sequence[Tensor] | Mapping[str, Any]
"""forward's arguments, by position or by name."""


class Weighted:
    """Has the derivatives of sum_n w_n l_n (over N for a mean): each sample's own slice with all others held fast.

    Its value is another. The model returns one tensor.
    """

    def __init__(self, loss: Loss, weights: Tensor) -> None:
        self.loss, self.weights, self.reduction = loss, weights, getattr(loss, "reduction", "mean")

    def __call__(self, output: Tensor, target: Any) -> Tensor:
        total = output.new_zeros(())
        for n, weight in enumerate(self.weights):
            kept = output.new_zeros(len(output), *[1] * (output.dim() - 1))
            kept[n] = 1
            total = total + weight * self.loss(output * kept + output.detach() * (1 - kept), target)
        return total


class Forward:
    """One forward pass and its derivatives, a row at a time."""

    def __init__(self, model: nn.Module, loss: Loss, inputs: Inputs, target: Any, seed: int = 0) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.mean = getattr(loss, "reduction", "mean") == "mean"
        self.weights = loss.weights if isinstance(loss, Weighted) else None
        self._jacobians: dict[str, Tensor] = {}
        # The fused attention kernels have no second derivative, and a few others a wrong one.
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), \
                right_derivatives():
            seed_global(seed, next(iter(self.parameters.values())).device)
            returned = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
            self.loss = loss(returned, target)
        items, structure = pytree.tree_flatten(returned)
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0]
        self.batch = first.shape[0]
        # All that the model returns for a sample, side by side; the loss sees it put together again.
        kept = [i for i, item in enumerate(items) if isinstance(item, Tensor) and item.requires_grad]
        rows = [items[i].reshape(self.batch, -1) for i in kept]
        self.output = torch.cat(rows, 1)
        leaf = self.output.detach().requires_grad_()
        with torch.enable_grad():
            for i, part in zip(kept, leaf.split([row.shape[1] for row in rows], 1), strict=True):
                items[i] = part.reshape(items[i].shape)
            value = loss(pytree.tree_unflatten(items, structure), target)
            slope = derivative(value, leaf, keep=True)
        self.beside = _reached(value, self.parameters)
        self.slope = slope.detach()
        self._leaf, self._slope = leaf, slope

    @cached_property
    def curvature(self) -> Tensor:
        """[outputs, outputs]: the Hessian of L in the model's output. First derivatives need none of its rows."""
        return jacobian(self._slope, self._leaf)

    def grad(self, name: str) -> Tensor:
        return derivative(self.loss, self.parameters[name])

    def batch_grad(self, name: str) -> Tensor:
        """[N, *theta]: what flows back from each sample's slice of the output."""
        self._check_output_alone(name)
        shares = []
        for n in range(self.batch):
            only = torch.zeros_like(self.slope)
            only[n] = self.slope[n]
            shares.append(derivative((self.output * only).sum(), self.parameters[name]))
        return torch.stack(shares)

    def sample_gradients(self, name: str) -> Tensor:
        """[N, *theta]: grad l_n."""
        return self.batch_grad(name) * (self.batch if self.mean else 1)

    def second_moment(self, name: str) -> Tensor:
        return self.sample_gradients(name).square().mean(0)

    def variance(self, name: str) -> Tensor:
        return self.second_moment(name) - self.sample_gradients(name).mean(0).square()

    def ggn(self, name: str) -> Tensor:
        rows = self._jacobian(name)
        return rows.T @ self.curvature @ rows

    def diag_ggn(self, name: str) -> Tensor:
        """The same without the [P, P] matrix."""
        rows = self._jacobian(name)
        return (rows * (self.curvature @ rows)).sum(0).view_as(self.parameters[name])

    def _jacobian(self, name: str) -> Tensor:
        """[outputs, P]: the rows of the model's output, derived by a parameter."""
        self._check_output_alone(name)
        if name not in self._jacobians:
            self._jacobians[name] = jacobian(self.output, self.parameters[name])
        return self._jacobians[name]

    def _check_output_alone(self, name: str) -> None:
        if name in self.beside:
            raise ValueError(f"the loss depends on {name} beside the model's output, as a penalty of weights does: no "
                             "sample has a share of that, and no GGN has it; leave it out, or ask for grad and diag_h")

    def hessian(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        return jacobian(derivative(self.loss, parameter, keep=True), parameter)

    def diag_h(self, name: str) -> Tensor:
        """The same a row at a time, without the [P, P] matrix."""
        parameter = self.parameters[name]
        slope = derivative(self.loss, parameter, keep=True).flatten()
        entries = [derivative(slope[i], parameter).flatten()[i] for i in range(slope.numel())]
        return torch.stack(entries).view_as(parameter)


def _reached(value: Tensor, parameters: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters that a number depends on."""
    if not value.requires_grad or not parameters:
        return []
    found = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
    return [name for name, slope in zip(parameters, found, strict=True) if slope is not None]


def derivative(value: Tensor, at: Tensor, *, keep: bool = False) -> Tensor:
    """The gradient of a number; zero where it does not depend on `at`. keep: to be differentiated again."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (found,) = torch.autograd.grad(value, at, retain_graph=True, create_graph=keep, allow_unused=True)
    return torch.zeros_like(at) if found is None else found


def jacobian(value: Tensor, at: Tensor) -> Tensor:
    """[numbers in value, numbers in at], a row at a time."""
    return torch.stack([derivative(entry, at).flatten() for entry in value.flatten()])
