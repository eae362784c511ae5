"""Operations that no rule knows get one made of torch's own derivatives (see `hbpcompiler.rule.derived`)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from hbpcompiler.compiler.match.made.batches import Given
from hbpcompiler.compiler.match.made.complex_regions import Region, in_pairs, regions, without_unread
from hbpcompiler.compiler.match.made.elsewhere import check_elsewhere
from hbpcompiler.compiler.match.made.probe import (
    NotDerivableError,
    apart,
    each_alone,
    first_line,
    probe,
)
from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.match.operation.composites import composite
from hbpcompiler.compiler.match.operation.examples import Examples, of_parts
from hbpcompiler.compiler.match.parameters.parameter_values import rule_of
from hbpcompiler.compiler.match.samples.sample_wise import misplaced
from hbpcompiler.compiler.trace.graph import Graph, N, Operation, Value
from hbpcompiler.limits import DEFAULT_LIMITS
from hbpcompiler.rule import Rule
from hbpcompiler.rule.composite import PREFIX, Composite, EachSample
from hbpcompiler.rule.derived import DerivedRule, Use, derived_rule
from hbpcompiler.rule.registry import AnyRule, Registry

NAMESPACE = "derived"


class Deriving:
    """Makes rules for a graph's operations; `reasons` says of those that have none why, by name."""

    def __init__(self, registry: Registry, examples: Examples, most: int = DEFAULT_LIMITS.derived_columns) -> None:
        self.registry, self.examples, self.most = registry.copy(), examples, most
        self.reasons: dict[str, str] = {}
        self._functions: dict[str, Composite] = {}
        self._uses: list[tuple[str, Use]] = []
        self._tried: set[Hashable] = set()

    def run(self, graph: Graph) -> Graph:
        """The graph with every operation that got a rule under a name of its own, which `registry` knows."""
        graph = in_pairs(graph)
        wanted = regions(graph)
        known = {region.operations[-1].name for region in wanted}
        wanted += [Region([operation], operation.tensors) for operation in graph.operations
                   if operation.name not in known and self._lacks_a_rule(operation, graph)]
        if not wanted:
            return graph
        try:
            values = self.examples.of(graph, lambda operation: rule_of(operation, self.registry))
        except RuntimeError as error:  # of an operation whose layout is none of torch's, as none may be derived for it
            self.reasons |= {region.operations[-1].name: f"torch cannot run it here ({first_line(error)})"
                             for region in wanted}
            return graph
        replaced: dict[str, Operation] = {}
        for region in wanted:
            name = region.operations[-1].name
            try:
                replaced[name] = self.derived(region, values, graph.active)
            except NotDerivableError as error:
                self.reasons[name] = str(error)
        graph = replace(graph, operations=[replaced.get(own.name, own) for own in graph.operations])
        return without_unread(graph)

    def _lacks_a_rule(self, operation: Operation, graph: Graph) -> bool:
        if operation.name not in graph.active or operation in (*graph.ending[0], *graph.ending[1]):
            return False
        if operation.output.dtype.is_complex:
            return False  # a part of a region
        rule = rule_of(operation, self.registry)
        values = (*operation.tensors.values(), operation.output)
        if isinstance(rule, Rule) and not any(value.of_batch for value in values):
            return False  # of parameters alone: `parameter_values` makes it one of each sample
        return not isinstance(rule, Rule) or not covers(rule, operation, graph.active)

    def derived(self, region: Region, values: Mapping[str, Tensor], active: AbstractSet[str]) -> Operation:
        """The region as one operation, which has a rule now."""
        last = region.operations[-1]
        if not any(inner.parts for inner in region.operations):
            return self._rule_of(self._function(region), region, values, active, values[last.name])
        if len(region.operations) > 1:
            raise NotDerivableError("positions are merged into the sample axis within it")
        found = {value.name: of_parts(values[value.name], last, value)
                 for value in (*region.inputs.values(), last.output)}
        inputs = {slot: _of_part(value) for slot, value in region.inputs.items()}
        one = Region([replace(last, tensors=inputs, output=_of_part(last.output))], inputs)
        made = self._rule_of(self._function(one), one, found, active, found[last.name])
        return replace(made, tensors=dict(region.inputs), output=last.output)

    def of_each(self, region: Region, values: Mapping[str, Tensor],
                active: AbstractSet[str]) -> tuple[Operation, EachSample]:
        """What the region makes of each sample alone, a number: that as an operation, and its function."""
        tensors = [values[value.name] for value in region.inputs.values()]
        moving = [at for at, value in enumerate(region.inputs.values()) if value.name in active]
        function, losses = each_alone(self._function(region), tensors, moving)
        known = self._functions.setdefault(_text(function), function)
        assert isinstance(known, EachSample)
        made = self._rule_of(known, region, values, active, losses)
        each = replace(made.output, name=f"{made.name}_each", shape=(N,))
        return replace(made, output=each), known

    def _function(self, region: Region) -> Composite:
        """The region as a function; of equal ones the first."""
        for inner in region.operations:
            if (wrong := self.registry.wrong_derivatives.get(inner.target)) is not None:
                raise NotDerivableError(wrong)
            _check_schema(inner)
        name = _numbered(region.name, {known.name.removeprefix(PREFIX) for known in self._functions.values()})
        try:
            function = composite(PREFIX + name, region.operations, region.inputs)
        except (ValueError, KeyError, TypeError) as error:
            raise NotDerivableError(str(error)) from error
        return self._functions.setdefault(_text(function), function)

    def _rule_of(self, function: Composite, region: Region, values: Mapping[str, Tensor], active: AbstractSet[str],
                 expected: Tensor) -> Operation:
        operation, inputs = region.operations[-1], region.inputs
        slots = list(inputs)
        moving = [slot for slot, value in inputs.items() if value.name in active]
        tensors = [values[value.name] for value in inputs.values()]
        if self.examples.alike:
            tensors = apart(tensors, function.batched)
            expected = function(*tensors)
        seen = probe(function, tensors, [slots.index(slot) for slot in moving], expected)
        self._check_elsewhere(function, seen.each, [Given(value, tensor, value.name in active) for value, tensor in zip(
            inputs.values(), tensors, strict=True)])
        sizes = sum(prod(inputs[slot].sample_shape) for slot in moving)
        elementwise = _is_elementwise(region, moving)
        second = seen.second
        if not elementwise and not seen.linear and sizes > self.most:
            second = (f"its second derivative would take {sizes} columns for each sample, more than the limit "
                      f"derived_columns={self.most} allows")
        # Whether torch meets a lazily negated view, which it cannot batch, differs from one run to the next.
        is_complex = any(inner.output.dtype.is_complex for inner in region.operations)
        use = Use(function, slots, moving, elementwise, seen.linear, seen.one_by_one, second,
                  seen.second_one_by_one or is_complex, seen.each)
        alone = len(region.operations) == 1
        return replace(operation, target=self._target(use, region), overload="", tensors=dict(inputs),
                       attributes=_lists(operation) if alone else {}, index=0)

    def _check_elsewhere(self, function: Composite, each: EachSample | None, given: Sequence[Given]) -> None:
        """Once for uses that are alike but in their numbers."""
        form = (function, *((argument.tensor.shape, argument.active) for argument in given))
        if form not in self._tried:
            check_elsewhere(function, each, given)
            self._tried.add(form)

    def _target(self, use: Use, region: Region) -> str:
        """The name under which the registry has this use's rule, that of an equal use if there was one."""
        operation = region.operations[-1]
        whole = ", ".join(dict.fromkeys(inner.source.whole or inner.target for inner in region.operations))
        for target, known in self._uses:
            if (known.function, known.active, known.second) == (use.function, use.active, ""):
                return target
        target = f"{NAMESPACE}.{_numbered(region.name, {known.partition('.')[2] for known, _ in self._uses})}"
        self.registry.rules[target] = derived_rule(target, use, whole, f"{whole} in {operation.source}")
        self._uses.append((target, use))
        return target


def covers(rule: Rule, operation: Operation, active: AbstractSet[str]) -> bool:
    """Whether the rule takes this use, and sends columns to every argument that derivatives go to."""
    op = static_op(operation, active)
    if rule.refuse(op) is not None:
        return False
    params = rule.params(op)
    return all(slot.split(".")[0] in rule.jac_t or (slot in params and not value.batched)
               for slot, value in operation.tensors.items() if value.name in active)


def _numbered(wish: str, taken: AbstractSet[str]) -> str:
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}_{number}"
    return name


def _of_part(value: Value) -> Value:
    """The same for each part of a sample, as if that were one."""
    return replace(value, shape=(value.shape[0], *value.shape[2:])) if value.shared or value.batched else value


def _text(function: Composite) -> str:
    """What makes two functions one."""
    body = [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in function.graph.nodes]
    return f"{body} {tuple(function.batched)} {tuple(function.shape)} {function.dtype} {function.of_samples}"


def _lists(operation: Operation) -> dict[str, object]:
    """The attributes that are lists with tensors in them: by these a rule reads those tensors."""
    return {name: item for name, item in operation.attributes.items() if isinstance(item, list) and any(
        slot in item for slot in aten.in_lists(operation, name))}


def _is_elementwise(region: Region, moving: list[str]) -> bool:
    operation = region.operations[-1]
    if len(region.operations) > 1 or len(moving) != 1 or not aten.is_pointwise(operation):
        return False
    value = operation.tensors[moving[0]]
    return value.shape == operation.output.shape and value.batched and value.dtype == operation.output.dtype


def _check_schema(operation: Operation) -> None:
    """Raise NotDerivableError for what is no function of its arguments, or has samples elsewhere than in front."""
    overload = aten.overload_of(operation)
    if torch.Tag.nondeterministic_seeded in overload.tags:
        raise NotDerivableError("it draws random numbers")
    if overload._schema.is_mutable:
        raise NotDerivableError("it changes its arguments")
    for value in (*operation.tensors.values(), operation.output):
        if misplaced(value):
            shape = ", ".join(map(str, value.shape))
            raise NotDerivableError(f"a tensor of shape [{shape}] has the samples elsewhere than in front")
    if any(N in getattr(length, "free_symbols", ()) for length in operation.output.sample_shape):
        raise NotDerivableError("the batch's size is inside another axis of its result")


def notes(rules: Mapping[str, AnyRule], operations: Mapping[str, Operation]) -> list[str]:
    """For the head of a file: which operations have derived rules, and where they stand."""
    found = []
    for name, rule in rules.items():
        if isinstance(rule, DerivedRule):
            found.append(f"{rule.whole} in {_place(operations[name])}")
    found = list(dict.fromkeys(found))
    if not found:
        return []
    return ["No rule, so that torch differentiates them (a rule file would be faster): " + "; ".join(found) + "."]


def _place(operation: Operation) -> str:
    source = operation.source
    place = "the loss" if source.in_loss else f"module {source.module!r}" if source.module else "the model's forward"
    kind = f" ({source.module_type.rsplit('.', 1)[-1]})" if source.module_type else ""
    line = f", {source.file.rpartition('/')[2]}:{source.line}" if source.file else ""
    return f"{place}{kind}{line}"
