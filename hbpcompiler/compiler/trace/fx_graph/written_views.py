"""What is written to a part of a tensor is the whole tensor anew, and new views of it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from hbpcompiler.rules.shared.torch_operations import PUT_BACK


class NotAPartError(Exception):
    """A view that chooses no part: one that has its elements in another order, say."""


class Anew:
    """Views of a tensor whose value, or that of a view of it, has become another one."""

    def __init__(self, graph: Graph, written: Node, value: Node) -> None:
        self.graph = graph
        self.known: dict[Node, Node] = {}
        """Node -> what it is now."""
        while memory_of(written):
            (whole,) = memory_of(written)
            value, written = self._put_back(written, value, whole), whole
        self.known[written] = value

    def _put_back(self, view: Node, value: Node, whole: Node) -> Node:
        """The whole with a part's new value. Raises NotAPartError."""
        called = PUT_BACK.get(view.target)
        if called is None:
            raise NotAPartError
        made = self.graph.call_function(called, (whole, value, *view.args[1:]), dict(view.kwargs))
        made.meta = {**value.meta, "val": whole.meta["val"]}
        return made

    def __getitem__(self, view: Node) -> Node:
        """What a view shows now."""
        if view not in self.known:
            (whole,) = memory_of(view)
            now = self[whole]
            self.known[view] = self.graph.node_copy(view, lambda read: now if read is whole else read)
        return self.known[view]


def written_elsewhere(graph: Graph) -> list[Node]:
    """What changes a view that is no part of its tensor."""
    found = []
    for node in graph.nodes:
        called = node.target
        if isinstance(called, torch._ops.OpOverload) and called._schema.is_mutable:
            view = node.args[0]
            while memory_of(view) and (view.target in PUT_BACK or view.target._schema.is_mutable):
                (view,) = memory_of(view)
            if memory_of(view):
                found.append(node)
    return found


def memory_of(node: Node) -> list[Node]:
    """The arguments that a node may be a view of."""
    called: Any = node.target
    if called is operator.getitem:
        return [read for read in node.all_input_nodes if memory_of(read)]
    if not isinstance(called, torch._ops.OpOverload):
        return []
    arguments = called._schema.arguments
    given = {argument.name: item for argument, item in zip(arguments, node.args, strict=False)} | dict(node.kwargs)
    return [leaf for argument in arguments if argument.alias_info
            for leaf in pytree.tree_leaves(given.get(argument.name)) if isinstance(leaf, Node)]
