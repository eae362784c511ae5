"""The route of an operand whose rows are unit vectors, as an embedding's: rows of the parameter by their index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.routes.site import COLUMNS, SQUARES, Route, Site, Use, columns_of, weights_of
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import NORM
from hbpcompiler.rule.idioms import squares_by_index, sums_of_equal


class RowsByIndex(Route):
    """Positions of one sample that have one index are added up first; then every row is alone."""

    name = "rows by index"
    kinds = frozenset({NORM, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.indexed

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        positions = site.size("p") if site.has_positions else 1
        columns = site.columns * site.size(site.letters[0])
        traffic = N * site.itemsize * (4 * columns + 2 * positions**2)
        written = site.size(site.theta) * site.itemsize
        return Cost(N * positions * columns, traffic + 2 * written * len(kinds & SQUARES), traffic / 2, 10)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        assert use.contraction.index is not None
        columns, index = columns_of(use), use.contraction.index(use.op)
        if not site.has_positions:
            columns, index = columns.unsqueeze(2), index.unsqueeze(1)
        found: dict[str, Any] = {}
        for kind in sorted(kinds & SQUARES):
            weights = weights_of(site, use.signs, kind)
            if not isinstance(weights, int):
                found[kind] = squares_by_index(columns, index, site.size(site.features), weights)
        if NORM in kinds:
            found[NORM] = sums_of_equal(columns, index).square().flatten(1).sum(1)
        return found
