"""Routes over forms that are no columns: a diagonal [N, *z], and KFRA's matrix [h, h] for the whole batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.program.writer import otherwise_named
from hbpcompiler.compiler.routes.building_blocks import (
    columns_of,
    diagonal_of,
    einsum,
    operand_of,
    sum_out,
    traffic_of,
    unit_columns,
)
from hbpcompiler.compiler.routes.site import DIAGONAL_FORM, MATRIX, SQUARES, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import BATCH_DIAGONAL, DIAGONAL, FACTOR, NEGATIVE, POSITIVE, REDUCED_FACTOR, VECTORS


class DiagonalForm(Route):
    """A diagonal over the output's coordinates: its columns hit one coordinate each, so squares need no column."""

    name = "closed form of a diagonal"
    kinds = frozenset({FACTOR, REDUCED_FACTOR, BATCH_DIAGONAL, VECTORS, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == DIAGONAL_FORM

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        kept = site.size(site.theta) * (N if kinds & {BATCH_DIAGONAL, VECTORS} else 1)
        columns = N * site.size(site.letters[0]) * site.size(site.theta) if VECTORS in kinds else 0
        memory = (N * site.size(site.letters[1]) + kept + columns) * site.itemsize
        return Cost(N * site.product * len(kinds), 2 * traffic_of(site, 1, False), memory, 2)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        diagonal = diagonal_of(use)
        letters = left.replace("k", "")

        def close(diagonal: Any, kept: str = "") -> Any:
            if site.has_operand:
                closed = einsum(f"{letters},{right}->{kept}{site.theta}", diagonal, operand_of(use).square())
                return closed if kept else otherwise_named(closed, "squares_")
            return sum_out(diagonal, letters, kept + site.theta)

        results: dict[str, Any] = {}
        if DIAGONAL in kinds:
            results[DIAGONAL] = close(diagonal)
        if BATCH_DIAGONAL in kinds:
            results[BATCH_DIAGONAL] = close(diagonal, "n")
        if VECTORS in kinds:
            columns = columns_of(use, columns=unit_columns(use))
            results[VECTORS] = (einsum(site.equation, columns, operand_of(use)) if site.has_operand
                                else sum_out(columns, left, "nk" + site.theta))
        if POSITIVE in kinds:
            results[POSITIVE] = close(diagonal.clamp(min=0))
        if NEGATIVE in kinds:
            results[NEGATIVE] = close((-diagonal).clamp(min=0))
        if kinds & {FACTOR, REDUCED_FACTOR}:
            summed = sum_out(diagonal, letters, site.own) if site.features else close(diagonal).flatten()
            factor = torch.diag_embed(summed)
            if REDUCED_FACTOR in kinds:
                results[REDUCED_FACTOR] = factor
            if FACTOR in kinds:
                results[FACTOR] = factor / site.size("p") if site.features and site.has_positions else factor
        return results


class MatrixForm(Route):
    """The batch-averaged matrix of KFRA, [h, h] over the output's coordinates, seen from the parameter."""

    name = "batch-averaged matrix"
    kinds = frozenset({FACTOR})

    def applies(self, site: Site) -> bool:
        return site.form == MATRIX

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        moved = 2 * site.size(site.letters[0]) ** 2 * site.itemsize
        return Cost(0, moved, moved)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        own = left.replace("n", "").replace("k", "")  # "po", say: the matrix gets these letters twice
        lengths = tuple(site.size(letter) for letter in own)
        shape = use.op.shape("output")
        # The columns' view on both sides: first the rows as columns of one sample, then, transposed, the other side.
        if use.contraction.index is not None:
            return {FACTOR: self._averaged(site, use, lengths)}
        rows = use.stream.reshape(1, math.prod(shape), *shape)
        both = half = columns_of(use, columns=rows)
        if half is not rows:
            half = half.reshape(math.prod(shape), math.prod(lengths)).t().reshape(1, math.prod(lengths), *shape)
            both = columns_of(use, columns=half)
        both = both.reshape(*lengths, *lengths)
        if site.features:
            second = "".join(letter.upper() if letter in site.outer else letter for letter in own)
            factor = einsum(f"{own}{second}->{site.shared}{site.outer}{site.outer.upper()}", both)
            return {FACTOR: factor / site.size("p") if site.has_positions else factor}
        theta, count = site.theta, site.size(site.theta)
        if not site.has_operand:
            return {FACTOR: einsum(f"{own}{own.upper()}->{theta}{theta.upper()}", both).reshape(count, count)}
        operand = operand_of(use)
        second = "".join(letter if letter == "n" else letter.upper() for letter in right)
        factor = einsum(f"{own}{own.upper()},{right},{second}->{theta}{theta.upper()}", both, operand, operand)
        return {FACTOR: factor.reshape(count, count) / use.batch}

    def _averaged(self, site: Site, use: Use, lengths: tuple[int, ...]) -> Any:
        """B where places learn nothing that are others in each sample, from a matrix for each, with its weight."""
        shape, seen = use.op.shape("output"), math.prod(lengths)
        half = columns_of(use, columns=use.stream.unflatten(2, shape)).reshape(-1, math.prod(shape), seen)
        both = columns_of(use, columns=half.transpose(1, 2).reshape(-1, seen, *shape))
        own = "".join(letter for letter in site.letters[0] if letter not in "nk")
        second = "".join(letter.upper() if letter in site.outer else letter for letter in own)
        both = both.reshape(-1, *lengths, *lengths).mean(0)
        factor = einsum(f"{own}{second}->{site.outer}{site.outer.upper()}", both)
        return factor / site.size("p") if site.has_positions else factor
