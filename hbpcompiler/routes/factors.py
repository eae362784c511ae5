"""Routes to Kronecker factors: symmetric products of columns and of operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hbpcompiler.cost import Cost, chunk_length
from hbpcompiler.graph import N
from hbpcompiler.quantities import FACTOR, INPUT_FACTOR, REDUCED_FACTOR, REDUCED_INPUT_FACTOR
from hbpcompiler.routes.site import (
    COLUMNS,
    NOTHING,
    Route,
    Site,
    Use,
    columns_of,
    einsum,
    operand_of,
    sum_out,
    traffic_of,
)
from hbpcompiler.rule import Op
from hbpcompiler.writer import Part


class ColumnFactor(Route):
    """B: one symmetric product of all columns, over samples, columns and positions."""

    name = "symmetric product"
    kinds = frozenset({FACTOR})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and bool(site.features)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        left = site.letters[0]
        own = site.size(letter for letter in left if letter in site.theta)
        return Cost(N * site.columns * site.size(left) * own, 2 * traffic_of(site, site.columns, False),
                    _memory(site, site.columns, left, own))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        ours = "".join(letter for letter in site.theta if letter in left and letter not in right)
        shared = "".join(letter for letter in site.theta if letter in left and letter in right)
        each = site.size(left) * site.columns * site.itemsize

        def columns(op: Op, part: Part | None) -> tuple[Any, Any]:
            signs = use.signs if part is None else part["signs"]
            return columns_of(use, op, use.stream if part is None else part["columns"]), signs

        sliced = {"columns": use.stream, "signs": use.signs}
        factor = _symmetric(site, use, left, shared, ours, columns, sliced, FACTOR, each)
        return {FACTOR: factor / site.size("p") if site.has_positions else factor}


class InputFactor(Route):
    """A: one symmetric product of the operand, over samples and positions."""

    name = "symmetric product"
    kinds = frozenset({INPUT_FACTOR})

    def applies(self, site: Site) -> bool:
        return site.form == NOTHING and bool(site.features)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        right = site.size(site.letters[1])
        own = site.size(site.features)
        return Cost(N * right * own, 2 * N * right * site.itemsize, _memory(site, 1, site.letters[1], own))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        shared = "".join(letter for letter in site.theta if letter in left and letter in right)
        each = site.size(right) * site.itemsize
        factor = _symmetric(site, use, right, shared, site.features, lambda op, part: (operand_of(use, op), None),
                            {"input": use.stream}, INPUT_FACTOR, each)
        return {INPUT_FACTOR: factor}


class ReducedFactor(Route):
    """B with positions summed first (KFAC-reduce): one symmetric product without positions."""

    name = "symmetric product of sums"
    kinds = frozenset({REDUCED_FACTOR})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and bool(site.features)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        left = site.letters[0].replace("p", "")
        own = site.size(letter for letter in left if letter in site.theta)
        summed = N * site.columns * site.size(left)
        return Cost(summed * own, traffic_of(site, site.columns, False), (summed + own**2) * site.itemsize)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        ours = "".join(letter for letter in site.theta if letter in left and letter not in right)
        shared = "".join(letter for letter in site.theta if letter in left and letter in right)
        kept = left.replace("p", "")
        columns = sum_out(columns_of(use), left, kept)
        weighted = columns
        if site.signed:
            weighted = columns * use.signs.reshape(use.signs.shape[:2] + (1,) * (len(kept) - 2))
        return {REDUCED_FACTOR: einsum(f"{kept},{kept.replace(ours, 'z')}->{shared}{ours}z", weighted, columns)}


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
        left, right, _ = site.letters
        shared = "".join(letter for letter in site.theta if letter in left and letter in right)
        kept, own = right.replace("p", ""), site.features
        operand = sum_out(operand_of(use), right, kept)
        operand = operand / site.size("p") if site.has_positions else operand
        return {REDUCED_INPUT_FACTOR: einsum(f"{kept},{kept.replace(own, 'z')}->{shared}{own}z", operand, operand)}


def _memory(site: Site, columns: int, letters: str, own: int) -> Any:
    """Bytes of the result and, with positions, of a chunk's tensors and of their copy in the product's order."""
    each = columns * site.size(letters) * site.itemsize
    held = 2 * each * chunk_length(each, site.resources) if site.has_positions else N * each
    return held + site.size(letter for letter in site.theta if letter in letters) * own * site.itemsize


def _symmetric(site: Site, use: Use, letters: str, shared: str, own: str,
               tensor: Callable[[Op, Part | None], tuple[Any, Any]], sliced: Mapping[str, Any], kind: str,
               each: int) -> Any:
    """sum of T T^T over all letters but `shared`, between the one letter `own` and its twin.

    With positions it runs in chunks, each one matrix product in place: the patches of a convolution never exist for
    the whole batch, and a small result is not summed from a batch of small ones.
    """

    def product(op: Op, part: Part | None) -> Any:
        right, signs = tensor(op, part)
        left = right if signs is None else right * signs.reshape(signs.shape[:2] + (1,) * (len(letters) - 2))
        return einsum(f"{letters},{letters.replace(own, 'z')}->{shared}{own}z", left, right)

    if not site.has_positions:
        return product(use.op, None)

    def body(part: Part) -> None:
        assert part.op is not None
        if shared:
            part.totals[kind].add_(product(part.op, part))
            return
        columns, signs = tensor(part.op, part)
        axis = letters.index(own)
        order = (axis, *(other for other in range(len(letters)) if other != axis))
        right = columns.permute(order).flatten(1)
        if signs is not None:
            columns = columns * signs.reshape(signs.shape[:2] + (1,) * (len(letters) - 2))
        part.totals[kind].addmm_(columns.permute(order).flatten(1), right.t())

    shape = (*(site.size(letter) for letter in shared), site.size(own), site.size(own))
    chunk = chunk_length(each, site.resources)
    return use.writer.loop(body, op=use.op, sliced=sliced, chunk=chunk, totals={kind: shape})[kind]
