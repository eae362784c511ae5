"""verify="full" of ekfac: its bases and its squares beside the columns and factors of a program with the same draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import Comparison, Key, compared, left_out
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.twin import twin_program
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import HbpError
from hbpcompiler.values import INPUTS_FIRST

EKFAC, COLUMNS, FACTORS = "ekfac", "sqrt_ggn_mc", "kfac"


def eigen_lines(candidate: Candidate, batch: Batch, draws: Draws, values: Mapping[str, Mapping[str, Any]],
                eps: float) -> list[Comparison]:
    """Lines for A and B, which must turn kfac's factors to diagonal ones, and for the squares of the turned columns."""
    if EKFAC not in values:
        return []
    try:
        twins = twin_program(candidate.matched, candidate.options, (COLUMNS, FACTORS))
    except HbpError as error:
        return [left_out(EKFAC, "", f"{COLUMNS} and {FACTORS} are refused: {str(error).splitlines()[0]}")]
    with drawing(draws):
        results = twins(candidate.state, *batch.tensors, **candidate.beside)
    found: dict[Key, Tensor] = {}
    right: dict[Key, Tensor] = {}
    for name, own in values[EKFAC].items():
        for field in ("A", "B"):
            basis, factor = getattr(own, field), results[FACTORS][name][field]
            if basis is None:
                continue
            turned = basis.mT @ factor @ basis
            found[f"{EKFAC}.{field}", name] = turned
            right[f"{EKFAC}.{field}", name] = torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1))
            unit = torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)
            found[f"{EKFAC}.{field} orthogonal", name] = basis.mT @ basis
            right[f"{EKFAC}.{field} orthogonal", name] = unit.expand_as(basis)
        inputs_first = candidate.stored[name].layout == INPUTS_FIRST
        found[EKFAC, name] = own.eigenvalues.flatten()
        right[EKFAC, name] = _squares(results[COLUMNS][name], own.A, own.B, inputs_first)
    how = f"two samples, {COLUMNS} and {FACTORS} of the same draws"
    return compared(found, right, eps, how=how)


def _squares(columns: Tensor, inputs: Tensor | None, outputs: Tensor, inputs_first: bool) -> Tensor:
    """sum_nk of the squares of columns [N, K, *theta] in the bases A and B, laid out as theta."""
    rows = columns.flatten(2).flatten(0, 1)
    if inputs is None:
        return (rows @ outputs).square().sum(0)
    groups = inputs.shape[0] if inputs.dim() == 3 else 1
    left, right = (inputs, outputs) if inputs_first else (outputs, inputs)
    blocks = rows.reshape(len(rows), groups, left.shape[-1], right.shape[-1])
    turned = left.mT.reshape(groups, *left.shape[-2:]) @ blocks @ right.reshape(groups, *right.shape[-2:])
    return turned.square().sum(0).flatten()
