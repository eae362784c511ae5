"""Which nodes of a graph compute the same: a mask may be written twice."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree


class AlikeNodes:
    """Numbers of nodes, which are entered in their order: equal ones compute the same of the same."""

    def __init__(self) -> None:
        self.numbers: dict[Node, int] = {}
        self._known: dict[Any, int] = {}
        self._writes = 0
        """How many operations that change a tensor have been entered: what comes after one is nothing before it."""

    def enter(self, node: Node) -> Node:
        """The node gets its number: that of a node before which computes the same, or a new one."""
        called: Any = node.target
        writes = isinstance(called, torch._ops.OpOverload) and called._schema.is_mutable
        drawn = torch.Tag.nondeterministic_seeded in getattr(called, "tags", ())
        self._writes += writes
        key: Any = node
        if node.op == "call_function" and not (drawn or writes):
            given = (list(node.args), sorted(node.kwargs.items()))
            read = pytree.tree_map_only(Node, lambda read: ("node", self.numbers[read]), given)
            key = str((called, self._writes, read))
        self.numbers[node] = self._known.setdefault(key, len(self._known))
        return node
