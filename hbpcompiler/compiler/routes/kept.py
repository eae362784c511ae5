"""The route of products with a block: curvature is kept as it meets the parameter, and never multiplied out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.routes.building_blocks import columns_of, diagonal_of, operand_of, unit_columns
from hbpcompiler.compiler.routes.site import COLUMNS, DIAGONAL_FORM, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import BLOCK, BlockPart
from hbpcompiler.rule import Contraction, Op


class Kept(Route):
    """Columns or a diagonal, and the operand, as they are: [N, K, ...] or [N, ...], not times the parameter's size."""

    name = "kept for products"
    kinds = frozenset({BLOCK})

    def applies(self, site: Site) -> bool:
        return site.form in (COLUMNS, DIAGONAL_FORM)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        left, right, _ = site.letters
        columns = site.columns if site.form == COLUMNS else 1 if site.apart else site.size(left)
        kept = N * site.itemsize * (columns * site.size(left) + site.size(right))
        return Cost(0, 2 * kept, kept, 2)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        operand = operand_of(use) if site.has_operand else None
        if site.form == DIAGONAL_FORM and site.apart:
            return {BLOCK: BlockPart(None, None, diagonal_of(use), operand)}
        if site.form == DIAGONAL_FORM:
            columns = columns_of(use, columns=unit_columns(use, site.signed))
            signs = use.stream.sign().reshape(-1, math.prod(use.op.shape("output"))) if site.signed else None
        else:
            columns, signs = columns_of(use), use.signs
        signs = columns.new_ones(columns.shape[:2]) if signs is None else signs
        return {BLOCK: BlockPart(columns, signs, None, operand)}


def stays_diagonal(contraction: Contraction, op: Op) -> bool:
    """Whether no entry of the output is several entries of the contraction's columns (as in overlapping patches)."""
    entries = torch.ones((1, 1, *op.shape("output")), dtype=torch.float64, device="cpu")
    try:
        pulled: Any = torch.func.vjp(lambda columns: contraction.columns(op, columns), entries)
        seen, count = pulled
        (times,) = count(torch.ones_like(seen))
    except (RuntimeError, NotImplementedError):  # it reads tensors, of which only shapes are known here
        return False
    return bool((times <= 1).all())
