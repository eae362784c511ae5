"""Routes over columns that form the product of columns and operand whole, or its squares in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.routes.building_blocks import (
    columns_of,
    einsum,
    operand_of,
    product_of,
    product_traffic,
    square_sums,
    squared_norms,
    sum_out,
    traffic_of,
)
from hbpcompiler.compiler.routes.histograms import add_histograms
from hbpcompiler.compiler.routes.inner import added_gram, cost_of_gram
from hbpcompiler.compiler.routes.site import COLUMNS, INNER, NEVER, SQUARES, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import (
    BATCH_DIAGONAL,
    DIAGONAL,
    EACH,
    FACTOR,
    HISTOGRAMS,
    NORM,
    REDUCED_FACTOR,
    SUM,
    VECTORS,
)


class NativeSum(Route):
    """torch's own kernel for the summed gradient, where the rule names one."""

    name = "native kernel"
    kinds = frozenset({SUM})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.native_sum and site.columns == 1

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        limits = site.resources.limits
        read, written = site.size(site.letters[0]), site.size(site.theta)
        adds, rearranged = N * site.product, limits.rearranged_passes * written if site.formed else 0
        traffic = (N * read + rearranged) * site.itemsize
        if site.own_product:
            traffic += adds * site.size(site.features) / limits.taps_per_byte
        return Cost(adds, traffic, written * site.itemsize, kernel=adds)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        assert use.contraction.kernel is not None
        return {SUM: use.contraction.kernel(use.op, use.stream.squeeze(1))}


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
    kinds = frozenset({SUM, EACH, NORM, FACTOR, REDUCED_FACTOR, BATCH_DIAGONAL, VECTORS, *HISTOGRAMS, *INNER, *SQUARES})
    reads_pixels = True

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS

    def closes(self, site: Site) -> frozenset[str]:
        # A weight's factor is no full block; what meets no input features has nothing but its block.
        return self.kinds - {FACTOR, REDUCED_FACTOR} if site.features else self.kinds

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        size = (site.samples or 0) * site.columns * site.size(site.theta) * site.itemsize
        # Inside a chunk loop it is formed at once if it and its square are no more than what is recycled.
        fits = site.samples is not None and 2 * size <= site.resources.limits.recycled_bytes
        small = bool(kinds & {EACH, VECTORS}) or fits or site.size(site.theta) <= site.size(site.letters[0])
        if not small:
            return NEVER  # memory would grow with N times the parameter's size
        size = N * site.columns * site.size(site.theta) * site.itemsize
        extra = N * site.columns * site.size(site.theta) ** 2 if kinds & {FACTOR, REDUCED_FACTOR} else 0
        adds = N * site.columns * site.product
        extra += cost_of_gram(site, kinds)
        # Where norms alone are asked of a product that stays, it is read once; its squares are made nowhere.
        unread = size if kinds <= {EACH, NORM} and site.row >= site.resources.limits.row_numbers else 0
        return Cost(adds + extra, product_traffic(site, site.columns, True) - unread, 2 * size, 2, adds)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        product = product_of(site, use)
        theta = site.theta
        results: dict[str, Any] = {}
        if SUM in kinds:
            results[SUM] = product.sum((0, 1))
        results |= add_histograms(use, product, use.totals, kinds & HISTOGRAMS)
        if EACH in kinds:
            results[EACH] = product.squeeze(1)
        if VECTORS in kinds:
            results[VECTORS] = product
        for kind in sorted(kinds & INNER):
            results[kind] = added_gram(use.writer, use.totals[kind], product, kind,
                                       lambda: product_of(site, use, columns=use.other))
        for kind in sorted(kinds & {FACTOR, REDUCED_FACTOR}):
            flat = product.flatten(2) if len(theta) > 1 else product
            weighted = flat if not site.signed else flat * use.signs.unsqueeze(2)
            results[kind] = einsum("nka,nkb->ab", weighted, flat)
        if kinds & {BATCH_DIAGONAL, *SQUARES}:
            squares = product.square()
            if BATCH_DIAGONAL in kinds:
                sums = square_sums(site, squares, "nk" + theta, use.signs, {DIAGONAL}, "n" + theta)
                results[BATCH_DIAGONAL] = sums[DIAGONAL]
            results |= square_sums(site, squares, "nk" + theta, use.signs, kinds & SQUARES, theta)
        if NORM in kinds:
            results[NORM] = squared_norms(site, product)
        return results


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
            shared = site.shared
            ours = einsum(f"{left}->n{shared}", columns)
            theirs = einsum(f"{right}->n{shared}", operand)
            results[NORM] = (ours * theirs).flatten(1).sum(1) if shared else ours * theirs
        return results
