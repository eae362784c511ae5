"""The contestants. Each makes, for a problem and some quantities, something to call and a way to read its result.

A contestant that cannot do it (a quantity it does not know, a package that is not installed) makes None.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hbpcompiler as hbp

from .networks import Problem

Values = Mapping[str, Mapping[str, tuple[Tensor, ...]]]
"""quantity -> parameter -> its tensors: one, or the Kronecker factors (A, B), or (B,) of a bias."""


@dataclass(frozen=True)
class Run:
    """One contestant, ready: `call` is what is timed."""

    call: Callable[[], Any]
    read: Callable[[Any], Values]


Contestant = Callable[[Problem, Sequence[str], int], Run | None]
"""(problem, quantities, Monte-Carlo samples per datum) -> Run."""

KRONECKER = {"kfac", "kflr", "kfra"}
FIRST_ORDER = {"grad", "batch_grad", "batch_l2", "second_moment", "variance"}


def gradient(problem: Problem, quantities: Sequence[str] = (), samples: int = 1) -> Run | None:
    """The plain gradient, forward and backward: what all others are measured against."""
    if set(quantities) - {"grad"}:
        return None
    names, parameters = zip(*problem.model.named_parameters(), strict=True)

    def call() -> Any:
        return torch.autograd.grad(problem.loss(problem.model(problem.inputs), problem.target), parameters)

    return Run(call, lambda result: {"grad": {name: (each,) for name, each in zip(names, result, strict=True)}})


def ours(problem: Problem, quantities: Sequence[str], samples: int, backend: str = "python") -> Run:
    """hbpcompiler: the public call, its checks of the batch included."""
    compiled = hbp.compile(problem.model, problem.loss, quantities=list(quantities), backend=backend,
                           mc_samples=samples, example_inputs=(problem.inputs, problem.target))

    def read(result: hbp.Result) -> Values:
        values: dict[str, dict[str, tuple[Tensor, ...]]] = {}
        for quantity in quantities:
            values[quantity] = {}
            for name, value in result[quantity].items():
                parts = (value,) if isinstance(value, Tensor) else (value.A, value.B)
                values[quantity][name] = tuple(part for part in parts if part is not None)
        return values

    return Run(lambda: compiled(problem.inputs, problem.target), read)


def backpack(problem: Problem, quantities: Sequence[str], samples: int) -> Run | None:
    """BackPACK: the model extended once, one backward pass with the extensions."""
    try:
        import backpack as package
        from backpack import extensions
    except ImportError:
        return None
    size = problem.size
    # quantity: the extension, the attribute it sets, and its scale where it differs from ours (mean reduction)
    table: dict[str, tuple[Callable[[], Any], str, float]] = {
        "batch_grad": (extensions.BatchGrad, "grad_batch", 1),
        "batch_l2": (extensions.BatchL2Grad, "batch_l2", 1),
        "second_moment": (extensions.SumGradSquared, "sum_grad_squared", size),
        "variance": (extensions.Variance, "variance", size**2),
        "diag_ggn": (extensions.DiagGGNExact, "diag_ggn_exact", 1),
        "diag_ggn_mc": (lambda: extensions.DiagGGNMC(samples), "diag_ggn_mc", 1),
        "diag_h": (extensions.DiagHessian, "diag_h", 1),
        "kfac": (lambda: extensions.KFAC(samples), "kfac", 1),
        "kflr": (extensions.KFLR, "kflr", 1),
        "kfra": (extensions.KFRA, "kfra", 1),
    }
    if set(quantities) - set(table) - {"grad"}:
        return None
    wanted = [quantity for quantity in quantities if quantity != "grad"]
    model, loss = package.extend(copy.deepcopy(problem.model)), package.extend(copy.deepcopy(problem.loss))
    parameters = dict(model.named_parameters())

    def call() -> None:
        for parameter in parameters.values():
            parameter.grad = None
        value = loss(model(problem.inputs), problem.target)
        with package.backpack(*(table[quantity][0]() for quantity in wanted)):
            value.backward()

    def value(quantity: str, parameter: Tensor) -> tuple[Tensor, ...]:
        if quantity == "grad":
            assert parameter.grad is not None
            return (parameter.grad,)
        _, attribute, scale = table[quantity]
        found = getattr(parameter, attribute)
        return tuple(reversed(found)) if quantity in KRONECKER else (found * scale,)

    return Run(call, lambda _: {q: {name: value(q, p) for name, p in parameters.items()} for q in quantities})


def torch_func(problem: Problem, quantities: Sequence[str], samples: int) -> Run | None:
    """torch.func: vmap over grad, all per-sample gradients at once."""
    if set(quantities) - FIRST_ORDER:
        return None
    parameters = {name: parameter.detach() for name, parameter in problem.model.named_parameters()}

    def sample_loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = torch.func.functional_call(problem.model, parameters, (x.unsqueeze(0),))
        result: Tensor = problem.loss(output, y.unsqueeze(0))
        return result

    each = torch.func.vmap(torch.func.grad(sample_loss), (None, 0, 0))
    closings: dict[str, Callable[[Tensor], Tensor]] = {
        "grad": lambda g: g.mean(0),
        "batch_grad": lambda g: g / len(g),
        "batch_l2": lambda g: (g / len(g)).flatten(1).square().sum(1),
        "second_moment": lambda g: g.square().mean(0),
        "variance": lambda g: g.square().mean(0) - g.mean(0).square(),
    }

    def call() -> Any:
        gradients = each(parameters, problem.inputs, problem.target)
        return {q: {name: (closings[q](g),) for name, g in gradients.items()} for q in quantities}

    return Run(call, lambda result: result)


def curvlinops(problem: Problem, quantities: Sequence[str], samples: int) -> Run | None:
    """curvlinops: one set of Kronecker factors, for the layers' own parameters."""
    try:
        from curvlinops import FisherType, KFACLinearOperator
    except ImportError:
        return None
    if len(quantities) != 1 or quantities[0] not in ("kfac", "kflr"):
        return None
    (quantity,) = quantities
    sampled = quantity == "kfac"
    names, parameters = zip(*problem.model.named_parameters(), strict=True)

    def call() -> Any:
        operator = KFACLinearOperator(
            problem.model, problem.loss, list(parameters), [(problem.inputs, problem.target)],
            check_deterministic=False, fisher_type=FisherType.MC if sampled else FisherType.TYPE2,
            mc_samples=samples if sampled else 1, num_per_example_loss_terms=1, num_data=problem.size,
        )  # fmt: skip
        operator.compute_kronecker_factors()
        return operator

    def read(operator: Any) -> Values:
        factors = {}
        for module, positions in operator._mapping.items():
            outer = operator._gradient_covariances[module]
            for slot, position in positions.items():
                inner = (operator._input_covariances[module],) if slot == "weight" else ()
                factors[names[position]] = (*inner, outer)
        return {quantity: factors}

    return Run(call, read)


PEERS: dict[str, Contestant] = {"BackPACK": backpack, "torch.func": torch_func, "curvlinops": curvlinops}
BACKENDS = ("python", "torchscript", "inductor")


def our_name(backend: str) -> str:
    return "ours" if backend == "python" else f"ours ({backend})"


def contestants(backends: Sequence[str], peers: bool) -> dict[str, Contestant]:
    """All that take part besides the gradient, in the table's order."""
    mine: dict[str, Contestant] = {our_name(b): functools.partial(ours, backend=b) for b in backends}
    return {**mine, **(PEERS if peers else {})}
