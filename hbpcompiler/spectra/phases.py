"""The two programs beneath a spectrum: one pass for inner products of columns, one for weighted sums of columns."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiled import Compiled, compile
from hbpcompiler.compiler.plan.closings import SIGNED
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.result import Result
from hbpcompiler.spectra.decompose import Columns, Products
from hbpcompiler.spectra.groups import Groups

Vectors = dict[str, Tensor]
"""By parameter."""
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
        self._second: dict[frozenset[str], Compiled] = {}
        self._slopes: Compiled | None = None

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
        with naming_the_spectrum():
            result = compiled(*batch, **call)
        found: dict[str, Products | Columns] = {}
        for group, key in self.keys.items():
            present = [name for name in self.groups[group] if name in result.grad]
            if present and group not in small:
                found[group] = Products(result[f"gram{self.suffix}"][key], result[f"cross{self.suffix}"][key])
            elif present:
                # a number has no axes of its own to be made one
                columns = [result[f"sqrt_ggn{self.suffix}"][name].unsqueeze(-1).flatten(2) for name in present]
                shares = [result.batch_grad[name].unsqueeze(-1).flatten(1) for name in present]
                found[group] = Columns(torch.cat(columns, 2), torch.cat(shares, 1))
        return First(found, result, compiled.reduction)

    def weighted(self, batch: Sequence[Any], weights: Mapping[str, Tensor], call: Mapping[str, Any],
                 ) -> tuple[Result, Vectors]:
        """sum_nk weights[n, k, f] v_nk for each parameter of the groups, [F, *theta], weights[group] being [N, K, F].

        Of the same columns that the first phase met, if model, batch and random draws are the same. A second backward
        pass with F columns a sample: they are added up where the model ends. Each group has an F of its own.
        """
        groups = frozenset(weights)
        if groups not in self._second:
            self._second[groups] = self._compiled([f"column_sum{self.suffix}"], groups)
        given = {self.keys[group]: weight for group, weight in weights.items()}
        result = self._second[groups](*batch, column_weights=given, **call)
        return result, dict(result[f"column_sum{self.suffix}"])

    def slopes(self, batch: Sequence[Any], directions: Vectors, call: Mapping[str, Any]) -> dict[str, Tensor]:
        """By group the derivative of each l_n of this batch along directions[name], [F, *theta]: [N, F]."""
        if self._slopes is None:
            self._slopes = self._compiled(["project"], self.groups)
        project = self._slopes(*batch, directions=directions, **call).project
        shares = {group: project[key] for group, key in self.keys.items() if key in project}
        return {group: own / scale_of(self._slopes.reduction, len(own)) for group, own in shares.items()}

    def _compiled(self, quantities: Sequence[str], groups: Collection[str]) -> Compiled:
        """A program for these groups alone: nothing goes back further than they ask."""
        named = {self.keys[group]: [escaped(name) for name in names] for group, names in self.groups.items()
                 if group in groups}
        return compile(self.model, self.loss, quantities, groups=named, **self.options)


@contextlib.contextmanager
def naming_the_spectrum() -> Iterator[None]:
    """A loss that is refused is refused for a spectrum, not for the quantities that this is made of."""
    try:
        yield
    except UnsupportedOpError as error:
        _, found, rest = str(error).partition(SIGNED)
        if not found:
            raise
        raise UnsupportedOpError(f"a spectrum{found}{rest}") from error


def escaped(name: str) -> str:
    """A pattern that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def scale_of(reduction: str, samples: int) -> float:
    """c: 1/N for a mean loss, 1 for a sum."""
    return 1 / samples if reduction == "mean" else 1.0
