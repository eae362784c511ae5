"""Routes between columns and vectors of parameters: projections V^T d, and sums V w of columns weighed before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hbpcompiler.compiler.cost.figures import Cost, chunk_length
from hbpcompiler.compiler.program.writer import Part, otherwise_named
from hbpcompiler.compiler.routes.building_blocks import columns_of, einsum, operand_of, product_of, sum_out, traffic_of
from hbpcompiler.compiler.routes.site import COLUMNS, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import ALONG, COLUMN_SUM, PROJECT
from hbpcompiler.rule import Op
from hbpcompiler.rule.idioms import rows_of_vectors

TANGENT = "_tangent"
"""Of an operand: what a layer's output changes by along a direction."""
PROJECTED = "projected_"
"""Of inner products of directions with T, whose name stands behind it."""


class OperandFirst(Route):
    """The operand meets the directions, as in a forward pass with them for weights; then the columns."""

    name = "operand onto directions"
    kinds = frozenset({PROJECT})
    limits: tuple[str, ...] = ("cache_bytes", "typical_vectors")

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS

    def _chunk(self, site: Site) -> int:
        """Samples at a time."""
        met = site.resources.limits.typical_vectors * site.size(site.letters[0])
        return chunk_length((met + _operand_numbers(site)) * site.itemsize, site.resources)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        left, right, _ = site.letters
        vectors = site.resources.limits.typical_vectors
        met = vectors * site.size(left)
        adds = N * ((vectors * site.product if right and not site.indexed else 0) + site.columns * met)
        chunk = self._chunk(site)
        memory = chunk * (met + _operand_numbers(site)) * site.itemsize
        return Cost(adds, traffic_of(site, site.columns, False), memory, 4 * (1 + N / chunk))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, result = site.letters
        f = next(letter for letter in "fqwxyzabc" if letter not in left + right)
        if not site.has_operand:
            columns = sum_out(columns_of(use), left, result)
            made = einsum(f"{result},{f}{site.theta}->nk{f}", columns, use.directions)
            return {PROJECT: _added(use, otherwise_named(made, PROJECTED))}
        met = f"n{f}{left[2:]}"

        def projected(columns: Any, op: Op | None, directions: Any) -> Any:
            if site.indexed and use.contraction.index is not None:
                first = rows_of_vectors(directions, use.contraction.index(op or use.op))
            else:
                met_by = einsum(f"{right},{f}{site.theta}->{met}", operand_of(use, op), directions)
                first = otherwise_named(met_by, TANGENT)
            return otherwise_named(einsum(f"{left},{met}->nk{f}", columns, first), PROJECTED)

        if not site.has_positions:
            return {PROJECT: _added(use, projected(columns_of(use), None, use.directions))}

        def body(part: Part) -> None:
            columns = columns_of(use, part.op, part["columns"])
            part.rows[PROJECT].add_(projected(columns, part.op, part.outer(use.directions)))

        return use.writer.loop(body, op=use.op, sliced={"columns": use.stream}, chunk=self._chunk(site), totals={},
                               rows={PROJECT: use.totals[PROJECT]})


def _added(use: Use, made: Any) -> Any:
    """To the total of several pieces, if there is one."""
    return use.totals[PROJECT].add_(made) if PROJECT in use.totals else made


def _operand_numbers(site: Site) -> int:
    """How many numbers are formed of the operand for a sample; of one by index none but its integers."""
    return site.size(site.letters[1].replace(site.features, "") if site.indexed else site.letters[1])


class ProductFirst(Route):
    """The parameter's own columns are formed for some samples at a time, and then meet the directions: positions are
    summed once, not for each direction."""

    name = "product onto directions"
    kinds = frozenset({PROJECT})
    limits: tuple[str, ...] = ("cache_bytes", "typical_vectors")

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand and site.has_positions

    def _chunk(self, site: Site) -> int:
        """Samples at a time."""
        return chunk_length(site.columns * site.size(site.theta) * site.itemsize, site.resources)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        size, chunk = site.size(site.theta), self._chunk(site)
        adds = N * site.columns * (site.product + site.resources.limits.typical_vectors * size)
        memory = chunk * (site.columns * size + site.size(site.letters[1])) * site.itemsize
        return Cost(adds, traffic_of(site, site.columns, False), memory, 4 * (1 + N / chunk))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        f = next(letter for letter in "fqwxyzabc" if letter not in site.theta)

        def body(part: Part) -> None:
            product = product_of(site, use, part.op, part["columns"])
            directions = part.outer(use.directions)
            made = einsum(f"nk{site.theta},{f}{site.theta}->nk{f}", product, directions)
            part.rows[PROJECT].add_(otherwise_named(made, PROJECTED))

        return use.writer.loop(body, op=use.op, sliced={"columns": use.stream}, chunk=self._chunk(site), totals={},
                               rows={PROJECT: use.totals[PROJECT]})


class OntoSum(Route):
    """Columns meet their own sum over the samples, by a route onto directions, of which it is the only one."""

    kinds = frozenset({ALONG})
    limits: tuple[str, ...] = ("cache_bytes",)

    def __init__(self, inner: Route) -> None:
        self.inner = inner
        self.name = inner.name.replace("directions", "own sum")

    def applies(self, site: Site) -> bool:
        return self.inner.applies(site)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        return self.inner.cost(_of_one_direction(site), self.inner.kinds)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        in_turns = site.has_operand and site.has_positions  # each turn adds to its samples' part
        totals = {PROJECT: otherwise_named(use.stream.new_zeros((use.batch, 1, 1)), "along_")} if in_turns else {}
        own = replace(use, directions=use.total.reshape(1, *site.shape), totals=totals)
        return {ALONG: self.inner.write(_of_one_direction(site), own, self.inner.kinds)[PROJECT].flatten()}


def _of_one_direction(site: Site) -> Site:
    limits = replace(site.resources.limits, typical_vectors=1)
    return replace(site, resources=replace(site.resources, limits=limits))


class SumOfColumns(Route):
    """The sum over samples inside one einsum, for each column."""

    name = "one product of all columns"
    kinds = frozenset({COLUMN_SUM})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        memory = site.columns * site.size(site.theta) * site.itemsize
        operand = N * site.size(site.letters[1]) * site.itemsize if site.formed else 0
        return Cost(N * site.columns * site.product, 2 * traffic_of(site, site.columns, False), memory + operand)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        if not site.has_operand:
            return {COLUMN_SUM: sum_out(columns_of(use), left, f"k{site.theta}")}
        return {COLUMN_SUM: einsum(f"{left},{right}->k{site.theta}", columns_of(use), operand_of(use))}


class NativeSumOfColumns(Route):
    """torch's own kernel for the summed gradient, column by column: no patches are formed."""

    name = "native kernel per column"
    kinds = frozenset({COLUMN_SUM})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.native_sum

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        adds = N * site.columns * site.product
        read = N * site.itemsize * site.columns * 2 * site.size(site.letters[0])
        memory = site.columns * site.size(site.theta) * site.itemsize
        return Cost(adds, read, memory + read / site.columns, 4 * site.columns, kernel=adds)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        kernel = use.contraction.kernel
        assert kernel is not None

        def body(part: Part) -> None:
            assert use.op is not None
            op = use.op.bound_again(lambda tensor, _: part.outer(tensor))
            one = kernel(op, part["columns"].squeeze(1))
            part.rows[COLUMN_SUM].copy_(one.reshape(1, *site.shape))

        return use.writer.loop(body, op=None, sliced={"columns": use.stream}, chunk=1, totals={}, axis=1,
                               rows={COLUMN_SUM: site.shape})
