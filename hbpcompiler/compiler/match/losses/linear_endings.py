"""Losses that reduce the batch before they have done with each sample: l.mean(0).sum(), torch.stack([a, b]).mean().

Sums, means and products with constants may change places. So a sum or mean over the sample axis that leaves others goes
behind what is done with those, and of numbers stacked into a vector each gets its own multiple: what then ends the loss
are sums and means over the whole batch, and a sum of multiples of them (see `endings`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hbpcompiler.compiler.match.losses.joined_endings import Kind, kind_of
from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.trace.fx_graph.reader import without_dead
from hbpcompiler.compiler.trace.graph import Graph, Operation, Source, Value
from hbpcompiler.rule import Rule, Structure
from hbpcompiler.rule.registry import Registry
from hbpcompiler.rules.shared import written
from hbpcompiler.rules.shared.written import Written


@dataclass(frozen=True)
class _Reduced:
    """A sum or mean over the sample axis of `each`, [N, *d]."""

    each: Value
    kind: Kind


@dataclass(frozen=True)
class _Stacked:
    """Numbers side by side, [m]."""

    numbers: Sequence[Value]


def with_linear_endings(graph: Graph, registry: Registry) -> Graph:
    """The graph in which no sum or mean over axes of the loss's end has a vector as its input, where that can be."""
    _, tail = graph.ending
    rewriting = _Rewriting(graph, registry)
    vectors = any(value.shape for operation in tail for value in operation.tensors.values()
                  if value.name in graph.active)
    if not vectors and not any(map(rewriting.is_idle, tail)):
        return graph
    return rewriting.run()


class _Rewriting:
    def __init__(self, graph: Graph, registry: Registry) -> None:
        self.graph, self.registry = graph, registry
        reductions, tail = graph.ending
        self.ends = {operation.name: operation for operation in (*reductions, *tail)}
        self.tail = {operation.name for operation in tail}
        self.operations: list[Operation] = []
        self.forms: dict[str, _Reduced | _Stacked | None] = {}
        self.source = Source()
        self.made = 0

    def run(self) -> Graph:
        for operation in self.graph.operations:
            self.source = operation.source
            rewritten = operation.name in self.tail and not operation.output.shape and self._number(operation)
            if not rewritten:
                self.operations.append(operation)
        return without_dead(replace(self.graph, operations=self.operations))

    def is_idle(self, operation: Operation) -> bool:
        """Whether it shows a number as a number, as view(()) does, and torch.inner and torch.tensordot at their end."""
        shapes = [value.shape for value in (*operation.tensors.values(), operation.output)]
        return len(shapes) == 2 and not any(shapes) and self._selects(operation)

    def _number(self, operation: Operation) -> bool:
        """Write the sum or mean over everything, or the inner product, of a vector in another way, if there is one."""
        form: _Reduced | _Stacked | None
        active = [value for value in operation.tensors.values() if value.name in self.graph.active]
        if active and self.is_idle(operation):
            self._added(active, written.SUM, operation.output)
            return True
        if len(active) != 1 or not active[0].shape:
            return False
        kind: Kind | None
        vectors = all(len(value.shape) == 1 for value in operation.tensors.values())
        if operation.target in written.INNER_PRODUCTS and vectors:
            (vector,), (factor,) = active, [value for value in operation.tensors.values() if value is not active[0]]
            form, kind = self._times(self._form(vector), vector, written.PRODUCT, factor), written.SUM
        else:
            form, kind = self._form(active[0]), kind_of(operation)
        if isinstance(form, _Stacked) and (len(form.numbers) == 1 or operation.target == written.ENTRY) \
                and self._selects(operation):
            self._added([form.numbers[operation.attributes.get("index", 0)]], written.SUM, operation.output)
            return True
        if form is None or kind is None:
            return False
        if isinstance(form, _Stacked):
            self._added(form.numbers, kind, operation.output)
        else:
            each = form.each
            if kind != form.kind and len(each.shape) > 1:
                each = self._over(each, kind, range(1, len(each.shape)))
            self._add(written.reduced(form.kind), {"self": each}, (), each.dtype, operation.output)
        return True

    def _form(self, value: Value) -> _Reduced | _Stacked | None:
        """How a vector of the loss's end came to be."""
        if value.name not in self.forms:
            operation = self.ends.get(value.name)
            self.forms[value.name] = None if operation is None else self._form_of(operation)
        return self.forms[value.name]

    def _form_of(self, operation: Operation) -> _Reduced | _Stacked | None:
        given = list(operation.tensors.values())
        if operation.name not in self.tail:
            return self._over_samples(operation)
        if not any(value.shape for value in given) and self._lays_out(operation):
            return _Stacked(given)
        if operation.target == written.END_TO_END:
            forms = [self._form(value) for value in given]
            rows = [form for form in forms if isinstance(form, _Stacked)]
            return _Stacked([number for row in rows for number in row.numbers]) if len(rows) == len(forms) else None
        active = [value for value in given if value.name in self.graph.active]
        if operation.target not in written.MULTIPLES or len(active) != 1 or operation.attributes.get("rounding_mode"):
            return None
        if operation.target == written.QUOTIENT and operation.tensors.get("self") is not active[0]:
            return None
        (vector,) = active
        others = [value for value in given if value is not vector]
        factor = others[0] if others else operation.attributes.get("other", operation.attributes.get("self"))
        return self._times(self._form(vector), vector, operation.target, factor)

    def _lays_out(self, operation: Operation) -> bool:
        """Whether it makes a vector of numbers, as many as there are: a stack, or one number seen as a vector."""
        return self._selects(operation) and operation.output.shape == (len(operation.tensors),)

    def _selects(self, operation: Operation) -> bool:
        rule = self.registry.find(operation.target, operation.overload)
        return isinstance(rule, Rule) and rule.structure is Structure.SELECTION

    def _over_samples(self, operation: Operation) -> _Reduced | None:
        """A sum or mean over the sample axis, and perhaps others before it."""
        kind, value = kind_of(operation), operation.tensors.get("self")
        if kind is None or value is None or not value.batched or not operation.output.shape:
            return None
        axes = {axis % len(value.shape) for axis in operation.attributes.get("dim") or range(len(value.shape))}
        keep = bool(operation.attributes.get("keepdim"))
        if 0 not in axes or keep or operation.attributes.get("dtype") is not None:
            return None
        each = self._over(value, kind, sorted(axes - {0})) if len(axes) > 1 else value
        return _Reduced(each, kind)

    def _times(self, form: _Reduced | _Stacked | None, vector: Value, target: str,
               factor: Any) -> _Reduced | _Stacked | None:
        """A vector times (or divided by) a tensor without samples or a number, where the result is as long."""
        shape = factor.shape if isinstance(factor, Value) else ()
        fits = len(shape) <= len(vector.shape) and all(
            own in (1, length) for own, length in zip(reversed(shape), reversed(vector.shape), strict=False))
        if form is None or not fits:
            return None
        if isinstance(form, _Reduced):
            return _Reduced(self._product(form.each, target, factor), form.kind)
        products = []
        for place, number in enumerate(form.numbers):
            part = self._entry(factor, place if shape[0] > 1 else 0) if shape else factor
            products.append(self._product(number, target, part))
        return _Stacked(products)

    def _product(self, value: Value, target: str, factor: Any) -> Value:
        if not isinstance(factor, Value):
            return self._add(written.multiple(target, factor), {"self": value}, value.shape, value.dtype)
        dtype = torch.promote_types(value.dtype, factor.dtype)
        return self._add(written.multiple(target), {"self": value, "other": factor}, value.shape, dtype)

    def _entry(self, vector: Value, place: int) -> Value:
        return self._add(written.entry(0, place), {"self": vector}, (), vector.dtype)

    def _over(self, value: Value, kind: Kind, axes: Sequence[int]) -> Value:
        shape = tuple(length for axis, length in enumerate(value.shape) if axis not in axes)
        return self._add(written.reduced(kind, axes), {"self": value}, shape, value.dtype)

    def _added(self, numbers: Sequence[Value], kind: Kind, output: Value) -> None:
        """Their sum or mean, which takes the place of `output`."""
        total, divided = numbers[0], kind == written.MEAN or len(numbers) == 1
        for place, number in enumerate(numbers[1:], 2):
            last = place == len(numbers) and not divided
            total = self._add(written.added(), {"self": total, "other": number}, (), output.dtype,
                              output if last else None)
        if divided:
            self._add(written.multiple(written.QUOTIENT, len(numbers)), {"self": total}, (), output.dtype, output)

    def _add(self, call: Written, tensors: dict[str, Value], shape: Sequence[Any], dtype: torch.dtype,
             output: Value | None = None) -> Value:
        self.made += 1
        output = output or Value(f"{self.graph.loss.name}_part_{self.made}", tuple(shape), dtype, "result")
        self.operations.append(write(call, tensors, output, self.source))
        return output


