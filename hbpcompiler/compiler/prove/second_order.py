"""verify="full": the quantities beyond the gradient against autograd; else exact Hessians that rounding may spoil.

Per-sample ones are compared whole, diagonals of curvature at their largest entry and at others drawn at random, by
double backward. Exact twins stand in for what is sampled, brute force for Kronecker factors that are small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.prove import clipped, groups
from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import TIMES_NOISE, Comparison, Key, Numbers, compared, left_out
from hbpcompiler.compiler.prove.differences import decided, hessian_entries
from hbpcompiler.compiler.prove.double import Double, double
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.eigen import eigen_lines
from hbpcompiler.compiler.prove.entries import drawn_entries
from hbpcompiler.compiler.prove.factors import factor_lines
from hbpcompiler.compiler.prove.groups import group_lines
from hbpcompiler.compiler.prove.jacobian import JACOBIAN
from hbpcompiler.compiler.prove.own_step import Noise
from hbpcompiler.compiler.prove.twin import GRAD, TWINS, twin_program
from hbpcompiler.compiler.prove.weights import losses_together
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import HbpError
from hbpcompiler.quantities import BATCH, QUANTITIES
from hbpcompiler.schemes import GGN_ALONE, HESSIAN

LOSSES = "batch_loss"
COUNTS = ("grad_histogram", "grad_histogram_2d")
ROUNDED = "counts: rounding may take a number over the edge of its bin"
MERGED = "the output has samples merged with positions"

Diagonal = Callable[[Any, list[int]], Tensor]
"""(a parameter's value, entries) -> the entries of a diagonal that it states."""
SIX_DIGITS = 1e-6
"""What cancels may cost others: six digits are what curvature is used with."""
_PER_SAMPLE = ("batch_grad", "batch_l2", "second_moment", "variance", "batch_dot", "batch_inner")
_GGN: Mapping[str, Diagonal] = {
    "diag_ggn": lambda value, at: value.flatten()[at],
    "batch_diag_ggn": lambda value, at: value.sum(0).flatten()[at],
    "sqrt_ggn": lambda value, at: value.square().sum((0, 1)).flatten()[at],
}
_HESSIAN: Mapping[str, Diagonal] = {
    "diag_h": lambda value, at: value.flatten()[at],
    "batch_diag_h": lambda value, at: value.sum(0).flatten()[at],
    "diag_h_split": lambda value, at: (value.ggn + value.positive - value.negative).flatten()[at],
}
_TRACES: Mapping[str, Diagonal] = {"trace_ggn": lambda value, at: value, "trace_h": lambda value, at: value}
EXACT_HESSIANS = frozenset({*_HESSIAN, "trace_h"})
"""Exact ones, of which entries are cheap to have otherwise."""
CANCELS = ("Two values are multiplied whose derivatives differ by orders of magnitude. Of such a product the Hessian "
           "is a difference of squares, (u + v)^2 - (u - v)^2, of which rounding leaves nothing: bring the values to "
           "one scale, compute in double precision, or use hbp.operator(..., \"hessian\"), whose products are torch's.")


def second_order(candidate: Candidate, batch: Batch, draws: Draws, eps: float, random: bool,
                 only: Collection[str] | None = None, raw: Any = None) -> list[Comparison]:
    """Lines for every quantity that was asked for, but grad, or for those in `only`; `random`: whether the model draws;
    `raw`: what the program returned for the batch with these draws, if it was run."""
    if raw is None:
        with drawing(draws):
            raw = candidate.run(batch)
    asked = [name for name in candidate.options.quantities if name not in (GRAD, JACOBIAN)]  # those are proven always
    asked = [name for name in asked if only is None or name in only]
    apart = (*clipped.NAMES, *groups.NAMES)
    values: dict[str, Mapping[str, Any]] = {
        name: getattr(raw, name) for name in asked if QUANTITIES[name].per != BATCH and name not in apart}
    how = _with_twins(candidate, batch, draws, values)
    if candidate.options.curvature_dtype is not None:
        eps = max(eps, torch.finfo(candidate.options.curvature_dtype).eps)
    reference = _Reference(candidate, batch, draws, values, raw.batch_loss if LOSSES in asked else None,
                           clipped.clipped_of(raw, candidate))
    try:
        right = reference()
        reference.like(right)
        loss = float(raw.loss.detach().abs())
        last_digit = eps * loss if math.isfinite(loss) else 0.0
        lines = compared(reference.found, right, eps, lambda run: reference(Noise(eps, run)), of_zero=last_digit)
        lines = [line if line.agrees else reference.by_differences(line, right[line.key]) for line in lines]
        lines = reference.last_digits_allowed(lines, eps)
        if only is not None:
            lines = [replace(line, allowed=max(line.allowed, SIX_DIGITS * line.largest)) for line in lines]
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:150]
        lines = [left_out(*key, f"autograd itself fails: {reason}") for key in reference.found]
    lines = [replace(line, how=line.how or how.get(line.quantity) or reference.how(line)) if line.compared else line
             for line in lines]
    if only is not None:
        return lines
    lines += factor_lines(candidate, batch, values, eps, random)
    lines += eigen_lines(candidate, batch, draws, values, eps)
    lines += group_lines(candidate, batch, draws, eps)
    known = {line.quantity.partition(".")[0] for line in lines}
    return [*lines, *(left_out(name, "", how.get(name) or reference.refused.get(name, "nothing to compare it with"))
                      for name in asked if name not in known)]


def _with_twins(candidate: Candidate, batch: Batch, draws: Draws, values: dict[str, Mapping[str, Any]],
                ) -> dict[str, str]:
    """Replaces sampled values by those of their exact twins; how each is compared, or why not."""
    sampled = {name: twin for name, twin in TWINS.items() if name in values}
    how = {name: f"its exact twin {twin}" for name, twin in sampled.items()}
    if not sampled:
        return {}
    for name in sampled:
        del values[name]
    try:
        twins = twin_program(candidate.matched, candidate.options, tuple(sorted(set(sampled.values()))))
    except HbpError as error:
        return {name: f"sampled, and its exact twin {twin} is refused: {error}" for name, twin in sampled.items()}
    with drawing(draws):
        results = twins(candidate.state, *batch.tensors, **candidate.beside)
    values |= {name: results[twin] for name, twin in sampled.items()}
    return how


class _Reference:
    """What is to be compared, and the same by autograd: call it, with noise or without."""

    def __init__(self, candidate: Candidate, batch: Batch, draws: Draws, values: Mapping[str, Mapping[str, Any]],
                 losses: Tensor | None = None, weighed: Mapping[Key, Tensor] | None = None) -> None:
        self.candidate, self.batch, self.draws = candidate, batch, draws
        self.axes = candidate.axes
        self.refused: dict[str, str] = {}
        self.readers: dict[str, tuple[str, Diagonal]] = {}
        """By quantity: of which matrix it states the diagonal, and how."""
        for name in values:
            self._sort_in(name)
        self.entries = drawn_entries(values, list(self.readers), candidate)
        self.found: dict[Key, Tensor] = {}
        if losses is not None:
            self.found[LOSSES, ""] = losses
        if weighed and None in self.axes:
            self.refused |= dict.fromkeys(clipped.NAMES, MERGED)
        elif weighed:
            self.found |= weighed
        for quantity, by_parameter in values.items():
            for name, value in by_parameter.items():
                self._pick(quantity, name, value)

    def _sort_in(self, quantity: str) -> None:
        exact = TWINS.get(quantity, quantity)
        curvature = self.candidate.options.curvature
        if exact in _PER_SAMPLE and None in self.axes:
            self.refused[quantity] = MERGED
        elif exact in COUNTS:
            self.refused[quantity] = ROUNDED
        elif exact in _GGN or exact == "trace_ggn":
            self.readers[quantity] = "ggn", {**_GGN, **_TRACES}[exact]
        elif exact in _HESSIAN or exact in ("trace_h", "block"):
            kind = {HESSIAN: "hessian", GGN_ALONE: "ggn"}.get(curvature)
            if kind is None:
                self.refused[quantity] = f"autograd has nothing like curvature={curvature!r}"
            else:
                self.readers[quantity] = kind, {**_HESSIAN, **_TRACES}.get(exact, _unread)

    def _pick(self, quantity: str, name: str, value: Any) -> None:
        if quantity in _PER_SAMPLE and quantity not in self.refused:
            self.found[quantity, name] = value
        elif quantity in self.readers and name in self.entries:
            at = self.entries[name]
            if quantity == "block":
                if self.candidate.block_diagonal is not None:
                    self.found[quantity, name] = self.candidate.block_diagonal(name, value, at)
            elif quantity not in _TRACES or len(at) == self._size(name):
                self.found[quantity, name] = self.readers[quantity][1](value, at)

    def like(self, right: Numbers) -> None:
        """Losses are compared by their mean or sum where they are not known one by one."""
        key = LOSSES, ""
        if key in right and not right[key].dim():
            self.found[key] = losses_together(self.found[key], self._kind)

    @property
    def _kind(self) -> str:
        return self.candidate.matched.ending.kind

    def _size(self, name: str) -> int:
        return self.candidate.model.get_parameter(name).numel()

    def how(self, line: Comparison) -> str:
        """What of the parameter was compared."""
        number = self.batch.samples
        samples = "one sample" if number == 1 else f"{'two' if number == 2 else number} samples"
        if line.quantity in (*_PER_SAMPLE, *clipped.NAMES):
            return samples
        if line.quantity == LOSSES:
            return samples if self.found[line.key].dim() else f"their {self._kind} is the loss"
        count, size = len(self.entries[line.parameter]), self._size(line.parameter)
        return samples if count == size else f"{samples}, {count} of {size} entries"

    def by_differences(self, line: Comparison, right: Tensor) -> Comparison:
        """The line of a diagonal of the Hessian, by differences of the gradient where those can decide."""
        if self.readers.get(line.quantity, ("", None))[0] != "hessian":
            return line
        entries = self.entries[line.parameter]
        try:
            values, doubt = hessian_entries(self.candidate, self.batch, self.draws, line.parameter, entries)
        except Exception:  # whatever a model raises on numbers of another dtype
            return line
        if line.quantity in _TRACES:
            values, doubt = values.sum(), doubt * len(entries)
        return decided(line, self.found[line.key].detach().double(), right.double(), values, doubt)

    def last_digits_allowed(self, lines: list[Comparison], eps: float) -> list[Comparison]:
        """The lines, of which diagonals that disagree may be off by the last digits of what a saturated loss subtracts:
        of p (1 - p) autograd has the difference of p and p^2, which the program, by its factor, need not lose."""
        wrong = [line for line in lines if not line.agrees and line.quantity in self.readers]
        if not wrong:
            return lines

        def unsaturated(own: Double) -> Numbers:
            return {line.key: torch.stack([own.ggn_at_zero(line.parameter, at) for at in self.entries[line.parameter]])
                    for line in wrong}

        sizes = double(self.candidate.model, self.candidate.loss, self.batch, self.draws, unsaturated)
        last = {key: TIMES_NOISE * eps * float(size.abs().sum()) for key, size in sizes.items()}
        return [replace(line, allowed=max(line.allowed, last[line.key])) if math.isfinite(last.get(line.key, math.nan))
                else line for line in lines]

    def __call__(self, noise: Noise | None = None) -> Numbers:
        return double(self.candidate.model, self.candidate.loss, self.batch, self.draws, self._right, noise,
                      self.candidate.weights(self.batch))

    def _right(self, own: Double) -> Numbers:
        right: dict[Key, Tensor] = {}
        shares: Mapping[str, Tensor] = {}
        if any(quantity in (*_PER_SAMPLE, *clipped.NAMES) for quantity, _ in self.found):
            shares = own.shares([axis or 0 for axis in self.axes], self.batch.samples)
        if any(quantity in clipped.NAMES for quantity, _ in self.found):
            right |= clipped.clipped_by_hand(shares, self.candidate)
        diagonals: dict[tuple[str, str], Tensor] = {}
        for quantity, name in self.found:
            if quantity in clipped.NAMES:
                continue
            if quantity == LOSSES:
                losses = own.losses(self.axes, self._kind)
                if losses is not None:
                    right[quantity, name] = losses
                continue
            if quantity in _PER_SAMPLE:
                right[quantity, name] = _of_shares(quantity, shares[name], self.candidate.matched.ending.kind)
                continue
            kind = self.readers[quantity][0], name
            if kind not in diagonals:
                diagonals[kind] = _diagonal(own, *kind, self.entries[name])
            right[quantity, name] = diagonals[kind].sum() if quantity in _TRACES else diagonals[kind]
        return right


def _unread(value: Any, at: list[int]) -> Tensor:
    raise NotImplementedError("a block's diagonal is read by products")


def _diagonal(own: Double, kind: str, name: str, entries: Sequence[int]) -> Tensor:
    entry = own.ggn if kind == "ggn" else own.hessian
    return torch.stack([entry(name, at) for at in entries])


def _of_shares(quantity: str, shares: Tensor, kind: str) -> Tensor:
    """A per-sample quantity of the samples' shares of the gradient, [N, *theta]."""
    flat = shares.flatten(1) if shares.dim() > 1 else shares[:, None]
    each = shares * (len(shares) if kind == "mean" else 1)
    if quantity == "batch_l2":
        return flat.square().sum(1)
    if quantity == "batch_dot":
        return flat @ flat.T
    if quantity == "batch_inner":
        return flat @ flat.sum(0)
    if quantity == "second_moment":
        return each.square().mean(0)
    if quantity == "variance":
        return each.square().mean(0) - each.mean(0).square()
    return shares
