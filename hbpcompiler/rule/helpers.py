"""Small functions that keep rules short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor

from hbpcompiler.rule.op import Op
from hbpcompiler.rule.rule import JacT, LossRule, Rule


def called(name: str, value: Tensor) -> Tensor:
    """`value`, under this name in the generated file."""
    proxy: Any = value  # what the compiler passes where rules see a tensor
    if isinstance(proxy, torch.fx.Proxy) and not proxy.node.meta.get("hint"):
        proxy.node.meta["hint"] = name
    return value


def otherwise_called(name: str, value: Tensor) -> Tensor:
    """`value`, which is called so where it gets a line of its own: it asks for none, and for a short one gets none."""
    proxy: Any = value  # as above
    if isinstance(proxy, torch.fx.Proxy):
        proxy.node.meta.setdefault("wish", name)
    return value


def computed(rule: Rule | LossRule, op: Op) -> tuple[Any, Mapping[str, Any]]:
    """What the rule's `forward` makes, and what it saves for the backward pass."""
    assert rule.forward is not None
    made = rule.forward(op)
    return made if isinstance(made, tuple) else (made, {})


def operand_symbol(name: str) -> Any:
    """The sympy symbol that stands for a tensor argument in `Rule.expression`."""
    return sympy.Symbol(f"operand_{name}", real=True)


def merge(columns: Tensor) -> Tensor:
    """[N, K, *z] -> [N*K, *z], for torch functions that know one batch axis."""
    return columns.flatten(0, 1)


def split(merged: Tensor, columns: Tensor) -> Tensor:
    """[N*K, *z] -> [N, K, *z], with N and K of `columns`."""
    return merged.unflatten(0, columns.shape[:2])


def vmap_columns(function: Callable[[Tensor], Tensor]) -> JacT:
    """jac_t from a function that maps [B, *out] to [B, *in] for any batch, the same for each sample."""

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        return split(function(merge(columns)), columns)

    return jac_t
