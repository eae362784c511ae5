"""Entries of second-order diagonals by double backward, one at a time, in double precision; and Hutchinson's estimate.

Torch's fused attention has no second derivative: the plain formula takes its place in all of this.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .networks import Problem

Entries = Mapping[str, Sequence[int]]
"""Places in flattened parameters, by name."""
Diagonal = Mapping[str, Tensor]


def drawn(problem: Problem, each: int, seed: int = 1) -> Entries:
    """So many entries of each parameter, or all of one that has no more."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randperm(parameter.numel(), generator=generator)[:each].tolist()
            for name, parameter in problem.model.named_parameters()}


def doubled(problem: Problem) -> Problem:
    inputs = problem.inputs.double() if problem.inputs.is_floating_point() else problem.inputs
    return Problem(copy.deepcopy(problem.model).double(), problem.loss, inputs, problem.target)


def product(problem: Problem, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The Hessian times one vector, from nothing: forward, backward, backward."""
    parameters = list(problem.model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = problem.loss(problem.model(problem.inputs), problem.target)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        return torch.autograd.grad(slopes, parameters, list(vectors), materialize_grads=True)


def of_hessian(problem: Problem, entries: Entries) -> dict[str, list[float]]:
    """diag_h there: each by a backward pass through the gradient."""
    exact = doubled(problem)
    found: dict[str, list[float]] = {}
    parameters = dict(exact.model.named_parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = exact.loss(exact.model(exact.inputs), exact.target)
        slopes = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        for (name, parameter), slope in zip(parameters.items(), slopes, strict=True):
            rows = [torch.autograd.grad(slope.flatten()[i], parameter, retain_graph=True, materialize_grads=True)[0]
                    for i in entries[name]]
            found[name] = [float(row.flatten()[i]) for row, i in zip(rows, entries[name], strict=True)]
    return found


def of_ggn(problem: Problem, entries: Entries) -> dict[str, list[float]]:
    """diag_ggn there: how the model's output moves with one parameter, and the loss's curvature along that."""
    exact = doubled(problem)
    found: dict[str, list[float]] = {}
    parameters = dict(exact.model.named_parameters())
    with sdpa_kernel(SDPBackend.MATH):
        output = exact.model(exact.inputs)
        weights = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(output, list(parameters.values()), weights, create_graph=True)
        for name, own in zip(parameters, pulled, strict=True):
            found[name] = [_curvature(exact, output.detach(), torch.autograd.grad(
                own.flatten()[i], weights, retain_graph=True, materialize_grads=True)[0]) for i in entries[name]]
    return found


def _curvature(problem: Problem, output: Tensor, direction: Tensor) -> float:
    """Of the loss along a direction of the output."""
    step = torch.zeros((), dtype=output.dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(problem.loss(output + step * direction, problem.target), step, create_graph=True)
    return float(torch.autograd.grad(slope, step)[0])


def hutchinson(problem: Problem, probes: int) -> Diagonal:
    """The mean of v * (H v) over random signs v, for all parameters at once."""
    names, parameters = zip(*problem.model.named_parameters(), strict=True)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(probes):
        signs = [torch.randint_like(parameter, 2) * 2 - 1 for parameter in parameters]
        for whole, sign, own in zip(total, signs, product(problem, signs), strict=True):
            whole += sign * own / probes
    return dict(zip(names, total, strict=True))


def error(found: Diagonal, exact: Mapping[str, Sequence[float]], entries: Entries) -> float:
    """Euclidean, relative, over all entries."""
    wrong = sum((float(found[name].flatten()[i]) - value) ** 2
                for name in exact for i, value in zip(entries[name], exact[name], strict=True))
    return float((wrong / sum(value**2 for values in exact.values() for value in values)) ** 0.5)
