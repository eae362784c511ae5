"""Stage 4, derive: carry out the plan's steps by running the rules on torch.fx proxies, which writes the program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hbpcompiler.errors import ModelError, listing
from hbpcompiler.graph import Graph, N, Operation, Value
from hbpcompiler.match import bind
from hbpcompiler.plan import PREFIX, Average, Birth, Close, Gather, Piece, Plan, Pull, Sample, Seed, Widen, meta
from hbpcompiler.quantities import DIAGONAL, GGN_MC, GRADIENT, NEGATIVE, POSITIVE, QUANTITIES, Closed, Closing
from hbpcompiler.registry import AnyRule
from hbpcompiler.routes import COLUMNS, DIAGONAL_FORM, MATRIX, Use
from hbpcompiler.rule import Diagonal, Factor, LossRule, Op, Rule, Structure
from hbpcompiler.writer import Writer, named


@dataclass(frozen=True)
class Derived:
    """The whole program as one fx graph.

    Its output is (loss, output, {quantity: {parameter: proxy or {field: proxy}}}).
    """

    graph: fx.Graph
    inputs: tuple[str, ...]
    target: str
    uses_target: bool


class _Derivation:
    def __init__(self, graph: Graph, rules: Mapping[str, AnyRule], plan: Plan, reduction: str,
                 names: Mapping[str, str]) -> None:
        self.source, self.rules, self.plan, self.reduction, self.names = graph, rules, plan, reduction, names
        self.active = set(plan.active)
        self.writer = Writer()
        self.proxies: dict[str, Any] = {}
        self.saved: dict[str, dict[str, Any]] = {}
        self.ops: dict[str, Op] = {}
        self.columns: dict[tuple[str, str], Any] = {}
        self.signs: dict[str, Any] = {}
        self.closed: dict[str, dict[Closing, Any]] = {}

    def run(self) -> Derived:
        state = self.writer.placeholder("state")
        with self.writer.block("Inputs and parameters", "forward"):
            for value in (*self.source.inputs, self.source.target):
                self.proxies[value.name] = named(self.writer.placeholder(value.name), self.names[value.name])
            for value in self.source.state:
                self.proxies[value.name] = named(state[value.key].detach(), self.names[value.name])
            first = self.proxies[self.source.inputs[0].name]
            self.batch = named(first.shape[0], "N")
        crossed = self.plan.crossed()
        for operation in self.source.operations:
            with self.writer.block(_title(operation), "forward"):
                self._forward(operation, operation.name in crossed)
        for step in self.plan.steps:
            operation = step.operation if isinstance(step, Seed | Birth | Pull | Widen | Close) else None
            title = _title(operation) if operation else _title(self.source.makers[step.value.name])  # type: ignore[union-attr]
            with self.writer.block(title, "backward"):
                self._step(step)
        results = self._results()
        loss, output = self.proxies[self.source.loss.name], self.proxies[self.source.output.name]
        self.writer.graph.output(fx.node.map_aggregate((loss, output, results), _node))
        return Derived(self.writer.graph, tuple(value.name for value in self.source.inputs), self.source.target.name,
                       True)

    # -- forward -----------------------------------------------------------------------------------------------------

    def _forward(self, operation: Operation, crossed: bool) -> None:
        def tensors(name: str) -> Any:
            if name == "output":
                return self.proxies[operation.name]
            if name in operation.tensors:
                return self.proxies[operation.tensors[name].name]
            return self.saved[operation.name][name]

        op = self.ops[operation.name] = bind(operation, tensors, self.active, crossed, self._length)
        rule = self.rules.get(operation.name)
        saved: dict[str, Any] = {}
        plain = all(isinstance(length, int) for value in (*operation.tensors.values(), operation.output)
                    for length in value.sample_shape)
        if rule is not None and rule.forward is not None and plain:
            output = rule.forward(op)
            if isinstance(output, tuple):
                output, saved = output
        else:
            output = self._aten(operation)
        self.proxies[operation.name] = named(output, self.names[operation.name])
        self.saved[operation.name] = {
            key: named(proxy, f"{self.names[operation.name]}_{key}") for key, proxy in saved.items()
        }

    def _aten(self, operation: Operation) -> Any:
        """The ATen operation itself, for what no rule writes."""

        def argument(item: Any) -> Any:
            if isinstance(item, list):
                return [argument(part) for part in item]
            if isinstance(item, str) and item in operation.tensors:
                return self.proxies[operation.tensors[item].name]
            if isinstance(item, torch.device):
                return self.proxies[self.source.inputs[0].name].device
            return self._length(item) if hasattr(item, "free_symbols") else item

        packet = getattr(torch.ops.aten, operation.target.removeprefix("aten."))
        overload = getattr(packet, operation.overload or "default")
        positional, keywords = [], {}
        for schema in overload._schema.arguments:
            item = (self.proxies[operation.tensors[schema.name].name] if schema.name in operation.tensors
                    else argument(operation.attributes[schema.name]))
            if schema.kwarg_only:
                keywords[schema.name] = item
            else:
                positional.append(item)
        result = self.writer.call(packet, *positional, **keywords)
        return result[operation.index] if len(overload._schema.returns) > 1 or operation.index else result

    def _length(self, expression: Any) -> Any:
        """A polynomial in N as arithmetic on the batch size."""
        total: Any = 0
        for power, coefficient in enumerate(reversed(expression.as_poly(N).all_coeffs())):
            if coefficient:
                term = coefficient if power == 0 else self.batch**power if power > 1 else self.batch
                total = total + (term * int(coefficient) if power and coefficient != 1 else term)
        return total

    # -- backward ----------------------------------------------------------------------------------------------------

    def _step(self, step: Any) -> None:
        handlers: dict[type, Callable[[Any], None]] = {
            Seed: self._seed, Birth: self._birth, Pull: self._pull, Widen: self._widen, Gather: self._gather,
            Average: self._average, Sample: self._sample, Close: self._close,
        }
        handlers[type(step)](step)

    def _arrive(self, value: Value, piece: Piece, columns: Any) -> None:
        """Columns add up where a value fans out, as gradients do."""
        key = (value.name, piece.name)
        total = self.columns[key] + columns if key in self.columns else columns
        self.columns[key] = named(total, f"{PREFIX[piece.stream]}_{self.names[value.name]}")

    def _seed(self, step: Seed) -> None:
        rule, op, piece = self.rules[step.operation.name], self.ops[step.operation.name], step.piece
        assert isinstance(rule, LossRule)
        value = step.operation.tensors[rule.input]
        residual = rule.residual_of(op)
        factor = self._multiple()
        if piece.stream == GRADIENT:
            columns = rule.gradient(op).unsqueeze(1)
            columns = columns if factor is None else columns * factor
            self._arrive(value, piece, columns)
            return
        if factor is not None and piece.form == DIAGONAL_FORM:
            assert isinstance(residual, Diagonal)
            self._arrive(value, piece, residual.diagonal(op) * factor)
            return
        elif piece.form == COLUMNS and piece.stream == GGN_MC and rule.sample is not None:
            columns = rule.sample(op, self.plan.mc_samples)
        elif isinstance(residual, Diagonal):
            columns = residual.diagonal(op)
        else:
            assert isinstance(residual, Factor)
            found, _ = residual.factor(op)
            columns = found[rule.input]
        if factor is not None:
            columns = columns * factor.abs().sqrt()
            self._set_signs(piece, columns.new_ones(columns.shape[:2]) * factor.sign(), columns)
        self._arrive(value, piece, columns)

    def _multiple(self) -> Any:
        """dL by d(the batch's reduced number), where a loss goes on after its mean or sum; None if it does not."""
        factor: Any = None
        for operation in self.source.ending()[1]:
            slope = self._derivative(operation)
            factor = slope if factor is None else factor * slope
        return factor

    def _birth(self, step: Birth) -> None:
        rule, op, piece = self.rules[step.operation.name], self.ops[step.operation.name], step.piece
        assert isinstance(rule, Rule)
        residual = rule.residual_of(op)
        gradient = self.columns[step.operation.name, step.gradient.name].squeeze(1)
        carried = {slot: value for slot, value in step.operation.tensors.items()
                   if value.name in self.active and value.role != "parameter"}
        if isinstance(residual, Diagonal):
            (value,) = carried.values()
            self._arrive(value, piece, residual.diagonal(op, gradient))
            return
        assert isinstance(residual, Factor)
        found, signs = residual.factor(op, gradient)
        self._set_signs(piece, signs, next(iter(found.values())))
        for slot, value in carried.items():
            self._arrive(value, piece, found[slot])

    def _set_signs(self, piece: Piece, signs: Any, columns: Any) -> None:
        if piece.signed:
            signs = columns.new_ones(columns.shape[:2]) if signs is None else signs
            self.signs[piece.name] = named(signs, f"sign_{piece.name}")

    def _jac_t(self, operation: Operation, slot: str) -> Callable[[Any], Any]:
        rule, op = self.rules[operation.name], self.ops[operation.name]
        assert isinstance(rule, Rule)
        name, _, position = slot.partition(".")
        function = rule.jac_t[name]
        return lambda columns: function(op, columns, int(position)) if position else function(op, columns)

    def _derivative(self, operation: Operation) -> Any:
        rule = self.rules[operation.name]
        assert isinstance(rule, Rule)
        assert rule.derivative is not None
        return named(rule.derivative(self.ops[operation.name]), f"d_{self.names[operation.name]}")

    def _pull(self, step: Pull) -> None:
        rule, op, piece = self.rules[step.operation.name], self.ops[step.operation.name], step.piece
        assert isinstance(rule, Rule)
        value = step.operation.tensors[step.slot]
        arrived = self.columns[step.operation.name, piece.name]
        jac_t = self._jac_t(step.operation, step.slot)
        if piece.form == COLUMNS and rule.elementwise_in(op):
            pulled = arrived * self._derivative(step.operation).unsqueeze(1)
        elif piece.form == COLUMNS:
            pulled = jac_t(arrived)
        elif piece.form == DIAGONAL_FORM and rule.elementwise_in(op):
            pulled = arrived * self._derivative(step.operation).square()
        elif piece.form == DIAGONAL_FORM:
            pulled = jac_t(arrived.unsqueeze(1)).squeeze(1)  # coefficients 0 and 1 are their own squares
        else:
            pulled = self._pull_matrix(step.operation, step.slot, arrived, rule, op, jac_t)
        self._arrive(value, piece, pulled)

    def _pull_matrix(self, operation: Operation, slot: str, matrix: Any, rule: Rule, op: Op,
                     jac_t: Callable[[Any], Any]) -> Any:
        """KFRA's step, the average over n of J_n^T G J_n (BackPACK paper, eq. 24a)."""
        if rule.elementwise_in(op):
            derivative = self._derivative(operation).reshape(-1, math.prod(op.shape("output")))
            return matrix * (derivative.t() @ derivative / self.batch)
        outer, inner = op.shape("output"), operation.tensors[slot].sample_shape
        size, inner_size = math.prod(outer), math.prod(inner)
        half = matrix.reshape(1, size, *outer)
        if self._same_for_all(operation, slot):
            half = jac_t(half).reshape(size, inner_size).t()
            return jac_t(half.reshape(1, inner_size, *outer)).reshape(inner_size, inner_size)
        half = jac_t(half.expand(self.batch, size, *outer)).reshape(-1, size, inner_size).transpose(1, 2)
        return jac_t(half.reshape(-1, inner_size, *outer)).reshape(-1, inner_size, inner_size).mean(0)

    def _same_for_all(self, operation: Operation, slot: str) -> bool:
        """Whether the Jacobian reads nothing that has a sample axis: then one application serves the batch."""
        rule = self.rules[operation.name]
        assert isinstance(rule, Rule)

        def tensors(name: str) -> Any:
            value = operation.tensors.get(name)
            if value is None or value.batched:
                raise _ReadsSamplesError
            return meta(value)

        op = bind(operation, tensors, self.active)
        name, _, position = slot.partition(".")
        columns = torch.empty((1, 1, *op.shape("output")), dtype=operation.output.dtype, device="meta")
        try:
            rule.jac_t[name](op, columns, *([int(position)] if position else []))
        except _ReadsSamplesError:
            return False
        return True

    def _widen(self, step: Widen) -> None:
        rule, op = self.rules[step.operation.name], self.ops[step.operation.name]
        assert isinstance(rule, Rule)
        value, outer = step.operation.tensors[step.slot], op.shape("output")
        size = math.prod(outer)
        diagonal = self.columns[step.operation.name, step.piece.name].reshape(-1, size)
        if step.piece.signed:
            if step.into.name not in self.signs:
                self.signs[step.into.name] = named(diagonal.sign(), f"sign_{step.into.name}")
            diagonal = diagonal.abs()
        root = diagonal.sqrt()
        rows = rule.rows(op) if rule.rows is not None else None
        jac_t = self._jac_t(step.operation, step.slot)
        if rows is None and self._same_for_all(step.operation, step.slot):
            # The Jacobian's rows, once for all samples.
            like = self.columns[step.operation.name, step.piece.name]
            eye = self.writer.call(torch.eye, size, dtype=like.dtype, device=like.device)
            rows = jac_t(eye.reshape(1, size, *outer)).squeeze(0)
        if rows is not None:
            for _ in value.sample_shape:
                root = root.unsqueeze(-1)
            columns = root * rows
        else:
            columns = jac_t(torch.diag_embed(root).reshape(-1, size, *outer))
        self._arrive(value, step.into, columns)

    def _gather(self, step: Gather) -> None:
        if not step.pieces:  # the loss has no curvature
            self._arrive(step.value, step.into, torch.zeros_like(self.proxies[step.value.name]))
            return
        parts = [self.columns[step.value.name, piece.name] for piece in step.pieces]
        if step.into.form == COLUMNS:
            if step.into.signed:
                signs = [self.signs[piece.name] if piece.signed else part.new_ones(part.shape[:2])
                         for piece, part in zip(step.pieces, parts, strict=True)]
                self.signs[step.into.name] = named(torch.cat(signs, 1), f"sign_{step.into.name}")
            whole = torch.cat(parts, 1)
        else:
            whole = parts[0]
            for part in parts[1:]:
                whole = whole + part
        self._arrive(step.value, step.into, whole)

    def _average(self, step: Average) -> None:
        total: Any = None
        for piece in step.pieces:
            lead = (-1, piece.columns) if piece.form == COLUMNS else (-1,)
            arrived = self.columns[step.value.name, piece.name].reshape(*lead, math.prod(step.value.sample_shape))
            if piece.form == COLUMNS:
                weighted = arrived * self.signs[piece.name].unsqueeze(2) if piece.signed else arrived
                part = torch.einsum("nka,nkb->ab", weighted, arrived) / self.batch
            else:
                part = torch.diag_embed(arrived.mean(0))
            total = part if total is None else total + part
        self._arrive(step.value, step.into, total)

    def _sample(self, step: Sample) -> None:
        """Columns s with E[s s^T] the Hessian: random-sign sums of its columns, of each sign apart."""
        count, shape = self.plan.mc_samples, step.value.sample_shape
        wanted = (1.0, -1.0) if step.into.signed else (1.0,)
        drawn = []
        for sign in wanted:
            total: Any = None
            for piece in step.pieces:
                arrived = self.columns[step.value.name, piece.name]
                if piece.form == COLUMNS:
                    flat = arrived.reshape(-1, piece.columns, math.prod(shape))
                    if step.into.signed:
                        keep = self.signs[piece.name] == sign if piece.signed else None
                        flat = flat * (keep.to(flat.dtype).unsqueeze(2) if keep is not None else (sign > 0))
                    noise = self._noise(arrived, (count, piece.columns))
                    part = (noise @ flat / math.sqrt(count)).reshape(-1, count, *shape)
                else:
                    root = (arrived * sign).clamp(min=0).sqrt().unsqueeze(1)
                    part = self._noise(arrived, (count, *shape)) * root / math.sqrt(count)
                total = part if total is None else total + part
            drawn.append(total)
        columns = drawn[0] if len(drawn) == 1 else torch.cat(drawn, 1)
        if step.into.signed:
            half = drawn[0].new_ones(drawn[0].shape[:2])
            self.signs[step.into.name] = named(torch.cat([half, -half], 1), f"sign_{step.into.name}")
        self._arrive(step.value, step.into, columns)

    def _noise(self, like: Any, shape: tuple[int, ...]) -> Any:
        bits = self.writer.call(torch.randint, 0, 2, (self.batch, *shape), device=like.device)
        return bits.to(like.dtype) * 2 - 1

    # -- ends --------------------------------------------------------------------------------------------------------

    def _close(self, step: Close) -> None:
        op = self.ops[step.operation.name]
        if step.piece is None:
            slot = next(slot for slot, value in step.operation.tensors.items() if value.batched)
            stream, signs, name = getattr(op, slot), None, ""
        else:
            stream, signs = self.columns[step.operation.name, step.piece.name], self.signs.get(step.piece.name)
            name = step.piece.stream
        use = Use(self.writer, op, step.contraction, stream, signs, self.batch)
        closings = self.closed.setdefault(step.parameter.key, {})
        for choice in step.choices:
            for kind, result in choice.route.write(step.site, use, choice.kinds).items():
                if kind in (DIAGONAL, POSITIVE, NEGATIVE, "sum") and step.site.shape != step.parameter.sample_shape:
                    result = result.reshape(step.parameter.sample_shape)
                if kind == "each" and step.site.shape != step.parameter.sample_shape:
                    result = result.reshape(-1, *step.parameter.sample_shape)
                closing = Closing(name, kind)
                total = closings[closing] + result if closing in closings else result
                closings[closing] = named(total, f"{PART[kind]}_{name}_{self.names[step.parameter.name]}")

    def _results(self) -> dict[str, dict[str, Any]]:
        results: dict[str, dict[str, Any]] = {}
        missing = [value.key for value in self.source.state if value.trainable and value.name not in self.active]
        if missing:
            raise ModelError(listing("These trainable parameters do not influence the loss:",
                                     [repr(key) for key in missing],
                                     "Remove them from the model or freeze them (requires_grad=False)."))
        for name in self.plan.quantities:
            quantity = QUANTITIES[name]
            results[name] = {}
            for value in self.source.state:
                if not value.trainable:
                    continue
                with self.writer.block(name, "results"):
                    closed = Closed(self.closed.get(value.key, {}), self.batch, self.reduction)
                    found = quantity.value(closed)
                    hint = f"{name}_{self.names[value.name]}"
                    if quantity.fields:
                        found = {field: None if part is None else named(part, f"{field}_{hint}")
                                 for field, part in found.items()}
                    results[name][value.key] = found if quantity.fields else named(found, hint)
        return results

PART = {"sum": "sum", "each": "each", "norm": "norm", "diagonal": "squares", "positive": "positive",
        "negative": "negative", "factor": "factor", "input_factor": "inputs"}


class _ReadsSamplesError(Exception):
    pass


def _title(operation: Operation) -> str:
    place = "loss" if operation.source.in_loss else operation.source.module
    return f"{place}: {operation.short}" if place else operation.short


def _node(item: Any) -> Any:
    return item.node if isinstance(item, fx.Proxy) else item


def derive(graph: Graph, rules: Mapping[str, AnyRule], plan: Plan, reduction: str, names: Mapping[str, str]) -> Derived:
    """Write the program. `names` gives each value of the graph its identifier.

    `MATRIX` pieces are KFRA's; everything else is columns or diagonals.
    """
    return _Derivation(graph, rules, plan, reduction, names).run()


__all__ = ["MATRIX", "Derived", "derive"]
