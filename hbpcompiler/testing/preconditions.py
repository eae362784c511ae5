"""What has to be so before a rule can be compared with anything: the operation exists, and cases fit its schema."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.errors import HbpError
from hbpcompiler.rule import NO_DERIVATIVE, Case, LossRule, Op, Rule
from hbpcompiler.rule.decomposition import Decomposition
from hbpcompiler.rule.functions import R, with_functions
from hbpcompiler.rule.rule_files import hidden_arguments, strange_arguments, strange_doubts
from hbpcompiler.testing.overloads import overload_of
from hbpcompiler.testing.setting import Setting


def check_preconditions(rule: Any) -> None:
    """AssertionError for what check_rule does not know, has no cases, or has such as its operations do not take."""
    assert isinstance(rule, Rule | LossRule | Decomposition), (
        f"check_rule takes a Rule, a LossRule or a Decomposition, not a {type(rule).__name__}: what a ModuleRule makes "
        "is compared with the model itself when it is compiled, hbp.compile(..., verify=\"full\")")
    assert rule.cases, (f"the {type(rule).__name__} for {', '.join(rule.operations)} has no cases: give it settings to "
                        "be tried on, cases=[Case({'self': (4,)})]")
    strangers = list(strange_arguments(rule)) if isinstance(rule, Rule) else []
    strangers += [] if isinstance(rule, Decomposition) else hidden_arguments(rule)
    strangers += strange_doubts(rule) if isinstance(rule, LossRule) else []
    assert not strangers, "; ".join(strangers)
    for operation in rule.doubts if isinstance(rule, LossRule) else ():
        _packet(operation)
    for case in rule.cases:
        known = {name for operation in rule.operations for overload in _packet(operation).overloads()
                 for name in _arguments(getattr(_packet(operation), overload))}
        for operation in rule.operations:
            _check_case(operation, case, known)


def _packet(operation: str) -> Any:
    namespace, name = operation.split(".")[:2]
    packet = getattr(getattr(torch.ops, namespace), name, None)
    assert packet is not None, f"torch has no operation {operation}; import the module that defines it"
    return packet


def _arguments(overload: Any) -> dict[str, Any]:
    return {argument.name: argument for argument in overload._schema.arguments}


def _check_case(operation: str, case: Case, known: set[str]) -> None:
    """`known`: arguments of all operations that share the case, with any overload."""
    arguments = _arguments(overload_of(_packet(operation), case, (*operation.split("."), "")[2]))
    sampled = () if case.batched == Case.batched else case.batched
    own = {*case.shapes, *case.attributes, *(slot.split(".")[0] for slot in (*case.constant, *case.numbering))}
    where = f"{operation} {dict(case.shapes)} {dict(case.attributes)}"
    strange = sorted((own | {slot.split(".")[0] for slot in sampled}) - known)
    assert not strange, (f"{where}: the case speaks of {', '.join(map(repr, strange))}, and the operation has "
                         f"{', '.join(arguments)}")
    missing = [argument.name for argument in arguments.values() if argument.name not in own
               and not argument.has_default_value() and not str(argument.type).startswith("Optional")]
    assert not missing, (f"{where}: the case says nothing of {', '.join(map(repr, missing))}, which has no default: "
                         "give a tensor's shape in Case({...}), a number behind it, Case({...}, {name: number})")


def drawn_tensors(case: Case) -> str:
    """The case's tensors as they are drawn: "self [N, 4], weight [4]"."""
    found = []
    for name, given in case.shapes.items():
        for i, shape in enumerate(given if isinstance(given, list) else [given]):
            slot = f"{name}.{i}" if isinstance(given, list) else name
            sampled = name in case.batched or slot in case.batched
            found.append(f"{slot} [{', '.join([*(['N'] if sampled else []), *map(str, shape)])}]")
    return f"{', '.join(found)}, as batched={case.batched!r} says which of them begin with the sample axis N"


def check_taken(setting: Setting, where: str) -> Tensor:
    """Torch's own operation takes the case's tensors: what it makes of them."""
    try:
        return setting.reference()
    except Exception as error:
        raise AssertionError(f"{where}: the operation itself fails: {type(error).__name__}: {error} (the case's "
                             f"tensors are {drawn_tensors(setting.case)}; its shapes leave that axis out)") from error


def check_drawn(setting: Setting, loss: bool, where: str) -> None:
    """What the operation makes of the case's tensors has a sample axis in front, or is a loss's one number."""
    shape = list(check_taken(setting, where).shape)
    if loss:
        assert not shape, f"{where}: a loss is one number, and the operation makes {shape}: give the case its reduction"
    else:
        assert shape[:1] == [setting.samples], (
            f"{where}: of {setting.samples} samples the operation makes {shape}, without a sample axis in front (the "
            f"case's tensors are {drawn_tensors(setting.case)}; its shapes leave that axis out)")


def saying_where(rule: R, where: str, case: Case) -> R:
    """The same rule; what its functions raise is an AssertionError that names function and case."""

    def wrap(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)
        def said(*given: Any, **named: Any) -> Any:
            try:
                return function(*given, **named)
            except (AssertionError, NotImplementedError):
                raise
            except Exception as error:
                kind = "" if isinstance(error, HbpError) else f"{type(error).__name__}: "
                raise AssertionError(f"{where}: {name} fails: {kind}{error} (the case's tensors are "
                                     f"{drawn_tensors(case)})") from error

        return said

    return with_functions(rule, wrap)


def check_way_back(rule: Rule, op: Op, where: str) -> None:
    """It has to say something of derivatives, if only that there are none."""
    silent = not rule.jac_t and rule.jac_t is not NO_DERIVATIVE and not rule.params(op)
    assert not silent, (f"{where}: the rule says no way back: give jac_t={{argument: function}}, derivative= for what "
                        "is elementwise, or jac_t=NO_DERIVATIVE")
