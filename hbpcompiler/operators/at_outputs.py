"""What stands between J and J^T: the loss's Hessian, or outer products of gradients, at the outputs of one batch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiled import Compiled
from hbpcompiler.compiled import compile as compile_model
from hbpcompiler.compiler.prove.double import AtOutputs
from hbpcompiler.compiler.prove.own_step import Loss
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.containers import Structure
from hbpcompiler.errors import UnusedParametersWarning
from hbpcompiler.operators.products import Meeting, pulled
from hbpcompiler.operators.sample_axes import SampleAxes, SampleAxis, known
from hbpcompiler.operators.vectors import Columns


class LossHessian:
    """The Hessian of L in the outputs: J^T C J is the GGN."""

    def at(self, ends: AtOutputs, number: int, batch: Batch) -> Meeting:
        return lambda tangents, batched: pulled(ends.slopes, ends.leaves, tangents, batched)


@dataclass
class Empirical:
    """sum_n c_n c_n^T, with c_n sample n's share of the loss's gradient in the outputs."""

    axes: SampleAxes

    def at(self, ends: AtOutputs, number: int, batch: Batch) -> Meeting:
        axes = known(self.axes.of(batch), ends.varying)
        shares = [axis.front(slope.detach()).unsqueeze(1) for axis, slope in zip(axes, ends.slopes, strict=True)]
        return _outer_products(shares, axes)


@dataclass
class Sampled:
    """(1/N) sum_nm s_nm s_nm^T (without 1/N for a sum), with M columns s_nm a sample whose expected outer products are
    the Hessian of l_n: gradients under targets that are drawn from the model's own likelihood."""

    axes: SampleAxes
    samples: int
    """M."""
    loss: Loss
    _programs: dict[Any, Compiled] = field(default_factory=dict)

    def at(self, ends: AtOutputs, number: int, batch: Batch) -> Meeting:
        axes = known(self.axes.of(batch), range(len(ends.tensors)))
        values = [axis.front(tensor.detach()) for axis, tensor in zip(axes, ends.tensors, strict=True)]
        program = self._program(batch, values, axes, ends)
        generator = torch.Generator().manual_seed(self.axes.passes.seed_of(number, "targets"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnusedParametersWarning)
            drawn = program(*values, ends.target, generator=generator).sqrt_ggn_mc
        nothing = {i: torch.zeros_like(values[i]).unsqueeze(1) for i in ends.varying}  # outputs without influence
        columns = [drawn.get(_shift(i), nothing[i]) for i in ends.varying]
        return _outer_products(columns, [axes[i] for i in ends.varying])

    def _program(self, batch: Batch, values: Sequence[Tensor], axes: Sequence[SampleAxis], ends: AtOutputs) -> Compiled:
        """The loss's rules draw: of a model that hands on its inputs, each plus a parameter of zeros."""
        if batch.form not in self._programs:
            self._programs[batch.form] = compile_model(_Shifts(values, axes, ends.varying, ends.structure), self.loss,
                                                       ["sqrt_ggn_mc"], mc_samples=self.samples)
        return self._programs[batch.form]


class _Shifts(nn.Module):
    """Outputs as a function of themselves."""

    def __init__(self, values: Sequence[Tensor], axes: Sequence[SampleAxis], varying: Sequence[int],
                 structure: Structure) -> None:
        super().__init__()
        self.axes, self.varying, self.structure = tuple(axes), tuple(varying), structure
        for i in varying:
            self.register_parameter(_shift(i), nn.Parameter(torch.zeros_like(values[i][0])))

    def forward(self, *values: Tensor) -> Any:
        outputs = []
        for i, (value, axis) in enumerate(zip(values, self.axes, strict=True)):
            moved = value + self.get_parameter(_shift(i)) if i in self.varying else value
            outputs.append(axis.back(moved))
        return self.structure.build(outputs)


def _shift(number: int) -> str:
    return f"shift{number}"


def _outer_products(columns: Sequence[Tensor], axes: Sequence[SampleAxis]) -> Meeting:
    """Of columns [N, M, *z] for each output; the inner products of all outputs together."""
    flat = [column.flatten(2) for column in columns]

    def meet(tangents: Columns, batched: bool) -> Columns:
        met = torch.zeros((), dtype=flat[0].dtype, device=flat[0].device)
        for own, axis, tangent in zip(flat, axes, tangents, strict=True):
            met = met + torch.einsum("nmz,fnz->fnm", own, axis.front(tangent, 1).flatten(2))
        back = []
        for own, column, axis in zip(flat, columns, axes, strict=True):
            weighted = torch.einsum("nmz,fnm->fnz", own, met)
            back.append(axis.back(weighted.reshape(*weighted.shape[:2], *column.shape[2:]), 1))
        return back

    return meet
