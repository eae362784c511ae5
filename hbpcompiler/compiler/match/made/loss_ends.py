"""Ends of losses in which an operation has no rule: what they make of one sample alone, and the mean or sum of that.

A loss function that no rule knows, or what is done with the batch's sum afterwards, needs no rule of its own where the
loss is the mean, or the sum, of what the same operations make of each sample alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.match.made.batches import Given, may_change
from hbpcompiler.compiler.match.made.complex_regions import Region
from hbpcompiler.compiler.match.made.derived import Deriving
from hbpcompiler.compiler.match.made.probe import NotDerivableError, close, first_line
from hbpcompiler.compiler.match.made.shares import Kind, kind_of
from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.match.parameters.parameter_values import rule_of
from hbpcompiler.compiler.match.samples.sample_wise import misplaced
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, depends_on_batch
from hbpcompiler.compiler.trace.graph import Graph, N, Operation, Value
from hbpcompiler.rule import LossRule, Rule
from hbpcompiler.rule.registry import Registry
from hbpcompiler.rules.shared.written import MEAN, PRODUCT, QUOTIENT, SUM, multiple, reduced
from hbpcompiler.system.seeded import seed_global

SIZES = tuple(sign * 10.0**power for power in range(-3, 13) for sign in (1, -1))
"""Of the batch's sums, at which what is done with them is tried: a limit may begin anywhere."""


def with_derived_end(graph: Graph, deriving: Deriving) -> Graph:
    """The graph whose loss ends in a mean or sum of one derived operation, if it ended in what has no rule."""
    reductions, tail = graph.ending
    ending = [operation for operation in graph.operations if operation in reductions or operation in tail]
    if not ending or not _lacks_a_rule(graph, deriving.registry):
        return graph
    try:
        inputs = _inputs(ending, graph)
        values = deriving.examples.of(graph, lambda operation: rule_of(operation, deriving.registry))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            seed_global(0, values[graph.loss.name].device)
            _check_linear(tail, graph, values, deriving.examples.samples)
            each, function = deriving.of_each(Region(ending, inputs), values, graph.active)
            kind = kind_of(function, [Given(value, values[value.name], value.name in graph.active)
                                      for value in inputs.values()])
    except Exception as error:  # whatever an operation raises on one sample, or on numbers that it does not take
        why = str(error) if isinstance(error, NotDerivableError) else f"torch cannot run it ({first_line(error)})"
        deriving.reasons |= {operation.name: why for operation in ending}
        return graph
    first = graph.operations.index(ending[0])
    before = [operation for operation in graph.operations[:first] if operation not in ending]
    after = [operation for operation in graph.operations[first:] if operation not in ending]
    return replace(graph, operations=[*before, *after, each, *_reduced(each, kind, graph.loss, deriving.registry)])


def _lacks_a_rule(graph: Graph, registry: Registry) -> bool:
    reductions, tail = graph.ending
    kinds = [(operation, LossRule) for operation in reductions] + [(operation, Rule) for operation in tail]
    return any(not isinstance(rule_of(operation, registry), kind) for operation, kind in kinds)


def _inputs(ending: Sequence[Operation], graph: Graph) -> Mapping[str, Value]:
    """What the loss's end reads, by slot; raises NotDerivableError for what one sample alone may not say."""
    made = {operation.name for operation in ending}
    read = {value.name: value for operation in ending for value in operation.tensors.values()
            if value.name not in made}
    for value in read.values():
        known = value in graph.state and value.name not in graph.active
        if misplaced(value) or not (value.batched or known):
            raise NotDerivableError(f"the loss's end reads {value.name}, which has no sample axis in front")
        if value.batched and not (value.floating or value.dtype is torch.bool):
            raise NotDerivableError("how it counts the samples may depend on their labels; let the operation return a "
                                    "loss for each sample, and take the mean behind it, each(output, target).mean()")
    slots = ["x", *(f"x{number + 2}" for number in range(len(read)))]
    return dict(zip(slots, read.values(), strict=False))


def _check_linear(tail: Sequence[Operation], graph: Graph, values: Mapping[str, Tensor], samples: int) -> None:
    """Raises NotDerivableError where the loss is no sum of multiples of the batch's sums, however large these are, and
    whatever stands in buffers."""
    reductions = [operation.name for operation in graph.ending[0]]
    own = {value.name for operation in tail for value in operation.tensors.values()}
    buffers = [value.name for value in graph.state if value.name in own and value.floating and may_change(value)]
    known = dict(values)

    def other(item: Any) -> Any:
        return arithmetic(item, samples) if depends_on_batch(item) else item

    def loss_of(numbers: Tensor) -> Tensor:
        found = {**known, **dict(zip(reductions, numbers.unbind(), strict=True))}
        for operation in tail:
            tensors = {slot: found[value.name] for slot, value in operation.tensors.items()}
            found[operation.name] = aten.call(operation, aten.overload_of(operation), tensors.__getitem__, other)
        return found[graph.loss.name]

    of_units = torch.eye(len(reductions), dtype=graph.loss.dtype, device=values[graph.loss.name].device)
    most = torch.finfo(of_units.dtype).max ** 0.5
    for number, size in enumerate(size for size in SIZES if abs(size) < most):
        known |= {name: torch.randn_like(values[name]) for name in buffers if number}
        slopes = torch.stack([loss_of(unit) for unit in of_units])
        numbers = size * torch.randn(len(reductions), device=of_units.device).to(of_units.dtype)
        if not close(loss_of(numbers).expand_as(slopes) / size, (slopes @ numbers / size).expand_as(slopes)):
            raise NotDerivableError("what is done with the batch's sums is more than to add multiples of them up")


def _reduced(each: Operation, kind: Kind, loss: Value, registry: Registry) -> list[Operation]:
    """The loss made of its samples', by the one of mean and sum that has a rule."""
    def known(target: str) -> bool:
        return isinstance(registry.find(target, ""), LossRule)

    value = each.output
    if known(kind):
        return [write(reduced(kind), {"self": value}, loss, each.source)]
    other, number = (SUM, QUOTIENT) if kind == MEAN else (MEAN, PRODUCT)
    total = replace(loss, name=f"{loss.name}_total")
    return [write(reduced(other), {"self": value}, total, each.source),
            write(multiple(number, N), {"self": total}, loss, each.source)]
