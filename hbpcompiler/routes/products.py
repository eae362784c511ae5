"""Routes over columns that form the product of columns and operand, whole, in chunks, or squared in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hbpcompiler.cost import Cost, chunk_length
from hbpcompiler.graph import N
from hbpcompiler.quantities import (
    BATCH_DIAGONAL,
    DIAGONAL,
    DOT,
    EACH,
    FACTOR,
    NORM,
    POSITIVE,
    REDUCED_FACTOR,
    SUM,
    VECTORS,
)
from hbpcompiler.routes.site import (
    COLUMNS,
    NEVER,
    SQUARES,
    Route,
    Site,
    Use,
    columns_of,
    einsum,
    operand_of,
    product_of,
    single_product,
    square_sums,
    sum_out,
    traffic_of,
)
from hbpcompiler.writer import Part

WHOLE_BYTES = 2**23
"""Inside a chunk loop a product this big is formed at once."""


class NativeSum(Route):
    """torch's own kernel for the summed gradient, where the rule names one."""

    name = "native kernel"
    kinds = frozenset({SUM})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.native_sum and site.columns == 1

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        read, written = site.size(site.letters[0]), site.size(site.theta)
        return Cost(N * site.product, N * site.itemsize * read, written * site.itemsize)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        assert use.contraction.summed is not None
        return {SUM: use.contraction.summed(use.op, use.stream.squeeze(1))}


class OneProduct(Route):
    """The sum over samples inside one einsum."""

    name = "one product"
    kinds = frozenset({SUM})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.columns == 1

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        return Cost(N * site.product, 2 * traffic_of(site, 1, product=False), site.size(site.theta) * site.itemsize)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        columns = columns_of(use).squeeze(1)
        left, right, _ = site.letters
        if not site.has_operand:
            return {SUM: sum_out(columns, left.replace("k", ""), site.theta)}
        return {SUM: einsum(f"{left.replace('k', '')},{right}->{site.theta}", columns, operand_of(use))}


class WholeProduct(Route):
    """The product for all samples and columns at once, everything read off it."""

    name = "batched product"
    kinds = frozenset({SUM, EACH, NORM, FACTOR, REDUCED_FACTOR, BATCH_DIAGONAL, VECTORS, DOT, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS

    def closes(self, site: Site) -> frozenset[str]:
        # A weight's factor is no full block; what meets no input features has nothing but its block.
        return self.kinds - {FACTOR, REDUCED_FACTOR} if site.features else self.kinds

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        size = (site.samples or 0) * site.columns * site.size(site.theta) * site.itemsize
        fits = site.samples is not None and size <= WHOLE_BYTES
        small = bool(kinds & {EACH, VECTORS, DOT}) or fits or site.size(site.theta) <= site.size(site.letters[0])
        if not small:
            return NEVER  # memory would grow with N times the parameter's size
        size = N * site.columns * site.size(site.theta) * site.itemsize
        extra = N * site.columns * site.size(site.theta) ** 2 if kinds & {FACTOR, REDUCED_FACTOR} else 0
        adds = N * site.columns * site.product
        return Cost(adds + extra, traffic_of(site, site.columns, True), 2 * size, 2, adds)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        product = product_of(site, use)
        theta = site.theta
        results: dict[str, Any] = {}
        if SUM in kinds:
            results[SUM] = product.sum((0, 1))
        if EACH in kinds:
            results[EACH] = product.squeeze(1)
        if VECTORS in kinds:
            results[VECTORS] = product
        if DOT in kinds:
            flat = product.flatten(1)
            results[DOT] = flat @ flat.t()
        for kind in sorted(kinds & {FACTOR, REDUCED_FACTOR}):
            flat = product.flatten(2) if len(theta) > 1 else product
            weighted = flat if not site.signed else flat * use.signs.unsqueeze(2)
            results[kind] = einsum("nka,nkb->ab", weighted, flat)
        if kinds & {NORM, BATCH_DIAGONAL, *SQUARES}:
            squares = product.square()
            if BATCH_DIAGONAL in kinds:
                sums = square_sums(site, squares, "nk" + theta, use.signs, {DIAGONAL}, "n" + theta)
                results[BATCH_DIAGONAL] = sums[DIAGONAL]
            results |= square_sums(site, squares, "nk" + theta, use.signs, kinds & SQUARES, theta)
            if NORM in kinds:
                results[NORM] = squares.flatten(1).sum(1)
        return results


class ChunkedProduct(Route):
    """Per-sample products in cache-sized chunks, squared and summed while they are in cache."""

    name = "chunked product"
    kinds = frozenset({SUM, NORM, BATCH_DIAGONAL, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand

    def _chunks(self, site: Site) -> tuple[int, int]:
        """Samples per chunk, columns per chunk."""
        each = site.size(site.theta) * site.itemsize
        samples = chunk_length(each * site.columns, site.resources)
        if samples > 1:
            return samples, site.columns
        return 1, min(site.columns, chunk_length(each, site.resources))

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        samples, columns = self._chunks(site)
        inner = math.ceil(site.columns / columns)
        calls = (1 + N / samples) * (2 + 4 * inner)
        memory = samples * columns * site.size(site.theta) * site.itemsize
        # In cache, writing and reading the product costs a fraction of what it costs in memory.
        in_cache = N * site.itemsize * site.columns * site.size(site.theta) / 1.5
        traffic = traffic_of(site, site.columns, False) + in_cache
        adds = N * site.columns * site.product
        return Cost(adds, traffic, 2 * memory, calls, adds if samples > 1 else 0)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        samples, columns = self._chunks(site)
        theta = site.theta
        totals = {kind: site.shape for kind in sorted(kinds) if kind not in (NORM, BATCH_DIAGONAL)}

        def add(part: Part, product: Any, into: Mapping[str, Any], single: bool) -> None:
            if single and not site.signed:
                # One sample, one column: square and add in a single pass over the cache.
                one = product.flatten(0, 1).squeeze(0)
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

        def add_each(part: Part, product: Any, rows: Mapping[str, Any]) -> None:
            if BATCH_DIAGONAL in kinds:
                sums = square_sums(site, product.square(), "nk" + theta, part["signs"], {DIAGONAL}, "n" + theta)
                rows[BATCH_DIAGONAL].add_(sums[DIAGONAL])

        def body(part: Part) -> None:
            if columns == site.columns:
                if samples == 1 and site.has_positions:
                    product = single_product(site, columns_of(use, part.op, part["columns"]), operand_of(use, part.op))
                else:
                    product = product_of(site, use, part.op, part["columns"])
                add(part, product, part.totals, samples == 1 and site.columns == 1)
                if NORM in kinds:
                    part.rows[NORM].copy_(product.square().flatten(1).sum(1))
                add_each(part, product, part.rows)
                return
            operand = operand_of(use, part.op)
            left = columns_of(use, part.op, part["columns"])

            def inner(piece: Part) -> None:
                product = single_product(site, piece["columns"], piece.outer(operand))
                add(piece, product, {kind: piece.outer(total) for kind, total in part.totals.items()}, False)
                add_each(piece, product, {kind: piece.outer(rows) for kind, rows in part.rows.items()})

            part.writer.loop(inner, op=None, sliced={"columns": left, "signs": part["signs"]}, chunk=columns,
                             totals={}, axis=1)

        rows = {kind: shape for kind, shape in ((NORM, ()), (BATCH_DIAGONAL, site.shape)) if kind in kinds}
        return use.writer.loop(body, op=use.op, sliced={"columns": use.stream, "signs": use.signs}, chunk=samples,
                               totals=totals, rows=rows)


class ClosedForm(Route):
    """Without positions a squared outer product is the outer product of squares."""

    name = "closed form"
    kinds = frozenset({NORM, BATCH_DIAGONAL, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand and not site.has_positions

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        columns, operand = (site.size(letters) for letters in site.letters[:2])
        traffic = 2 * N * site.itemsize * (2 * site.columns * columns + 2 * operand)
        return Cost(N * site.product if kinds & SQUARES else 0, traffic, traffic / 2, 4)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        own = left.replace("n", "").replace("k", "")
        columns, operand = columns_of(use).square(), operand_of(use).square()
        results: dict[str, Any] = {}
        sums = square_sums(site, columns, left, use.signs, kinds & SQUARES, "n" + own)
        for kind, value in sums.items():
            results[kind] = einsum(f"n{own},{right}->{site.theta}", value, operand)
        if BATCH_DIAGONAL in kinds:
            (value,) = square_sums(site, columns, left, use.signs, {DIAGONAL}, "n" + own).values()
            results[BATCH_DIAGONAL] = einsum(f"n{own},{right}->n{site.theta}", value, operand)
        if NORM in kinds:
            shared = "".join(letter for letter in own if letter in right)
            ours = einsum(f"{left}->n{shared}", columns)
            theirs = einsum(f"{right}->n{shared}", operand)
            results[NORM] = (ours * theirs).flatten(1).sum(1) if shared else ours * theirs
        return results
