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

import networkx as nx

from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.match.parameters.parameter_pieces import shared_pieces
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rule import ZERO, Contraction, Op, Rule, Structure, Tensor
from hbpcompiler.rule.derived import DerivedRule
from hbpcompiler.rule.positions import over_positions
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
        rule = rule_of(operation, registry)
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
    # A number given to every sample, w.sum().expand(N), is as many samples' as any value: the loss may end in it.
    reductions, tail = graph.ending
    reached |= {operation.name for operation in (*reductions, *tail)}
    found: set[str] = set()
    for operation in graph.operations:
        if operation.name in active and operation.name not in reached and not operation.output.batched:
            rule = rule_of(operation, registry)
            op = static_op(operation, active)
            if not isinstance(rule, Rule) or not serves_without_samples(rule, op) or _ends_at(operation, rule, found):
                found.add(operation.name)
    return found


def _ends_at(operation: Operation, rule: Rule, names: set[str]) -> bool:
    """Whether the operation reads one of these values in a place to which the rule sends no columns."""
    return any(value.name in names and slot.split(".")[0] not in rule.jac_t
               for slot, value in operation.tensors.items())


def serves_without_samples(rule: Rule, op: Op) -> bool:
    """Whether the rule also serves a result without sample axis, whose columns are [N, K, *out] all the same: where
    nothing else has derivatives, a parameter's columns are sums of those (the embedding of positions)."""
    if rule is ALL_SAMPLES or isinstance(rule, DerivedRule):
        return True
    params = {} if rule.jac_t else rule.params(op)
    return bool(params) and all(contraction.operand is None and contraction.product is None
                                for contraction in params.values())


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
        pieces, result = shared_pieces(operation, tensors, self.registry)
        self.operations += pieces
        self.each[operation.name] = result


def rule_of(operation: Operation, registry: Registry) -> AnyRule | None:
    """The operation's rule: the registry's, for each part of a sample where it has parts, or one of the two here."""
    rule = OWN.get(operation.target) or registry.find(operation.target, operation.overload)
    return over_positions(rule) if operation.parts and isinstance(rule, Rule) else rule
