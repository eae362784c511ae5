"""The traced model in the compiler's own terms: values, operations that make them, and the graph they form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
import sympy
import torch

from hbpcompiler.rules.shared.result_names import DECORATION

N = sympy.Symbol("N", integer=True, positive=True)
"""The batch size, in every symbolic shape and cost."""

T = sympy.Symbol("T", integer=True, positive=True)
"""The length of axes that may have any (see `any_length`), in costs and comments; in a graph it is a number."""

SHOWN_CODE = 120
"""Signs of a line of the user's that an error shows."""
Shape = tuple[Any, ...]
"""Numbers, and expressions in N where a length depends on the batch."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph. `key` is where it is found: a state name, an input's name."""

    name: str
    shape: Shape
    dtype: torch.dtype
    role: str
    """"input", "target", "parameter", "buffer", "constant" or "result"."""
    key: str = ""
    trainable: bool = False
    shared: bool = False
    """Whether its sample axis has length one, because it is the same for every sample (see `parameter_values`)."""

    numbering: bool = False
    """Whether every entry is the number of its sample, as in torch.arange(N) (see `sample_numbers`)."""

    @property
    def batched(self) -> bool:
        """Whether the value has a sample axis (always axis 0)."""
        return self.shared or (bool(self.shape) and self.shape[0] == N)

    @property
    def of_batch(self) -> bool:
        """Whether the batch's size is anywhere in its shape."""
        return any(N in getattr(length, "free_symbols", ()) for length in self.shape)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample's part; a value without sample axis is its own part.

        A length that still depends on the batch stays an expression: such a value's operation is refused by name.
        """
        lengths = self.shape[1:] if self.batched else self.shape
        return tuple(length if getattr(length, "free_symbols", ()) else int(length) for length in lengths)

    @property
    def floating(self) -> bool:
        return self.dtype.is_floating_point

    @property
    def differentiable(self) -> bool:
        """Whether derivatives can go through it: real or complex numbers, no whole numbers or flags."""
        return self.dtype.is_floating_point or self.dtype.is_complex


@dataclass(frozen=True)
class Source:
    """Where in the user's code something comes from."""

    module: str = ""
    """The path of the module, as named_modules has it; "" is the model itself."""
    module_type: str = ""
    file: str = ""
    line: int = 0
    code: str = ""
    in_loss: bool = False
    whole: str = ""
    """The operation that the user's code called, where torch's own table took it apart."""
    picked: int = 0
    """Of an operation on rows that a mask picks, of which all are there (see `picked`): how many axes the mask has."""

    def __str__(self) -> str:
        place = "the loss" if self.in_loss else f"module {self.module!r}" if self.module else "the model's forward"
        kind = f" ({self.module_type.rsplit('.', 1)[-1]})" if self.module_type else ""
        code = self.code if len(self.code) <= SHOWN_CODE else f"{self.code[:SHOWN_CODE]} ..."
        line = f", {self.file}:{self.line}: {code}" if self.file else ""
        return f"{place}{kind}{line}"


@dataclass(frozen=True)
class Operation:
    """One call of an ATen operation that makes one value (an operation with several results is one entry for each)."""

    target: str
    """ATen name without overload, "aten.linear"."""
    overload: str
    output: Value
    tensors: Mapping[str, Value]
    """Tensor arguments by slot: "weight", or "tensors.0" for the first of a list."""
    attributes: Mapping[str, Any]
    """All other arguments, defaults filled in; lists of tensors appear as lists of slots."""
    index: int
    source: Source
    parts: bool = False
    """Whether every tensor with samples is [N, p, *z], of parts on each of which the operation acts by itself."""

    @property
    def name(self) -> str:
        return self.output.name

    @property
    def short(self) -> str:
        """The operation's bare name: "linear"."""
        return self.target.split(".", 1)[1].strip("_")

    @property
    def plain(self) -> str:
        """The bare name as readers know it: "batch_norm" of native_batch_norm_legit_no_training."""
        return DECORATION.sub("", self.short)


@dataclass(frozen=True)
class Graph:
    """A traced model and loss. `operations` are in an order of execution."""

    inputs: Sequence[Value]
    targets: Sequence[Value]
    state: Sequence[Value]
    operations: Sequence[Operation]
    outputs: Sequence[Value]
    """The tensors that the model returns."""
    loss: Value
    stops: frozenset[str] = frozenset()
    """Names of the operations that no derivative passes."""
    end: str = ""
    """Name of the value, an output of the model, at which columns of its own begin, if any do (see `ends`)."""
    has_loss_streams: bool = True
    """Whether derivatives begin at the loss."""

    @cached_property
    def makers(self) -> Mapping[str, Operation]:
        """Value name -> the operation that makes it."""
        return {operation.name: operation for operation in self.operations}

    @property
    def batch(self) -> list[Value]:
        """Inputs and targets, in the program's order."""
        return [*self.inputs, *self.targets]

    @property
    def dtype(self) -> torch.dtype:
        """That of the model's output; of several, of the first that has numbers in it."""
        return next((output.dtype for output in self.outputs if output.floating), self.loss.dtype)

    @cached_property
    def trained(self) -> frozenset[str]:
        """Names of the values that have a derivative in trained parameters, these among them; none of them integer."""
        below = {value.name for value in self.state if value.trainable}
        for operation in self.operations:
            passes = operation.output.differentiable and operation.name not in self.stops
            if passes and any(value.name in below for value in operation.tensors.values()):
                below.add(operation.name)
        return frozenset(below)

    @cached_property
    def active(self) -> frozenset[str]:
        """Names of the values that derivatives reach: between trained parameters and the loss, or, where none begin at
        the loss, the output at which they do. None of them is integer."""
        above = {self.loss.name if self.has_loss_streams else self.end}
        for operation in reversed(self.operations):
            if operation.name in above and operation.name not in self.stops:
                above.update(value.name for value in operation.tensors.values() if value.differentiable)
        return self.trained & above

    @cached_property
    def ending(self) -> tuple[list[Operation], list[Operation]]:
        """The operations that reduce the batch to numbers, and those that make the loss of these, in order; none where
        no derivatives begin at the loss."""
        if not self.has_loss_streams:
            return [], []
        reductions, tail = [], []
        wanted = {self.loss.name}
        for operation in reversed(self.operations):
            if operation.name not in wanted:
                continue
            if any(value.of_batch for value in operation.tensors.values()):
                reductions.append(operation)
            else:
                tail.append(operation)
                wanted |= {value.name for value in operation.tensors.values()} & self.active
        return reductions[::-1], tail[::-1]

    @cached_property
    def parameters_above(self) -> Mapping[str, frozenset[str]]:
        """For each value, the keys of the trainable parameters that it depends on, itself not counted."""
        found = {value.name: frozenset[str]() for value in (*self.batch, *self.state)}
        own = {value.name: frozenset([value.key]) for value in self.state if value.trainable}
        for operation in self.operations:
            above = [own.get(value.name, frozenset()) | found[value.name] for value in operation.tensors.values()]
            found[operation.name] = frozenset().union(*above)
        return found

    def values(self) -> Iterator[Value]:
        yield from self.batch
        yield from self.state
        for operation in self.operations:
            yield operation.output

    def network(self) -> nx.DiGraph:
        """The graph for networkx: a node per value, an edge from each tensor argument to the result."""
        network = nx.DiGraph()
        for value in self.values():
            maker = self.makers.get(value.name)
            network.add_node(
                value.name,
                role=value.role,
                shape=value.shape,
                dtype=value.dtype,
                key=value.key,
                trainable=value.trainable,
                operation=maker.target if maker else None,
                module=maker.source.module if maker else None,
            )
        for operation in self.operations:
            for slot, value in operation.tensors.items():
                network.add_edge(value.name, operation.name, slot=slot)
        return network


SAMPLES = 2


def meta(value: Value, batch: int = SAMPLES) -> torch.Tensor:
    """A tensor of the value's shape and dtype, without memory."""
    shape = [length if isinstance(length, int) else int(length.subs(N, batch)) for length in value.shape]
    shape[:1] = [batch] if value.shared else shape[:1]
    return torch.empty(shape, dtype=value.dtype, device="meta")
