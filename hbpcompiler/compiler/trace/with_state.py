"""A module called with other parameters and buffers in the place of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def call_with_state(module: nn.Module, state: Mapping[str, Tensor], arguments: Sequence[Any],
                    keywords: Mapping[str, Any] | None = None) -> Any:
    """What the module returns; afterwards it is what it was.

    torch.func.functional_call leaves other tensors in a module that has several names (a layer used twice in a
    Sequential): it takes back what it put there under the first name for what was there before the second.
    """
    before = [(each, dict(each._parameters), dict(each._buffers)) for each in module.modules()]
    try:
        return torch.func.functional_call(module, dict(state), tuple(arguments), dict(keywords or {}))
    finally:
        for each, parameters, buffers in before:
            each._parameters.update(parameters)
            each._buffers.update(buffers)
