"""Routes that take inner products between positions first, and so never form a product per column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbpcompiler.compiler.cost.figures import Cost, chunk_length
from hbpcompiler.compiler.program.writer import Part
from hbpcompiler.compiler.routes.building_blocks import (
    columns_of,
    einsum,
    operand_of,
    over_columns,
    traffic_of,
    weights_of,
)
from hbpcompiler.compiler.routes.site import COLUMNS, SQUARES, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import NORM


class GramDiagonal(Route):
    """Inner products of columns between positions first: no product per column."""

    name = "Gram over positions"
    kinds = SQUARES
    limits: tuple[str, ...] = ("cache_bytes", "recycled_bytes", "gram_passes")

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand and site.has_positions

    def _chunk(self, site: Site) -> int:
        positions = site.size("p")
        each = (positions**2 + positions * site.size(site.features)) * site.size(site.own) * site.itemsize
        return chunk_length(each, site.resources)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        positions, own, features = site.size("p"), site.size(site.own), site.size(site.features)
        gram, product = positions**2 * own, positions * own * features
        chunk = self._chunk(site)
        adds = N * (site.columns * gram + positions**2 * own * features + product) * len(kinds)
        # A temporary beyond the allocator's reach is paid for in page faults: measured, it costs three times as much.
        # Four of these are alive at once: einsum rearranges what it is given and what it makes.
        limits, temporaries = site.resources.limits, 4 * chunk * (gram + product) * site.itemsize
        passes = limits.gram_passes if temporaries <= limits.recycled_bytes else limits.gram_fresh_passes
        traffic = 2 * traffic_of(site, site.columns, False) + passes * N * site.itemsize * (gram + product) * len(kinds)
        return Cost(adds, traffic, chunk * (gram + product) * site.itemsize, 6 * (1 + N / chunk), adds)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        other_right = right.replace("p", "q")
        own = site.own
        between = f"n{own}pq"
        mixed = f"n{own}p{site.features}"
        plain = self._chunk(site) == 1 and len(own) == len(site.features) == 1 and not site.shared

        def body(part: Part) -> None:
            columns, operand = columns_of(use, part.op, part["columns"]), operand_of(use, part.op)
            for kind in sorted(kinds):
                weights = weights_of(site, part["signs"], kind)
                if isinstance(weights, int):
                    continue
                scaled = columns if weights is None else columns * over_columns(weights, left)
                gram = self._between(site, scaled, columns, plain)
                if plain:
                    # One sample: a matrix product, then the positions' sum over what is still in cache.
                    features = operand.squeeze(0) if right.endswith(site.features) else operand.squeeze(0).t()
                    half = (gram.flatten(0, 2) @ features).unflatten(0, (site.size(own), site.size("p")))
                    squares = (half * features).sum(1)
                    part.totals[kind].add_(squares.t() if site.inputs_first else squares)
                    continue
                half = einsum(f"{between},{other_right}->{mixed}", gram, operand)
                part.totals[kind].add_(einsum(f"{mixed},{right}->{site.theta}", half, operand))

        return use.writer.loop(body, op=use.op, sliced={"columns": use.stream, "signs": use.signs},
                               chunk=self._chunk(site), totals=dict.fromkeys(sorted(kinds), site.shape))

    def _between(self, site: Site, scaled: Any, columns: Any, lone: bool) -> Any:
        """Inner products of positions, [n, own, p, q], of columns with themselves (`scaled`: with their signs).

        Where the own letter lies behind the positions it is turned to the front at once: a batched product would copy
        both its operands one by one, number by number (`lone`: of one sample, for which torch turns blocks at a time).
        """
        left, _, _ = site.letters
        if left != f"nkp{site.own}" or len(site.own) != 1:
            return einsum(f"{left},{left.replace('p', 'q')}->n{site.own}pq", scaled, columns)
        first = _turned(site, scaled, lone)
        other = first if scaled is columns else _turned(site, columns, lone)
        return einsum(f"n{site.own}kp,n{site.own}kq->n{site.own}pq", first, other)


def _turned(site: Site, columns: Any, lone: bool) -> Any:
    """[n, k, p, o] -> [n, o, k, p] in order."""
    rows = columns.flatten(1, 2)
    turned = rows.squeeze(0).t().contiguous().unsqueeze(0) if lone else rows.transpose(1, 2).contiguous()
    return turned.unflatten(2, (-1, site.size("p")))


class GramNorm(Route):
    """Squared norms from inner products between positions: no per-sample gradient."""

    name = "Gram over positions"
    kinds = frozenset({NORM})
    limits: tuple[str, ...] = ("cache_bytes",)

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand and site.has_positions and site.columns == 1

    def _chunk(self, site: Site) -> int:
        return chunk_length(2 * site.size("p") ** 2 * site.itemsize, site.resources)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        positions = site.size("p")
        left, right, _ = site.letters
        chunk = self._chunk(site)
        adds = N * positions * (site.size(left) + site.size(right))
        return Cost(adds, traffic_of(site, 1, False) + N * site.itemsize * positions**2,
                    2 * chunk * positions**2 * site.itemsize, 5 * (1 + N / chunk), adds)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        own, shared = left.replace("k", ""), site.shared

        def body(part: Part) -> None:
            assert part.op is not None
            columns = columns_of(use, part.op, part["columns"]).squeeze(1)
            ours = einsum(f"{own},{own.replace('p', 'q')}->n{shared}pq", columns, columns)
            if site.indexed and use.contraction.index is not None:
                index = use.contraction.index(part.op)
                theirs = ((index.unsqueeze(1) == index.unsqueeze(2)) & (index >= 0).unsqueeze(1)).type_as(columns)
            else:
                operand = operand_of(use, part.op)
                theirs = einsum(f"{right},{right.replace('p', 'q')}->n{shared}pq", operand, operand)
            part.rows[NORM].copy_((ours * theirs).flatten(1).sum(1))

        return use.writer.loop(body, op=use.op, sliced={"columns": use.stream}, chunk=self._chunk(site), totals={},
                               rows={NORM: ()})
