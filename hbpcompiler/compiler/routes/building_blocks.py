"""What several routes write alike: columns and operands of a site, their product, its squares and sums, its traffic."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from hbpcompiler.compiler.program.writer import otherwise_named
from hbpcompiler.compiler.routes.site import Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import DIAGONAL, NEGATIVE, POSITIVE
from hbpcompiler.rule import Op
from hbpcompiler.rule.idioms import spread_by_index


def einsum(equation: str, *operands: Any) -> Any:
    return torch.einsum(equation, *operands)


def positions_at(tensor: Any, letters: str, axis: int) -> Any:
    """The axis of positions moved to a place; made, of length 1, where there is none."""
    if "p" not in letters:
        return tensor.unsqueeze(axis)
    return tensor if letters.index("p") == axis else tensor.movedim(letters.index("p"), axis)


def weights_of(site: Site, signs: Any, kind: str) -> Any:
    """Weight [n, k] of each squared column; None where all are one, 0 where there is nothing of that sign."""
    if not site.signed:
        return 0 if kind == NEGATIVE else None
    if kind == DIAGONAL:
        return signs
    if kind == POSITIVE:
        return otherwise_named((signs > 0).to(signs.dtype), "positive")
    return otherwise_named((signs < 0).to(signs.dtype), "negative")


def square_sums(site: Site, squares: Any, letters: str, signs: Any, kinds: Iterable[str], keep: str) -> dict[str, Any]:
    """Signed sums of squared columns, down to the letters `keep`."""
    sums: dict[str, Any] = {}
    for kind in sorted(kinds):
        weights = weights_of(site, signs, kind)
        if isinstance(weights, int):
            continue  # nothing of that sign: the caller's zeros stay
        if weights is None:
            found = sum_out(squares, letters, keep)
        else:
            found = einsum(f"nk,{letters}->{keep}", weights, squares)
        sums[kind] = found if found is squares else otherwise_named(found, "squares_")
    return sums


def squared_norms(site: Site, product: Any, alone: bool = False) -> Any:
    """[n] of a product [n, k, *theta]: of matrices sums of rows, so that float32 sums stay exact; of one that nothing
    else reads (`alone`) squares, which are written over it, faster than norms while it is in cache."""
    by_rows = len(site.theta) > 1 and site.row >= site.resources.limits.row_numbers and not alone
    squares = product.norm(2, [-1]).square() if by_rows else product.square()
    return squares.flatten(1).sum(1)


def over_columns(signs: Any, letters: str) -> Any:
    """Signs or weights [n, k] as they multiply a tensor of these letters, which begin with n and k."""
    return signs.reshape(signs.shape[:2] + (1,) * (len(letters) - 2))


def columns_of(use: Use, op: Op | None = None, columns: Any = None) -> Any:
    return use.contraction.columns(op or use.op, use.stream if columns is None else columns)


def diagonal_of(use: Use) -> Any:
    """A diagonal as it meets the parameter, [n, ...]."""
    return use.contraction.columns(use.op, use.stream.unsqueeze(1)).squeeze(1)


def unit_columns(use: Use, signed: bool = False) -> Any:
    """A diagonal as columns [N, K, *out], one for each entry: its root, or its absolute value's."""
    shape = use.op.shape("output")
    entries = use.stream.reshape(-1, math.prod(shape))
    roots = torch.diag_embed(entries.abs().sqrt() if signed else entries.sqrt())
    return roots.reshape(-1, math.prod(shape), *shape)


def operand_of(use: Use, op: Op | None = None) -> Any:
    assert use.contraction.operand is not None
    return use.contraction.operand(op or use.op)


def product_of(site: Site, use: Use, op: Op | None = None, columns: Any = None) -> Any:
    """The einsum itself: [n, k, *theta]."""
    columns = use.stream if columns is None else columns
    found = _product(site, use, op, columns)
    return found if found is columns else otherwise_named(found, PRODUCT)


PRODUCT = "T_"
"""What the columns of a parameter are called, with its name behind it."""


def _product(site: Site, use: Use, op: Op | None, columns: Any) -> Any:
    left, right, result = site.letters
    if site.own_product and use.contraction.product is not None:
        return use.contraction.product(op or use.op, columns)
    if not site.has_operand:
        return sum_out(columns_of(use, op, columns), left, result)
    if left.replace("k", "") == right:
        # Entry by entry, as scales meet what they scale: for einsum that is one small matrix product per entry.
        return sum_out(columns_of(use, op, columns) * operand_of(use, op).unsqueeze(1), left, result)
    if site.indexed and use.contraction.index is not None:
        index = use.contraction.index(op or use.op)
        return spread_by_index(columns_of(use, op, columns), index, site.size(site.features))
    return einsum(site.equation, columns_of(use, op, columns), operand_of(use, op))


def sum_out(tensor: Any, letters: str, kept: str) -> Any:
    """Sum over the axes whose letters are not kept; their order stays."""
    axes = tuple(axis for axis, letter in enumerate(letters) if letter not in kept)
    return tensor.sum(axes if len(axes) > 1 else axes[0]) if axes else tensor


def is_plain(site: Site) -> bool:
    """Whether one sample's einsum over positions is a product of two matrices (for [in, out] see `inputs_first`)."""
    return len(site.outer) == len(site.features) == 1 and not site.shared and site.has_positions


def single_product(site: Site, columns: Any, operand: Any, one: bool = False) -> Any:
    """The einsum for a chunk of one sample as one matrix product, which beats a batch of one; [1, k, *theta].

    `one`: of a single column, so that a parameter [in, out] is made as it lies in memory.
    """
    left, right, _ = site.letters
    if not is_plain(site):
        return einsum(site.equation, columns, operand)
    columns = columns if left == f"nk{site.outer}p" else columns.mT
    operand = operand.squeeze(0)
    operand = operand.t() if right == f"n{site.features}p" else operand
    rows = columns.flatten(0, 2)
    if one and site.inputs_first:
        return (operand.t() @ rows.t()).reshape(1, 1, *site.shape)
    product = (rows @ operand).reshape(1, -1, site.size(site.outer), site.size(site.features))
    return product.mT if site.inputs_first else product


def product_traffic(site: Site, columns: Any, kept: bool) -> Any:
    """As `traffic_of`, where the product is the rule's own if it has one: then no operand is formed."""
    if not site.own_product:
        return traffic_of(site, columns, kept)
    slow = site.resources.limits.single_channel_bytes * columns * site.product
    return traffic_of(replace(site, formed=False), columns, kept) + N * slow


def traffic_of(site: Site, columns: Any, product: bool) -> Any:
    """Bytes: the columns and the operand read, what is made (the operand, the product) written and read again."""
    left, right, result = site.letters
    operand = (3 if site.formed else 1) * site.size(right)
    moved = columns * site.size(left) + operand + (3 * columns * site.size(result) if product else 0)
    return N * site.itemsize * moved
