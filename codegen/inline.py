"""Which values get no line of their own: they are written into the line that reads them."""

from __future__ import annotations

import bisect
from collections.abc import Collection

from torch import fx

from hbpcompiler.codegen.functions import Functions
from hbpcompiler.codegen.segments import is_text, times_read
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.nodes import facts, is_pure, writes_in_place
from hbpcompiler.compiler.program.writer import Loop

INLINE_WIDTH = 88
"""An expression longer than this gets its own line."""
CHAIN, CHAIN_WIDTH = 3, 60
"""Operations of a large program's forward pass are one line if one reads the other within so many nodes, and short."""


class Inlining:
    """Asked of the nodes of one graph as they are printed."""

    def __init__(self, graph: fx.Graph, functions: Functions, placed: Collection[fx.Node]) -> None:
        self.functions, self.placed = functions, placed
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.writes = [position for node, position in self.order.items() if writes_in_place(node)]

    def is_inline(self, node: fx.Node, text: str) -> bool:
        """A short pure expression that one line reads is written into that line."""
        if self.in_next_line(node, text):
            return is_pure(node)
        if self._goes_on_in_place(node):
            return len(text) <= INLINE_WIDTH
        if node.meta.get("hint") or len(node.users) != 1:
            return False
        (user,) = node.users
        if not is_pure(node) and (not facts(node).buffer or writes_in_place(user)):
            return False
        if isinstance(user.target, Loop) or user.op == "output" or user.meta.get("block") != node.meta.get("block"):
            return False
        if self._overwritten(node, user):
            return False
        return len(text) <= INLINE_WIDTH and times_read(node, user) == 1

    def in_next_line(self, node: fx.Node, text: str) -> bool:
        """Whether a value of a large program's forward pass is read by the next line alone, another operation's: a
        chain of short operations is one line."""
        if not self.functions.large or len(node.users) != 1 or len(text) > CHAIN_WIDTH or node in self.placed:
            return False
        (user,) = node.users
        forward = all(block is not None and block.part == "forward" for block in (meta.block(node), meta.block(user)))
        return (forward and user in self.order and user.op != "output" and not isinstance(user.target, Loop)
                and user not in self.functions.outline.inside and "results" not in user.meta
                and not is_text(user) and not writes_in_place(user) and times_read(node, user) == 1
                and self.order[user] - self.order[node] <= CHAIN and not self._overwritten(node, user))

    def _goes_on_in_place(self, node: fx.Node) -> bool:
        """Whether a result is written over by one operation after the other, squares.div_(N).sub_(...): nobody reads
        what is between them, nor is anything else changed in the meantime."""
        if len(node.users) != 1 or node in self.placed or meta.hint(node) or not _ends(node):
            return False
        (user,) = node.users
        return (_ends(user) and user.args[0] is node and times_read(node, user) == 1
                and meta.block(user) == meta.block(node)
                and bisect.bisect(self.writes, self.order[node]) == bisect.bisect_left(self.writes, self.order[user]))

    def _overwritten(self, node: fx.Node, user: fx.Node) -> bool:
        """Whether it would be computed after something was overwritten."""
        return bisect.bisect(self.writes, self.order[node]) < bisect.bisect_left(self.writes, self.order[user])


def _ends(node: fx.Node) -> bool:
    """Whether it changes a tensor in place among the results."""
    block = meta.block(node)
    return node.op == "call_method" and writes_in_place(node) and block is not None and block.part == "results"


def all_pure(graph: fx.Graph) -> bool:
    """Whether nothing is drawn or changed."""
    return all(is_pure(node) or node.op in ("placeholder", "output") for node in graph.nodes)
