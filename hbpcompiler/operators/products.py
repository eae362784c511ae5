"""Products with the curvature of one batch, in several ways: the first that works for a model is kept to.

GGN and Fishers are J^T C J with J the Jacobian of the model's outputs and C something at the outputs: vectors go
through J, meet C and come back through J^T. J v is taken by forward-mode differentiation or, where an operation has
none, by differentiating J^T u in u. The Hessian is the gradient's derivative, by a second backward pass. Several
vectors share a forward pass; they are batched (vmap) in chunks, or go through one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.double import AtOutputs, derivatives
from hbpcompiler.compiler.prove.own_step import Pass
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.containers import Structure
from hbpcompiler.errors import HbpError, UnsupportedOpError
from hbpcompiler.operators.carried import with_few_tensors
from hbpcompiler.operators.passes import Passes
from hbpcompiler.operators.vectors import Columns, inner_products

Meeting = Callable[[Columns, bool], Columns]
"""C times vectors: [F, *output] for each output that varies; the second argument says whether all F at once."""


class Curvature(Protocol):
    """What stands between J and J^T."""

    def at(self, ends: AtOutputs, number: int, batch: Batch) -> Meeting:
        """C of batch `number`, where the outputs are those of `ends`."""


@dataclass(frozen=True)
class Way:
    """How products are computed."""

    forward: bool
    """Whether J v is taken by forward-mode differentiation."""
    batched: bool
    """Whether a chunk of vectors goes through at once."""
    cudnn: bool = True
    """Its recurrent kernels have no second derivative."""


_OUTPUT_WAYS = [Way(forward, batched) for forward in (True, False) for batched in (True, False)]
_BACKWARD_WAYS = [way for way in _OUTPUT_WAYS if not way.forward]
_WITHOUT_CUDNN = [Way(False, True, False), Way(False, False, False)]


@dataclass
class Products:
    """Products with the curvature of one batch at a time."""

    passes: Passes
    curvature: Curvature | None
    """None: the Hessian's."""
    chunk: int
    _kept: dict[bool, Way] = field(default_factory=dict)
    """For one vector (False), for several (True): the way that worked."""
    _without_forward: bool = False
    """Whether forward-mode differentiation has failed, or is not that of the backward pass."""
    _looked: set[bool] = field(default_factory=set)
    """The model's modes (`training`) in which it was asked whether it sees copies of its parameters."""
    _without_batches: bool = False
    """Whether a model draws otherwise where vectors are batched."""

    def times(self, number: int, batch: Batch, columns: Columns) -> Columns:
        """[F, *theta] each. Raises UnsupportedOpError if torch has no way."""
        several, failure = len(columns[0]) > 1, None
        self._look(number, batch)
        for way in self._ways(several, batch):
            try:
                product = self._in(way, number, batch, columns)
            except (HbpError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, NotImplementedError) as error:
                failure = error
                continue
            self._kept[several] = way
            return product
        raise UnsupportedOpError("torch cannot differentiate this model and loss as an operator needs it: "
                                 f"{str(failure).strip()}") from failure

    def inner(self, number: int, batch: Batch, vectors: Sequence[Sequence[Tensor]]) -> Tensor:
        """V^T (J^T C J) V of F vectors, each a tensor for each parameter; [F, F] in float64. A forward pass carries
        each vector along, nothing is kept for a way back, and no copies are made of vectors that lie in memory as the
        parameters do. By products where torch has no forward mode. Raises as `times` does."""
        self._look(number, batch)
        if self.curvature is not None and not self._without_forward:
            try:
                with self.passes.careful():
                    return self._inner_forward(self.curvature, number, batch, vectors)
            except (HbpError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, NotImplementedError):
                self._without_forward = True
        columns = [torch.stack(parts) for parts in zip(*vectors, strict=True)]
        return inner_products(columns, self.times(number, batch, columns))

    def _look(self, number: int, batch: Batch) -> None:
        """A vector is carried forward with other tensors in the place of parameters; without that mode where the model
        does not see them."""
        if self.curvature is None or self._without_forward or self.passes.model.training in self._looked:
            return
        self._looked.add(self.passes.model.training)
        try:
            sees = self.passes.sees_copies(number, batch)
        except (HbpError, torch.OutOfMemoryError):
            raise
        except Exception:  # whatever a model raises on tensors that are no parameters
            sees = False
        if not sees:
            self.leave_out_forward()

    def leave_out_forward(self) -> bool:
        """From now on take J v by differentiating J^T u; False if nothing changes by that."""
        changes = self.curvature is not None and not self._without_forward
        self._without_forward = True
        self._kept.clear()
        return changes

    def leave_out_batches(self) -> bool:
        """From now on several vectors go through one by one; False if nothing changes by that."""
        changes, self._without_batches = not self._without_batches, True
        self._kept.pop(True, None)
        return changes

    def _inner_forward(self, curvature: Curvature, number: int, batch: Batch,
                       vectors: Sequence[Sequence[Tensor]]) -> Tensor:
        named = dict(self.passes.model.named_parameters())
        at = {name: named[name].detach() for name in self.passes.chosen}
        carried: list[Sequence[Tensor]] = []
        for vector in vectors:
            with self.passes.drawn(number, batch):
                with torch.no_grad(), with_few_tensors():
                    outputs, tangents, structure = self._carried(batch, at, dict(zip(at, vector, strict=True)))
                carried.append(tangents)
                if len(carried) == len(vectors):
                    for output in outputs:
                        output.requires_grad_(output.is_floating_point())
                    ends = self.passes.at_outputs(batch, outputs, structure)
        moved = [torch.stack([tangents[i] for tangents in carried]) for i in ends.varying]
        return inner_products(moved, curvature.at(ends, number, batch)(moved, True))

    def _ways(self, several: bool, batch: Batch) -> list[Way]:
        if several in self._kept:
            return [self._kept[several]]
        ways = _BACKWARD_WAYS if self.curvature is None or self._without_forward else _OUTPUT_WAYS
        if batch.tensors[0].is_cuda:
            ways = ways + _WITHOUT_CUDNN
        return [way for way in ways if not way.batched or (several and not self._without_batches)]

    def _in(self, way: Way, number: int, batch: Batch, columns: Columns) -> Columns:
        with self.passes.careful(way.cudnn):
            if self.curvature is None:
                return self._hessian(number, batch, columns, way)
            if way.forward and len(columns[0]) == 1:
                return self._of_one(self.curvature, number, batch, columns)
            return self._of_several(self.curvature, number, batch, columns, way)

    def _hessian(self, number: int, batch: Batch, columns: Columns, way: Way) -> Columns:
        with self.passes.variables() as variables, self.passes.drawn(number, batch):
            at = list(variables.values())

            def products(run: Pass) -> Columns:
                gradient = derivatives(run.loss, at, keep=True)
                return joined([pulled(gradient, at, part, way.batched) for part in self._chunks(columns, way)])

            return self.passes.run(batch, products)

    def _of_one(self, curvature: Curvature, number: int, batch: Batch, columns: Columns) -> Columns:
        """One forward pass carries the vector along and records what its way back needs."""
        variables = self.passes.copies()
        vector = {name: column.squeeze(0) for name, column in zip(variables, columns, strict=True)}
        with self.passes.drawn(number, batch):
            outputs, tangents, structure = self._carried(batch, variables, vector)
            ends = self.passes.at_outputs(batch, outputs, structure)
        if not ends.outputs:
            return [torch.zeros_like(column) for column in columns]
        met = curvature.at(ends, number, batch)([tangents[i].detach().unsqueeze(0) for i in ends.varying], False)
        return pulled(ends.outputs, list(variables.values()), met, False)

    def _of_several(self, curvature: Curvature, number: int, batch: Batch, columns: Columns, way: Way) -> Columns:
        with self.passes.variables() as variables:
            at = list(variables.values())
            with self.passes.drawn(number, batch):
                ends = self.passes.at_outputs(batch, *self.passes.outputs(batch))
            if not ends.outputs:
                return [torch.zeros_like(column) for column in columns]
            meet = curvature.at(ends, number, batch)
            backwards = None if way.forward else _Backwards(ends, at)
            products = []
            for part in self._chunks(columns, way):
                if backwards is not None:
                    tangents = backwards.tangents(part, way.batched)
                else:
                    tangents = self._tangents(number, batch, variables, part, ends.varying, way.batched)
                products.append(pulled(ends.outputs, at, meet(tangents, way.batched), way.batched))
            return joined(products)

    def _carried(self, batch: Batch, variables: dict[str, Tensor], vector: dict[str, Tensor],
                 ) -> tuple[Sequence[Tensor], Sequence[Tensor], Structure]:
        """The model's outputs and J v."""
        structures: list[Structure] = []

        def outputs(values: dict[str, Tensor]) -> tuple[Tensor, ...]:
            tensors, structure = self.passes.outputs(batch, values)
            structures.append(structure)
            return tuple(tensors)

        with warnings.catch_warnings():  # torch scripts a few functions where it does this first, and warns of that
            warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
            warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
            carried: Any = torch.func.jvp(outputs, (variables,), (vector,))
        return carried[0], carried[1], structures[0]

    def _tangents(self, number: int, batch: Batch, variables: dict[str, Tensor], part: Columns, varying: Sequence[int],
                  batched: bool) -> Columns:
        """J v of each vector, by forward-mode differentiation."""
        fixed = {name: value.detach() for name, value in variables.items()}

        def tangents(*vector: Tensor) -> tuple[Tensor, ...]:
            _, found, _ = self._carried(batch, fixed, dict(zip(fixed, vector, strict=True)))
            return tuple(found[i] for i in varying)

        with torch.no_grad(), self.passes.drawn(number, batch):
            if batched:
                return list(torch.func.vmap(tangents, randomness="same")(*part))
            return [tangent.unsqueeze(0) for tangent in tangents(*(column.squeeze(0) for column in part))]

    def _chunks(self, columns: Columns, way: Way) -> Iterator[Columns]:
        size = self.chunk if way.batched else 1
        for start in range(0, len(columns[0]), size):
            yield [column[start : start + size] for column in columns]


class _Backwards:
    """J v by differentiating J^T u in u."""

    def __init__(self, ends: AtOutputs, at: list[Tensor]) -> None:
        self.weights = [torch.zeros_like(output).requires_grad_() for output in ends.outputs]
        self.weighted = torch.autograd.grad(ends.outputs, at, self.weights, create_graph=True, allow_unused=True,
                                            materialize_grads=True)

    def tangents(self, columns: Columns, batched: bool) -> Columns:
        return pulled(self.weighted, self.weights, columns, batched)


def pulled(values: Sequence[Tensor], at: Sequence[Tensor], weights: Columns, batched: bool) -> Columns:
    """[F, *at] each: the gradients of sum weights[f] * values; the graph is kept."""
    reached = [(value, weight) for value, weight in zip(values, weights, strict=True) if value.requires_grad]
    count = len(weights[0])
    if not reached:
        return [tensor.new_zeros(count, *tensor.shape) for tensor in at]
    ends, given = [value for value, _ in reached], [weight for _, weight in reached]
    if batched:
        found = torch.autograd.grad(ends, at, given, retain_graph=True, allow_unused=True, is_grads_batched=True)
        return [tensor.new_zeros(count, *tensor.shape) if one is None else one.detach()
                for tensor, one in zip(at, found, strict=True)]
    rows = [torch.autograd.grad(ends, at, [weight[f] for weight in given], retain_graph=True, allow_unused=True,
                                materialize_grads=True) for f in range(count)]
    return [torch.stack(tensors).detach() for tensors in zip(*rows, strict=True)]


def joined(parts: Sequence[Columns]) -> Columns:
    """Chunks of vectors, one behind the other."""
    return parts[0] if len(parts) == 1 else [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
