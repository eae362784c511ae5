"""Elementwise operations of the rule table on one tensor, as functions, in a row, and in a row that stays in range."""

import torch

from hbpcompiler.rule import Case, Rule, Structure
from hbpcompiler.rule.registry import builtin
from hbpcompiler.testing.setting import Setting


class Use:
    """An operation on one tensor, with the attributes of one of its cases."""

    def __init__(self, operation, rule, case):
        self.rule, self.setting = rule, Setting(rule, operation, case)
        (self.slot,) = case.shapes
        self.label = " ".join([operation, *(f"{name}={value}" for name, value in case.attributes.items())])
        self.target = self.setting.overload._schema.name.replace("::", ".")
        self.overload = self.setting.overload._overloadname
        self.attributes = {name: item for name, item in self.setting.arguments.items() if name != self.slot}
        self.low, self.high = (limit.item() for limit in self.setting.tensor(self.slot).aminmax())

    def __call__(self, value):
        return self.setting.overload(**{**self.attributes, self.slot: value})

    @property
    def elementwise(self):
        """Whether the rule says so of this use, and sends derivatives through."""
        return self.rule.structure_of(self.setting.op()) is Structure.ELEMENTWISE and bool(self.setting.active())

    @property
    def stated(self):
        """Whether the rule has an expression for this use, by which it may be joined to others."""
        return self.rule.expression is not None and self.rule.expression(self.setting.op()) is not None


def uses():
    """Operation -> its cases on one tensor."""
    found = {}
    for operation, rule in builtin():
        if isinstance(rule, Rule) and rule.derivative is not None:
            alone = [Use(operation, rule, case) for case in rule.cases if len(case.shapes) == 1]
            found |= {operation: [use for use in alone if use.elementwise]}
    return {operation: cases for operation, cases in found.items() if cases}


def affine(values, use):
    """A product and a sum that bring these values to where the operation is defined."""
    values = values[torch.isfinite(values)]
    spread = (values.max() - values.min()).item()
    factor = round((use.high - use.low) / spread, 2) if spread > 0 else 1.0
    shift = round(use.low - factor * values.min().item(), 2)
    return [number("mul", factor), number("add", shift)]


def number(name, other):
    """mul or add of a number."""
    return Use(f"aten.{name}", builtin().find(f"aten.{name}", "Scalar"), Case({"self": (3,)}, {"other": other}))


def in_range(chain, values):
    """The operations in a row, with products and sums between them where one would leave the next one's domain."""
    found = []
    for use in chain:
        if values.min() < use.low or values.max() > use.high:
            added = affine(values, use)
            values = added[1](added[0](values))
            found += added
        values = use(values)
        found.append(use)
    return found
