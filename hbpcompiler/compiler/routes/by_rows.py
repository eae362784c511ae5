"""The route of products larger than the cache: a block of a parameter's rows for all samples, then the next block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hbpcompiler.compiler.cost.figures import Cost, chunk_length
from hbpcompiler.compiler.program.products import add_products_
from hbpcompiler.compiler.program.writer import ALL, Part
from hbpcompiler.compiler.routes.building_blocks import columns_of, is_plain, operand_of, traffic_of
from hbpcompiler.compiler.routes.site import COLUMNS, NEVER, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import DIAGONAL, SUM


class SquaresByRows(Route):
    """Per-sample products, a block of rows for all samples at a time: a product stays in cache.

    Sample by sample the totals of a large parameter would go through memory once for each sample; a block's come from
    the next larger cache. Smaller blocks, whose totals had room beside the product, took longer: a product of few
    positions is short work, which threads share badly.
    """

    name = "products by blocks of rows"
    kinds = frozenset({SUM, DIAGONAL})
    limits: tuple[str, ...] = ("cache_bytes", "squaring_speedup")

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand and is_plain(site) and site.columns == 1 and not site.signed

    def _block(self, site: Site) -> int:
        """Rows."""
        return max(1, site.resources.limits.cache_bytes // (site.row * site.itemsize))

    def _made(self, site: Site) -> int:
        """Bytes of a sample's operand, where it is made here."""
        return site.size(site.letters[1]) * site.itemsize if site.formed else 0

    def _chunk(self, site: Site) -> int:
        """Samples whose operand is made at a time; all, where it is there: each further turn takes the totals through
        memory once more."""
        made = self._made(site)
        return chunk_length(made, site.resources) if made else ALL

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        if DIAGONAL not in kinds:
            return NEVER
        block, size = self._block(site), site.size(site.theta) * site.itemsize
        chunk = self._chunk(site)
        # Of each sample's product: made, squared and added to what is in cache.
        in_cache = N * size / (2 * site.resources.limits.squaring_speedup)
        totals = 2 * len(kinds) * size * (1 + N / chunk)
        memory = 2 * chunk * self._made(site) + block * site.row * site.itemsize
        blocks = math.ceil(site.shape[0] / block)
        return Cost(N * site.product, traffic_of(site, 1, False) + in_cache + totals, memory, N * blocks + N / chunk)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters

        def body(part: Part) -> None:
            assert part.op is not None
            columns, operand = columns_of(use, part.op, part["columns"]).squeeze(1), operand_of(use, part.op)
            columns = columns if left.endswith("p") else columns.mT
            operand = operand if right.endswith("p") else operand.mT
            first, second = (operand, columns) if site.inputs_first else (columns, operand)
            add_products_(part.totals[DIAGONAL], part.totals.get(SUM), first, second, self._block(site))

        totals = dict.fromkeys([DIAGONAL, *sorted(kinds - {DIAGONAL})], site.shape)
        return use.writer.loop(body, op=use.op, sliced={"columns": use.stream}, chunk=self._chunk(site), totals=totals)
