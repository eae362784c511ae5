"""The two programs beneath a spectrum: one pass for inner products of columns, one for weighted sums of columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiled import compile
from hbpcompiler.result import Result
from hbpcompiler.spectra.decompose import Columns, Products
from hbpcompiler.spectra.groups import Groups

EXACT, SAMPLED = "exact", "sampled"


@dataclass(frozen=True)
class First:
    """What the first phase gives."""

    groups: dict[str, Products | Columns]
    """Without groups of which no parameter influences the loss."""
    result: Result
    """loss, output and grad"""
    reduction: str
    """"mean", "sum", or "" for a loss that is neither."""


class Phases:
    """Programs of one model and loss; they are compiled when they are first needed."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor] | None, groups: Groups, columns: str,
                 options: Mapping[str, Any]) -> None:
        self.groups = groups
        self.names = [name for names in groups.values() for name in names]
        self.columns = "sqrt_ggn" if columns == EXACT else "sqrt_ggn_mc"
        self.compiled = compile(model, loss, {self.columns: self.names, "batch_grad": self.names, "grad": self.names},
                                **options)

    def first(self, batch: Sequence[Any], small: Collection[str], call: Mapping[str, Any]) -> First:
        """Inner products of all columns of each group, and of those with the samples' gradients.

        Groups that are named in `small` give the columns themselves instead.
        """
        result = self.compiled(*batch, **call)
        found: dict[str, Products | Columns] = {}
        for group, names in self.groups.items():
            present = [name for name in names if name in result.grad]
            if present:
                columns = torch.cat([result[self.columns][name].flatten(2) for name in present], 2)
                gradients = torch.cat([result.batch_grad[name].flatten(1) for name in present], 1)
                found[group] = Columns(columns, gradients) if group in small else Products(
                    torch.einsum("nkd,mjd->nkmj", columns, columns), torch.einsum("nkd,md->nkm", columns, gradients))
        return First(found, result, self.compiled.reduction)

    def weighted(self, batch: Sequence[Any], weights: Mapping[str, Tensor], call: Mapping[str, Any],
                 ) -> tuple[Result, dict[str, Tensor]]:
        """sum_nk weights[n, k, f] v_nk for each parameter of the groups, [F, *theta], weights[group] being [N, K, F].

        Of the same columns that the first phase met, if model, batch and random draws are the same.
        """
        result = self.compiled(*batch, **call)
        found = {}
        for group, weight in weights.items():
            for name in self.groups[group]:
                if name in result.grad:
                    columns = result[self.columns][name]
                    found[name] = torch.einsum("nk...,nkf->f...", columns, weight.to(columns.dtype))
        return result, found

    def slopes(self, batch: Sequence[Any], group: str, directions: Mapping[str, Tensor], call: Mapping[str, Any],
               ) -> Tensor:
        """[N, F]: the derivative of each l_n of this batch along directions[name], [F, *theta], of one group."""
        result = self.compiled(*batch, **call)
        shares = [torch.einsum("n...,f...->nf", result.batch_grad[name], along) for name, along in directions.items()]
        return torch.stack(shares).sum(0) / scale_of(self.compiled.reduction, len(shares[0]))


def scale_of(reduction: str, samples: int) -> float:
    """c: 1/N for a mean loss, 1 for a sum."""
    return 1 / samples if reduction == "mean" else 1.0
