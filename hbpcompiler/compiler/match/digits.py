"""Whether derivatives that sympy has written keep the digits that torch's keep, at small and at large numbers.

Sympy multiplies out and cancels: a slope of x / (1 + exp(-x)) has exp(2 x) above and below, which is 0 or NaN from
44 on in float32, where it is 1; one of x sigmoid(1.7 x) has 1.7 x - 1.7 x sigmoid(1.7 x) in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import mpmath
import sympy
import torch
from torch import Tensor

from hbpcompiler.elementwise import x
from hbpcompiler.rule.symbolic import DEFINITIONS

SIZES = (1.3e-20, 1.1e-8, 1.3e-4, 1.7e-2, 0.23, 0.61, 1.37, 2.3, 3.7, 5.3, 7.9, 11.3, 16.7, 23.9, 31.3, 44.9, 51.7,
         67.3, 87.1, 89.9, 103.7, 131.9, 187.3, 261.1, 353.9, 371.7, 500.3, 708.1, 711.3, 1017.0, 3.3e3, 1.1e4, 1.3e5,
         1.7e6, 3.1e7, 4.1e9, 1.9e10, 6.7e12, 1.3e14, 7.1e18, 2.3e19)
"""Of numbers at which functions are compared, and minus these; none of them is where people put kinks. Some lie below
those whose fourth, third and second powers overflow in float32: there multiples of these powers do."""
USUAL = 2.5
"""Up to here a function has the slopes that it has where it is used."""
FAR = 100.0
"""Up to here torch's double precision may be off by roundings, but not by more than CLOSE."""
CLOSE = 1e-6
OF_TORCH, OF_VALUE, OF_USUAL = 16.0, 64.0, 16.0
"""An error may be so many times torch's own, and so many roundings of the value and of the usual size of values."""
LENIENT = 64.0


class Slopes(NamedTuple):
    """First and second derivative at each point."""

    first: Tensor
    second: Tensor


Find = Callable[[Tensor, Tensor], tuple[Any, Any]]
"""Of points x and results y: first and second derivatives, tensors or numbers."""


LARGEST = 2.0**40
"""Of an exponential, or of a sine, of more than this mpmath would write all the digits before the point."""


def _within_reach(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def of(value: Any) -> Any:
        if abs(value) > LARGEST:
            raise OverflowError(f"{function} of a number beyond {LARGEST}")
        return function(value)

    return of


WITHIN_REACH = {name: _within_reach(getattr(mpmath, name))
                for name in ("exp", "sin", "cos", "tan", "sinh", "cosh", "tanh", "erf", "erfc", "gamma")}


def keeps_digits(expression: Any, run: Callable[[Tensor], Tensor], find: Find, strict: bool = True) -> bool:
    """Whether `find(x, y)` is as good as torch's own derivatives of y = run(x), which `expression` says in sympy, in
    float32 and in float64. If not `strict`, errors of the second one may be LENIENT times the usual ones."""
    points = torch.tensor([*SIZES, *(-size for size in SIZES)], dtype=torch.float32, device="cpu")
    right = _by_torch(run, points.double())
    # Towards 0, where many slopes end, less of the usual size: torch keeps its digits, and errors of fits are small.
    towards_zero = points.abs().clamp(max=1.0)
    for given in (points, points.double()) if _takes(run, points) else (points.double(),):
        torchs = _by_torch(run, given)
        with torch.no_grad():
            found = find(given, run(given))
        for number, (value, its) in enumerate(zip(found, torchs, strict=True)):
            scale = towards_zero if strict or number == 0 else torch.full_like(points, LENIENT)
            own = torch.as_tensor(value, dtype=given.dtype, device=given.device).expand(given.shape)
            if _are_as_good(own, its, right[number], points, scale).all():
                continue
            exact = _measure(_exact(expression, number + 1), right[number], points)
            if exact is None or not _are_as_good(own, its, exact, points, scale).all():
                return False
    return True


def _takes(run: Callable[[Tensor], Tensor], points: Tensor) -> bool:
    """Whether these have the range for the function's own numbers: not float32 for a limit of 1e300."""
    try:
        run(points)
    except RuntimeError:
        return False
    return True


def _measure(exact: Tensor | None, torchs: Tensor, points: Tensor) -> Tensor | None:
    """What derivatives are measured by where those in torch's double precision are no measure, as where exponentials
    overflow or 1 - tanh(z)^2 cancels; None if the expression is not what torch differentiates."""
    if exact is None:
        return None
    known = exact.isfinite()
    near = known & torchs.isfinite() & (points.abs() < FAR)
    usual = torchs[near & (points.abs() < USUAL)].abs()
    allowed = CLOSE * (torchs.abs() + (usual.max() if usual.numel() else 0.0))
    return torch.where(known, exact, torchs) if ((exact - torchs).abs() <= allowed)[near].all() else None


@lru_cache(maxsize=64)
def _exact(expression: Any, order: int) -> Tensor | None:
    """A derivative at each point, by sixty digits; None where it cannot be found so."""
    for function, definition in DEFINITIONS.items():
        expression = expression.replace(function, definition)
    try:
        slope = sympy.lambdify(x, sympy.diff(expression, x, order), modules=[WITHIN_REACH, "mpmath"])
        with mpmath.workdps(60):
            values = [_number(slope, point) for size in (1, -1) for point in (size * each for each in SIZES)]
    except (TypeError, NameError, AttributeError, NotImplementedError):  # a function that mpmath has not
        return None
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _number(slope: Callable[[Any], Any], point: float) -> float:
    """As torch's single precision has the point; not finite where there is no value, or no real one."""
    given = torch.tensor(point, dtype=torch.float32, device="cpu").item()
    try:
        value = mpmath.mpmathify(slope(mpmath.mpf(given)))
        return float(value) if isinstance(value, mpmath.mpf) else float("nan")
    except (ZeroDivisionError, ValueError, OverflowError):
        return float("nan")


def _by_torch(run: Callable[[Tensor], Tensor], points: Tensor) -> Slopes:
    with torch.inference_mode(False), torch.enable_grad():
        moved = points.clone().requires_grad_()
        (first,) = torch.autograd.grad(run(moved).sum(), moved, create_graph=True)
        if not first.requires_grad:
            return Slopes(first, torch.zeros_like(first))
        (second,) = torch.autograd.grad(first.sum(), moved, allow_unused=True)
    return Slopes(first.detach(), torch.zeros_like(first) if second is None else second)


def _are_as_good(own: Tensor, torchs: Tensor, right: Tensor, points: Tensor, scale: Tensor) -> Tensor:
    """At each point; where torch has no number anything is. `scale`: how much of the usual size counts."""
    known = torchs.isfinite() & right.isfinite()
    usual = right[known & (points.abs() < USUAL)].abs()
    eps = torch.finfo(own.dtype).eps
    size = OF_VALUE * right.abs() + OF_USUAL * scale * (usual.max() if usual.numel() else 0.0)
    allowed = OF_TORCH * (torchs.double() - right).abs() + eps * size
    return (own.double() - right).abs().le(allowed) | ~known
