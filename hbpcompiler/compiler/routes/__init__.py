"""Routes: the ways to close a parameter's einsum, each with its cost; the planner takes the cheapest cover.

A route is a plain torch function over the letters of a contraction ("nkpo,npi->nkoi"), traced like a rule. It knows
neither operations nor quantities: it sees letters, sizes and which closings are asked for (see `quantities`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hbpcompiler.compiler.cost.decisions import (
    OtherDecisionsError,
    apart,
    are_followed,
    decided,
)
from hbpcompiler.compiler.cost.figures import Cost, number
from hbpcompiler.compiler.routes.bases import NativeTurnedAfter, TurnedAfter, TurnedBefore
from hbpcompiler.compiler.routes.by_index import InnerByIndex, RowsByIndex
from hbpcompiler.compiler.routes.by_rows import SquaresByRows
from hbpcompiler.compiler.routes.chunks import ChunkedProduct, NativeProduct
from hbpcompiler.compiler.routes.closed import DiagonalForm, MatrixForm
from hbpcompiler.compiler.routes.correlated import CorrelatedInputFactor
from hbpcompiler.compiler.routes.directions import (
    NativeSumOfColumns,
    OntoSum,
    OperandFirst,
    ProductFirst,
    SumOfColumns,
)
from hbpcompiler.compiler.routes.eigen import Eigenbasis
from hbpcompiler.compiler.routes.factors import (
    ColumnFactor,
    HalfColumnFactor,
    HalfInputFactor,
    InputFactor,
    ReducedFactor,
    ReducedInputFactor,
)
from hbpcompiler.compiler.routes.gram import GramDiagonal, GramNorm
from hbpcompiler.compiler.routes.inner import PairsOfPositions, PartsOfProduct
from hbpcompiler.compiler.routes.kept import Kept
from hbpcompiler.compiler.routes.pairs import SquaresByPairs
from hbpcompiler.compiler.routes.products import (
    ClosedForm,
    NativeSum,
    OneProduct,
    WholeProduct,
)
from hbpcompiler.compiler.routes.site import (
    COLUMNS,
    DIAGONAL_FORM,
    MATRIX,
    NEVER,
    NOTHING,
    TIED_ROWS,
    Route,
    Site,
    Use,
)
from hbpcompiler.compiler.routes.sliding import SlidingInputFactor
from hbpcompiler.compiler.routes.tied_rows import RowsOfBoth

ROUTES: tuple[Route, ...] = (
    NativeSum(), OneProduct(), ClosedForm(), RowsByIndex(), InnerByIndex(), RowsOfBoth(), GramNorm(), GramDiagonal(),
    SquaresByPairs(), SquaresByRows(), ChunkedProduct(), NativeProduct(), WholeProduct(), ColumnFactor(), InputFactor(),
    ReducedFactor(), ReducedInputFactor(), HalfColumnFactor(), HalfInputFactor(), SlidingInputFactor(),
    CorrelatedInputFactor(),
    DiagonalForm(), MatrixForm(), PairsOfPositions(), PartsOfProduct(), OperandFirst(), ProductFirst(),
    OntoSum(OperandFirst()), OntoSum(ProductFirst()),
    SumOfColumns(), NativeSumOfColumns(), Kept(),
    TurnedBefore(lambda site, kinds: choose(site, kinds)), TurnedAfter(), NativeTurnedAfter(),
    Eigenbasis(lambda site, kinds: choose(site, kinds)),
)


MOST_ROUTES = 6
"""No set of closings needs more routes than this at one site."""


@dataclass(frozen=True)
class Choice:
    """A route and the closings it was chosen for."""

    route: Route
    kinds: frozenset[str]
    cost: Cost


def kinds_of(choices: Iterable[Choice]) -> frozenset[str]:
    """All closings that they were chosen for."""
    return frozenset().union(*(choice.kinds for choice in choices))


def covers(site: Site, kinds: frozenset[str]) -> Iterator[tuple[Choice, ...]]:
    """All sets of routes that give all closings, none idle: a product made for one closing serves the others."""
    closes = {route: found for route in ROUTES if route.applies(site) and (found := route.closes(site)) & kinds}
    known: dict[tuple[Route, frozenset[str]], Choice] = {}

    def choice(route: Route, taken: frozenset[str]) -> Choice:
        if (route, taken) not in known:
            known[route, taken] = Choice(route, taken, route.cost(site, taken))
        return known[route, taken]

    for count in range(1, min(MOST_ROUTES, len(closes)) + 1):
        for routes in itertools.combinations(closes, count):
            left, chosen = set(kinds), list[tuple[Route, frozenset[str]]]()
            for route in routes:
                taken = frozenset(left & closes[route])
                left -= taken
                if taken:
                    chosen.append((route, taken))
            if not left and len(chosen) == count:
                yield tuple(choice(route, taken) for route, taken in chosen)


def choose(site: Site, kinds: frozenset[str]) -> tuple[Choice, ...]:
    """The cheapest set of routes that gives all closings and keeps to the memory for temporaries, if one does."""
    cheapest = decided("routes", lambda: _chosen(site, kinds))
    if not are_followed():
        return cheapest
    with apart():
        return tuple(_again(site, choice) for choice in cheapest)


def _again(site: Site, choice: Choice) -> Choice:
    """A choice that was made at another length. Raises OtherDecisionsError where the route cannot serve this one."""
    route, kinds = choice.route, choice.kinds
    if not (route.serves(site) and kinds <= route.closes(site)):
        raise OtherDecisionsError(f"the route '{route.name}' cannot serve every length")
    return Choice(route, kinds, route.cost(site, kinds))


@lru_cache(maxsize=4096)  # layers that are alike, and drafts under a memory budget, ask again
def _chosen(site: Site, kinds: frozenset[str]) -> tuple[Choice, ...]:
    times: dict[int, float] = {}  # of a route and what it closes: in many sets at once, and compared by none
    best: tuple[tuple[float, float], tuple[Choice, ...]] | None = None
    for choices in covers(site, kinds):
        for choice in choices:
            if id(choice) not in times:
                times[id(choice)] = seconds(site, [choice])
        total = sum(times[id(choice)] for choice in choices)
        if total < float("inf") and (best is None or (excess(site, choices), total) < best[0]):
            best = (excess(site, choices), total), choices
    assert best is not None, f"no route closes {sorted(kinds)} of {site}"
    return best[1]


def alternatives(site: Site, choices: Sequence[Choice]) -> list[Choice]:
    """Routes that were not taken, each with all the closings that it could have given."""
    kinds = kinds_of(choices)
    taken = {(choice.route.name, choice.kinds) for choice in choices}
    found = []
    for route in ROUTES:
        could = route.closes(site) & kinds if route.applies(site) else frozenset()
        if could and (route.name, could) not in taken:
            found.append(Choice(route, could, route.cost(site, could)))
    return found


def seconds(site: Site, choices: Iterable[Choice], batch: int | None = None) -> float:
    """What they are taken to cost together, at the batch size that routes are compared at, or at this one."""
    machine, limits = site.resources.machine, site.resources.limits
    batch, times = batch or site.samples or limits.typical_batch, dict(limits.route_times)
    return sum(times.get(choice.route.name, 1) * choice.cost.seconds(batch, machine) for choice in choices)


def excess(site: Site, choices: Iterable[Choice]) -> float:
    """Bytes of temporaries beyond what is allowed; a chunk and what is made of it may take as much each."""
    if site.resources.temporaries is None:
        return 0.0
    memory = max(number(choice.cost.memory, site.samples or site.resources.batch) for choice in choices)
    return max(0.0, memory - 2 * site.resources.temporaries)


__all__ = ["COLUMNS", "DIAGONAL_FORM", "MATRIX", "NEVER", "NOTHING", "ROUTES", "TIED_ROWS", "Choice", "Route", "Site",
           "Use", "alternatives", "choose", "covers", "excess", "kinds_of", "seconds"]
