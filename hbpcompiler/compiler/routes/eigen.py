"""The route of EKFAC: squares of the cotangents, seen in the eigenvectors of the parameter's Kronecker factors.

With B = Q_B diag Q_B^T and A = Q_A diag Q_A^T, the cotangent T of a weight becomes Q_B^T T Q_A, by the routes for
given bases (see `bases`). A parameter without input features has its full block, whose eigenvalues are these squares
already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.program.writer import named, otherwise_named
from hbpcompiler.compiler.routes.site import COLUMNS, DIAGONAL_FORM, NOTHING, Route, Site, Use
from hbpcompiler.quantities import EIGEN, FACTOR, IN_BASES, INPUT_FACTOR, EigenPart

LETTERS = {FACTOR: "B", INPUT_FACTOR: "A"}
"""What factors are called in front of their parameters' names."""


class Eigenbasis(Route):
    """Both factors by their own routes, their eigenvectors, and the squares in them by their own route."""

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
        return [(site, FACTOR), (_inputs(site), INPUT_FACTOR), (site, IN_BASES)]

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        sizes = [site.size(site.outer), site.size(site.features)] if site.features else [site.size(site.theta)]
        total = Cost(sum(site.resources.limits.eigen_multiply_adds * size**3 for size in sizes))
        for part, kind in self._parts(site):
            for choice in self.choose(part, frozenset({kind})):
                total = total + choice.cost
        return total

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        eigenvalues, outer = _eigh(site, use, self._closed(site, use, FACTOR), FACTOR)
        if not site.features:
            return {EIGEN: EigenPart(None, outer, eigenvalues)}
        _, inner = _eigh(site, use, self._closed(_inputs(site), use.alone or use, INPUT_FACTOR), INPUT_FACTOR)
        squares = self._closed(site, replace(use, bases=(inner, outer)), IN_BASES)
        return {EIGEN: EigenPart(inner, outer, otherwise_named(squares, "basis_squares_"))}

    def _closed(self, site: Site, use: Use, kind: str) -> Any:
        (choice,) = self.choose(site, frozenset({kind}))
        closed = choice.route.write(site, use, choice.kinds)[kind]
        if kind not in LETTERS:
            return closed
        return otherwise_named(closed, _called(use, kind))


def _inputs(site: Site) -> Site:
    """The operand alone, for A."""
    return replace(site, form=NOTHING, columns=0, signed=False)


def _called(use: Use, kind: str) -> str:
    """A factor's name: its letter and its parameter."""
    return f"{LETTERS[kind]}_{use.writer.tracer.subject.partition('_')[2]}"


def _eigh(site: Site, use: Use, matrix: Any, kind: str) -> tuple[Any, Any]:
    """Eigenvalues and eigenvectors (as columns), of a half-precision matrix in single precision."""
    if site.itemsize >= 4:
        found = torch.linalg.eigh(matrix)
        return otherwise_named(found[0], "eigenvalues_"), named(found[1], f"eigenbasis_{_called(use, kind)}")
    found = torch.linalg.eigh(matrix.float())
    return found[0].type_as(matrix), named(found[1].type_as(matrix), f"eigenbasis_{_called(use, kind)}")
