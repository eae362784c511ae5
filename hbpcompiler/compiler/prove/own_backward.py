"""Whether a backward pass runs code of the user's own: hooks of tensors, custom functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from hbpcompiler.system.modes import FunctionMode


class TensorHooks(FunctionMode):
    """Sees whether a hook is put on a tensor."""

    found = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= function is Tensor.register_hook
        return function(*args, **(kwargs or {}))


def has_python_nodes(value: Tensor) -> bool:
    """Whether there are autograd.Functions above a value, torch's own for checkpoints among them.

    Their backward may call `.backward()`, as that of a reversible block does: gradients of what is inside appear at
    the parameters alone.
    """
    return any(isinstance(node, BackwardCFunction) for node in _nodes(value))


def custom_nodes(value: Tensor) -> Iterator[Any]:
    """The nodes above a value, in autograd's graph, of autograd.Functions that are not torch's."""
    for node in _nodes(value):
        own = getattr(node, "_forward_cls", None)
        if isinstance(node, BackwardCFunction) and own is not None and own.__module__.partition(".")[0] != "torch":
            yield node


def _nodes(value: Tensor) -> Iterator[Any]:
    """Each once."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [above for above, _ in node.next_functions]
