"""The route of few positions: a squared sum over positions is a sum over their pairs, for all samples one product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.program.writer import Part
from hbpcompiler.compiler.routes.building_blocks import columns_of, einsum, is_plain, operand_of, weights_of
from hbpcompiler.compiler.routes.site import COLUMNS, SQUARES, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.rule.idioms import products_of_pairs


class SquaresByPairs(Route):
    """(sum_p a_p u_p)^2 = sum_{p <= q} (2 - [p = q]) a_p a_q u_p u_q: no sample's product is formed.

    Where a convolution has many channels and few pixels, the product of each sample is all that costs, in memory.
    """

    name = "pairs of positions"
    kinds = SQUARES
    limits: tuple[str, ...] = ("recycled_bytes",)

    def applies(self, site: Site) -> bool:
        return self.serves(site) and site.size("p") <= site.resources.limits.pair_positions

    def serves(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand and is_plain(site) and site.size("p") > 1

    @staticmethod
    def _pairs(site: Site) -> int:
        return site.size("p") * (site.size("p") + 1) // 2

    def _each(self, site: Site) -> int:
        """Bytes of one sample's pairs."""
        return self._pairs(site) * (site.columns * site.size(site.outer) + site.size(site.features)) * site.itemsize

    def _chunk(self, site: Site) -> int:
        room = site.resources.limits.recycled_bytes
        if site.resources.temporaries is not None:
            room = min(room, site.resources.temporaries)
        return decided("chunk", lambda: max(1, int(room // self._each(site))))

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        pairs, size, each = self._pairs(site), site.size(site.theta), self._each(site)
        chunk = self._chunk(site)
        traffic = N * 4 * each * len(kinds) + 2 * size * site.itemsize * (1 + N / chunk) * len(kinds)
        calls = (3 + 3 * site.size("p")) * (1 + N / chunk)
        return Cost(N * pairs * size * len(kinds), traffic, chunk * 2 * each, calls)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters

        def body(part: Part) -> None:
            columns, operand = columns_of(use, part.op, part["columns"]), operand_of(use, part.op)
            columns = columns if left == f"nkp{site.outer}" else columns.mT
            operand = operand if right == f"np{site.features}" else operand.mT
            met = products_of_pairs(operand, True).flatten(0, 1)  # [n pairs, i]
            own = products_of_pairs(columns, False)  # [n, k, pairs, o]
            for kind in sorted(kinds):
                weights = weights_of(site, part["signs"], kind)
                if isinstance(weights, int):
                    continue
                if weights is not None:
                    pairs = einsum("nk,nkqo->nqo", weights, own).flatten(0, 1)
                else:
                    pairs = own.sum(1).flatten(0, 1) if site.columns > 1 else own.flatten(0, 2)
                first, second = (met, pairs) if site.inputs_first else (pairs, met)
                part.totals[kind].addmm_(first.t(), second)

        found = use.writer.loop(body, op=use.op, sliced={"columns": use.stream, "signs": use.signs},
                                chunk=self._chunk(site), totals=dict.fromkeys(sorted(kinds), site.shape))
        # What is no less than zero stays so, whatever was rounded.
        return found if site.signed else {kind: total.clamp_(min=0) for kind, total in found.items()}
