"""The traced model in the compiler's own terms: values, operations that make them, and the graph they form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import sympy
import torch

N = sympy.Symbol("N", integer=True, positive=True)
"""The batch size, in every symbolic shape and cost."""

Shape = tuple[Any, ...]
"""Numbers, and expressions in N where a length depends on the batch."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph. `key` is where it is found: a state name, an input's number."""

    name: str
    shape: Shape
    dtype: torch.dtype
    role: str
    """"input", "target", "parameter", "buffer", "constant" or "result"."""
    key: str = ""
    trainable: bool = False
    shared: bool = False
    """Whether its sample axis has length one, because it is the same for every sample (see `parameter_values`)."""

    @property
    def batched(self) -> bool:
        """Whether the value has a sample axis (always axis 0)."""
        return self.shared or (bool(self.shape) and self.shape[0] == N)

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

    def __str__(self) -> str:
        place = "the loss" if self.in_loss else f"module {self.module!r}" if self.module else "the model's forward"
        kind = f" ({self.module_type.rsplit('.', 1)[-1]})" if self.module_type else ""
        line = f", {self.file}:{self.line}: {self.code}" if self.file else ""
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

    @property
    def name(self) -> str:
        return self.output.name

    @property
    def short(self) -> str:
        """The operation's bare name: "linear"."""
        return self.target.split(".", 1)[1].strip("_")


@dataclass(frozen=True)
class Graph:
    """A traced model and loss. `operations` are in an order of execution."""

    inputs: Sequence[Value]
    target: Value
    state: Sequence[Value]
    operations: Sequence[Operation]
    output: Value
    loss: Value
    makers: Mapping[str, Operation] = field(default_factory=dict)
    """Value name -> the operation that makes it."""

    def ending(self) -> tuple[Operation, list[Operation]]:
        """The operation that reduces the batch to one number, and those that change this number afterwards."""
        operation, tail = self.makers[self.loss.name], []
        while not any(value.batched for value in operation.tensors.values()):
            numbers = [self.makers[value.name] for value in operation.tensors.values() if value.name in self.makers]
            if len(numbers) != 1:
                break
            tail.append(operation)
            operation = numbers[0]
        return operation, tail[::-1]

    def values(self) -> Iterator[Value]:
        yield from self.inputs
        yield self.target
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

    def active(self) -> set[str]:
        """Names of the values that derivatives reach: between a trainable parameter and the loss."""
        network = self.network()
        floating = [value.name for value in self.values() if value.floating]
        network = network.subgraph(floating)
        trainable = [value.name for value in self.state if value.trainable]
        below: set[str] = set().union(*[{name} | nx.descendants(network, name) for name in trainable])
        above = {self.loss.name} | nx.ancestors(network, self.loss.name)
        return below & above
