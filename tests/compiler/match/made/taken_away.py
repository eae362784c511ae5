"""Operations whose rule is taken away: what torch's own derivatives make of them instead."""

from __future__ import annotations

import torch
from torch import Tensor

from hbpcompiler.compiler.match.made.complex_regions import Region
from hbpcompiler.compiler.match.made.derived import Deriving
from hbpcompiler.compiler.match.operation.examples import Examples
from hbpcompiler.compiler.trace.graph import N, Operation, Source, Value
from hbpcompiler.rule import NO_DERIVATIVE, Case, Rule
from hbpcompiler.rule.registry import Registry, builtin
from hbpcompiler.testing.setting import Setting


def without(*operations: str) -> Registry:
    """The rules that come with the library, but for these."""
    registry = builtin().copy()
    for operation in operations:
        registry.rules.pop(operation)
    return registry


def derived_rule_of(rule: Rule, name: str, case: Case) -> Rule:
    """What takes the place of `rule` at this use, with derivatives to all arguments that the rule sends columns to."""
    torch.manual_seed(0)
    setting = Setting(rule, name, case)
    op = setting.op()
    values: dict[str, Value] = {}
    tensors: dict[str, Tensor] = {}
    attributes = {key: item for key, item in setting.arguments.items() if key not in case.shapes}
    attributes |= {"N": N} if "N" in attributes else {}  # the batch size, which a graph has as a symbol
    for key, shape in case.shapes.items():
        several = isinstance(shape, list)
        slots = [f"{key}.{i}" for i in range(len(shape))] if several else [key]
        for i, slot in enumerate(slots):
            tensor = setting.tensor(key, i if several else None)
            own = (N, *tensor.shape[1:]) if setting.batched(key, i if several else None) else tuple(tensor.shape)
            values[slot] = Value(f"v_{slot}", own, tensor.dtype, "result")
            tensors[f"v_{slot}"] = tensor
        if several:
            attributes[key] = slots
    params = [slot for slot in rule.params(op) if slot in case.shapes]
    sent = list(case.shapes) if rule.jac_t is NO_DERIVATIVE else setting.active()
    moving = setting.inputs(list(dict.fromkeys([*sent, *params])))
    active = {f"v_{key}" if i is None else f"v_{key}.{i}" for key, i in moving}
    active = {slot for slot in active if tensors[slot].is_floating_point()}
    result = setting.reference()
    output = Value("result", (N, *result.shape[1:]), result.dtype, "result")
    target = ".".join(name.split(".")[:2])
    operation = Operation(target, setting.overload._overloadname, output, values, attributes, case.index, Source())
    deriving = Deriving(Registry(), Examples([torch.arange(3)], {}))
    made = deriving.derived(Region([operation], values), {**tensors, "result": result}, active)
    found = deriving.registry.rules[made.target]
    assert isinstance(found, Rule)
    return found
