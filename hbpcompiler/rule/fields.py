"""The fields of rules, looked at when a rule is made: TypeErrors that say what belongs there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

EQUATION = ('letters as in "nko,ni->nkoi", or "nko->nko" for a parameter that is added: the columns first, whose '
            "letters begin with n (samples) and k (columns), then the operand, whose letters begin with n, an arrow, "
            "and a result that begins with nk")


def check_operations(kind: str, operations: Any) -> None:
    """A list or tuple of texts "namespace.name", perhaps with an overload."""
    if isinstance(operations, str) or not isinstance(operations, Sequence):
        shown = _spelled(operations)
        raise TypeError(f"{kind}: operations must be a list of names, [{shown!r}], not {operations!r}")
    if not operations:
        raise TypeError(f"{kind}: operations must name one operation at least, as in ['mylib.squash']")
    for name in operations:
        if not isinstance(name, str) or not re.fullmatch(r"[^\s.:]+(\.[^\s.:]+){1,2}", name):
            raise TypeError(f"{kind}: {name!r} is no operation's name: that is a text with its namespace, "
                            f"{_spelled(name)!r} for torch.ops.{_spelled(name)}")
        if name.startswith("torch.ops"):
            raise TypeError(f"{kind}: {name!r} has to be {_spelled(name)!r}: names begin with the namespace")


def _spelled(name: Any) -> str:
    """How the name may have been meant."""
    text = str(name).replace("::", ".").removeprefix("torch.ops.")
    if re.fullmatch(r"\w+(\.\w+){1,2}", text):
        return text
    return f"mylib.{text}" if text.isidentifier() else "mylib.squash"


def check_functions(kind: str, owner: Any, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Functions, or None where they are optional."""
    for name in (*required, *optional):
        value = getattr(owner, name)
        if not callable(value) and not (name in optional and value is None):
            raise TypeError(f"{kind}: {name} must be a function{' or None' if name in optional else ''}, not {value!r}")


def check_by_argument(kind: str, owner: Any, names: Sequence[str]) -> None:
    """Dicts {argument: function}."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, Mapping) or not all(isinstance(slot, str) for slot in value):
            raise TypeError(f"{kind}: {name} must be a dict with a function for each argument, "
                            f"{{'self': function}}, not {value!r}")
        for slot, function in value.items():
            if not callable(function):
                raise TypeError(f"{kind}: {name} of '{slot}' must be a function, not {function!r}")


def check_kind(kind: str, name: str, value: Any, types: Any, wanted: str) -> None:
    """A value of one of these types."""
    if not isinstance(value, types):
        raise TypeError(f"{kind}: {name} must be {wanted}, not {value!r}")


def check_cases(kind: str, cases: Any, case: type) -> None:
    """A list of settings."""
    if isinstance(cases, str) or not isinstance(cases, Sequence) or not all(isinstance(one, case) for one in cases):
        raise TypeError(f"{kind}: cases must be a list of Case(...), not {cases!r}")


def check_module(module: Any) -> None:
    """A class of modules."""
    if not isinstance(module, type) or not issubclass(module, nn.Module):
        raise TypeError(f"ModuleRule: module must be a class of nn.Module, such as nn.LSTM, not {module!r}")


@cache
def what_is_wrong(equation: Any, met: bool) -> str | None:
    """Of a contraction's equation, with or without operand."""
    if not isinstance(equation, str):
        return f"Contraction({equation!r}): the equation is a text with {EQUATION}"
    found = re.fullmatch(r"([a-zA-Z]+)(,([a-zA-Z]+))?->([a-zA-Z]+)", equation)
    if not found:
        return f"Contraction(\"{equation}\"): that is no equation: it has {EQUATION}"
    first, second, result = found[1], found[3] or "", found[4]
    if not first.startswith("nk") or not result.startswith("nk") or (second and not second.startswith("n")):
        return f"Contraction(\"{equation}\"): it must have {EQUATION}"
    if any(len(set(letters)) < len(letters) for letters in (first, second, result)):
        return f"Contraction(\"{equation}\"): a letter stands for one axis, and one is twice in an operand"
    if not set(result) <= set(first + second):
        return f"Contraction(\"{equation}\"): the result has letters that no operand has; it must have {EQUATION}"
    if met != bool(second):
        return (f"Contraction(\"{equation}\"): it has an operand and no letters for it" if met else
                f"Contraction(\"{equation}\"): it speaks of an operand, \"{second}\", and has none: "
                "operand=lambda op: op.input") + f"; an equation has {EQUATION}"
    return None
