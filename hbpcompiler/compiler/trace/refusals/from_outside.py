"""Tensors with a history that a model reads and does not compute: `self.half = self.weight[:4]` in `__init__`.

They follow no parameter that is replaced or moved to another dtype or device, and torch itself goes back through their
history once. To a trace they are constants, or an assertion of torch's own about them fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.refusals.refusals import CannotFollowError
from hbpcompiler.system.modes import FunctionMode

OUTSIDE = ("a tensor is read here that was computed of something trained before this forward (in __init__, or in an "
           "earlier call), with a derivative that a program does not have, and torch only once; compute it in forward, "
           "or write .detach() behind it")


class FromOutside(FunctionMode):
    """Around the user's code while it is traced: raises CannotFollowError where such a history is taken up."""

    def __torch_function__(self, function: Callable[..., Any], types: Sequence[type], arguments: Any = (),
                           named: Any = None) -> Any:
        named = named or {}
        if not (torch.is_grad_enabled() and any(map(_has_history, pytree.tree_leaves((arguments, named))))):
            return function(*arguments, **named)
        try:
            result = function(*arguments, **named)
        except Exception as error:
            raise CannotFollowError(OUTSIDE) from error
        if any(isinstance(item, Tensor) and item.requires_grad for item in pytree.tree_leaves(result)):
            raise CannotFollowError(OUTSIDE)
        return result


def _has_history(item: Any) -> bool:
    return isinstance(item, Tensor) and not isinstance(item, FakeTensor) and item.grad_fn is not None
