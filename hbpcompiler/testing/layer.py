"""A case of a rule as a layer of a network, so that operations can be compiled where the rule table is all one has."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.rule import Case, LossRule, Rule
from hbpcompiler.testing.setting import Setting

FRAME = frozenset({"aten.linear", "aten.reshape", "aten.view", "aten.sum"})
"""The operations of `CaseLayer.forward`, summed up, around the one that it is made for."""
NUDGE = 0.05
"""How far an input that must lie in some domain (`Case.make`) moves from where it was drawn."""


class CaseLayer(nn.Module):
    """One use of an ATen operation, from features [N, F] to features [N, G].

    A linear layer makes each tensor with samples that carries derivatives. One without samples is a parameter if the
    rule has a contraction for it. Numbers of the samples are counted. All else is as drawn: tensors with samples,
    `extras`, are inputs of the network.
    """

    def __init__(self, rule: Rule | LossRule | None, operation: str, case: Case, features: int) -> None:
        super().__init__()
        self.setting = Setting(rule, operation, case)
        self.index = case.index
        contracted = rule.params(self.setting.op()) if isinstance(rule, Rule) else {}
        active = self.setting.inputs(self.setting.active() if rule is not None else list(case.shapes))
        self.makers = nn.ModuleDict()
        self.slots: list[tuple[str, int | None, str]] = []
        self.extras: list[Tensor] = []
        for name, i in [*self.setting.inputs(list(case.shapes)), *_constants(self.setting)]:
            value = self.setting.tensor(name, i)
            key = name if i is None else f"{name}_{i}"
            batched = self.setting.batched(name, i)
            if batched and (name, i) in active and name not in case.constant and value.is_floating_point():
                self.makers[f"made_{key}"] = nn.Linear(features, prod(value.shape[1:]), dtype=value.dtype)
                if name in case.make:
                    self.extras.append(value)
                self.slots.append((name, i, "nudged" if name in case.make else "made"))
            elif (name if i is None else f"{name}.{i}") in case.numbering:
                self.slots.append((name, i, "numbers"))
            elif batched:
                self.extras.append(value)
                self.slots.append((name, i, "extra"))
            else:
                if name in contracted and value.is_floating_point():
                    self.register_parameter(f"kept_{key}", nn.Parameter(value))
                else:
                    self.register_buffer(f"kept_{key}", value)
                self.slots.append((name, i, "kept"))
        self.width = prod(self.setting.reference().shape[1:])

    def forward(self, features: Tensor, *extras: Tensor) -> Tensor:
        given = iter(extras)
        arguments: dict[str, Any] = {name: list(value) if isinstance(value, list) else value
                                     for name, value in self.setting.arguments.items()}
        for name, i, kind in self.slots:
            key = name if i is None else f"{name}_{i}"
            if kind == "kept":
                value: Tensor = getattr(self, f"kept_{key}")
            elif kind == "numbers":
                value = _numbers(features, self.setting.tensor(name, i))
            else:
                value = next(given) if kind != "made" else features
            if kind in ("made", "nudged"):
                shape = self.setting.tensor(name, i).shape[1:]
                made = self.makers[f"made_{key}"](features).reshape(-1, *shape)
                value = made if kind == "made" else value + NUDGE * torch.tanh(made)
            if i is None:
                arguments[name] = value
            else:
                arguments[name][i] = value
        if "N" in arguments:  # the batch size (native_group_norm)
            arguments["N"] = features.shape[0]
        result = self.setting.overload(**arguments)
        result = result[self.index] if isinstance(result, tuple | list) else result
        result = result.reshape(features.shape[0], -1)
        return result if result.is_floating_point() else result.to(features.dtype)  # for the layer behind


def _numbers(features: Tensor, like: Tensor) -> Tensor:
    """0, 1, ... of the samples, in the shape of the case's own: a program has to see where they come from."""
    numbers = torch.arange(features.shape[0]).reshape(-1, *[1] * (like.dim() - 1))
    return numbers.expand(-1, *like.shape[1:])


def _constants(setting: Setting) -> Sequence[tuple[str, int | None]]:
    """The tensors of lists that a case keeps constant, which `Setting.inputs` leaves out."""
    return [(name, int(i)) for name, _, i in (slot.partition(".") for slot in setting.case.constant) if i]
