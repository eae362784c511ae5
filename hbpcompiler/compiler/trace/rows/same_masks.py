"""`o[~y.isnan()] - y[~y.isnan()]`: torch's trace gives the rows of each mask a length of their own, though both masks
are the same, and then asks whether the lengths are equal. So a mask that has been computed before is that one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

from hbpcompiler.compiler.trace.fx_graph.alike_nodes import AlikeNodes
from hbpcompiler.compiler.trace.rows.rows import are_alike
from hbpcompiler.system.modes import FunctionMode

PICK = Tensor.__getitem__
SELECTS = (Tensor.masked_select, torch.masked_select)
"""They know no length from before, unlike an index."""


class SameMasks(FunctionMode):
    """Around the user's code while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self._alike = AlikeNodes()
        self._entered: Any = None
        """The graph's last node that has a number."""
        self._masks: dict[int, Tensor] = {}

    def __torch_function__(self, function: Callable[..., Any], types: Sequence[type], arguments: Any = (),
                           named: Any = None) -> Any:
        if function is PICK and len(arguments) == 2 and isinstance(arguments[1], tuple):
            arguments = (arguments[0], tuple(self._first(part) if _is_mask(part) else part for part in arguments[1]))
        elif function in (PICK, *SELECTS) and len(arguments) == 2 and _is_mask(arguments[1]):
            values, mask = arguments
            arguments = (values, self._first(mask))
            if function in SELECTS and values.dim() == mask.dim() and are_alike(values.shape, mask.shape):
                function = PICK
        return function(*arguments, **(named or {}))

    def _first(self, mask: Tensor) -> Tensor:
        """The first mask that computes the same; one that was changed in place since, through a view perhaps, is like
        no other."""
        mode = get_proxy_mode()
        tracer: Any = None if mode is None else mode.tracer
        slot: Any = None if tracer is None else get_proxy_slot(mask, tracer, None)
        if slot is None or mask._version:
            return mask
        node = slot.proxy.node
        after = next(iter(node.graph.nodes)) if self._entered is None else self._entered.next
        while after.op != "root":
            self._entered = self._alike.enter(after)
            after = after.next
        number = self._alike.numbers.get(node)
        if number is None:
            return mask
        first = self._masks.setdefault(number, mask)
        return mask if first._version else first


def _is_mask(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dtype is torch.bool
