"""Modules around the user's model that run it elsewhere or otherwise, and are no part of what is differentiated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from hbpcompiler.errors import ModelError, OptionError

INSIDE = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod",
          "DifferentiallyPrivateDistributedDataParallel": "module", "GradSampleModule": "_module",
          "GradSampleModuleNoOp": "_module", "GradSampleModuleFastGradientClipping": "_module"}
"""By the class's name, where the model is; nothing is imported that nobody has used."""
LIBRARIES = ("torch.", "opacus.")

P = ParamSpec("P")
R = TypeVar("R")


def left_alone(call: Callable[P, R]) -> Callable[P, R]:
    """Of a call in a function that torch.compile compiles: it is run, not traced, and the function goes on behind it.

    torch imports its compiler for that, which takes a second, and here does so at the first call.
    """
    known: list[Callable[P, R]] = []

    @functools.wraps(call)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        if not known:
            known.append(torch.compiler.disable(call))
        return known[0](*arguments, **named)

    return run


def unwrapped(model: Any) -> Any:
    """The model inside DataParallel, DistributedDataParallel, Opacus's wrappers and what torch.compile returned, in
    any order.

    Raises ModelError for hooks on the wrapper, which would be lost, OptionError for parameters in shards.
    """
    while isinstance(model, nn.Module) and type(model).__module__.startswith(LIBRARIES):
        kind = type(model).__name__
        if kind == "FullyShardedDataParallel":
            raise OptionError("the model's parameters are in shards (FullyShardedDataParallel): compile the model "
                              "before it is sharded, or under FSDP.summon_full_params")
        if kind not in INSIDE:
            break
        if model._forward_hooks or model._forward_pre_hooks or model._backward_hooks or model._backward_pre_hooks:
            raise ModelError(f"{kind} has hooks of its own, which a program made from the model inside would not run; "
                             "register them on that model")
        model = getattr(model, INSIDE[kind])
    return model
