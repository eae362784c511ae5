"""Routes: the ways to close a parameter's einsum, each with its cost; the planner takes the cheapest cover.

A route is a plain torch function over the letters of a contraction ("nkpo,npi->nkoi"), traced like a rule. It knows
neither operations nor quantities: it sees letters, sizes and which closings are asked for (see `quantities`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hbpcompiler.cost import TYPICAL_BATCH, Cost
from hbpcompiler.routes.closed import DiagonalForm, MatrixForm
from hbpcompiler.routes.factors import ColumnFactor, InputFactor, ReducedFactor, ReducedInputFactor
from hbpcompiler.routes.gram import GramDiagonal, GramNorm
from hbpcompiler.routes.products import ChunkedProduct, ClosedForm, NativeSum, OneProduct, WholeProduct
from hbpcompiler.routes.site import COLUMNS, DIAGONAL_FORM, MATRIX, NOTHING, Route, Site, Use

ROUTES: tuple[Route, ...] = (
    NativeSum(), OneProduct(), ClosedForm(), GramNorm(), GramDiagonal(), ChunkedProduct(), WholeProduct(),
    ColumnFactor(), InputFactor(), ReducedFactor(), ReducedInputFactor(), DiagonalForm(), MatrixForm(),
)


MOST_ROUTES = 5
"""No set of closings needs more routes than this at one site."""


@dataclass(frozen=True)
class Choice:
    """A route and the closings it was chosen for."""

    route: Route
    kinds: frozenset[str]
    cost: Cost


def choose(site: Site, kinds: frozenset[str]) -> tuple[Choice, ...]:
    """The cheapest set of routes that gives all closings: a product made for one closing serves the others."""
    applicable = [route for route in ROUTES if route.applies(site) and route.closes(site) & kinds]
    best: tuple[float, tuple[Choice, ...]] | None = None
    for count in range(1, min(MOST_ROUTES, len(applicable)) + 1):
        for routes in itertools.combinations(applicable, count):
            left, chosen = set(kinds), []
            for route in routes:
                taken = frozenset(left & route.closes(site))
                left -= taken
                if taken:
                    chosen.append(Choice(route, taken, route.cost(site, taken)))
            if left or len(chosen) < count:
                continue
            seconds = sum(choice.cost.seconds(site.samples or TYPICAL_BATCH) for choice in chosen)
            if best is None or seconds < best[0]:
                best = seconds, tuple(chosen)
    seconds, choices = best if best is not None else (float("inf"), ())
    assert seconds < float("inf"), f"no route closes {sorted(kinds)} of {site}"
    return choices


__all__ = ["COLUMNS", "DIAGONAL_FORM", "MATRIX", "NOTHING", "ROUTES", "Choice", "Route", "Site", "Use", "choose"]
