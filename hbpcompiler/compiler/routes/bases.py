"""Squares of the cotangents seen in given bases: Q_B^T T Q_A for a weight's cotangent T, Q_B^T T for a whole block's.

Columns can meet Q_B and the operand Q_A, each on its own side, before they meet each other: what is left is the
diagonal closing of an einsum of the same letters, which its own routes do. Or the product is formed first, in chunks,
and turned there. With p positions, o and i features that is p (o^2 + i^2 / columns) multiply-adds a column against
o i (o + i): images take the second way in their first layers, and everything without positions the first.

The result is [*shared, outputs, inputs], whichever of the two the parameter counts first; [n] for a whole block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.program.writer import otherwise_named
from hbpcompiler.compiler.routes.building_blocks import (
    columns_of,
    einsum,
    square_sums,
    sum_out,
    traffic_of,
    unit_columns,
)
from hbpcompiler.compiler.routes.chunks import ChunkedProduct, NativeProduct
from hbpcompiler.compiler.routes.site import COLUMNS, DIAGONAL_FORM, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import DIAGONAL, IN_BASES
from hbpcompiler.rule import Contraction, Op, Tensor


class TurnedBefore(Route):
    """Columns and operand are turned, each on its own side; their diagonal closing by its own route."""

    name = "turned, then squared"
    kinds = frozenset({IN_BASES})

    def __init__(self, choose: Callable[[Site, frozenset[str]], tuple[Any, ...]]) -> None:
        self.choose = choose
        """As `routes.choose`, which knows this route too."""

    def applies(self, site: Site) -> bool:
        return site.form in (COLUMNS, DIAGONAL_FORM) and bool(site.features)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        left, right, _ = site.letters
        own = _in_columns(site)
        columns, operand = N * own.columns * site.size(left), N * site.size(right)
        turning = columns * site.size(site.outer) + operand * site.size(site.features)
        total = Cost(turning, 2 * (columns + operand) * site.itemsize, calls=2)
        for choice in self.choose(_turned_site(own), frozenset({DIAGONAL})):
            total = total + choice.cost
        return total

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        own = _turned_site(_in_columns(site))
        (choice,) = self.choose(own, frozenset({DIAGONAL}))
        return {IN_BASES: choice.route.write(own, _turned(site, use), choice.kinds)[DIAGONAL]}


class TurnedAfter(Route):
    """Products of a chunk of samples, turned and squared while they are in cache."""

    name = "product turned in chunks"
    kinds = frozenset({IN_BASES})
    limits: tuple[str, ...] = ("cache_bytes", "one_by_one_bytes", "squaring_speedup")

    def __init__(self) -> None:
        self.products: ChunkedProduct = _ChunkInBases()

    def applies(self, site: Site) -> bool:
        return site.form in (COLUMNS, DIAGONAL_FORM)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        own = _in_order(_in_columns(site))
        rows = [own.size(own.outer), own.size(own.features)] if own.features else [own.size(own.theta)]
        turning = N * own.columns * own.size(own.theta) * sum(rows)
        if self._whole(own):
            columns = N * own.columns * own.size(own.theta) * own.itemsize
            return Cost(turning, 3 * traffic_of(own, own.columns, False), 2 * columns, 3)
        samples, _ = self.products.chunks(own)
        found = self.products.cost(own, frozenset({DIAGONAL})) + Cost(turning, batched=turning if samples > 1 else 0)
        return replace(found, memory=2 * found.memory)

    def _whole(self, site: Site) -> bool:
        """Whether the product is the columns themselves: a bias that is added as it is."""
        return not (site.has_operand or site.has_positions)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        own, seen = _in_order(_in_columns(site)), _with_bases(site, use)
        if self._whole(own):
            turned = _seen(own, seen.op, columns_of(seen))
            total = square_sums(own, turned.square(), own.letters[2], seen.signs, {DIAGONAL}, own.theta)[DIAGONAL]
        else:
            total = self.products.write(own, seen, frozenset({DIAGONAL}))[DIAGONAL]
        flat = bool(own.features) or len(own.theta) == 1
        return {IN_BASES: total if flat else total.reshape(own.size(own.theta))}


class NativeTurnedAfter(TurnedAfter):
    """The same with torch's own kernel for one sample's products."""

    name = "native product turned"

    def __init__(self) -> None:
        self.products = _NativeInBases()

    def applies(self, site: Site) -> bool:
        # The kernel gives what the parameter's own order is.
        return site.form == COLUMNS and site.native_columns and _in_order(site) == site


class _ChunkInBases(ChunkedProduct):
    """The chunks of a product, turned."""

    def turns(self, site: Site, kinds: frozenset[str]) -> bool:
        return False

    def product(self, site: Site, use: Use, op: Op, columns: Any) -> Any:
        if site.has_operand:
            return _seen(site, op, super().product(site, use, op, columns))
        return _seen(site, op, sum_out(columns_of(use, op, columns), site.letters[0], site.letters[2]))


class _NativeInBases(NativeProduct):
    """The products of a kernel, turned."""

    def product(self, site: Site, use: Use, op: Op, columns: Any) -> Any:
        return _seen(site, op, super().product(site, use, op, columns))


def _in_columns(site: Site) -> Site:
    """The site with columns; the diagonal of a loss without curvature has one for each entry."""
    if site.form == COLUMNS:
        return site
    return replace(site, form=COLUMNS, columns=site.size(site.letters[0]))


def _in_order(site: Site) -> Site:
    """The site of a product that is [*shared, outputs, inputs]."""
    left, right, result = site.letters
    order = f"nk{site.shared}{site.outer}{site.features}"
    if not site.features or result == order:
        return site
    return site.without_kernels(equation=f"{left},{right}->{order}")


def _turned_site(site: Site) -> Site:
    """The site of an operand and columns that are turned, for which there are no kernels."""
    return _in_order(site).without_kernels(formed=True)


def _with_bases(site: Site, use: Use) -> Use:
    """The use with columns, and with the bases among what its operation reads."""
    inner, outer = use.bases
    op = use.op.with_tensor("outer", outer, shared=True)
    if inner is not None:
        op = op.with_tensor("inner", inner, shared=True)
    stream = use.stream if site.form == COLUMNS else unit_columns(use, site.signed)
    return replace(use, op=op, stream=stream)


def _turned(site: Site, use: Use) -> Use:
    """The use with columns and operand in the bases."""
    left, right, _ = site.letters
    shared, own, met = site.shared, site.outer, site.features

    def columns(op: Op, columns: Tensor) -> Tensor:
        seen = use.contraction.columns(op, columns)
        return _in_basis(einsum(f"{left},{shared}{own}z->{left.replace(own, 'z')}", seen, op.argument("outer")))

    def operand(op: Op) -> Tensor:
        assert use.contraction.operand is not None
        seen = use.contraction.operand(op)
        return _in_basis(einsum(f"{right},{shared}{met}z->{right.replace(met, 'z')}", seen, op.argument("inner")))

    return replace(_with_bases(site, use), contraction=Contraction(_in_order(site).equation, columns, operand))


def _in_basis(seen: Any) -> Any:
    return otherwise_named(seen, "_in_basis")


def _seen(site: Site, op: Op, product: Any) -> Any:
    """A product [n, k, *theta] in the bases; of a whole block laid out as it was."""
    if not site.features:
        size = math.prod(site.shape)
        rows = product.reshape(product.shape[0], product.shape[1], size) @ op.argument("outer")
        otherwise_named(rows, "in_basis_")
        return rows if len(site.theta) == 1 else rows.reshape(product.shape)
    letters, shared, own, met = site.letters[2], site.shared, site.outer, site.features
    seen = einsum(f"{letters},{shared}{own}z->{letters.replace(own, 'z')}", product, op.argument("outer"))
    both = einsum(f"{letters},{shared}{met}z->{letters.replace(met, 'z')}", seen, op.argument("inner"))
    return otherwise_named(both, "in_basis_")
