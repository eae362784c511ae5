"""Routes over columns that form the product in chunks, squared and summed while it is in cache."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Cost, chunk_length
from hbpcompiler.compiler.program.writer import Part
from hbpcompiler.compiler.routes.building_blocks import (
    columns_of,
    is_plain,
    operand_of,
    product_of,
    product_traffic,
    single_product,
    square_sums,
    squared_norms,
)
from hbpcompiler.compiler.routes.histograms import add_histograms
from hbpcompiler.compiler.routes.site import COLUMNS, SQUARES, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import BATCH_DIAGONAL, DIAGONAL, EACH, HISTOGRAMS, NORM, POSITIVE, SUM
from hbpcompiler.rule import Op

PER_SAMPLE = frozenset({EACH, NORM, BATCH_DIAGONAL})
"""Closings that keep the samples apart."""


class ChunkedProduct(Route):
    """Per-sample products in cache-sized chunks, squared and summed while they are in cache."""

    name = "chunked product"
    kinds = frozenset({SUM, NORM, BATCH_DIAGONAL, *HISTOGRAMS, *SQUARES})
    limits: tuple[str, ...] = ("cache_bytes", "one_by_one_bytes", "squaring_speedup")
    reads_pixels = True

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand

    def chunks(self, site: Site) -> tuple[int, int]:
        """Samples per chunk, columns per chunk."""
        each = site.size(site.theta) * site.itemsize
        samples = chunk_length(each * site.columns, site.resources)
        if samples > 1:
            return samples, site.columns
        return 1, _columns_at_once(site, each)

    def product(self, site: Site, use: Use, op: Op, columns: Any) -> Any:
        """[n, k, *theta] of a chunk."""
        if self.chunks(site)[0] > 1 or not site.has_positions or site.own_product:
            return product_of(site, use, op, columns)
        return single_product(site, columns_of(use, op, columns), operand_of(use, op), self.chunks(site)[1] == 1)

    def turns(self, site: Site, kinds: frozenset[str]) -> bool:
        """Whether columns that lie pixel by pixel are multiplied one by one as they are, operand first: [in, out]."""
        one_by_one = self.chunks(site) == (1, 1) and site.columns > 1 and not kinds & PER_SAMPLE
        is_image = is_plain(site) and site.letters[0].endswith("p") and not site.inputs_first
        return one_by_one and not site.signed and is_image

    def turned(self, site: Site, use: Use, op: Op, columns: Any) -> Any:
        """[in, out] of one column of one sample."""
        operand = operand_of(use, op).squeeze(0)
        operand = operand if site.letters[1].endswith("p") else operand.t()
        return operand @ columns_of(use, op, columns).flatten(0, 2).t()

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        samples, columns = self.chunks(site)
        inner = math.ceil(site.columns / columns)
        calls = (1 + N / samples) * (2 + 4 * inner)
        memory = samples * columns * site.size(site.theta) * site.itemsize
        # In cache, writing and reading the product costs a fraction of what it costs in memory.
        in_cache = N * site.itemsize * site.columns * site.size(site.theta) / site.resources.limits.squaring_speedup
        traffic = product_traffic(site, site.columns, False) + in_cache
        adds = N * site.columns * site.product
        return Cost(adds, traffic, 2 * memory, calls, adds if samples > 1 else 0)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        samples, columns = self.chunks(site)
        across = use.by_pixels and self.turns(site, kinds)
        totals: dict[str, Any] = dict.fromkeys(sorted(kinds - PER_SAMPLE), site.shape[::-1] if across else site.shape)
        totals.update({kind: use.totals[kind] for kind in kinds & HISTOGRAMS})
        rows = {kind: () if kind == NORM else site.shape for kind in sorted(kinds & PER_SAMPLE)}
        body = _Body(self, site, use, kinds, samples, columns, across)
        found = use.writer.loop(body.of_samples, op=use.op, sliced={"columns": use.stream, "signs": use.signs},
                                chunk=samples, totals=totals, rows=rows)
        return {kind: total.t().contiguous() for kind, total in found.items()} if across else found


@dataclass(frozen=True)
class _Body:
    """What a turn does: of the loop over samples, and of that over columns within it."""

    route: ChunkedProduct
    site: Site
    use: Use
    kinds: frozenset[str]
    samples: int
    columns: int
    across: bool
    """Whether products are [in, out], see `turns`."""

    def of_samples(self, part: Part) -> None:
        """With all columns at once, or in a loop over them."""
        if self.columns == self.site.columns:
            self._at_once(part)
        else:
            self._over_columns(part)

    def _at_once(self, part: Part) -> None:
        assert part.op is not None
        kinds = self.kinds
        product = self.route.product(self.site, self.use, part.op, part["columns"])
        self._add(part, product, part.totals, self.samples == 1 and self.site.columns == 1)
        add_histograms(self.use, product, part.totals, kinds & HISTOGRAMS, part.outer)
        if EACH in kinds:
            part.rows[EACH].copy_(product.squeeze(1))
        if NORM in kinds:
            part.rows[NORM].copy_(squared_norms(self.site, product, alone=kinds == frozenset({NORM})))
        if BATCH_DIAGONAL in kinds:
            part.rows[BATCH_DIAGONAL].copy_(self._squares(part, product))

    def _over_columns(self, part: Part) -> None:
        if BATCH_DIAGONAL in self.kinds:
            part.rows[BATCH_DIAGONAL].zero_()

        def inner(piece: Part) -> None:
            assert part.op is not None
            op = part.op.bound_again(lambda tensor, _: piece.outer(tensor))
            form = self.route.turned if self.across else self.route.product
            product = form(self.site, self.use, op, piece["columns"])
            totals = {kind: piece.outer(total) for kind, total in part.totals.items()}
            self._add(piece, product, totals, self.columns == 1)
            if BATCH_DIAGONAL in self.kinds:
                piece.outer(part.rows[BATCH_DIAGONAL]).add_(self._squares(piece, product))

        part.writer.loop(inner, op=None, sliced={"columns": part["columns"], "signs": part["signs"]},
                         chunk=self.columns, totals={}, axis=1)

    def _add(self, part: Part, product: Any, into: Mapping[str, Any], single: bool) -> None:
        """A chunk's products to the totals; `single`: there is but one, of one column of one sample."""
        site, kinds, theta = self.site, self.kinds, self.site.theta
        if single and not site.signed:
            # One sample, one column: square and add in a single pass over the cache.
            one = product if self.across else product.flatten(0, 1).squeeze(0)
            if SUM in kinds:
                into[SUM].add_(one)
            for kind in sorted(kinds & {DIAGONAL, POSITIVE}):
                into[kind].addcmul_(one, one)
            return
        if SUM in kinds:
            into[SUM].add_(product.sum((0, 1)))
        if kinds & SQUARES:
            sums = square_sums(site, product.square(), "nk" + theta, part["signs"], kinds & SQUARES, theta)
            for kind, value in sums.items():
                into[kind].add_(value)

    def _squares(self, part: Part, product: Any) -> Any:
        """[n, *theta]: each sample's own."""
        theta = self.site.theta
        sums = square_sums(self.site, product.square(), "nk" + theta, part["signs"], {DIAGONAL}, "n" + theta)
        return sums[DIAGONAL]


class NativeProduct(ChunkedProduct):
    """torch's own kernel for one sample's products, where the rule names one: no operand is formed."""

    name = "native kernel per sample"
    kinds = frozenset({SUM, EACH, NORM, BATCH_DIAGONAL, *HISTOGRAMS, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.native_columns

    def closes(self, site: Site) -> frozenset[str]:
        return self.kinds if site.columns == 1 else self.kinds - {EACH}

    def chunks(self, site: Site) -> tuple[int, int]:
        return 1, _columns_at_once(site, site.size(site.theta) * site.itemsize)

    def turns(self, site: Site, kinds: frozenset[str]) -> bool:
        return False

    def product(self, site: Site, use: Use, op: Op, columns: Any) -> Any:
        return use.contraction.of_sample(op, use.slot, columns).reshape(1, -1, *site.shape)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        found = super().cost(replace(site, formed=False, own_product=False), kinds)
        written = N * site.itemsize * site.size(site.theta) if EACH in kinds else 0
        return replace(found, traffic=found.traffic + 2 * written, batched=0, kernel=found.multiply_adds)


def _columns_at_once(site: Site, each: int) -> int:
    """Columns per chunk of one sample, whose products have so many bytes each."""
    if decided("one by one", lambda: each >= site.resources.limits.one_by_one_bytes and not site.signed):
        return 1
    some = chunk_length(each, site.resources)
    return some if decided("some columns", lambda: some < site.columns) else site.columns
