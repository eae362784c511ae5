"""Rules of the user's, tried out on tensors without memory where they are used: what their functions return fits.

Ours have tests for that. What is wrong is reported before anything is computed, all of it at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.match.operation.stand_ins import meta_number
from hbpcompiler.compiler.trace.graph import SAMPLES, Graph, Operation, Value, meta
from hbpcompiler.errors import RuleError, listing
from hbpcompiler.quantities import FIRST_ORDER, OUTPUT, RESIDUAL, RESIDUAL_MC, Closing
from hbpcompiler.rule import Contraction, Diagonal, Factor, LossRule, Op, Residual, Rule
from hbpcompiler.rule.faults import is_noted, named_error
from hbpcompiler.rule.registry import AnyRule, Registry
from hbpcompiler.rule.unchanged import changing_nothing

SIZES = ((SAMPLES, 3), (1, 1))
"""Samples and columns of stand-ins: numbers that differ, and those that squeeze() takes away."""
ADVICE = "hbpcompiler.testing.check_rule compares a rule with autograd on its cases."


def refuse_misfits(graph: Graph, rules: Mapping[str, AnyRule], registry: Registry,
                   closings: frozenset[Closing]) -> None:
    """RuleError for rules of users' files whose functions return something else than they should."""
    streams = {closing.stream for closing in closings}
    findings: dict[str, None] = {}
    for operation in graph.operations:
        rule = rules.get(operation.name)
        file = registry.file_of_others(operation.target, operation.overload)
        if rule is None or file is None or operation.parts:
            continue
        asked = streams - FIRST_ORDER - {OUTPUT} if isinstance(rule, LossRule) else streams & {RESIDUAL, RESIDUAL_MC}
        place = f"{operation.target} in {operation.source}: "
        for finding in _findings(operation, rule, graph.active, file, bool(asked)):
            findings[finding if finding.startswith("the rule for") else f"{place}{finding}, in {file}"] = None
    if findings:
        raise RuleError(listing("Rules break the contract of rules:", [*findings], ADVICE))


def _findings(operation: Operation, rule: AnyRule, active: AbstractSet[str], file: str, curved: bool) -> list[str]:
    """What does not fit at the first sizes where anything does not."""
    for samples, columns in SIZES:
        if found := [*_Trial(operation, rule, active, file, curved, samples, columns).findings()]:
            return found
    return []


def _is_plain(operation: Operation) -> bool:
    """Whether all lengths are known, and samples are the batch's: else shapes are not what is said here."""
    values = (*operation.tensors.values(), operation.output)
    known = all(isinstance(length, int) for value in values for length in value.sample_shape)
    return known and not any(value.shared for value in values)


class _Trial:
    """One use of a rule."""

    def __init__(self, operation: Operation, rule: AnyRule, active: AbstractSet[str], file: str, curved: bool,
                 samples: int, columns: int) -> None:
        self.operation, self.active, self.curved = operation, active, curved
        self.samples, self.columns = samples, columns
        self.sizes = "one sample and one column" if samples == 1 else f"{samples} samples and {columns} columns"
        where = f"the rule for {operation.target} in {file}"
        self.rule = changing_nothing(rule, where, RuleError)
        self.values: dict[str, Any] = {slot: meta(value, self.samples) for slot, value in operation.tensors.items()}

    def findings(self) -> Iterator[str]:
        """What does not fit, function by function."""
        op = self._op()
        trials: list[Callable[[], Iterator[str]]] = [lambda: self._forward(op)]
        if self.operation.name not in self.active or not _is_plain(self.operation):
            pass
        elif isinstance(self.rule, LossRule):
            trials.append(lambda: self._loss(self._saved(op)))
        elif self.operation.output.batched:
            trials.append(lambda: self._operation(self._saved(op)))
            trials.append(lambda: self._one_column(self._saved(self._op(single=True))))
        for trial in trials:
            wrong = False
            try:
                for finding in trial():
                    wrong = True
                    yield finding
            except RuleError as error:
                wrong = True
                yield str(named_error(error))
            except Exception as error:
                if is_noted(error):  # not a rule's own refusal, which has its place
                    wrong = True
                    yield str(named_error(error))
            if wrong:
                return

    def _op(self, single: bool = False, **more: Any) -> Op:
        return bind(self.operation, {**self.values, **more}.__getitem__, self.active, True,
                    meta_number(self.operation, self.samples), single)

    def _output(self) -> torch.Tensor:
        return meta(self.operation.output, self.samples)

    def _made(self, op: Op) -> Any:
        assert self.rule.forward is not None
        return self.rule.forward(op)

    def _saved(self, op: Op) -> Op:
        """With what `forward` saves, and the result as it is."""
        made = None if self.rule.forward is None else self._made(op)
        saved = made[1] if isinstance(made, tuple) else {}
        return self._op(op.single, **saved, output=self._output())

    def _forward(self, op: Op) -> Iterator[str]:
        if self.rule.forward is None:
            return
        made = self._made(op)
        pair = isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)
        if isinstance(made, tuple) and not pair:
            yield f"forward must return the result, or (result, {{name: saved tensor}}), not {_shown(made)}"
            return
        output, saved = made if pair else (made, {})
        if _is_plain(self.operation):
            yield from self._unlike("forward", output, self._output().shape, self._output().dtype)
        for name, item in saved.items():
            if not isinstance(item, torch.Tensor):
                yield f"forward saves {_shown(item)} as '{name}', which is no tensor; compute it where it is read"
            elif name in self.values or name == "output":
                yield f"forward saves a tensor as '{name}', which is an argument's name; give it another"

    def _operation(self, op: Op) -> Iterator[str]:
        rule, output = self.rule, self._output()
        assert isinstance(rule, Rule)
        columns = output.new_empty((self.samples, self.columns, *output.shape[1:]))
        for slot, value in self._inputs(rule):
            name, _, position = slot.partition(".")
            found = rule.jac_t[name](op, columns, *([int(position)] if position else []))
            shape = (*columns.shape[:2], *value.sample_shape)
            yield from self._unlike(f"jac_t of '{slot}'", found, shape, self._dtype(value))
        if rule.derivative is not None and rule.elementwise_in(op):
            yield from self._unlike("derivative", rule.derivative(op), output.shape, output.dtype)
        for slot, contraction in rule.params(op).items():
            parameter = self.operation.tensors.get(slot)
            if parameter is not None and parameter.role == "parameter" and parameter.name in self.active:
                yield from self._contraction(op, slot, parameter, contraction, columns)
        if self.curved:
            yield from self._residual(op, rule.residual_of(op), (output,), [slot for slot, _ in self._inputs(rule)])

    def _one_column(self, op: Op) -> Iterator[str]:
        assert isinstance(self.rule, Rule)
        for slot, value in self._inputs(self.rule):
            if slot in self.rule.backward and value.batched:
                found = self.rule.backward[slot](op, self._output())
                shape = (self.samples, *value.sample_shape)
                yield from self._unlike(f"backward of '{slot}'", found, shape, self._dtype(value))

    def _inputs(self, rule: Rule) -> list[tuple[str, Value]]:
        """The arguments that columns are sent to by `jac_t`."""
        return [(slot, value) for slot, value in self.operation.tensors.items()
                if value.name in self.active and value.role != "parameter" and slot.split(".")[0] in rule.jac_t]

    def _dtype(self, value: Value) -> torch.dtype | None:
        """What columns have there; None if dtypes change on the way."""
        return value.dtype if value.dtype == self.operation.output.dtype else None

    def _contraction(self, op: Op, slot: str, value: Value, contraction: Contraction,
                     columns: torch.Tensor) -> Iterator[str]:
        first, second, _ = contraction.letters
        where = f"the contraction \"{contraction.equation}\" of '{slot}'"
        seen: Any = contraction.columns(op, columns)
        operand: Any = None if contraction.operand is None else contraction.operand(op)
        for letters, found in ((first, seen), (second, operand)):
            if found is None and letters:
                yield f"{where} speaks of an operand, \"{letters}\": give it one, operand=lambda op: op.input"
                return
            if found is not None and not isinstance(found, torch.Tensor):
                yield f"{where}: where \"{letters}\" is, it has {_shown(found)}, no tensor"
                return
            if found is not None and len(letters) != found.dim():
                yield (f"{where} says \"{letters}\" of what is {list(found.shape)} here, of {self.sizes}: "
                       "a letter for each axis" if letters else
                       f"{where} has an operand, and no letters for it")
                return
        try:
            result = torch.einsum(contraction.equation, seen, *([] if operand is None else [operand]))
        except RuntimeError as error:
            yield f"{where}: {str(error).splitlines()[0]}"
            return
        if result.shape[:2] != (self.samples, self.columns) or result[0, 0].numel() != math.prod(value.sample_shape):
            yield (f"{where} gives {list(result.shape)} of {self.sizes}, which does not fit the parameter's "
                   f"{list(value.sample_shape)}")
        if contraction.kernel is not None:
            cotangent = self._output()
            yield from self._unlike(f"kernel of '{slot}'", contraction.kernel(op, cotangent), value.sample_shape, None)

    def _loss(self, op: Op) -> Iterator[str]:
        rule = self.rule
        assert isinstance(rule, LossRule)
        value = self.operation.tensors[rule.input]
        shape = (self.samples, *value.sample_shape)
        yield from self._unlike("gradient", rule.gradient(op), shape, value.dtype)
        if rule.each is not None:
            yield from self._unlike("each (l_n, one number for each sample)", rule.each(op), (self.samples,), None)
        if self.curved and rule.sample is not None:
            drawn = rule.sample(op, self.columns)
            yield from self._unlike("sample", drawn, (self.samples, self.columns, *shape[1:]), value.dtype)
        if self.curved:
            yield from self._residual(op, rule.residual_of(op), (), [rule.input])

    def _residual(self, op: Op, residual: Residual, given: tuple[torch.Tensor, ...], slots: list[str]) -> Iterator[str]:
        dtype = self.operation.tensors[slots[0]].dtype if slots else None
        if isinstance(residual, Diagonal) and slots:
            shape = (self.samples, *self.operation.tensors[slots[0]].sample_shape)
            yield from self._unlike("diagonal of residual", residual.diagonal(op, *given), shape, dtype)
        elif isinstance(residual, Factor):
            count = residual.count(op)
            yield from self._factor("factor of residual", residual.factor(op, *given), count, slots, dtype)
            if residual.some is not None and count:
                numbers = torch.zeros(1, dtype=torch.long, device="meta")
                some: Callable[..., Any] = residual.some
                yield from self._factor("some of residual", some(op, *given, numbers), 1, slots, dtype)

    def _factor(self, name: str, found: Any, count: int, slots: list[str], dtype: torch.dtype | None) -> Iterator[str]:
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Mapping)):
            yield f"{name} must return ({{argument: columns}}, signs or None), not {_shown(found)}"
            return
        columns, signs = found
        if missing := [slot for slot in slots if slot not in columns]:
            yield (f"{name} must have columns at {', '.join(map(repr, missing))}, of which it gives none; it has "
                   f"{', '.join(map(repr, columns)) or 'nothing'}")
            return
        for slot in slots:
            value = self.operation.tensors[slot]
            shape = (self.samples, count, *value.sample_shape)
            yield from self._unlike(f"{name}, at '{slot}',", columns[slot], shape, dtype)
        if signs is not None:
            yield from self._unlike(f"{name}, the signs,", signs, (self.samples, count), dtype)

    def _unlike(self, name: str, found: Any, shape: Any, dtype: torch.dtype | None) -> Iterator[str]:
        """What is wrong with a function's result, whose right shape and dtype are these."""
        wanted = f"{name} must return a tensor of shape {list(shape)}"
        if not isinstance(found, torch.Tensor):
            yield f"{wanted}, not {_shown(found)}"
        elif tuple(found.shape) != tuple(shape):
            many = self.sizes if self.columns in tuple(shape)[1:2] else self.sizes.split(" and ")[0]
            yield f"{wanted}, not {list(found.shape)}, of {many}"
        elif dtype is not None and found.dtype != dtype:
            yield f"{name} must return a tensor of {dtype}, as what it is given, not {found.dtype}"


def _shown(found: Any) -> str:
    if isinstance(found, tuple):
        return f"({', '.join(map(_shown, found))})"
    if isinstance(found, torch.Tensor):
        return f"a tensor of shape {list(found.shape)}"
    return repr(found) if found is None or isinstance(found, int | float | str) else f"a {type(found).__name__}"
