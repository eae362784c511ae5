"""verify="full" of ekfac and of squares in given bases: beside columns and factors of a program with the same draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.arguments import rows_of
from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import Comparison, Key, compared, left_out
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.twin import Results, twin_program
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import HbpError
from hbpcompiler.quantities import BASES
from hbpcompiler.values import INPUTS_FIRST, Stored

EKFAC, FACTORS = "ekfac", "kfac"
COLUMNS = {EKFAC: "sqrt_ggn_mc", "eigenvalues": "sqrt_ggn", "eigenvalues_mc": "sqrt_ggn_mc",
           "eigenvalues_emp": "batch_grad"}
"""By quantity, the columns whose squares it has."""


def eigen_lines(candidate: Candidate, batch: Batch, draws: Draws, values: Mapping[str, Mapping[str, Any]],
                eps: float) -> list[Comparison]:
    """Lines for ekfac's A and B, which must turn kfac's factors to diagonal ones, and for squares of turned columns."""
    lines: list[Comparison] = []
    for quantity in [name for name in COLUMNS if name in values]:
        needed = (COLUMNS[quantity], FACTORS) if quantity == EKFAC else (COLUMNS[quantity],)
        try:
            twins = twin_program(candidate.matched, candidate.options, needed)
        except HbpError as error:
            said = f"{' and '.join(needed)} are refused: {str(error).splitlines()[0]}"
            lines.append(left_out(quantity, "", said))
            continue
        with drawing(draws):
            results = twins(candidate.state, *batch.tensors, **candidate.beside)
        lines += _compared(candidate, batch, quantity, values[quantity], results, eps)
    return lines


def _compared(candidate: Candidate, batch: Batch, quantity: str, values: Mapping[str, Any], results: Results,
              eps: float) -> list[Comparison]:
    found: dict[Key, Tensor] = {}
    right: dict[Key, Tensor] = {}
    given = rows_of(candidate.beside, batch.samples).get(BASES, {})
    is_mean = candidate.matched.ending.kind == "mean"
    for name, own in values.items():
        stored = candidate.stored[name]
        inputs, outputs = (own.A, own.B) if quantity == EKFAC else (given.get(f"{name}.A"), given[f"{name}.B"])
        columns = results[COLUMNS[quantity]]
        rows = [_rows(columns[key], quantity, is_mean) for key in (name, stored.bias) if key]
        if quantity == EKFAC:
            for field in ("A", "B"):
                _eigenvectors(field, name, getattr(own, field), results[FACTORS][name][field], found, right)
        found[quantity, name] = own.eigenvalues.flatten() if quantity == EKFAC else own.flatten()
        right[quantity, name] = _squares(rows, None if inputs is None else inputs.to(rows[0]), outputs.to(rows[0]),
                                         stored)
    how = f"two samples, {COLUMNS[quantity]}{f' and {FACTORS}' if quantity == EKFAC else ''} of the same draws"
    return compared(found, right, eps, how=how)


def _eigenvectors(field: str, name: str, basis: Tensor | None, factor: Tensor, found: dict[Key, Tensor],
                  right: dict[Key, Tensor]) -> None:
    if basis is None:
        return
    turned = basis.mT @ factor @ basis
    found[f"{EKFAC}.{field}", name] = turned
    right[f"{EKFAC}.{field}", name] = torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1))
    unit = torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)
    found[f"{EKFAC}.{field} orthogonal", name] = basis.mT @ basis
    right[f"{EKFAC}.{field} orthogonal", name] = unit.expand_as(basis)


def _rows(columns: Tensor, quantity: str, is_mean: bool) -> Tensor:
    """[rows, n] of columns [N, K, *theta], or of the samples' shares of the gradient [N, *theta]: c times the sum of
    the squares of T is the sum of theirs."""
    if COLUMNS[quantity] == "batch_grad":
        scale = len(columns) ** 0.5 if is_mean else 1.0
        return columns.reshape(len(columns), -1) * scale
    return columns.reshape(columns.shape[0] * columns.shape[1], -1)


def _squares(rows: list[Tensor], inputs: Tensor | None, outputs: Tensor, stored: Stored) -> Tensor:
    """Sums of the squares of the rows [rows, n] in the bases A and B, outputs first; a bias is the last input."""
    if inputs is None:
        return (rows[0] @ outputs).square().sum(0)
    groups, features = (inputs.shape[0] if inputs.dim() == 3 else 1), inputs.shape[-1] - len(rows) + 1
    sizes = (features, outputs.shape[-1]) if stored.layout == INPUTS_FIRST else (outputs.shape[-1], features)
    blocks = rows[0].reshape(-1, groups, *sizes)
    blocks = blocks.mT if stored.layout == INPUTS_FIRST else blocks
    for bias in rows[1:]:
        blocks = torch.cat([blocks, bias.reshape(-1, groups, outputs.shape[-1], 1)], 3)
    left, right = outputs.reshape(groups, *outputs.shape[-2:]), inputs.reshape(groups, *inputs.shape[-2:])
    return (left.mT @ blocks @ right).square().sum(0).flatten()
