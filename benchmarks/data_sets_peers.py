"""Kronecker factors of a whole loader, by us and by those who go through one: curvlinops, and Laplace with it.

All of the exact GGN, for weights and biases apart. A package that is not installed takes no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import hbpcompiler as hbp

Scales = dict[str, float]
"""By parameter, |A| |B|: the scale of its block, however that is shared by the factors."""
Fit = tuple[Callable[[], Any], Callable[[Any], Scales]]
"""To be timed; and what of it is compared."""
Made = Callable[[nn.Module, Iterable[Any], int], Fit | None]
"""(model, loader, samples in it)."""


def ours(model: nn.Module, loader: Iterable[Any], samples: int) -> Fit:
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["kflr"])

    def scales(total: hbp.Total) -> Scales:
        return {name: _norm(block.B) * (1.0 if block.A is None else _norm(block.A))
                for name, block in total.kflr.items()}

    return lambda: hbp.accumulate(compiled, loader, progress=False), scales


def curvlinops(model: nn.Module, loader: Iterable[Any], samples: int) -> Fit | None:
    try:
        from curvlinops import FisherType, KFACLinearOperator
    except ImportError:
        return None
    names, parameters = zip(*model.named_parameters(), strict=True)

    def call() -> Any:
        operator = KFACLinearOperator(
            model, nn.CrossEntropyLoss(), list(parameters), loader, check_deterministic=False,
            fisher_type=FisherType.TYPE2, num_per_example_loss_terms=1, num_data=samples)  # fmt: skip
        operator.compute_kronecker_factors()
        return operator

    def scales(operator: Any) -> Scales:
        found = {}
        for module, positions in operator._mapping.items():
            for slot, position in positions.items():
                inner = _norm(operator._input_covariances[module]) if slot == "weight" else 1.0
                found[names[position]] = inner * _norm(operator._gradient_covariances[module])
        return found

    return call, scales


def laplace(model: nn.Module, loader: Iterable[Any], samples: int) -> Fit | None:
    """`Laplace(...).fit` with its default backend, which is curvlinops."""
    try:
        from laplace import Laplace
    except ImportError:
        return None

    def call() -> Any:
        fitted = Laplace(model, "classification", subset_of_weights="all", hessian_structure="kron")
        fitted.fit(loader)
        return fitted

    def scales(fitted: Any) -> Scales:
        factors = fitted.H_facs.kfacs if hasattr(fitted, "H_facs") else fitted.H.kfacs
        return {name: float(torch.tensor([_norm(factor) for factor in own]).prod()) / samples  # a sum over samples
                for (name, _), own in zip(model.named_parameters(), factors, strict=True)}

    return call, scales


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())


FITS: dict[str, Made] = {"accumulate": ours, "curvlinops": curvlinops, "Laplace": laplace}


def largest_gap(found: Scales, right: Scales) -> tuple[float, str]:
    """The largest relative difference, and the weight that has it. Biases are left out: curvlinops gives that of a
    convolution the weight's factor."""
    return max((abs(found[name] / right[name] - 1), name) for name in right if name.endswith("weight"))
