"""The logarithm of the gamma function and its derivatives, for positive numbers: left of 0 there are poles."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch

from hbpcompiler.elementwise import attribute, elementwise, x
from hbpcompiler.rule import Case, Tensor

from .special_functions import alone, function

digamma = function("digamma", torch.digamma)
polygamma = function("polygamma", torch.polygamma)


def positive(**attributes: int) -> list[Case]:
    def drawn(shape: Sequence[int]) -> Tensor:
        return 0.3 + 4 * torch.rand(tuple(shape), dtype=torch.float64)

    return [Case({"self": (4, 3)}, attributes, make={"self": drawn})]


LGAMMA = alone(
    elementwise(
        "aten.lgamma",
        sympy.loggamma(x),
        first=digamma(x),
        second=polygamma(1, x),
        forward=lambda op: torch.lgamma(op.self),
        cases=positive(),
    )
)
DIGAMMA = alone(
    elementwise(
        ["aten.digamma", "aten.special_digamma"],
        digamma(x),
        first=polygamma(1, x),
        second=polygamma(2, x),
        forward=lambda op: torch.digamma(op.self),
        cases=positive(),
    )
)

_order = attribute("n")
POLYGAMMA = alone(
    elementwise(
        ["aten.polygamma", "aten.special_polygamma"],
        polygamma(_order, x),
        first=polygamma(_order + 1, x),
        second=polygamma(_order + 2, x),
        forward=lambda op: torch.polygamma(op.n, op.self),
        cases=[*positive(n=1), *positive(n=2)],
    )
)
