"""Parameters as values: where a contraction at the layer that uses a parameter cannot say how it is met.

A weight made of other parameters (weight norm, softplus of a scale), a parameter in a curved place (x / theta), the
several uses of a tied parameter whose cross terms are wanted: such a parameter becomes a value of the graph with a
sample axis of length one, theta_n = theta. Columns travel to it as to every value, add up over its uses, and end there.
What is computed of parameters alone becomes a batch of one, by torch.vmap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from hbpcompiler.compiler.match import aten
from hbpcompiler.compiler.match.bind import static_op
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.compiler.trace.reader import PieceReader
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.rule import ZERO, Contraction, Op, Rule, Structure, Tensor
from hbpcompiler.rule.registry import AnyRule, Registry


def _flat(op: Op, columns: Tensor) -> Tensor:
    return columns.flatten(2) if op.shape("self") else columns.unsqueeze(2)


EACH_SAMPLE = Rule(
    operations=["parameter.each_sample"],
    forward=lambda op: op.self.unsqueeze(0),
    jac_t={"self": lambda op, columns: columns},
    params=lambda op: {"self": Contraction("nko->nko", _flat)},
    residual=ZERO,
    structure=Structure.SELECTION,
)
"""[*theta] -> [1, *theta]: the parameter as a value of every sample."""
ALL_SAMPLES = Rule(
    operations=["parameter.all_samples"],
    forward=lambda op: op.self.squeeze(0),
    jac_t={"self": lambda op, columns: columns},
    residual=ZERO,
    structure=Structure.SELECTION,
    without_samples=lambda op: True,
)
"""[1, *w] -> [*w]: back to what all samples share, for the operations that use it."""
OWN = {rule.operations[0]: rule for rule in (EACH_SAMPLE, ALL_SAMPLES)}


@dataclass(frozen=True)
class Use:
    """A trainable parameter as an argument of an operation."""

    operation: Operation
    slot: str
    contraction: Contraction | None
    """None where the rule has none for it, but a transposed Jacobian."""


Uses = Mapping[str, Sequence[Use]]
"""By the parameter's name."""


def with_values(graph: Graph, registry: Registry, chosen: Callable[[Uses], AbstractSet[str]]) -> Graph:
    """The graph with every parameter that must be a value made one, and those that `chosen(uses)` names by key."""
    active = graph.active
    derived = _derived(graph, registry, active)
    uses = _uses(graph, registry, active)
    keys = chosen(uses) | {key for key, places in uses.items()
                           if any(use.operation.name in derived or use.contraction is None for use in places)}
    return _Rewriting(graph, registry, active, derived, keys).run() if keys or derived else graph


def _uses(graph: Graph, registry: Registry, active: AbstractSet[str]) -> dict[str, list[Use]]:
    found: dict[str, list[Use]] = {}
    for operation in graph.operations:
        rule = registry.find(operation.target, operation.overload)
        if operation.name not in active or not isinstance(rule, Rule):
            continue
        op = static_op(operation, active)
        for slot, value in operation.tensors.items():
            if value.trainable and value.name in active and rule.refuse(op) is None:
                contraction = rule.params(op).get(slot)
                if contraction is not None or slot.split(".")[0] in rule.jac_t:
                    found.setdefault(value.key, []).append(Use(operation, slot, contraction))
    return found


def _derived(graph: Graph, registry: Registry, active: AbstractSet[str]) -> set[str]:
    """Names of the operations that compute with parameters and constants alone."""
    network = graph.network()
    sampled = {value.name for value in graph.batch}
    reached = sampled.union(*[nx.descendants(network, name) for name in sampled])
    found: set[str] = set()
    for operation in graph.operations:
        if operation.name in active and operation.name not in reached and not operation.output.batched:
            rule = registry.find(operation.target, operation.overload)
            op = static_op(operation, active)
            if not (isinstance(rule, Rule) and rule.without_samples(op) and not _reads(operation, found)):
                found.add(operation.name)
    return found


def _reads(operation: Operation, names: set[str]) -> bool:
    return any(value.name in names for value in operation.tensors.values())


class _Rewriting:
    """Writes the operations again, with each-sample copies of what is computed of parameters alone."""

    def __init__(self, graph: Graph, registry: Registry, active: AbstractSet[str], derived: set[str],
                 keys: AbstractSet[str]) -> None:
        self.graph, self.registry, self.active, self.derived, self.keys = graph, registry, active, derived, keys
        self.operations: list[Operation] = []
        self.each: dict[str, Value] = {}
        self.shared: dict[str, Value] = {}

    def run(self) -> Graph:
        for operation in self.graph.operations:
            if operation.name in self.derived:
                self._batch_of_one(operation)
            else:
                tensors = {slot: self._for_all(value, operation) for slot, value in operation.tensors.items()}
                self.operations.append(replace(operation, tensors=tensors))
        return replace(self.graph, operations=self.operations)

    def _for_all(self, value: Value, user: Operation) -> Value:
        """What an ordinary operation reads: the value without sample axis, but on the way of columns."""
        if not (value.name in self.derived or (value.trainable and value.key in self.keys)):
            return value
        if value.name not in self.shared:
            each = self._of_each(value, user)
            # A derived value keeps its own name for those who read it.
            output = value if value.name in self.derived else replace(value, name=f"{value.name}_all", role="result",
                                                                      key="", trainable=False)
            self._add("parameter.all_samples", output, {"self": each}, user)
            self.shared[value.name] = output
        return self.shared[value.name]

    def _of_each(self, value: Value, user: Operation) -> Value:
        """[1, *value]."""
        if value.name not in self.each:
            output = Value(f"{value.name}_each", (1, *value.shape), value.dtype, "result", shared=True)
            self._add("parameter.each_sample", output, {"self": value}, user)
            self.each[value.name] = output
        return self.each[value.name]

    def _add(self, target: str, output: Value, tensors: Mapping[str, Value], user: Operation) -> None:
        self.operations.append(Operation(target, "", output, tensors, {}, 0, user.source))

    def _batch_of_one(self, operation: Operation) -> None:
        """The operation under torch.vmap, read back as operations; its result is the last one's."""
        tensors = {slot: self._of_each(value, operation) if value.floating else value
                   for slot, value in operation.tensors.items()}
        table: dict[Any, Any] = {}
        for _ in range(aten.DECOMPOSITION_ROUNDS):
            traced = _vmapped(operation, tensors, table, 1)
            pieces, result = PieceReader(operation, list(tensors.values())).pieces(traced)
            missing = [piece for piece in pieces if self.registry.find(piece.target, piece.overload) is None]
            more = aten.decompositions(missing, self.registry)
            if set(more) <= set(table):
                break
            table |= more
        if not _keeps_samples_first(traced, _vmapped(operation, tensors, table, 7)):
            raise UnsupportedOpError(f"{operation.target} in {operation.source}: it computes with parameters, but "
                                     "not in a way that torch.vmap can do sample by sample; write it in another way")
        self.operations += pieces
        self.each[operation.name] = result


def _vmapped(operation: Operation, tensors: Mapping[str, Value], table: Mapping[Any, Any],
             batch: int) -> torch.fx.GraphModule:
    slots = list(tensors)

    def call(*values: Tensor) -> Any:
        return aten.call(operation, aten.overload_of(operation), dict(zip(slots, values, strict=True)).__getitem__)

    axes = tuple(0 if tensors[slot].shared else None for slot in slots)
    values = [torch.zeros([batch, *value.sample_shape] if value.shared else value.sample_shape, dtype=value.dtype)
              for value in tensors.values()]
    traced: torch.fx.GraphModule = make_fx(torch.vmap(call, in_dims=axes), decomposition_table=dict(table),
                                           tracing_mode="fake")(*values)
    return traced


def _keeps_samples_first(one: torch.fx.GraphModule, seven: torch.fx.GraphModule) -> bool:
    """Whether only the first axis depends on the batch, in every value."""
    def shapes(traced: torch.fx.GraphModule) -> list[Any]:
        return [tuple(node.meta["val"].shape) for node in traced.graph.nodes
                if isinstance(node.meta.get("val"), Tensor)]

    return all(a == b or (a[0] == 1 and b[0] == 7 and a[1:] == b[1:])
               for a, b in zip(shapes(one), shapes(seven), strict=True))


def rule_of(operation: Operation, registry: Registry) -> AnyRule | None:
    """The operation's rule: the registry's, or one of the two here."""
    return OWN.get(operation.target) or registry.find(operation.target, operation.overload)
