"""The two programs beneath a spectrum: one pass for inner products of columns, one for weighted sums of columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiled import Compiled, compile
from hbpcompiler.result import Result
from hbpcompiler.spectra.decompose import Columns, Products
from hbpcompiler.spectra.groups import Groups

EXACT, SAMPLED = "exact", "sampled"
SUFFIXES = {EXACT: "", SAMPLED: "_mc"}
"""Of the quantities of either kind of columns."""


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
        self.model, self.loss, self.groups, self.options = model, loss, groups, options
        self.suffix = SUFFIXES[columns]
        self.keys = {group: f"group{number}" for number, group in enumerate(groups)}
        """Each group's name in programs: a layer's may be empty."""
        self._first: dict[frozenset[str], Compiled] = {}

    def first_program(self, small: frozenset[str]) -> Compiled:
        """The program of the first phase, where these groups give columns and the others inner products."""
        if small not in self._first:
            names = {group: [escaped(name) for name in names] for group, names in self.groups.items()}
            large = {self.keys[group]: own for group, own in names.items() if group not in small}
            few = [name for group in small for name in names[group]]
            quantities: dict[str, Any] = {"grad": [name for own in names.values() for name in own]}
            if large:
                quantities |= {f"gram{self.suffix}": "*", f"cross{self.suffix}": "*"}
            if few:
                quantities |= {f"sqrt_ggn{self.suffix}": few, "batch_grad": few}
            self._first[small] = compile(self.model, self.loss, quantities, groups=large or None, **self.options)
        return self._first[small]

    def first(self, batch: Sequence[Any], small: frozenset[str], call: Mapping[str, Any]) -> First:
        """Inner products of all columns of each group, and of those with the samples' gradients.

        Groups that are named in `small` give the columns themselves instead.
        """
        compiled = self.first_program(small)
        result = compiled(*batch, **call)
        found: dict[str, Products | Columns] = {}
        for group, key in self.keys.items():
            present = [name for name in self.groups[group] if name in result.grad]
            if present and group not in small:
                found[group] = Products(result[f"gram{self.suffix}"][key], result[f"cross{self.suffix}"][key])
            elif present:
                columns = [result[f"sqrt_ggn{self.suffix}"][name].flatten(2) for name in present]
                shares = [result.batch_grad[name].flatten(1) for name in present]
                found[group] = Columns(torch.cat(columns, 2), torch.cat(shares, 1))
        return First(found, result, compiled.reduction)

    def weighted(self, batch: Sequence[Any], weights: Mapping[str, Tensor], call: Mapping[str, Any],
                 ) -> tuple[Result, dict[str, Tensor]]:
        """sum_nk weights[n, k, f] v_nk for each parameter of the groups, [F, *theta], weights[group] being [N, K, F].

        Of the same columns that the first phase met, if model, batch and random draws are the same.
        """
        result = self._stand_in(*batch, **call)
        found = {}
        for group, weight in weights.items():
            for name in self.groups[group]:
                if name in result.grad:
                    columns = result[f"sqrt_ggn{self.suffix}"][name]
                    found[name] = torch.einsum("nk...,nkf->f...", columns, weight.to(columns.dtype))
        return result, found

    def slopes(self, batch: Sequence[Any], group: str, directions: Mapping[str, Tensor], call: Mapping[str, Any],
               ) -> Tensor:
        """[N, F]: the derivative of each l_n of this batch along directions[name], [F, *theta], of one group."""
        result = self._stand_in(*batch, **call)
        shares = [torch.einsum("n...,f...->nf", result.batch_grad[name], along) for name, along in directions.items()]
        return torch.stack(shares).sum(0) / scale_of(self._stand_in.reduction, len(shares[0]))

    @property
    def _stand_in(self) -> Compiled:
        return self.first_program(frozenset(self.groups))


def escaped(name: str) -> str:
    """A pattern that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def scale_of(reduction: str, samples: int) -> float:
    """c: 1/N for a mean loss, 1 for a sum."""
    return 1 / samples if reduction == "mean" else 1.0
