"""What a program states beyond the gradient, beside the same by autograd on a few samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.prove import clipped
from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import TIMES_NOISE, Comparison, Key, Numbers, compared, left_out
from hbpcompiler.compiler.prove.differences import decided, hessian_entries
from hbpcompiler.compiler.prove.double import Double, double
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.entries import drawn_entries
from hbpcompiler.compiler.prove.in_double import Doubled, NoisyInDouble, as_near
from hbpcompiler.compiler.prove.noise import Moves, Noise
from hbpcompiler.compiler.prove.twin import TWINS
from hbpcompiler.compiler.prove.weights import losses_together
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.schemes import GGN_ALONE, HESSIAN

LOSSES = "batch_loss"
COUNTS = ("grad_histogram", "grad_histogram_2d")
ROUNDED = "counts: rounding may take a number over the edge of its bin"
NO_GRADIENT = "the model's own gradient is infinite or NaN there"
MERGED = "the output has samples merged with positions"

Diagonal = Callable[[Any, list[int]], Tensor]
"""(a parameter's value, entries) -> the entries of a diagonal that it states."""
_PER_SAMPLE = ("batch_grad", "batch_l2", "second_moment", "variance", "batch_dot", "batch_inner")
GGNS: Mapping[str, Diagonal] = {
    "diag_ggn": lambda value, at: value.flatten()[at],
    "batch_diag_ggn": lambda value, at: value.sum(0).flatten()[at],
    "sqrt_ggn": lambda value, at: value.square().sum((0, 1)).flatten()[at],
}
HESSIANS: Mapping[str, Diagonal] = {
    "diag_h": lambda value, at: value.flatten()[at],
    "batch_diag_h": lambda value, at: value.sum(0).flatten()[at],
    "diag_h_split": lambda value, at: (value.ggn + value.positive - value.negative).flatten()[at],
}
_TRACES: Mapping[str, Diagonal] = {"trace_ggn": lambda value, at: value, "trace_h": lambda value, at: value}


class Reference:
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
        elif exact in GGNS or exact == "trace_ggn":
            self.readers[quantity] = "ggn", {**GGNS, **_TRACES}[exact]
        elif exact in HESSIANS or exact in ("trace_h", "block"):
            kind = {HESSIAN: "hessian", GGN_ALONE: "ggn"}.get(curvature)
            if kind is None:
                self.refused[quantity] = f"autograd has nothing like curvature={curvature!r}"
            else:
                self.readers[quantity] = kind, {**HESSIANS, **_TRACES}.get(exact, _unread)

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

    def in_double(self, lines: list[Comparison], single: Numbers, eps: float) -> tuple[list[Comparison], float]:
        """The lines, of which diagonals that disagree meet autograd in double precision instead, of whose own digits a
        saturated loss takes fewer; and the rounding of what they met. `single` is autograd's in single precision: a
        Hessian as near to the truth as that is good enough."""
        wrong = self._diagonals_off(lines)
        if not wrong:
            return lines, eps
        def right(moves: Doubled) -> Numbers:
            numbers = self(moves)
            return {line.key: numbers[line.key] for line in wrong}

        try:
            met = {line.key: line for line in compared(self.found, right(Doubled()), eps,
                                                       lambda run: right(NoisyInDouble(Noise(eps, run))))}
        except Exception:  # whatever a model raises on numbers of another dtype
            return lines, eps
        hessians = [line for line in met.values() if self.readers[line.quantity][0] == "hessian"]
        met |= {line.key: line for line in as_near(hessians, self.found, single, lambda: right(Doubled()))}
        return [met.get(line.key, line) for line in lines], torch.finfo(torch.float64).eps

    def last_digits_allowed(self, lines: list[Comparison], eps: float) -> list[Comparison]:
        """The lines, of which diagonals that disagree may be off by the last digits of what a saturated loss subtracts:
        of p (1 - p) autograd has the difference of p and p^2, which the program, by its factor, need not lose."""
        wrong = self._diagonals_off(lines)
        if not wrong:
            return lines

        def unsaturated(own: Double) -> Numbers:
            return {line.key: torch.stack([own.unsaturated(line.parameter, at) for at in self.entries[line.parameter]])
                    for line in wrong}

        sizes = double(self.candidate.model, self.candidate.loss, self.batch, self.draws, unsaturated)
        last = {key: TIMES_NOISE * eps * float(size.abs().sum()) for key, size in sizes.items()}
        return [replace(line, allowed=max(line.allowed, last[line.key])) if math.isfinite(last.get(line.key, math.nan))
                else line for line in lines]

    def without_gradient(self, lines: list[Comparison]) -> list[Comparison]:
        """The lines, of which those that disagree by infinity say nothing where the model's own gradient is NaN, too:
        autograd's second derivative need not meet the slope that is infinite."""
        lost = [line for line in lines if line.error == math.inf and not line.shapes and line.quantity in self.readers]
        if not lost:
            return lines

        def own_gradients(own: Double) -> Numbers:
            return {line.key: own.gradients[line.parameter].detach() for line in lost}

        found = double(self.candidate.model, self.candidate.loss, self.batch, self.draws, own_gradients)
        nothing = {key for key, gradient in found.items() if not bool(gradient.isfinite().all())}
        return [left_out(*line.key, NO_GRADIENT) if line.key in nothing else line for line in lines]

    def _diagonals_off(self, lines: Sequence[Comparison]) -> list[Comparison]:
        return [line for line in lines if not line.agrees and line.quantity in self.readers]

    def __call__(self, noise: Moves | None = None) -> Numbers:
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
