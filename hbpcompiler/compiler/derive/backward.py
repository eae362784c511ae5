"""The backward half of stage 4: each step of the plan, carried out on proxies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from hbpcompiler.compiler.derive.begin import birth, seed
from hbpcompiler.compiler.derive.compression import compressed
from hbpcompiler.compiler.derive.identity import matrix_of
from hbpcompiler.compiler.derive.kfra import average, pull_matrix
from hbpcompiler.compiler.derive.neighbourhood_loop import walk_local_tail
from hbpcompiler.compiler.derive.sample import sample
from hbpcompiler.compiler.derive.sample_loop import walk_sample_chunks
from hbpcompiler.compiler.derive.tail_loop import walk_tail
from hbpcompiler.compiler.match.bind import bind
from hbpcompiler.compiler.plan.precision import Precision
from hbpcompiler.compiler.plan.steps import (
    PREFIX,
    Average,
    Birth,
    Close,
    Gather,
    LocalTail,
    Piece,
    Plan,
    Pull,
    Sample,
    SampleChunks,
    Seed,
    Step,
    Tail,
    Tied,
    Widen,
)
from hbpcompiler.compiler.program.writer import Writer, named
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM, Use
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value, meta
from hbpcompiler.quantities import (
    BATCH_DIAGONAL,
    BLOCK,
    DIAGONAL,
    DOT,
    EACH,
    EIGEN,
    FACTOR,
    INPUT_FACTOR,
    NEGATIVE,
    NORM,
    POSITIVE,
    REDUCED_FACTOR,
    REDUCED_INPUT_FACTOR,
    SUM,
    VECTORS,
    Closing,
)
from hbpcompiler.rule import Contraction, Op, Rule
from hbpcompiler.rule.bilinear import columns_to
from hbpcompiler.rule.registry import AnyRule


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
        self.mixed = len({value.dtype for value in source.values() if value.name in self.active}) > 1
        self.precision = Precision(plan.curvature_dtype)
        self.columns: dict[tuple[str, str], Any] = {}
        self.pooled: dict[tuple[str, str], tuple[Any, Any]] = {}
        self.signs: dict[str, Any] = {}
        self.closed: dict[str, dict[Closing, Any]] = {}
        self.multiples: dict[str, Any] = {}
        self.noise: dict[str, Any] = {}
        """The random signs of a piece's columns, the same at every value that it has reached."""
        self.slopes: dict[str, Any] = {}
        """Local derivatives that are known already: pieces of them (see `local`)."""
        self.leaving: Callable[[Operation, str, Any], Any] = lambda operation, slot, columns: columns
        """What else is done to columns on their way from an operation to its input."""

    def inside(self, writer: Writer, ops: Mapping[str, Op]) -> Backward:
        """The same backward pass inside a loop: its own graph, the operations bound to this chunk's tensors."""
        return Backward(self.source, self.rules, self.plan, self.names, writer, ops, self.proxies, self.batch)

    def step(self, step: Step) -> None:
        """Carry out one step."""
        handlers: dict[type, Callable[[Any], None]] = {
            Seed: partial(seed, self),
            Birth: partial(birth, self),
            Pull: self._pull,
            Widen: self._widen,
            Gather: self._gather,
            Average: partial(average, self),
            Sample: partial(sample, self),
            Close: self._close,
            Tied: self._tied,
            Tail: partial(walk_tail, self),
            LocalTail: partial(walk_local_tail, self),
            SampleChunks: partial(walk_sample_chunks, self),
        }
        handlers[type(step)](step)

    def arrive(self, value: Value, piece: Piece, columns: Any) -> None:
        """Columns add up where a value fans out, as gradients do."""
        key = (value.name, piece.name)
        columns = self._rounded(columns, value, piece)
        total = self.columns[key] + columns if key in self.columns else columns
        self.columns[key] = named(total, f"{PREFIX[piece.stream]}_{self.names[value.name]}")

    def _rounded(self, columns: Any, value: Value, piece: Piece) -> Any:
        """Columns in the dtype of curvature, once they have left the loss."""
        maker = self.source.makers.get(value.name)
        in_loss = maker is not None and maker.source.in_loss
        return columns if in_loss else self.precision.rounded(columns, piece)

    def set_signs(self, piece: Piece, signs: Any, columns: Any) -> None:
        if piece.signed:
            signs = columns.new_ones(columns.shape[:2]) if signs is None else signs
            self.signs[piece.name] = named(signs, f"sign_{piece.name}")

    def jac_t(self, operation: Operation, slot: str) -> Callable[[Any], Any]:
        return columns_to(self.rule_of(operation), self.ops[operation.name], slot)

    def rule_of(self, operation: Operation) -> Rule:
        rule = self.rules[operation.name]
        assert isinstance(rule, Rule)
        return rule

    def derivative(self, operation: Operation) -> Any:
        rule = self.rule_of(operation)
        assert rule.derivative is not None
        if operation.name in self.slopes:
            return self.slopes[operation.name]
        return named(rule.derivative(self.ops[operation.name]), f"d_{self.names[operation.name]}")

    def _pull(self, step: Pull) -> None:
        rule, op, piece = self.rule_of(step.operation), self.ops[step.operation.name], step.piece
        value = step.operation.tensors[step.slot]
        arrived = self.columns[step.operation.name, piece.name]
        jac_t = self.jac_t(step.operation, step.slot)
        if (value.name, piece.name) in self.plan.pools:
            pulled = self._pull_pooled(step, arrived)
        elif piece.form == COLUMNS and rule.elementwise_in(op):
            pulled = arrived * self.derivative(step.operation).unsqueeze(1)
        elif piece.form == COLUMNS:
            pulled = jac_t(arrived)
        elif piece.form == DIAGONAL_FORM and rule.elementwise_in(op):
            pulled = arrived * self.derivative(step.operation).square()
        elif piece.form == DIAGONAL_FORM:
            pulled = jac_t(arrived.unsqueeze(1)).squeeze(1)  # coefficients 0 and 1 are their own squares
        else:
            pulled = pull_matrix(self, step.operation, step.slot, arrived, rule, op, jac_t)
        self.arrive(value, piece, self.leaving(step.operation, step.slot, pulled))

    def _pull_pooled(self, step: Pull, arrived: Any) -> Any:
        """The columns behind a pool, kept as they were before it too; what is elementwise scales the few entries."""
        piece, value = step.piece, step.operation.tensors[step.slot]
        pool = self.plan.pools[value.name, piece.name]
        op, name = self.ops[step.operation.name], self.names[value.name]
        if step.operation is pool:
            index = named(self.rule_of(pool).selected(op), f"index_{name}")
            columns = arrived.flatten(3) if len(pool.output.sample_shape) > 2 else arrived
        else:
            before, index = self.pooled[step.operation.name, piece.name]
            slope = self.derivative(step.operation)
            slope = slope.flatten(2) if len(value.sample_shape) > 2 else slope
            columns = before * slope.gather(2, index).unsqueeze(1)
        self.pooled[value.name, piece.name] = named(columns, f"pooled_{PREFIX[piece.stream]}_{name}"), index
        return self.jac_t(pool, "self")(columns.unflatten(3, pool.output.sample_shape[1:]))

    def same_for_all(self, operation: Operation, slot: str) -> bool:
        """Whether the Jacobian reads nothing that has a sample axis: then one application serves the batch."""
        columns = torch.empty((1, 1, *operation.output.sample_shape), dtype=operation.output.dtype, device="meta")
        try:
            self._without_samples(operation, slot)(columns)
        except _ReadsSamplesError:
            return False
        return True

    def matrix(self, operation: Operation, slot: str, op: Op) -> Any | None:
        """[out, in]: what multiplies columns there, the same matrix for all samples, if that is all that happens."""
        try:
            seen = matrix_of(self._without_samples(operation, slot), operation.output.sample_shape)
        except _ReadsSamplesError:
            return None
        if seen is None:
            return None
        return matrix_of(columns_to(self.rule_of(operation), op, slot), operation.output.sample_shape)

    def _without_samples(self, operation: Operation, slot: str) -> Callable[[Any], Any]:
        """The transposed Jacobian on meta tensors; _ReadsSamplesError if it reads one that has a sample axis."""

        def tensors(name: str) -> Any:
            value = operation.tensors.get(name)
            if value is None or value.batched:
                raise _ReadsSamplesError
            return meta(value)

        return columns_to(self.rule_of(operation), bind(operation, tensors, self.active), slot)

    def _widen(self, step: Widen) -> None:
        value = step.operation.tensors[step.slot]
        root = self.root(step)
        rows = self.matrix(step.operation, step.slot, self.ops[step.operation.name])
        if rows is not None:
            columns = self.outer(root, value) * rows
        else:
            size = math.prod(step.operation.output.sample_shape)
            columns = self.born(step, root, self.writer.call(torch.eye, size, dtype=root.dtype, device=root.device))
        self.arrive(value, step.into, columns)

    def root(self, step: Widen) -> Any:
        """sqrt|r| as [N, K], and the signs of r."""
        size = math.prod(step.operation.output.sample_shape)
        diagonal = self.columns[step.operation.name, step.piece.name].reshape(-1, size)
        value = step.operation.output
        if not step.piece.signed:
            return self._rounded(diagonal.sqrt(), value, step.into)
        if step.into.name not in self.signs:
            self.signs[step.into.name] = named(diagonal.sign(), f"sign_{step.into.name}")
        return self._rounded(diagonal.abs().sqrt(), value, step.into)

    @staticmethod
    def outer(root: Any, value: Value) -> Any:
        """[N, K] -> [N, K, 1, ...], to scale rows [K, *value]."""
        for _ in value.sample_shape:
            root = root.unsqueeze(-1)
        return root

    def born(self, step: Widen, root: Any, unit: Any) -> Any:
        """Columns [N, K, *in] from roots [N, K] and unit vectors [K, out flattened]."""
        outer, jac_t = step.operation.output.sample_shape, self.jac_t(step.operation, step.slot)
        if self.same_for_all(step.operation, step.slot):
            # The Jacobian's rows, once for all samples.
            rows = jac_t(unit.unsqueeze(0).reshape(1, -1, *outer))
            return self.outer(root, step.operation.tensors[step.slot]) * rows
        scaled = root.unsqueeze(-1) * unit
        return jac_t(scaled.reshape(scaled.shape[0], -1, *outer))

    def _gather(self, step: Gather) -> None:
        if not step.pieces:  # the loss has no curvature
            self.arrive(step.value, step.into, torch.zeros_like(self.proxies[step.value.name]))
            return
        parts = [self.columns[step.value.name, piece.name] for piece in step.pieces]
        if step.into.form == COLUMNS:
            if step.into.signed:
                signs = [self.signs[piece.name] if piece.signed else part.new_ones(part.shape[:2])
                         for piece, part in zip(step.pieces, parts, strict=True)]
                joined = torch.cat(signs, 1) if len(signs) > 1 else signs[0]
                self.signs[step.into.name] = named(joined, f"sign_{step.into.name}")
            whole = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            if step.compresses:
                whole, signs = (self.precision.widened(tensor, step.value.dtype)
                                for tensor in (whole, self.signs.get(step.into.name)))
                whole, signs = compressed(whole, signs, step.value.sample_shape)
                if step.into.signed:
                    self.signs[step.into.name] = named(signs, f"sign_{step.into.name}_compressed")
        else:
            whole = parts[0]
            for part in parts[1:]:
                whole = whole + part
        self.arrive(step.value, step.into, whole)

    def _close(self, step: Close) -> None:
        op = self.ops[step.operation.name]
        if step.piece is None:
            slots = {**step.operation.tensors, "output": step.operation.output}
            slot = next(slot for slot, value in slots.items() if value.batched and value.dtype.is_floating_point)
            stream, signs = self.precision.rounded(getattr(op, slot), None), None
            op = op.with_tensor(slot, stream)
        else:
            stream = self.columns[step.operation.name, step.piece.name]
            if step.pooled:
                stream, index = self.pooled[step.operation.name, step.piece.name]
                op = op.with_tensor("pooled_index", index)
            signs = self.signs_like(stream, step.piece)
        use = Use(self.writer, op, step.contraction, stream, signs, self.batch, step.slot, self.plan.by_pixels)
        self._write(step, use)

    def _write(self, step: Close | Tied, use: Use) -> None:
        closings, dtype = self.closed.setdefault(step.parameter.key, {}), step.parameter.dtype
        for choice in step.choices:
            site, given = self.precision.closing(step.piece, choice.kinds, dtype, step.site, use)
            for kind, result in choice.route.write(site, given, choice.kinds).items():
                self.add(closings, step, kind, result)

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
        signs = self.signs_like(joined["output"], step.piece)
        use_all = Use(self.writer, op, contraction, joined["output"], signs, self.batch)
        self._write(step, use_all)

    def signs_like(self, columns: Any, piece: Piece) -> Any:
        """The signs of a piece in the dtype of its columns, which change theirs at casts."""
        signs = self.signs.get(piece.name)
        return signs.type_as(columns) if signs is not None and self.mixed else signs

    def add(self, closings: dict[Closing, Any], step: Close | Tied, kind: str, result: Any) -> None:
        """Several pieces of a stream end at one parameter: their closings add up, or are kept one by one."""
        if step.site.shape != step.parameter.sample_shape:
            if kind in (EACH, BATCH_DIAGONAL):
                result = result.reshape(-1, *step.parameter.sample_shape)
            elif kind == VECTORS:
                result = result.reshape(result.shape[0], -1, *step.parameter.sample_shape)
            elif kind in (SUM, DIAGONAL, POSITIVE, NEGATIVE):
                result = result.reshape(step.parameter.sample_shape)
        if self.precision.concerns(step.piece):
            result = self.precision.widened(result, step.parameter.dtype)
        name = "" if step.piece is None else step.piece.stream
        closing = Closing(name, kind)
        if kind in (BLOCK, EIGEN):
            closings[closing] = (*closings.get(closing, ()), result)
            return
        if closing not in closings:
            total = result
        elif kind == VECTORS:
            total = torch.cat([closings[closing], result], 1)
        else:
            total = closings[closing] + result
        closings[closing] = named(total, f"{PART[kind]}_{name}_{self.names[step.parameter.name]}")


def _positions_at(tensor: Any, letters: str, axis: int) -> Any:
    """The axis of positions moved to a place; made, of length 1, where there is none."""
    return tensor.movedim(letters.index("p"), axis) if "p" in letters else tensor.unsqueeze(axis)


PART = {SUM: "sum", EACH: "each", NORM: "norm", DIAGONAL: "squares", POSITIVE: "positive", NEGATIVE: "negative",
        FACTOR: "factor", INPUT_FACTOR: "inputs", REDUCED_FACTOR: "reduced", REDUCED_INPUT_FACTOR: "reduced_inputs",
        BATCH_DIAGONAL: "each_square", VECTORS: "vectors", DOT: "dot"}
"""How a closing is named in generated code."""


class _ReadsSamplesError(Exception):
    pass
