"""The functions of a rule, all of them at once: each in a wrapper that sees what goes in, or what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from hbpcompiler.rule.contraction import Contraction
from hbpcompiler.rule.residual import Diagonal, Factor
from hbpcompiler.rule.rule import LossRule, Rule, flat
from hbpcompiler.rule.structure import Selection

Wrap = Callable[[Callable[..., Any], str], Callable[..., Any]]
"""(a function, what it is called: "jac_t of 'self'") -> the one that stands for it."""
R = TypeVar("R", bound=Rule | LossRule)
PARTS: Mapping[type, tuple[str, ...]] = {
    Diagonal: ("diagonal",),
    Factor: ("count", "factor", "some", "drawn"),
    Contraction: ("columns", "operand", "kernel", "product", "index"),
    Selection: ("index",),
}
"""What a rule's functions return that has functions of its own."""


def with_functions(rule: R, wrap: Wrap) -> R:
    """The same rule with each of its functions wrapped, and each of those that these return.

    What was left out stays so, and so does what is known by its identity: NO_DERIVATIVE and `flat`.
    """
    changed: dict[str, Any] = {}
    for name, value in vars(rule).items():
        if name in ("cases", "operations") or value is getattr(type(rule), name, None) or value is flat:
            continue
        found = _wrapped(value, name, wrap)
        if found is not value:
            changed[name] = found
    return replace(rule, **changed) if changed else rule


def _wrapped(value: Any, name: str, wrap: Wrap) -> Any:
    """A field of a rule, or what one of its functions returned."""
    if isinstance(value, Mapping):
        return {slot: _wrapped(item, f"{name} of '{slot}'", wrap) for slot, item in value.items()} or value
    if type(value) in PARTS:
        own = {part: getattr(value, part) for part in PARTS[type(value)]}
        return replace(value, **{part: _wrapped(function, f"{part} of {name}", wrap)
                                 for part, function in own.items()
                                 if function is not None and function is not getattr(type(value), part, None)})
    if not callable(value) or isinstance(value, type):
        return value
    outer = wrap(value, name)
    if name not in ("residual", "structure", "params"):
        return outer

    def returning(*given: Any, **named: Any) -> Any:
        return _wrapped(outer(*given, **named), name, wrap)

    return returning
