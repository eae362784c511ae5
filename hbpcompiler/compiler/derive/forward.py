"""Stage 4, derive: carry out the plan's steps by running the rules on torch.fx proxies, which writes the program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from hbpcompiler.arguments import MAX_NORM, MAX_NORMS, SAMPLE_WEIGHTS, Sizes, arguments_for
from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.carry_out import backward_pass
from hbpcompiler.compiler.derive.sample_losses import SampleLosses
from hbpcompiler.compiler.match.losses.endings import without_losses
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation.aten import call, callee
from hbpcompiler.compiler.match.operation.bind import bind, static_op
from hbpcompiler.compiler.plan.closings import bases_of
from hbpcompiler.compiler.plan.formulas import is_second
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import AddUp, place_of, title
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.grams import mirror_
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.program import Program
from hbpcompiler.compiler.program.weighted_loss import WeightedLoss
from hbpcompiler.compiler.program.weights import Weights
from hbpcompiler.compiler.program.writer import INPUTS, Writer, named
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, depends_on_batch, has_batchs_size
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.quantities import (
    BASES,
    BATCH,
    COLUMN_WEIGHTS,
    EACH,
    GRAM,
    IN_BASES,
    LOSS,
    PARAMETER,
    QUANTITIES,
    Closed,
    Closing,
)
from hbpcompiler.rule import Op, computed
from hbpcompiler.rule.registry import AnyRule


class _Derivation:
    def __init__(self, matched: Matched, plan: Plan) -> None:
        self.matched, self.plan = matched, plan
        self.source, self.rules, self.active, self.names = matched.graph, matched.rules, matched.active, matched.names
        self.writer = Writer()
        self.proxies: dict[str, Any] = {}
        self.saved: dict[str, dict[str, Any]] = {}
        self.ops: dict[str, Op] = {}
        self.mirrored: set[str] = set()
        """Groups whose symmetric totals are whole."""
        self.arguments: dict[str, Any] = {}

    def run(self) -> Program:
        state = self.writer.placeholder("state")
        with self.writer.block(INPUTS, "forward"):
            for value in self.source.batch:
                self.proxies[value.name] = named(self.writer.placeholder(value.name), self.names[value.name])
            for value in self.source.state:
                self.proxies[value.name] = named(state[value.key].detach(), self.names[value.name])
            arguments = arguments_for(self.plan.quantities, self.plan.clipping)
            for argument in arguments:
                self.arguments[argument.name] = self.writer.argument(argument.name, argument.annotation,
                                                                     self._sizes(argument.name))
            bounds, bases = self._bounds(), self._bases()
            first = self.proxies[self.source.inputs[0].name]
            self.batch = named(first.shape[0], "N")
            meta.play(self.batch.node, Role.BATCH_SIZE)
            weights = Weights.of(self.arguments[SAMPLE_WEIGHTS])
        crossed = self.plan.crossed()
        for operation in self.source.operations:
            with self.writer.block(title(operation), "forward"):
                self._forward(operation, operation.name in crossed)
        written = replace(self.matched, names=self._as_written())
        backward = backward_pass(written, self.plan, self.writer, self.ops, self.batch)
        backward.weights, backward.arguments = weights, self.arguments
        backward.parameters = {value.key: self.proxies[value.name] for value in self.source.state}
        backward.bounds, backward.bases_of = bounds, bases
        self._losses(backward)
        for number, step in enumerate(self.plan.steps):
            self.writer.tracer.step = number
            place = place_of(step, self.source)
            with self.writer.block(*backward.heading(place, is_second(step))):
                backward.carry_out(step)
        self.writer.tracer.step = None
        self.closed, self.totals = backward.closed, backward.totals
        results = self._results(backward)
        loss, outputs = self.proxies[self.source.loss.name], [self.proxies[out.name] for out in self.source.outputs]
        self.writer.graph.output(fx.node.map_aggregate((loss, outputs, results), _node))
        return Program(self.writer.graph, self.source.batch, self.source.state, arguments)

    def _bounds(self) -> dict[str, Any]:
        """By total, what its norms are clipped to; none, if nothing is clipped."""
        groups = [total.group for total in self.plan.sums]
        if MAX_NORM in self.arguments:
            return dict.fromkeys(groups, self.arguments[MAX_NORM])
        if MAX_NORMS not in self.arguments:
            return {}
        names = {value.key: self.names[value.name] for value in self.matched.trainable}
        return {key: named(self.arguments[MAX_NORMS][key], f"{MAX_NORM}_{names[key]}") for key in groups}

    def _sizes(self, argument: str) -> Sizes:
        """What the program asks of a call argument that is a dict of tensors."""
        if argument == COLUMN_WEIGHTS:
            return {step.into.group: (step.pieces[0].columns,) for step in self.plan.flat() if isinstance(step, AddUp)}
        if argument == BASES:
            return {f"{key}.{side}": shape for key, shapes in self._asked_bases().items()
                    for side, shape in shapes.items()}
        users = [name for name in self.plan.quantities if argument in QUANTITIES[name].arguments]
        return {value.key: value.sample_shape for value in self.matched.trainable
                if any(self.plan.gives(QUANTITIES[name], value.key) for name in users)}

    def _asked_bases(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes of the bases "A" and "B" that cotangents are seen in, by parameter."""
        sites = {step.parameter.key: step.site for step in self.plan.closings()
                 if any(IN_BASES in choice.kinds for choice in step.choices)}
        return {value.key: bases_of(sites[value.key]) for value in self.matched.trainable if value.key in sites}

    def _bases(self) -> dict[str, tuple[Any, Any]]:
        """Those that a call gives, in the dtype of the parameter."""
        found: dict[str, tuple[Any, Any]] = {}
        parameters = {value.key: value for value in self.matched.trainable}
        for key, shapes in self._asked_bases().items():
            value, pair = parameters[key], []
            for side in ("A", "B"):
                basis = self.arguments[BASES][f"{key}.{side}"].to(value.dtype) if side in shapes else None
                pair.append(basis if basis is None else named(basis, f"basis_{side}_{self.names[value.name]}"))
            found[key] = (pair[0], pair[1])
        return found

    # -- forward -----------------------------------------------------------------------------------------------------

    def _forward(self, operation: Operation, crossed: bool) -> None:
        def tensors(name: str) -> Any:
            if name == "output":
                return self.proxies[operation.name]
            if name in operation.tensors:
                return self.proxies[operation.tensors[name].name]
            return self.saved[operation.name][name]

        def of_each(name: str) -> Any:
            """What the derivatives read: samples of their own also where one value serves them all."""
            value = operation.output if name == "output" else operation.tensors.get(name)
            shared = value.shared if value is not None else operation.output.shared
            return self._of_each(tensors(name), value) if shared else tensors(name)

        single = crossed and self.plan.single
        op = bind(self._with_numbers(operation), tensors, self.active, crossed, self._number, single)
        self.ops[operation.name] = bind(operation, of_each, self.active, crossed, self._number, single)
        rule = self.rules.get(operation.name)
        saved: Mapping[str, Any] = {}
        plain = all(isinstance(length, int) for value in (*operation.tensors.values(), operation.output)
                    for length in value.sample_shape)
        if rule is not None and rule.forward is not None and plain and self._is_about(rule, operation):
            output, saved = computed(rule, op)
        else:
            output = self._aten(operation)
        self.proxies[operation.name] = named(output, self.names[operation.name])
        self.saved[operation.name] = {
            key: named(proxy, f"{self.names[operation.name]}_{key}") for key, proxy in saved.items()
        }

    def _as_written(self) -> Mapping[str, str]:
        """What values are called where they have a line: what is but another value again, a copy, as that value."""
        return {**self.names, **{name: meta.hint(proxy.node) for name, proxy in self.proxies.items()
                                 if meta.hint(proxy.node)}}

    def _is_about(self, rule: AnyRule, operation: Operation) -> bool:
        """Whether a rule does not refuse the operation, which it may where no derivative goes: its forward may say less
        than torch's, as of slopes that are drawn."""
        return operation.name in self.active or rule.refuse(static_op(operation, self.active)) is None

    def _of_each(self, proxy: Any, value: Value | None) -> Any:
        """[1, *z] -> [N, *z]."""
        if value is None:
            return proxy.repeat_interleave(self.batch, 0)  # what a rule saved, of any rank
        return proxy.expand(self.batch, *[-1] * len(value.sample_shape))

    def _aten(self, operation: Operation) -> Any:
        """The ATen operation itself, for what no rule writes; parts of a sample are samples to it, if it takes any."""

        def tensor(slot: str) -> Any:
            value = operation.tensors[slot]
            given = self.proxies[value.name]
            return given.flatten(0, 1) if operation.parts and (value.shared or value.batched) else given

        def other(item: Any) -> Any:
            if isinstance(item, torch.device):
                return self.proxies[self.source.inputs[0].name].device
            return arithmetic(item, self.batch) if depends_on_batch(item) else item

        def run(*positional: Any, **keywords: Any) -> Any:
            return self.writer.call(callee(operation), *positional, **keywords)

        result = call(operation, run, tensor, other)
        if not operation.parts:
            return result
        return result.unflatten(0, (1 if operation.output.shared else self.batch, -1))

    def _with_numbers(self, operation: Operation) -> Operation:
        """Lists with N in them, as normalized_shape=[N], as arithmetic in the batch's size, where no derivative is."""
        if operation.name in self.active or not has_batchs_size(operation.attributes):
            return operation
        written = {name: [arithmetic(part, self.batch) if depends_on_batch(part) else part for part in item]
                   if isinstance(item, list | tuple) else item for name, item in operation.attributes.items()}
        return replace(operation, attributes=written)

    def _number(self, name: str, expression: Any) -> Any:
        """An attribute that depends on the batch's size as arithmetic on it."""
        return arithmetic(expression, self.batch)

    def _losses(self, backward: Backward) -> None:
        """The loss of weighted samples in the place of the loss, and l_n if a quantity is made of it."""
        if not self.matched.ending.reductions or without_losses(self.matched.ending, self.rules):
            return
        losses, loss = SampleLosses(self.matched, self.ops), self.source.loss
        with self.writer.block(title(self.source.makers[loss.name]), "forward"):
            whole = WeightedLoss(losses.function, self.matched.ending.kind, loss.dtype)
            plain = self.proxies[loss.name]
            meta.rename(plain.node, "")
            weights = self.arguments[SAMPLE_WEIGHTS]
            self.proxies[loss.name] = named(whole(plain, weights, *losses.tensors), self.names[loss.name])
            if any(Closing(LOSS, EACH) in QUANTITIES[name].needs for name in self.plan.quantities):
                backward.closed_of_batch[Closing(LOSS, EACH)] = backward.weighted(losses.function(*losses.tensors))

    # -- results -----------------------------------------------------------------------------------------------------

    def _results(self, backward: Backward) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for name in self.plan.quantities:
            quantity = QUANTITIES[name]
            if (per := self.plan.per(quantity)) == BATCH:
                with self.writer.block(name, "results"):
                    closed = Closed(backward.closed_of_batch, self.batch, self.matched.ending.kind)
                    results[name] = named(quantity.value(closed), name)
                continue
            results[name] = {}
            for key, called in self._owners(name).items():
                with self.writer.block(name, "results"):
                    closings = self.closed.get(key, {}) if per == PARAMETER else self._whole(key)
                    found = quantity.value(Closed(closings, self.batch, self.matched.ending.kind, self._output_shape))
                    hint = f"{name}_{called}"
                    if quantity.fields:
                        found = {field: _named_parts(part, f"{field}_{hint}") for field, part in found.items()}
                    results[name][key] = found if quantity.fields else named(found, hint)
        return results

    @property
    def _output_shape(self) -> tuple[int, ...]:
        """Of one sample's part of the output at which the stream OUTPUT begins, if it does anywhere."""
        return () if self.matched.end is None else self.matched.end.sample_shape

    def _owners(self, quantity: str) -> dict[str, str]:
        """What a quantity has values of: keys of parameters or groups, and how they are called in the program."""
        chosen = [value for value in self.matched.trainable if self.plan.gives(QUANTITIES[quantity], value.key)]
        if self.plan.per(QUANTITIES[quantity]) == PARAMETER:
            return {value.key: self.names[value.name] for value in chosen}
        met = {self.plan.chosen.group_of(value.key) for value in chosen}
        return {group: group for group, _ in self.plan.chosen.groups if group in met}

    def _whole(self, group: str) -> Mapping[Closing, Any]:
        """A group's totals; of symmetric ones only what is above the diagonal has been added up so far."""
        totals = self.totals[group]
        for closing in [closing for closing in totals if closing.kind == GRAM and group not in self.mirrored]:
            totals[closing] = named(mirror_(totals[closing]), meta.hint(totals[closing].node))
        self.mirrored.add(group)
        return totals


def _named_parts(part: Any, hint: str) -> Any:
    """A field of a named tuple: a proxy, None, or a list of proxies."""
    if isinstance(part, list):
        return [named(item, hint) for item in part]
    return None if part is None else named(part, hint)


def _node(item: Any) -> Any:
    return item.node if isinstance(item, fx.Proxy) else item


def derive(matched: Matched, plan: Plan) -> Program:
    """Write the program."""
    return _Derivation(matched, plan).run()
