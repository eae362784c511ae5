"""The backward half of stage 4: each step of the plan, carried out on proxies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from hbpcompiler.graph import Graph, Operation, Value
from hbpcompiler.match import bind
from hbpcompiler.plan import meta
from hbpcompiler.quantities import (
    DIAGONAL,
    EACH,
    FACTOR,
    GGN_MC,
    GRADIENT,
    INPUT_FACTOR,
    NEGATIVE,
    NORM,
    POSITIVE,
    SUM,
    Closing,
)
from hbpcompiler.registry import AnyRule
from hbpcompiler.routes import COLUMNS, DIAGONAL_FORM, Use
from hbpcompiler.rule import Contraction, Diagonal, Factor, LossRule, Op, Rule
from hbpcompiler.steps import (
    PREFIX,
    Average,
    Birth,
    Close,
    Gather,
    Piece,
    Plan,
    Pull,
    Sample,
    Seed,
    Step,
    Tail,
    Tied,
    Widen,
)
from hbpcompiler.writer import Part, Writer, named


class Backward:
    """What has arrived where, and what the steps make of it.

    `columns` maps (value, piece) to a proxy: columns [N, K, *z], a diagonal [N, *z] or KFRA's matrix [h, h]. `closed`
    collects, for each parameter, its closings.
    """

    def __init__(self, source: Graph, rules: Mapping[str, AnyRule], plan: Plan, names: Mapping[str, str],
                 writer: Writer, ops: Mapping[str, Op], proxies: Mapping[str, Any], batch: Any) -> None:
        self.source, self.rules, self.plan, self.names = source, rules, plan, names
        self.writer, self.ops, self.proxies, self.batch = writer, ops, proxies, batch
        self.active = set(plan.active)
        self.columns: dict[tuple[str, str], Any] = {}
        self.signs: dict[str, Any] = {}
        self.closed: dict[str, dict[Closing, Any]] = {}

    def step(self, step: Step) -> None:
        """Carry out one step."""
        handlers: dict[type, Callable[[Any], None]] = {
            Seed: self._seed, Birth: self._birth, Pull: self._pull, Widen: self._widen, Gather: self._gather,
            Average: self._average, Sample: self._sample, Close: self._close, Tail: self._tail, Tied: self._tied,
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
        rule, op, piece = self._rule(step.operation), self.ops[step.operation.name], step.piece
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
        rule, op = self._rule(operation), self.ops[operation.name]
        name, _, position = slot.partition(".")
        function = rule.jac_t[name]
        return lambda columns: function(op, columns, int(position)) if position else function(op, columns)

    def _rule(self, operation: Operation) -> Rule:
        rule = self.rules[operation.name]
        assert isinstance(rule, Rule)
        return rule

    def _derivative(self, operation: Operation) -> Any:
        rule = self._rule(operation)
        assert rule.derivative is not None
        return named(rule.derivative(self.ops[operation.name]), f"d_{self.names[operation.name]}")

    def _pull(self, step: Pull) -> None:
        rule, op, piece = self._rule(step.operation), self.ops[step.operation.name], step.piece
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
        rule = self._rule(operation)

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
        value = step.operation.tensors[step.slot]
        root = self._root(step)
        rule, op = self._rule(step.operation), self.ops[step.operation.name]
        rows = rule.rows(op) if rule.rows is not None else None
        if rows is not None:
            columns = self._outer(root, value) * rows
        else:
            size = math.prod(op.shape("output"))
            columns = self._born(step, root, self.writer.call(torch.eye, size, dtype=root.dtype, device=root.device))
        self._arrive(value, step.into, columns)

    def _root(self, step: Widen) -> Any:
        """sqrt|r| as [N, K], and the signs of r."""
        size = math.prod(step.operation.output.sample_shape)
        diagonal = self.columns[step.operation.name, step.piece.name].reshape(-1, size)
        if not step.piece.signed:
            return diagonal.sqrt()
        if step.into.name not in self.signs:
            self.signs[step.into.name] = named(diagonal.sign(), f"sign_{step.into.name}")
        return diagonal.abs().sqrt()

    @staticmethod
    def _outer(root: Any, value: Value) -> Any:
        """[N, K] -> [N, K, 1, ...], to scale rows [K, *value]."""
        for _ in value.sample_shape:
            root = root.unsqueeze(-1)
        return root

    def _born(self, step: Widen, root: Any, unit: Any) -> Any:
        """Columns [N, K, *in] from roots [N, K] and unit vectors [K, out flattened]."""
        outer, jac_t = step.operation.output.sample_shape, self._jac_t(step.operation, step.slot)
        if self._same_for_all(step.operation, step.slot):
            # The Jacobian's rows, once for all samples.
            rows = jac_t(unit.unsqueeze(0).reshape(1, -1, *outer))
            return self._outer(root, step.operation.tensors[step.slot]) * rows
        scaled = root.unsqueeze(-1) * unit
        return jac_t(scaled.reshape(scaled.shape[0], -1, *outer))

    # -- tails: many columns, in chunks ------------------------------------------------------------------------------

    def _tail(self, step: Tail) -> None:
        """Walk the rest of a piece's way in a loop over samples and, inside it, one over columns."""
        first = step.steps[0]
        widen = first if isinstance(first, Widen) else None
        start = self._root(widen) if widen else self.columns[step.value.name, step.piece.name]
        sliced = {"columns": start, "signs": self.signs.get(step.piece.name)}
        closes = [own for own in step.steps if isinstance(own, Close)]
        shapes = {f"{kind} {close.parameter.key}": _total_shape(close, kind)
                  for close in closes for choice in close.choices for kind in choice.kinds}
        shapes = dict(sorted(shapes.items()))

        def body(part: Part) -> None:
            ops = {name: op.bound_again(part.read) for name, op in self.ops.items()}
            if step.columns >= step.piece.columns:
                self._inside(step, widen, part, part, ops)
                return
            inner_sliced: dict[str, Any] = {"columns": part["columns"], "signs": part["signs"]}
            if widen is not None:
                inner_sliced |= self._basis(widen, part, ops[widen.operation.name])

            def inner(piece: Part) -> None:
                again = {name: op.bound_again(lambda tensor, _: _outer_of(piece, tensor)) for name, op in ops.items()}
                self._inside(step, widen, piece, part, again)

            part.writer.loop(inner, op=None, sliced=inner_sliced, chunk=step.columns, totals={}, axis=1)

        found = self.writer.loop(body, op=None, sliced=sliced, chunk=step.samples, totals=shapes)
        for close in closes:
            closings = self.closed.setdefault(close.parameter.key, {})
            for kind in {kind for choice in close.choices for kind in choice.kinds}:
                self._add(closings, close, kind, found[f"{kind} {close.parameter.key}"])

    def _basis(self, widen: Widen, part: Part, op: Op) -> dict[str, Any]:
        """What the loop over columns cuts besides the roots: rows in memory, or the numbers of the unit vectors."""
        rule = self._rule(widen.operation)
        rows = rule.rows(op) if rule.rows is not None else None
        if rows is not None:
            return {"rows": rows.unsqueeze(0)}
        size = math.prod(widen.operation.output.sample_shape)
        numbers = part.writer.call(torch.arange, size, device=part["columns"].device)
        return {"numbers": numbers.unsqueeze(0)}

    def _inside(self, step: Tail, widen: Widen | None, part: Part, outer: Part, ops: Mapping[str, Op]) -> None:
        """The body of the innermost loop: the tail's steps on this chunk, added to the outer loop's totals."""
        sub = Backward(self.source, self.rules, self.plan, self.names, part.writer, ops, self.proxies, self.batch)
        sub.signs = {step.piece.name: part["signs"]}
        steps = step.steps
        if widen is not None:
            with part.writer.block(title(widen.operation), "backward"):
                columns = sub._chunk_of_columns(widen, part, outer is part)
                sub._arrive(widen.operation.tensors[widen.slot], widen.into, columns)
            steps = steps[1:]
        else:
            sub.columns[step.value.name, step.piece.name] = part["columns"]
        for own in steps:
            with part.writer.block(title(own.operation), "backward"):
                sub.step(own)
                if isinstance(own, Close):
                    for closing, value in sub.closed.pop(own.parameter.key).items():
                        total = outer.totals[f"{closing.kind} {own.parameter.key}"]
                        (total if outer is part else part.outer(total)).add_(value)

    def _chunk_of_columns(self, widen: Widen, part: Part, whole: bool) -> Any:
        op, value = self.ops[widen.operation.name], widen.operation.tensors[widen.slot]
        cut = {name: part[name] for name in ("rows", "numbers") if name in part}
        basis = self._basis(widen, part, op) if whole else cut
        if "rows" in basis:
            return self._outer(part["columns"], value) * basis["rows"]
        size = math.prod(widen.operation.output.sample_shape)
        unit = torch.nn.functional.one_hot(basis["numbers"].squeeze(0), size).type_as(part["columns"])
        return self._born(widen, part["columns"], unit)

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

    def _close(self, step: Close) -> None:
        op = self.ops[step.operation.name]
        if step.piece is None:
            slot = next(slot for slot, value in step.operation.tensors.items() if value.batched)
            stream, signs = getattr(op, slot), None
        else:
            stream, signs = self.columns[step.operation.name, step.piece.name], self.signs.get(step.piece.name)
        use = Use(self.writer, op, step.contraction, stream, signs, self.batch)
        closings = self.closed.setdefault(step.parameter.key, {})
        for choice in step.choices:
            for kind, result in choice.route.write(step.site, use, choice.kinds).items():
                self._add(closings, step, kind, result)

    def _tied(self, step: Tied) -> None:
        """Columns and operands of all uses, laid end to end along p, then closed like those of one use."""
        lefts, rights = [], []
        for use in step.uses:
            op, (left, right, _) = self.ops[use.operation.name], use.site.letters
            columns = use.contraction.columns(op, self.columns[use.operation.name, step.piece.name])
            lefts.append(_positions_at(columns, left, 2))
            if use.contraction.operand is not None:
                rights.append(_positions_at(use.contraction.operand(op), right, 1))
        joined = {"output": torch.cat(lefts, 2)}
        if rights:
            joined["operand"] = torch.cat(rights, 1)
        op = Op(joined, {}, dict.fromkeys(joined, ()), batched=frozenset(joined))
        contraction = Contraction(step.site.equation, operand=(lambda op: op.operand) if rights else None)
        use_all = Use(self.writer, op, contraction, joined["output"], self.signs.get(step.piece.name), self.batch)
        closings = self.closed.setdefault(step.parameter.key, {})
        for choice in step.choices:
            for kind, result in choice.route.write(step.site, use_all, choice.kinds).items():
                self._add(closings, step, kind, result)

    def _add(self, closings: dict[Closing, Any], step: Close | Tied, kind: str, result: Any) -> None:
        """Several pieces of a stream end at one parameter: their closings add up."""
        if step.site.shape != step.parameter.sample_shape:
            if kind == EACH:
                result = result.reshape(-1, *step.parameter.sample_shape)
            elif kind in (SUM, DIAGONAL, POSITIVE, NEGATIVE):
                result = result.reshape(step.parameter.sample_shape)
        name = "" if step.piece is None else step.piece.stream
        closing = Closing(name, kind)
        total = closings[closing] + result if closing in closings else result
        closings[closing] = named(total, f"{PART[kind]}_{name}_{self.names[step.parameter.name]}")


def _positions_at(tensor: Any, letters: str, axis: int) -> Any:
    """The axis of positions moved to a place; made, of length 1, where there is none."""
    return tensor.movedim(letters.index("p"), axis) if "p" in letters else tensor.unsqueeze(axis)


def _total_shape(close: Close, kind: str) -> tuple[int, ...]:
    """The shape of a closing before it takes its parameter's."""
    site = close.site
    if kind != FACTOR:
        return close.parameter.sample_shape
    left, right, _ = site.letters
    if not site.features:
        return (site.size(site.theta), site.size(site.theta))
    shared = [site.size(letter) for letter in site.theta if letter in left and letter in right]
    own = site.size(letter for letter in site.theta if letter in left and letter not in right)
    return (*shared, own, own)


def _outer_of(piece: Part, tensor: Any) -> Any:
    if isinstance(tensor, list | tuple):
        return [_outer_of(piece, item) for item in tensor]
    return piece.outer(tensor) if isinstance(tensor, fx.Proxy) else tensor


def title(operation: Operation) -> str:
    """The heading under which an operation's lines stand."""
    place = "loss" if operation.source.in_loss else operation.source.module
    return f"{place}: {operation.short}" if place else operation.short


PART = {SUM: "sum", EACH: "each", NORM: "norm", DIAGONAL: "squares", POSITIVE: "positive", NEGATIVE: "negative",
        FACTOR: "factor", INPUT_FACTOR: "inputs"}
"""How a closing is named in generated code."""


class _ReadsSamplesError(Exception):
    pass
