"""nn.CrossMapLRN2d, refused: its windows keep the first channel for good, and its backward is written by hand."""

from __future__ import annotations

from typing import Any

from torch import nn

from hbpcompiler.rule import ModuleRule


def refuse(module: nn.CrossMapLRN2d) -> str:
    return ("it fills tensors in place, with a backward written by hand; use nn.LocalResponseNorm(size, alpha, beta, "
            "k), the same normalisation, whose windows leave the first channel behind, as these do not")


def forward(module: Any, *arguments: Any) -> Any:
    raise NotImplementedError(refuse(module))


CROSS_MAP_LRN = ModuleRule(nn.CrossMapLRN2d, forward, refuse)
