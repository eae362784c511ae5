"""Peers on networks of today, each where it is installed and can: None where not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .networks import Problem
from .peers import Run

FACTORED = (nn.Linear, nn.Conv2d)
VOCABULARY = 10_000
"""Weights with more rows or columns have no Kronecker factors here."""


def layers(problem: Problem) -> list[tuple[str, nn.Parameter]]:
    """Weights of linear layers and convolutions that are not grouped, without the vocabulary's, by name.

    Without biases: ours have factors of their own there, where curvlinops gives them those of their weights.
    """
    found = []
    for name, module in problem.model.named_modules():
        known = isinstance(module, FACTORED) or type(module).__name__ == "Conv1D"
        weight: Any = getattr(module, "weight", None)
        if known and getattr(module, "groups", 1) == 1 and max(weight.shape) < VOCABULARY:
            found.append((f"{name}.weight", weight))
    return found


def asked_of(problem: Problem, quantities: Sequence[str]) -> dict[str, Any]:
    """Quantities as `hbp.compile` takes them."""
    return {name: [own for own, _ in layers(problem)] if name == "kfac" else "*" for name in quantities}


def torch_func(problem: Problem, quantities: str) -> Run | None:
    """Per-sample gradients by vmap, and what is asked of them."""
    if quantities not in ("batch_l2", "variance"):
        return None
    parameters = {name: parameter.detach() for name, parameter in problem.model.named_parameters()}
    buffers = dict(problem.model.named_buffers())

    def sample_loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = torch.func.functional_call(problem.model, (parameters, buffers), (x.unsqueeze(0),))
        loss: Tensor = problem.loss(output, y.unsqueeze(0))
        return loss

    each = torch.func.vmap(torch.func.grad(sample_loss), (None, 0, 0))

    def call() -> dict[str, Tensor]:
        found: dict[str, Tensor] = each(parameters, problem.inputs, problem.target)
        if quantities == "batch_l2":
            return {name: gradient.flatten(1).square().sum(1) / problem.size**2 for name, gradient in found.items()}
        return {name: gradient.var(0, unbiased=False) for name, gradient in found.items()}

    return Run(call, lambda result: {quantities: result})


def curvlinops(problem: Problem, quantities: str) -> Run | None:
    """Kronecker factors of one sampled column."""
    try:
        from curvlinops import FisherType, KFACLinearOperator
    except ImportError:
        return None
    if quantities != "kfac" or not isinstance(problem.loss, nn.CrossEntropyLoss) or any(
            type(module).__name__ == "Conv1D" for module in problem.model.modules()):
        return None
    parameters = [parameter for _, parameter in layers(problem)]

    def call() -> Any:
        operator = KFACLinearOperator(
            problem.model, problem.loss, parameters, [(problem.inputs, problem.target)], check_deterministic=False,
            fisher_type=FisherType.MC, mc_samples=1, num_per_example_loss_terms=1, num_data=problem.size)
        compute: Callable[[], Any] | None = getattr(operator, "compute_kronecker_factors", None)
        if compute is not None:
            compute()
        return operator

    return Run(call, lambda operator: operator)


def backpack(problem: Problem, quantities: str) -> Run | None:
    """Its extensions of the first order, which need no chain; not where a module is none of its own."""
    try:
        from backpack import backpack as extended
        from backpack import extend
        from backpack.extensions import BatchL2Grad, Variance
    except ImportError:
        return None
    extension = {"batch_l2": BatchL2Grad, "variance": Variance}.get(quantities)
    plain = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)
    known = all(isinstance(module, plain) for module in problem.model.modules()
                if list(module.parameters(recurse=False)))
    if extension is None or not known or not isinstance(problem.loss, nn.CrossEntropyLoss):
        return None
    model, loss = copy.deepcopy(problem.model), extend(copy.deepcopy(problem.loss))
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # its hooks allow no change in place
    model = extend(model)

    def call() -> None:
        model.zero_grad()
        with extended(extension()):
            loss(model(problem.inputs), problem.target).backward()

    return Run(call, lambda result: result)


def opacus(problem: Problem, quantities: str) -> Run | None:
    """Norms of per-sample gradients as its ghost clipping takes them; not of batch norms, nor of tied weights."""
    try:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
    except ImportError:
        return None
    names = {type(module).__name__ for module in problem.model.modules()}
    if quantities != "batch_l2" or names & {"BatchNorm2d", "Conv1D", "LayerNorm2d", "CNBlock"}:
        return None
    model: Any = GradSampleModuleFastGradientClipping(copy.deepcopy(problem.model), loss_reduction="mean",
                                                      max_grad_norm=1.0, use_ghost_clipping=True)

    def call() -> Tensor:
        model.zero_grad()
        problem.loss(model(problem.inputs), problem.target).backward()
        norms: Tensor = model.get_norm_sample()
        return norms

    return Run(call, lambda norms: norms)


PEERS: dict[str, Callable[[Problem, str], Run | None]] = {
    "torch.func": torch_func, "curvlinops": curvlinops, "BackPACK": backpack, "Opacus": opacus}
