"""What a `Decomposition` writes in the place of an operation: its value, and first and second derivatives, by autograd
through it and through the operation itself, wherever a rule would be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hbpcompiler.rule import Case
from hbpcompiler.rule.decomposition import Decomposition
from hbpcompiler.system.seeded import seed_cpu
from hbpcompiler.testing.farther import at_places, close_where_finite
from hbpcompiler.testing.preconditions import check_taken
from hbpcompiler.testing.setting import SAMPLES, Setting

Function = Callable[[dict[str, Any]], Tensor]
"""From arguments by name to the operation's result."""
MISSING = ("is not implemented", "no autograd formula")
"""What torch says where it has no derivative of an operation."""


def check_decomposition(made: Decomposition, operation: str, case: Case) -> None:
    """One case of an operation that is written in others, of several samples and of one."""
    for samples in (SAMPLES, 1):
        seed_cpu(0)
        where = f"{operation} {dict(case.shapes)} {dict(case.attributes)}{', of one sample' if samples == 1 else ''}"
        setting = Setting(None, operation, case, samples=samples)
        check_taken(setting, where)
        _check_both(made, setting, where)
    for setting, place in at_places(made, operation, case):
        if not place.flat:  # what autograd makes of a gradient is linear in it
            there = f"{operation} {dict(setting.case.shapes)} {dict(case.attributes)}, {place.words}"
            _check_both(made, setting, there, value_alone=place.strided)  # where torch's own derivatives may fail


def _check_both(made: Decomposition, setting: Setting, where: str, value_alone: bool = False) -> None:
    orders = 0 if value_alone else 2
    _check(setting, made.function, orders if made.curved is None else min(orders, 1), f"{where}: function")
    if made.curved is not None:
        _check(setting, made.curved, orders, f"{where}: curved")


def _check(setting: Setting, function: Callable[..., Any], orders: int, where: str) -> None:
    """Value and derivatives up to this order; second ones where torch has them."""

    def written(changed: dict[str, Any]) -> Tensor:
        positional, named = _as_called(setting, changed)
        result: Any = function(*positional, **named)
        several = isinstance(result, tuple | list)
        assert several == returns_several, (f"{where}: gives a {type(result).__name__}, and the operation has "
                                            f"{'several results' if returns_several else 'one result'}")
        found: Tensor = result[setting.case.index] if several else result
        return found

    returns = setting.overload._schema.returns
    returns_several = len(returns) != 1 or str(returns[0].type) != "Tensor"
    try:
        value = written({})
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{where} fails: {type(error).__name__}: {error}") from error
    _check_traced(setting, written, where)
    expected = setting.reference()
    close_where_finite(value, expected, f"{where}: value")
    inputs = [(name, i) for name, i in setting.inputs([*setting.case.shapes])
              if name not in setting.case.constant and setting.tensor(name, i).is_floating_point()]
    if not expected.is_floating_point() or not orders:
        return
    weights = torch.randn_like(expected)
    directions = [torch.randn_like(setting.tensor(name, i)) for name, i in inputs]
    found = _derivatives(written, setting, inputs, weights, directions, where)
    wanted = _derivatives(setting.reference, setting, inputs, weights, directions, where)
    words = ("derivative", "second derivative")
    for order, torchs in enumerate(wanted[:orders]):
        assert len(found) > order, f"{where}: torch has no {words[order]} of what it calls, and one of the operation"
        for (name, _), one, other in zip(inputs, found[order], torchs, strict=True):
            close_where_finite(one, other, f"{where}: {words[order]} in {name}")


def _check_traced(setting: Setting, written: Function, where: str) -> None:
    """What a trace meets, tensors without values, and what a model in single precision does."""
    with FakeTensorMode(allow_non_fake_inputs=True) as without_values:
        try:
            written(_changed(setting, without_values.from_tensor))
        except DataDependentOutputException as error:
            raise AssertionError(f"{where}: asks for the values of tensors ({error.func}), which a trace has not; use "
                                 "torch.where") from error
        except Exception:  # an operation without shapes for such tensors, or other tensors that it holds
            pass
    single = _changed(setting, lambda tensor: tensor.float() if tensor.dtype == torch.float64 else tensor)
    try:
        expected = setting.reference(single)
    except RuntimeError:
        return
    dtype = written(single).dtype
    assert dtype == expected.dtype, f"{where}: is of {dtype} in single precision, and the operation of {expected.dtype}"


def _changed(setting: Setting, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The case's tensors, changed so."""
    given = {name: setting.arguments[name] for name in setting.case.shapes}
    return {name: [change(tensor) for tensor in tensors] if isinstance(tensors, list) else change(tensors)
            for name, tensors in given.items()}


def _as_called(setting: Setting, changed: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments as a traced call has them: in their order, defaults at the end left out."""
    values = {**setting.arguments, **changed}
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for argument in reversed(setting.overload._schema.arguments):
        value = values[argument.name]
        usual = argument.name not in setting.case.shapes and (
            value is None or (argument.has_default_value() and value == argument.default_value))
        if argument.kwarg_only and not usual:
            named[argument.name] = value
        elif not argument.kwarg_only and (positional or not usual):
            positional.insert(0, value)
    return positional, named


def _derivatives(function: Function, setting: Setting, inputs: list[tuple[str, int | None]], weights: Tensor,
                 directions: list[Tensor], where: str) -> list[list[Tensor]]:
    """Of the weighted sum of results: its gradient, and that one's derivative in a direction, as far as torch has
    them."""
    values = [setting.tensor(name, i).clone().requires_grad_() for name, i in inputs]
    changed: dict[str, Any] = {}
    for (name, i), value in zip(inputs, values, strict=True):
        if i is None:
            changed[name] = value
        else:
            changed.setdefault(name, list(setting.arguments[name]))[i] = value
    total = (function(changed) * weights).sum()
    if not total.requires_grad:
        return [[torch.zeros_like(value) for value in values]] * 2
    found: list[list[Tensor]] = []
    try:
        first = torch.autograd.grad(total, values, create_graph=True, materialize_grads=True)
        found.append([one.detach() for one in first])
        change = torch.stack([(one * direction).sum() for one, direction in zip(first, directions, strict=True)]).sum()
        second = [torch.zeros_like(value) for value in values] if not change.requires_grad else list(
            torch.autograd.grad(change, values, materialize_grads=True))
        found.append(second)
    except RuntimeError as error:
        if not any(words in str(error) for words in MISSING):
            raise AssertionError(f"{where}: torch's derivatives: {error}; what has none is named in the case, "
                                 "constant=(...)") from error
    return found
