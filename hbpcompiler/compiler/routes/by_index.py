"""Routes of an operand whose rows are unit vectors, as an embedding's: rows of the parameter by their index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.program.grams import add_products_by_index_
from hbpcompiler.compiler.routes.building_blocks import columns_of, weights_of
from hbpcompiler.compiler.routes.site import COLUMNS, INNER, SQUARES, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import CROSS, NORM
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
        columns, index = _rows(site, columns_of(use)), _index(site, use)
        found: dict[str, Any] = {}
        for kind in sorted(kinds & SQUARES):
            weights = weights_of(site, use.signs, kind)
            if not isinstance(weights, int):
                found[kind] = squares_by_index(columns, index, site.size(site.features), weights)
        if NORM in kinds:
            found[NORM] = sums_of_equal(columns, index).square().flatten(1).sum(1)
        return found


class InnerByIndex(Route):
    """Inner products of columns: rows meet where their indices are equal, whatever the length of the parameter."""

    name = "inner products by index"
    kinds = INNER
    limits: tuple[str, ...] = ("cache_bytes",)

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.indexed

    def _numbers(self, site: Site) -> int:
        """Of the others' rows, once for each sample that they meet."""
        cache, allowed = site.resources.limits.cache_bytes, site.resources.temporaries
        return max(1, (cache if allowed is None else min(cache, allowed)) // site.itemsize)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        positions, row = site.size("p") if site.has_positions else 1, site.size(site.letters[0])
        adds, met, calls = 0, 0, 0
        for kind in kinds:
            others = 1 if kind == CROSS else site.columns
            pairs = N**2 if kind == CROSS else N**2 / 2
            adds += pairs * others * row * (positions + site.columns)
            met += pairs * others * row
            calls += 8 * (1 + pairs * others * row / self._numbers(site))
        temporary = (self._numbers(site) + N * site.columns * row) * site.itemsize
        return Cost(adds, 3 * met * site.itemsize, temporary, calls)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        columns, index = _rows(site, columns_of(use)), _index(site, use)
        found: dict[str, Any] = {}
        for kind in sorted(kinds):
            other = _rows(site, columns_of(use, columns=use.other)) if kind == CROSS else None
            found[kind] = add_products_by_index_(use.totals[kind], columns, other, index, self._numbers(site))
        return found


def _rows(site: Site, columns: Any) -> Any:
    """[N, K, p, d], of one position where there is none."""
    return columns if site.has_positions else columns.unsqueeze(2)


def _index(site: Site, use: Use) -> Any:
    """[N, p]."""
    assert use.contraction.index is not None
    index = use.contraction.index(use.op)
    return index if site.has_positions else index.unsqueeze(1)
