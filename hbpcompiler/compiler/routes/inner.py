"""Routes of inner products between columns: GRAM of a stream (DOT is the gradient's), CROSS with the gradient.

All entries [n k, m j] of a matrix grow in place, parameter by parameter. The columns' cotangents T[n, k, theta] exist
in parts alone, or not at all: without positions T[n, k] . T[m, j] is (u_n . u_m) (a_nk . a_mj), with few a sum of such
products over pairs of them (ViViT, Dangel, Tatzel, Hennig 2022, has the first for linear layers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.program.grams import add_gram_, add_products_of_pairs_
from hbpcompiler.compiler.program.writer import Part, Writer
from hbpcompiler.compiler.routes.building_blocks import columns_of, einsum, operand_of, positions_at, traffic_of
from hbpcompiler.compiler.routes.site import COLUMNS, INNER, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import CROSS
from hbpcompiler.rule import Op

TILES = 3
"""Passes over a tile of the matrix for each pair of positions: its products are written, read, and added."""


def flat(product: Any) -> Any:
    """T[n, k, theta] as rows [n k, theta]."""
    return product.flatten(2).flatten(0, 1)


def added_gram(writer: Writer, total: Any, product: Any, kind: str, of_other: Callable[[], Any]) -> Any:
    """The total with the inner products of T, or of a part of its entries; `of_other` makes the gradient's T."""
    if kind == CROSS:
        with writer.about(f"g_{writer.tracer.subject.partition('_')[2]}"):
            return total.addmm_(flat(product), flat(of_other()).t())
    return add_gram_(total, flat(product))


def entries_of(site: Site, kinds: frozenset[str]) -> Any:
    """How many entries of all matrices are computed: half of a symmetric one's."""
    half = N**2 * site.columns**2 / 2
    return half * len(kinds & INNER - {CROSS}) + N**2 * site.columns * int(CROSS in kinds)


def cost_of_gram(site: Site, kinds: frozenset[str]) -> Any:
    """Multiply-adds of the inner products of T, once it is there."""
    return entries_of(site, kinds) * site.size(site.theta)


def formed_bytes(site: Site) -> Any:
    """Of an operand that is made for the contraction, as patches are, for all samples."""
    return N * site.itemsize * site.size(site.letters[1]) if site.formed else 0


class PairsOfPositions(Route):
    """Inner products of operands times those of columns, for each pair of positions: no product per column."""

    name = "inner products of pairs"
    kinds = INNER
    limits: tuple[str, ...] = ("cache_bytes",)

    def applies(self, site: Site) -> bool:
        few = not site.has_positions or site.size("p") <= site.resources.limits.pair_positions
        return self.serves(site) and few and not site.indexed  # the operand's rows would be as long as a vocabulary

    def serves(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand and not site.shared

    def _numbers(self, site: Site) -> int:
        """Of a tile of the matrix."""
        cache, allowed = site.resources.limits.cache_bytes, site.resources.temporaries
        return max(1, (cache if allowed is None else min(cache, allowed)) // (2 * site.itemsize))

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        left, right, _ = site.letters
        pairs = site.size("p") ** 2 if site.has_positions else 1
        entries, numbers = entries_of(site, kinds), self._numbers(site)
        features, own = site.size(site.features), site.size(site.own)
        products = pairs * (entries * own + N**2 * features * len(kinds) / 2)
        limits = site.resources.limits
        tiles = pairs * TILES * entries * site.itemsize / limits.cached_speedup
        read = N * site.itemsize * (site.columns * site.size(left) + site.size(right))
        calls = 8 * pairs * len(kinds) * (1 + entries / numbers)
        return Cost(products, 2 * read + tiles, 2 * numbers * site.itemsize + formed_bytes(site), calls)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        columns, operand = _by_positions(columns_of(use), left, 2), _by_positions(operand_of(use), right, 1)
        found: dict[str, Any] = {}
        for kind in sorted(kinds):
            other = _by_positions(columns_of(use, columns=use.other), left, 2) if kind == CROSS else None
            found[kind] = add_products_of_pairs_(use.totals[kind], columns, other, operand, self._numbers(site))
        return found


def _by_positions(tensor: Any, letters: str, axis: int) -> Any:
    """The axis of positions at a place, all that is behind it as one."""
    moved, behind = positions_at(tensor, letters, axis), len({*letters, "p"}) - axis - 1
    return moved if behind == 1 else moved.flatten(axis + 1) if behind else moved.unsqueeze(axis + 1)


class PartsOfProduct(Route):
    """Per-sample products for some outputs at a time, as rows of one matrix product each."""

    name = "product in parts"
    kinds = INNER
    limits: tuple[str, ...] = ("recycled_bytes", "typical_batch")
    reads_pixels = True

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand

    def _letter(self, site: Site) -> str:
        """The letter of the columns' entries that is cut: the longest one."""
        return decided("letter", lambda: max(site.own, key=site.size, default=""))

    def _chunk(self, site: Site) -> int:
        """How many of these at a time."""
        letter = self._letter(site)
        if not letter:
            return 1
        resources = site.resources
        batch = resources.limits.typical_batch if resources.temporaries is None else resources.batch
        each = batch * site.columns * site.itemsize * site.size(site.theta) // site.size(letter)
        allowed = resources.temporaries
        limit = resources.limits.recycled_bytes // 2
        return decided("chunk", lambda: min(
            site.size(letter), max(1, (limit if allowed is None else min(limit, allowed)) // max(1, each))))

    def _samples(self, site: Site) -> int | None:
        """For how many samples an operand is made at a time, where the memory is limited; None: for all."""
        allowed = site.resources.temporaries
        if allowed is None or not site.formed or self._letter(site) in site.letters[1]:
            return None
        each = site.itemsize * (site.size(site.letters[1]) + site.columns * site.size(site.letters[0]))
        return decided("chunk", lambda: max(1, allowed // each))

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        letter, chunk, (_, right, result) = self._letter(site), self._chunk(site), site.letters
        length, samples = site.size(letter), self._samples(site)
        parts = math.ceil(length / chunk)
        columns = site.columns + int(CROSS in kinds)
        again = parts * site.size(right.replace(letter, "") if letter else right)
        made = N * columns * site.size(result)
        traffic = traffic_of(site, columns, False) + N * site.itemsize * again + 2 * site.itemsize * made
        traffic += 2 * site.itemsize * parts * entries_of(site, kinds)
        product = N * columns * site.product
        operand = formed_bytes(site) if samples is None else samples * site.itemsize * site.size(right)
        memory = made * site.itemsize * chunk / length
        calls = 6 * parts if samples is None else 6 * parts * (1 + N / samples)
        return Cost(product + cost_of_gram(site, kinds), traffic, memory + operand, 2 + calls, product)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        letter, chunk, (left, right, _) = self._letter(site), self._chunk(site), site.letters
        samples = self._samples(site)
        columns = columns_of(use)
        operand: Any = None if samples else operand_of(use)
        other = columns_of(use, columns=use.other) if CROSS in kinds else None
        if chunk >= site.size(letter):
            def whole(columns: Any) -> Any:
                if operand is not None:
                    return einsum(site.equation, columns, operand)
                return _by_samples(site.equation, site.shape, use, use.writer, use.op, columns, samples)

            product = whole(columns)
            return {kind: added_gram(use.writer, use.totals[kind], product, kind, lambda: whole(other))
                    for kind in sorted(kinds)}
        first = f"n{letter}" + left[1:].replace(letter, "")
        sliced = {"columns": columns.movedim(left.index(letter), 1)}
        if other is not None:
            sliced["other"] = other.movedim(left.index(letter), 1)
        if letter in right:
            sliced["operand"] = operand if right.index(letter) == 1 else operand.movedim(right.index(letter), 1)
            right = f"n{letter}" + right[1:].replace(letter, "")
        equation = f"{first},{right}->nk{site.theta}"

        def body(part: Part) -> None:
            def product_of(columns: Any) -> Any:
                if "operand" in part:
                    return einsum(equation, columns, part["operand"])
                if operand is not None:
                    return einsum(equation, columns, part.outer(operand))
                op = use.op.bound_again(lambda tensor, _: part.outer(tensor))
                shape = [columns.shape[1] if own == letter else site.size(own) for own in site.theta]
                return _by_samples(equation, shape, use, part.writer, op, columns, samples)

            product = product_of(part["columns"])
            for kind in sorted(kinds):
                added_gram(part.writer, part.totals[kind], product, kind, lambda: product_of(part["other"]))

        totals = {kind: use.totals[kind] for kind in sorted(kinds)}
        return use.writer.loop(body, op=None, sliced=sliced, chunk=chunk, totals=totals, axis=1, letter=letter)


def _by_samples(equation: str, shape: Sequence[Any], use: Use, writer: Writer, op: Op, columns: Any,
                samples: int | None) -> Any:
    """T [n, k, *shape] with the operand formed for so many samples at a time."""
    assert samples is not None

    def body(part: Part) -> None:
        part.rows["product"].copy_(einsum(equation, part["columns"], operand_of(use, part.op)))

    count = columns.shape[equation.index("k")]
    return writer.loop(body, op=op, sliced={"columns": columns}, chunk=samples, totals={},
                       rows={"product": (count, *shape)})["product"]
