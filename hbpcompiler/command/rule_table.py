"""What the registered rules support, as rows for people to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hbpcompiler.rule import LossRule, Op
from hbpcompiler.rule.registry import AnyRule, Registry
from hbpcompiler.testing.setting import Setting

UNKNOWN = "?"


@dataclass(frozen=True)
class Row:
    """One operation. What depends on the use names all that occurs in the rule's cases; "?" where there are none."""

    operation: str
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    residuals: tuple[str, ...]
    structures: tuple[str, ...]
    file: str


def supported(registry: Registry) -> list[Row]:
    """A row per operation, by name."""
    return [_row(operation, rule, Path(registry.files[operation]).name) for operation, rule in registry]


def _row(operation: str, rule: AnyRule, file: str) -> Row:
    ops = list(_uses(operation, rule))
    if not ops:
        inputs = (rule.input,) if isinstance(rule, LossRule) else tuple(rule.jac_t)
        return Row(operation, inputs, (UNKNOWN,), (UNKNOWN,), (UNKNOWN,), file)
    residuals = _distinct(type(rule.residual_of(op)).__name__.lower() for op in ops)
    if isinstance(rule, LossRule):
        return Row(operation, (rule.input,), (), residuals, ("loss",), file)
    parameters = _distinct(name for op in ops for name in rule.params(op))
    structures = _distinct(rule.structure_of(op).value for op in ops)
    return Row(operation, tuple(rule.jac_t), parameters, residuals, structures, file)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _uses(operation: str, rule: AnyRule) -> Iterator[Op]:
    """The rule's cases as its functions see them; none where a rule of the user's cannot run its own case."""
    for case in rule.cases:
        try:
            yield Setting(rule, operation, case).op()
        except Exception:
            return
