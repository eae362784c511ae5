"""Functions of rules change nothing that they are given: it is read again, by others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from torch import Tensor

from hbpcompiler.rule.functions import R, with_functions
from hbpcompiler.rule.op import Op


def changing_nothing(rule: R, where: str, failure: type[Exception]) -> R:
    """The same rule; a failure where one of its functions changes one of its arguments in place."""

    def wrap(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)
        def watched(*given: Any, **named: Any) -> Any:
            seen: list[tuple[str, Tensor, int]] = []

            def note(what: str, value: Any) -> None:
                parts: Mapping[str, Any] = dict(zip((f"{what}.{i}" for i in range(len(value))), value, strict=True)
                                                ) if isinstance(value, list | tuple) else {what: value}
                seen.extend((slot, item, item._version) for slot, item in parts.items() if isinstance(item, Tensor))

            for item in given:
                note(_title(name), item)
            result = function(*(item.telling(lambda slot, value: note(f"op.{slot}", value))
                                if isinstance(item, Op) else item for item in given), **named)
            changed = next((slot for slot, tensor, version in seen if tensor._version != version), None)
            if changed is not None:
                raise failure(f"{where}: {name} changes {changed} in place, which others read too; make a new tensor, "
                              "as columns * 2 does where columns.mul_(2) changes them")
            return result

        return watched

    return with_functions(rule, wrap)


def _title(name: str) -> str:
    """What a function's argument is called that is no `Op`."""
    field = name.split(" ")[0]
    if field in ("jac_t", "columns", "product"):
        return "the columns"
    return "the target" if field in ("check", "terms") else "the gradient"

