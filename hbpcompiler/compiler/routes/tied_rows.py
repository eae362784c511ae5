"""The route of a parameter that is looked up by an index and multiplied with as well: a language model's embedding and
its head.

T = E + H: at position p the looked-up rows E have row `index` [n, p], the product H[v, d] = sum_q columns_q,v U_q,d has
all. |T|^2 is |H|^2, which its own use gives, and E (2 H + E) at the rows of E alone: neither E, one-hot vectors, nor a
sample's H is formed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.program.writer import otherwise_named
from hbpcompiler.compiler.routes.building_blocks import einsum, weights_of
from hbpcompiler.compiler.routes.site import SQUARES, TIED_ROWS, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import NORM
from hbpcompiler.rule.idioms import rows_of_products, sums_of_equal


class RowsOfBoth(Route):
    """Of squares it gives what each looked-up row [n, p, d] adds to them, of norms what it adds to its sample's."""

    name = "rows of both uses"
    kinds = frozenset({NORM, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == TIED_ROWS

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        rows = N * site.columns * site.size("p")
        adds = rows * (site.size("p") + site.size("q")) * site.size(site.letters[0].replace("p", ""))
        traffic = 6 * rows * (site.size("q") + site.size(site.letters[0].replace("p", ""))) * site.itemsize
        return Cost(adds, traffic, traffic / 2, 16)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        own = otherwise_named(sums_of_equal(use.stream, use.op.places), "rows_of_")
        product = rows_of_products(use.op.multiplied, use.op.operand, use.op.places)
        rows = otherwise_named(own * (2 * otherwise_named(product, "rows_of_product_of_") + own),
                               "added_to_squares_of_")
        found: dict[str, Any] = {NORM: rows.flatten(1).sum(1)} if NORM in kinds else {}
        for kind in sorted(kinds & SQUARES):
            weights = weights_of(site, use.signs, kind)
            if not isinstance(weights, int):
                found[kind] = rows.sum(1) if weights is None else einsum("nk,nkpd->npd", weights, rows)
        return found
