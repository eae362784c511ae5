"""Trace and diagonal without estimates: off-diagonal blocks do not enter, so that of single parameters suffices."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hbpcompiler.compiled import compile as compile_model
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import InputError, UnusedParametersWarning
from hbpcompiler.operators.passes import Passes
from hbpcompiler.operators.vectors import Space

TRACES = {"ggn": "trace_ggn", "hessian": "trace_h", "fisher_empirical": "batch_l2"}
DIAGONALS = {"ggn": "diag_ggn", "hessian": "diag_h", "fisher_empirical": "second_moment"}


@dataclass(frozen=True)
class Exact:
    """The matrix of which it is to be had, and its batches with their factors."""

    passes: Passes
    kind: str
    space: Space
    mean: bool
    batches: Iterable[tuple[int, Batch, float]]

    def quantity(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """The sum over batches of a compiled quantity; parameters that do not reach the loss are left out."""
        if self.kind not in names:
            raise InputError(f"nothing exact is known of kind {self.kind!r}: use estimate_trace or estimate_diagonal")
        name, model, loss = names[self.kind], self.passes.model, self.passes.loss
        compiled = compile_model(model, loss, {name: [glob.escape(key) for key in self.space.shapes]})
        total: dict[str, Tensor] = {}
        for number, batch, factor in self.batches:
            args, keywords, target = batch.layout.build(batch.tensors)
            with warnings.catch_warnings(), self.passes.drawn(number, batch):
                warnings.simplefilter("ignore", UnusedParametersWarning)
                result = compiled(keywords or args, target)
            for key, value in result[name].items():
                part = value.sum() if name == "batch_l2" else value
                if name == "second_moment":  # (1/N) sum of squares of grad l_n; in a mean l_n is N times its share
                    part = part / batch.samples if self.mean else part * batch.samples
                total[key] = total[key] + factor * part if key in total else factor * part
        return total


def trace(matrix: Exact) -> Tensor:
    """A number."""
    zero = torch.zeros((), dtype=matrix.space.dtype, device=matrix.space.device)
    return sum(matrix.quantity(TRACES).values(), zero)


def diagonal(matrix: Exact) -> dict[str, Tensor]:
    """{name: [*theta]}."""
    found = matrix.quantity(DIAGONALS)
    space = matrix.space
    return {name: found.get(name, torch.zeros(shape, dtype=space.dtype, device=space.device))
            for name, shape in space.shapes.items()}
