"""Numbers of networks of today, in single precision, beside autograd's: what is small elsewhere adds up here.

The gradient, norms of per-sample gradients and variances are compared with those of one backward pass for each sample;
Kronecker factors of the empirical Fisher with products of what autograd's hooks see at the layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import hbpcompiler as hbp

from .networks import Problem
from .real_peers import layers

TOLERANCE = 1e-3
"""Largest error, relative in norm: single precision, sums of 1e7 numbers through 50 layers."""
MOST = 4
"""Layers whose factors are compared: the first and the last ones."""


def errors(problem: Problem) -> dict[str, float]:
    """The largest error over the parameters by quantity, relative in norm."""
    found = hbp.compile(problem.model, problem.loss, ["grad", "batch_l2", "variance"], verify=False)(
        problem.inputs, problem.target)
    expected = by_samples(problem)
    largest = {name: max(apart(found[name][key], value) for key, value in expected[name].items())
               for name in expected}
    return largest | _of_factors(problem)


def apart(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|; a gradient that is zero but for rounding is compared with 1e-6."""
    size = expected.double().norm().clamp(min=1e-12)
    return float((found.double() - expected.double()).norm() / size)


def by_samples(problem: Problem) -> dict[str, dict[str, Tensor]]:
    """The three quantities of a mean loss, from a backward pass for each sample, summed in double precision."""
    parameters = {name: own for name, own in problem.model.named_parameters() if own.requires_grad}
    count = len(problem.inputs)
    sums = {name: torch.zeros_like(own, dtype=torch.float64) for name, own in parameters.items()}
    squares = {name: torch.zeros_like(own, dtype=torch.float64) for name, own in parameters.items()}
    norms: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for n in range(count):
        loss = problem.loss(problem.model(problem.inputs[n : n + 1]), problem.target[n : n + 1])
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            own = torch.zeros_like(sums[name]) if gradient is None else gradient.double()
            sums[name] += own
            squares[name] += own.square()
            norms[name].append(own.square().sum() / count**2)
    # A gradient that is zero but for rounding (a key's bias, whose scores' softmax does not see it) says nothing.
    largest = max(float(total.sum()) for total in squares.values())
    said = [name for name, total in squares.items() if float(total.sum()) > 1e-9 * largest]
    return {"grad": {name: sums[name] / count for name in said},
            "batch_l2": {name: torch.stack(norms[name]) for name in said},
            "variance": {name: squares[name] / count - (sums[name] / count).square() for name in said}}


def _of_factors(problem: Problem) -> dict[str, float]:
    """Of `kfac_emp`, at some layers whose use is a plain one."""
    modules = dict(problem.model.named_modules())
    names = [name.removesuffix(".weight") for name, _ in layers(problem) if name.endswith(".weight")]
    plain = [name for name in names if isinstance(modules[name], nn.Linear | nn.Conv2d)]
    some = [*plain[: MOST // 2], *plain[-MOST // 2 :]]
    if not some:
        return {}
    weights = [f"{name}.weight" for name in some]
    found: Any = hbp.compile(problem.model, problem.loss, {"kfac_emp": weights}, verify=False)(
        problem.inputs, problem.target)
    expected = seen(problem, {name: modules[name] for name in some})
    return {f"kfac_emp {factor}": max(apart(getattr(found.kfac_emp[f"{name}.weight"], factor), own[factor])
                                      for name, own in expected.items()) for factor in "AB"}


def seen(problem: Problem, modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """A = sum u u^T / N and B = sum g g^T / (N P), u and g the inputs and the gradients of N l_n at each position."""
    given: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given[name], made[name] = inputs[0].detach(), output

    handles = [module.register_forward_hook(
        lambda module, inputs, output, name=name: keep(name, module, inputs, output))
        for name, module in modules.items()]
    loss = problem.loss(problem.model(problem.inputs), problem.target)
    gradients = torch.autograd.grad(loss, list(made.values()))
    for handle in handles:
        handle.remove()
    count, found = len(problem.inputs), {}
    for (name, module), gradient in zip(modules.items(), gradients, strict=True):
        if isinstance(module, nn.Conv2d):
            rows: Any = nn.functional.unfold(given[name], module.kernel_size, module.dilation, module.padding,
                                             module.stride).transpose(1, 2)
            back = gradient.flatten(2).transpose(1, 2)
        else:
            rows, back = (each.reshape(count, -1, each.shape[-1]) for each in (given[name], gradient))
        positions = back.shape[1]
        rows, back = rows.flatten(0, 1).double(), back.flatten(0, 1).double() * count
        found[name] = {"A": rows.t() @ rows / count, "B": back.t() @ back / (count * positions)}
    return found
