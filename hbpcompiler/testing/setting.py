"""A rule's case made concrete: its tensors, torch's own operation on them, and what the rule sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule import Case, LossRule, Op, Rule, computed
from hbpcompiler.system.seeded import seed_cpu
from hbpcompiler.testing.overloads import overload_of

SAMPLES = 3


class Setting:
    """One case made concrete: random tensors, the reference operation, and the Op that the rule, if any, sees."""

    def __init__(self, rule: Rule | LossRule | None, operation: str, case: Case, dtype: torch.dtype = torch.float64,
                 scale: float = 1.0, samples: int = SAMPLES, zeros: bool = False,
                 strided: bool = False) -> None:
        """`scale`: times what is drawn, and `zeros`: some of it exactly 0; not of what the case's makers draw, who
        know what values the operation takes. `strided`: tensors that are not contiguous."""
        namespace, name, named = (*operation.split("."), "")[:3]
        self.overload = overload_of(getattr(getattr(torch.ops, namespace), name), case, named)
        self.case, self.rule, self.samples, self.zeros = case, rule, samples, zeros
        self.strided = strided
        self.forward_mode = namespace == "aten"
        """Whether torch may know forward derivatives of it."""
        self.arguments: dict[str, Any] = {}
        for argument in self.overload._schema.arguments:
            if argument.name in case.shapes:
                shape = case.shapes[argument.name]
                several = isinstance(shape, list)
                values = [self._draw(argument.name, i if several else None, one, dtype, scale)
                          for i, one in enumerate(shape if several else [shape])]
                self.arguments[argument.name] = values if several else values[0]
            elif argument.name in case.attributes:
                self.arguments[argument.name] = case.attributes[argument.name]
            elif argument.has_default_value():
                self.arguments[argument.name] = argument.default_value
            else:
                self.arguments[argument.name] = None

    def _draw(self, name: str, index: int | None, shape: Sequence[int], dtype: torch.dtype, scale: float) -> Tensor:
        value = self._drawn(name, index, shape, dtype, scale)
        return strided(value) if self.strided else value

    def _drawn(self, name: str, index: int | None, shape: Sequence[int], dtype: torch.dtype, scale: float) -> Tensor:
        lead = (self.samples,) if self.batched(name, index) else ()
        if f"{name}.{index}" in self.case.numbering:
            return torch.arange(self.samples).view(-1, *[1] * len(shape)).expand(*lead, *shape)
        if name in self.case.make:
            made = self.case.make[name]((*lead, *shape))
            return made.to(dtype) if made.is_floating_point() else made
        value = _normal((*lead, *shape)) * scale
        return (with_zeros(value) if self.zeros else value).to(dtype)

    def inputs(self, names: Sequence[str]) -> list[tuple[str, int | None]]:
        """The tensors under these names: (name, None), or (name, position) for each of a list."""
        found: list[tuple[str, int | None]] = []
        for name in names:
            value = self.arguments[name]
            found += [(name, i) for i in range(len(value)) if f"{name}.{i}" not in self.case.constant] if isinstance(
                value, list) else [(name, None)]
        return found

    def batched(self, name: str, index: int | None = None) -> bool:
        """Whether that tensor begins with the sample axis."""
        return name in self.case.batched or f"{name}.{index}" in self.case.batched

    def _all_tensors(self) -> list[tuple[str, int | None]]:
        """The case's tensors, each of a list by its position."""
        found: list[tuple[str, int | None]] = []
        for name in self.case.shapes:
            value = self.arguments[name]
            found += [(name, i) for i in range(len(value))] if isinstance(value, list) else [(name, None)]
        return found

    def tensor(self, name: str, index: int | None = None) -> Tensor:
        """The tensor under this name (and position in its list)."""
        value: Tensor = self.arguments[name] if index is None else self.arguments[name][index]
        return value

    def replaced(self, name: str, index: int | None, value: Tensor) -> dict[str, Any]:
        """What `reference` takes to see another tensor there."""
        if index is None:
            return {name: value}
        return {name: [value if i == index else other for i, other in enumerate(self.arguments[name])]}

    def active(self) -> list[str]:
        """The arguments that columns are sent to in this case."""
        names = list(self.rule.jac_t) if isinstance(self.rule, Rule) else []
        return [name for name in names if name in self.case.shapes and name not in self.case.constant]

    def reference(self, changed: Mapping[str, Any] | None = None) -> Tensor:
        """The ATen operation itself, with some tensors replaced."""
        with _same_noise():
            result = self.overload(**{**self.arguments, **(changed or {})})
        return result[self.case.index] if isinstance(result, tuple | list) else result

    def op(self, single: bool = False) -> Op:
        """The operation as the rule sees it; runs the rule's forward. `single`: for one column of gradients alone."""
        names = list(self.case.shapes)
        tensors = {name: self.arguments[name] for name in names}
        attributes = {name: value for name, value in self.arguments.items() if name not in names}
        expected = self.reference()
        slots = {name if i is None else f"{name}.{i}": (name, i) for name, i in self._all_tensors()}
        shapes = {slot: self.case.shapes[name] if i is None else self.case.shapes[name][i]
                  for slot, (name, i) in slots.items()} | {"output": tuple(expected.shape[1:])}
        active = self.inputs(self.active())
        known: dict[str, Any] = {
            "index": self.case.index,
            "single": single,
            "active": frozenset(slot for slot, at in slots.items() if at in active),
            "batched": frozenset({slot for slot, at in slots.items() if self.batched(*at)}
                                 | ({"output"} if expected.dim() else set())),
            "numbering": frozenset(self.case.numbering),
            "masks": frozenset(slot for slot, at in slots.items() if self.tensor(*at).dtype == torch.bool),
        }
        op = Op(tensors, attributes, shapes, **known)
        with _same_noise():
            stated = self.rule is not None and self.rule.forward is not None
            output, saved = computed(self.rule, op) if self.rule is not None and stated else (self.reference(), {})
        return Op({**tensors, **saved, "output": output}, attributes, shapes, **known)

    def of_constants(self) -> Tensor:
        """What the rule's forward makes where nothing has samples or derivatives: the first axis is one like others."""
        tensors = {name: self.arguments[name] for name in self.case.shapes}
        attributes = {name: value for name, value in self.arguments.items() if name not in tensors}
        slots = {name if i is None else f"{name}.{i}": self.tensor(name, i) for name, i in self._all_tensors()}
        shapes = {slot: tuple(tensor.shape) for slot, tensor in slots.items()}
        op = Op(tensors, attributes, shapes | {"output": tuple(self.reference().shape)}, index=self.case.index,
                differentiated=False, active=frozenset(), batched=frozenset(),
                masks=frozenset(slot for slot, tensor in slots.items() if tensor.dtype == torch.bool))
        assert self.rule is not None
        with _same_noise():
            output, _ = computed(self.rule, op)
        return output


def _normal(shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), dtype=torch.float64)


def strided(value: Tensor) -> Tensor:
    """The same numbers, not in the order of their places: as behind transpose()."""
    wide = torch.stack([value, value], -1)[..., 0]
    return wide if value.dim() < 2 else wide.transpose(0, -1).contiguous().transpose(0, -1)


def with_zeros(value: Tensor) -> Tensor:
    """Half of the numbers, and the first, are 0: where functions have their kinks."""
    there = torch.rand(value.shape) < 0.5
    there.view(-1)[:1] = False
    return torch.where(there, value, 0.0)


@contextmanager
def _same_noise() -> Iterator[None]:
    """Operations that draw random numbers draw the same ones every time; other draws go on undisturbed."""
    with torch.random.fork_rng(devices=[]):
        seed_cpu(1)
        yield
