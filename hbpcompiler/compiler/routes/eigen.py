"""The route of EKFAC: squares of the cotangents, seen in the eigenvectors of the parameter's Kronecker factors.

With B = Q_B diag Q_B^T and A = Q_A diag Q_A^T, the cotangent T of a weight becomes Q_B^T T Q_A: its columns and its
operand are turned, each on its own side, and what is left is the diagonal closing of the turned einsum, which its own
routes do. A parameter without input features has its full block, whose eigenvalues are these squares already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.routes.site import (
    COLUMNS,
    DIAGONAL_FORM,
    NOTHING,
    Route,
    Site,
    Use,
    einsum,
    unit_columns,
)
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import DIAGONAL, EIGEN, FACTOR, INPUT_FACTOR, EigenPart
from hbpcompiler.rule import Contraction, Op, Tensor, called


class Eigenbasis(Route):
    """Both factors by their own routes, their eigenvectors, and the turned diagonal by its own route."""

    name = "squares in the factors' eigenvectors"
    kinds = frozenset({EIGEN})
    limits: tuple[str, ...] = ("eigen_multiply_adds",)

    def __init__(self, choose: Callable[[Site, frozenset[str]], tuple[Any, ...]]) -> None:
        self.choose = choose
        """As `routes.choose`, which knows this route too."""

    def applies(self, site: Site) -> bool:
        return site.form in (COLUMNS, DIAGONAL_FORM)

    def _parts(self, site: Site) -> list[tuple[Site, str]]:
        """The closings of other routes that this one is made of."""
        if not site.features:
            return [(site, FACTOR)]
        return [(site, FACTOR), (_inputs(site), INPUT_FACTOR), (_in_columns(site), DIAGONAL)]

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        sizes = [site.size(site.outer), site.size(site.features)] if site.features else [site.size(site.theta)]
        total = Cost(sum(site.resources.limits.eigen_multiply_adds * size**3 for size in sizes))
        for part, kind in self._parts(site):
            for choice in self.choose(part, frozenset({kind})):
                total = total + choice.cost
        left, right, _ = site.letters
        columns, operand = N * site.columns * site.size(left), N * site.size(right)
        turning = columns * sizes[0] + operand * site.size(site.features)
        return total + Cost(turning, 2 * (columns + operand) * site.itemsize, calls=2) if site.features else total

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        eigenvalues, outer = _eigh(site, self._closed(site, use, FACTOR))
        if not site.features:
            return {EIGEN: EigenPart(None, outer, called("eigenvalues", eigenvalues))}
        _, inner = _eigh(site, self._closed(_inputs(site), use.alone or use, INPUT_FACTOR))
        turned = _turned(site, use, outer, inner)
        return {EIGEN: EigenPart(inner, outer, self._closed(_in_columns(site), turned, DIAGONAL))}

    def _closed(self, site: Site, use: Use, kind: str) -> Any:
        (choice,) = self.choose(site, frozenset({kind}))
        return choice.route.write(site, use, choice.kinds)[kind]


def _inputs(site: Site) -> Site:
    """The operand alone, for A."""
    return replace(site, form=NOTHING, columns=0, signed=False)


def _in_columns(site: Site) -> Site:
    """The site with columns; the diagonal of a loss without curvature has one for each entry."""
    count = site.columns if site.form == COLUMNS else site.size(site.letters[0])
    return site.without_kernels(form=COLUMNS, columns=count)


def _eigh(site: Site, matrix: Any) -> tuple[Any, Any]:
    """Eigenvalues and eigenvectors (as columns), of a half-precision matrix in single precision."""
    if site.itemsize >= 4:
        found = torch.linalg.eigh(matrix)
        return found[0], found[1]
    found = torch.linalg.eigh(matrix.float())
    return found[0].type_as(matrix), found[1].type_as(matrix)


def _turned(site: Site, use: Use, outer: Any, inner: Any) -> Use:
    """The use with columns and operand in these eigenvectors."""
    left, right, _ = site.letters
    shared, own, met = site.shared, site.outer, site.features

    def columns(op: Op, columns: Tensor) -> Tensor:
        seen = use.contraction.columns(op, columns)
        return einsum(f"{left},{shared}{own}z->{left.replace(own, 'z')}", seen, op.argument("outer"))

    def operand(op: Op) -> Tensor:
        assert use.contraction.operand is not None
        seen = use.contraction.operand(op)
        return einsum(f"{right},{shared}{met}z->{right.replace(met, 'z')}", seen, op.argument("inner"))

    stream = use.stream if site.form == COLUMNS else unit_columns(use, site.signed)
    op = use.op.with_tensor("outer", outer, shared=True).with_tensor("inner", inner, shared=True)
    return replace(use, op=op, contraction=Contraction(site.equation, columns, operand), stream=stream)
