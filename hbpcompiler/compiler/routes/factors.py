"""Routes to Kronecker factors: symmetric products of columns and of operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hbpcompiler.compiler.cost.figures import Cost, chunk_length
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.grams import add_gram_, gram, half_gram, mirror_
from hbpcompiler.compiler.program.writer import Part
from hbpcompiler.compiler.routes.building_blocks import (
    columns_of,
    einsum,
    operand_of,
    over_columns,
    sum_out,
    traffic_of,
)
from hbpcompiler.compiler.routes.site import COLUMNS, NOTHING, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import FACTOR, INPUT_FACTOR, REDUCED_FACTOR, REDUCED_INPUT_FACTOR
from hbpcompiler.rule import Op


class ColumnFactor(Route):
    """B: one symmetric product of all columns, over samples, columns and positions."""

    name = "symmetric product"
    kinds = frozenset({FACTOR})
    limits: tuple[str, ...] = ("cache_bytes",)
    reads_pixels = True

    def limits_at(self, site: Site) -> tuple[str, ...]:
        return self.limits if site.has_positions else tuple(name for name in self.limits if name != "cache_bytes")

    def blocks(self, site: Site) -> int:
        """How many blocks of rows there are, each of which meets itself and those after it."""
        return 1

    def applies(self, site: Site) -> bool:
        # A bias that is added as it is has its weight's B.
        is_bias = not (site.has_operand or site.has_positions) and len(site.theta) == 1
        return site.form == COLUMNS and (bool(site.features) or is_bias)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        left, own = site.letters[0], site.size(site.own)
        return Cost(N * site.columns * site.size(left) * own, 2 * traffic_of(site, site.columns, False),
                    _memory(site, site.columns, left, own))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left = site.letters[0]
        each = site.size(left) * site.columns * site.itemsize

        def columns(op: Op, part: Part | None) -> tuple[Any, Any]:
            signs = use.signs if part is None else part["signs"]
            return columns_of(use, op, use.stream if part is None else part["columns"]), signs

        sliced = {"columns": use.stream, "signs": use.signs}
        factor = _symmetric(site, use, left, site.outer, columns, sliced, FACTOR, each, self.blocks(site))
        return {FACTOR: factor / site.size("p") if site.has_positions else factor}


class InputFactor(Route):
    """A: one symmetric product of the operand, over samples and positions."""

    name = "symmetric product"
    kinds = frozenset({INPUT_FACTOR})
    limits: tuple[str, ...] = ("cache_bytes",)

    def limits_at(self, site: Site) -> tuple[str, ...]:
        return self.limits if site.has_positions else tuple(name for name in self.limits if name != "cache_bytes")

    def blocks(self, site: Site) -> int:
        return 1

    def applies(self, site: Site) -> bool:
        return site.form == NOTHING and bool(site.features)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        right = site.size(site.letters[1])
        own = site.size(site.features)
        return Cost(N * right * own, 2 * N * right * site.itemsize, _memory(site, 1, site.letters[1], own))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        right = site.letters[1]
        each = site.size(right) * site.itemsize
        factor = _symmetric(site, use, right, site.features, lambda op, part: (operand_of(use, op), None),
                            {"input": use.stream}, INPUT_FACTOR, each, self.blocks(site))
        return {INPUT_FACTOR: factor}


class HalfColumnFactor(ColumnFactor):
    """B by blocks of rows: what lies below the diagonal is not computed but mirrored."""

    name = "half of a symmetric product"
    limits: tuple[str, ...] = ("cache_bytes", "half_rows", "half_columns", "half_blocks")

    def blocks(self, site: Site) -> int:
        return site.resources.limits.half_blocks

    def applies(self, site: Site) -> bool:
        return super().applies(site) and _halves(site, site.letters[0], site.outer)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        return _half(super().cost(site, kinds), site, site.own)


class HalfInputFactor(InputFactor):
    """A by blocks of rows: what lies below the diagonal is not computed but mirrored."""

    name = "half of a symmetric product"
    limits: tuple[str, ...] = ("cache_bytes", "half_rows", "half_columns", "half_blocks")

    def blocks(self, site: Site) -> int:
        return site.resources.limits.half_blocks

    def applies(self, site: Site) -> bool:
        return super().applies(site) and _halves(site, site.letters[1], site.features)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        return _half(super().cost(site, kinds), site, site.features)


def _halves(site: Site, letters: str, own: str) -> bool:
    """Whether the product is one matrix (no letter of the parameter is a batch of them), and large."""
    return set(site.theta) & set(letters) == set(own) and site.size(own) >= site.resources.limits.half_rows


def _half(cost: Cost, site: Site, own: str) -> Cost:
    """A whole product's cost without what is left out, with the blocks being written twice more, once transposed."""
    size, blocks = site.size(own) ** 2 * site.itemsize, site.resources.limits.half_blocks
    adds = cost.multiply_adds * (blocks + 1) / (2 * blocks)
    return replace(cost, multiply_adds=adds, traffic=cost.traffic + 6 * size, memory=cost.memory + 2 * size,
                   calls=cost.calls + 3 * blocks)


class ReducedFactor(Route):
    """B with positions summed first (KFAC-reduce): one symmetric product without positions."""

    name = "symmetric product of sums"
    kinds = frozenset({REDUCED_FACTOR})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and bool(site.features)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        left, own = site.letters[0].replace("p", ""), site.size(site.own)
        summed = N * site.columns * site.size(left)
        return Cost(summed * own, traffic_of(site, site.columns, False), (summed + own**2) * site.itemsize)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, outer = site.letters[0], site.outer
        kept = left.replace("p", "")
        columns = sum_out(columns_of(use), left, kept)
        weighted = columns * over_columns(use.signs, kept) if site.signed else columns
        return {REDUCED_FACTOR: einsum(f"{kept},{kept.replace(outer, 'z')}->{site.shared}{outer}z", weighted, columns)}


class ReducedInputFactor(Route):
    """A of the operand averaged over positions (KFAC-reduce)."""

    name = "symmetric product of means"
    kinds = frozenset({REDUCED_INPUT_FACTOR})

    def applies(self, site: Site) -> bool:
        return site.form == NOTHING and bool(site.features)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        right = site.size(site.letters[1].replace("p", ""))
        own = site.size(site.features)
        return Cost(N * right * own, N * site.size(site.letters[1]) * site.itemsize,
                    (N * right + own**2) * site.itemsize)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        right = site.letters[1]
        kept, own = right.replace("p", ""), site.features
        operand = sum_out(operand_of(use), right, kept)
        operand = operand / site.size("p") if site.has_positions else operand
        return {REDUCED_INPUT_FACTOR: einsum(f"{kept},{kept.replace(own, 'z')}->{site.shared}{own}z", operand, operand)}


def _memory(site: Site, columns: int, letters: str, own: int) -> Any:
    """Bytes of the result and, with positions, of a chunk's tensors and of their copy in the product's order."""
    each = columns * site.size(letters) * site.itemsize
    held = 2 * each * chunk_length(each, site.resources) if site.has_positions else N * each
    return held + site.size(letter for letter in site.theta if letter in letters) * own * site.itemsize


def _symmetric(site: Site, use: Use, letters: str, own: str,
               tensor: Callable[[Op, Part | None], tuple[Any, Any]], sliced: Mapping[str, Any], kind: str,
               each: int, blocks: int) -> Any:
    """sum of T T^T over all letters but shared ones, between the one letter `own` and its twin, by `blocks` of rows.

    With positions it runs in chunks, each one matrix product in place: the patches of a convolution never exist for
    the whole batch, and a small result is not summed from a batch of small ones. Of several blocks of rows each meets
    itself and those after it; the rest is mirrored.
    """
    size = site.size(own)
    equation = f"{letters},{letters.replace(own, 'z')}->{site.shared}{own}z"

    def weighted(columns: Any, signs: Any) -> Any:
        return columns if signs is None else columns * over_columns(signs, letters)

    def rows(columns: Any) -> Any:
        """[own, all other letters]"""
        axis = letters.index(own)
        return columns.permute((axis, *(other for other in range(len(letters)) if other != axis))).flatten(1)

    block, fewest = -(-size // blocks), site.resources.limits.half_columns
    chunk = chunk_length(each, site.resources)
    if not site.has_positions or (blocks == 1 and site.samples is not None and site.samples <= chunk):
        columns, signs = tensor(use.op, None)
        if blocks == 1:
            return einsum(equation, weighted(columns, signs), columns)
        return half_gram(rows(weighted(columns, signs)), None if signs is None else rows(columns), block=block,
                         fewest=fewest)

    plain = not site.shared and not site.signed
    simple = plain and blocks == 1
    if plain:
        columns, _ = tensor(use.op, None)
        if _is_view(columns, use.stream):
            if blocks > 1:
                return half_gram(columns, axis=letters.index(own), chunk=chunk, block=block, fewest=fewest)
            return _gram(columns, letters, own, chunk)

    def body(part: Part) -> None:
        assert part.op is not None
        columns, signs = tensor(part.op, part)
        if simple:
            part.totals[kind].add_(_gram(columns, letters, own, None))
            return
        if blocks == 1:
            part.totals[kind].add_(einsum(equation, weighted(columns, signs), columns))
            return
        add_gram_(part.totals[kind], rows(weighted(columns, signs)), None if signs is None else rows(columns),
                  block=block)

    totals = {kind: (*(site.size(letter) for letter in site.shared), size, size)}
    found = use.writer.loop(body, op=use.op, sliced=sliced, chunk=chunk_length(each, site.resources), totals=totals)
    return found[kind] if blocks == 1 else mirror_(found[kind])


def _gram(tensor: Any, letters: str, own: str, chunk: int | None) -> Any:
    """The Gram matrix of one letter, so many samples at a time; passes read the letters."""
    axis = letters.index(own)
    found: Any = gram(tensor, axis=axis, chunk=chunk) if chunk else gram(tensor, axis=axis)
    meta.set_letters(found.node, letters)
    return found


def _is_view(tensor: Any, source: Any) -> bool:
    """Whether a tensor shows another's memory, so that it costs nothing to have it whole."""
    node = tensor.node
    while node is not source.node:
        if node.op != "call_method" or node.target not in ("flatten", "unflatten", "squeeze", "unsqueeze"):
            return False
        node = node.args[0]
    return True

