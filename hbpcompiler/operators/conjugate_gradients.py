"""Solving A x = b by products with A alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hbpcompiler.errors import InputError, NotConvergedError
from hbpcompiler.operators.matrix import Matrix
from hbpcompiler.operators.vectors import inner

WINDOW = 10
"""Martens 2010, section 4.4: progress is measured over max(10, k/10) iterations."""


TOLERANCES = {torch.float64: 1e-9}
"""Of a residual, relative to b."""
TOLERANCE = 1e-5
"""In all other dtypes."""
LEAST_PRODUCTS = 1000


@dataclass(frozen=True)
class Solution:
    """What conjugate gradients found."""

    x: Tensor
    iterations: int
    converged: bool
    """Whether a criterion was met before the iterations were used up."""
    negative: bool
    """Whether a direction of negative curvature was met, where the method stops."""


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, *, damping: float = 0.0,
                        most_iterations: int = 100, tolerance: float = 0.0, progress: float = 5e-4) -> Solution:
    """x with (A + damping) x = b, from x = 0 (Hestenes & Stiefel 1952); any shape, b's dtype.

    It ends when the residual is at most `tolerance` times |b|, or when
    phi(x) = x^T (A + damping) x / 2 - b^T x has gained less than `progress` times k of its value in the last
    k = max(10, iterations / 10) iterations (Martens 2010, section 4.4; 0: never). Where it meets a direction along
    which A + damping is not positive it ends with what it has, and at the first iteration with a step along b, the
    direction of steepest descent, as long as if A's curvature along it had the other sign: b |b|^2 / (|b^T A b| +
    damping |b|^2), which has the scale that a solution has.
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    del b  # its memory, where the caller has no use for it
    squared = float(inner(residual, residual))
    bound, values = tolerance * squared**0.5, [0.0]
    for iteration in range(1, most_iterations + 1):
        if squared**0.5 <= bound or squared == 0:
            return Solution(x, iteration - 1, True, False)
        along = product(direction).add_(direction, alpha=damping)
        bend = float(inner(direction, along))
        if not bend > 0:
            if iteration == 1:
                curvature = abs(bend - damping * squared) + damping * squared
                x = direction.mul_(squared / curvature) if curvature > 0 else direction
            return Solution(x, iteration - 1, False, True)
        length = squared / bend
        x.add_(direction, alpha=length)
        residual.sub_(along, alpha=length)
        del along
        values.append(values[-1] - length * squared / 2)  # phi: what a step along a conjugate direction gains
        if _stalls(values, progress):
            return Solution(x, iteration, True, False)
        new = float(inner(residual, residual))
        direction.mul_(new / squared).add_(residual)
        squared = new
    return Solution(x, most_iterations, squared**0.5 <= bound, False)


def _stalls(values: list[float], progress: float) -> bool:
    iterations = len(values) - 1
    window = max(WINDOW, iterations // 10)
    if not progress or iterations <= window or values[-1] >= 0:
        return False
    return (values[-1] - values[-1 - window]) / values[-1] < window * progress


def solved(operator: Matrix, b: Tensor, tolerance: float | None, most_products: int | None) -> Tensor:
    """See `SymmetricOperator.solve`; [D, F] for b [D, F]."""
    if not bool(b.isfinite().all()):
        raise InputError("the right-hand side has entries that are infinite or NaN")
    tolerance = TOLERANCES.get(operator.dtype, TOLERANCE) if tolerance is None else tolerance
    most = max(LEAST_PRODUCTS, 2 * operator.shape[0]) if most_products is None else most_products
    found = []
    for column in b.unbind(1):
        solution = conjugate_gradients(lambda v: operator @ v, column, most_iterations=most, tolerance=tolerance,
                                       progress=0.0)
        if solution.negative:
            raise InputError("the matrix is not positive definite, as conjugate gradients need it: along one direction "
                             "it is zero or negative. Solve with operator.damped(number), and a number above minus its "
                             "smallest eigenvalue, operator.top(1, \"smallest\")")
        if not solution.converged:
            raise NotConvergedError(f"conjugate gradients did not reach a residual of {tolerance:g} |b| in {most} "
                                    "products: give a larger tolerance=, most_products= or damping")
        found.append(solution.x)
    return torch.stack(found, 1) if found else b
