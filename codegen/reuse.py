"""Names of a large program that are given again: a stream's columns are called g or M wherever they are, and what
all blocks add to has one name.

What has been read for the last time is overwritten by what is made of it: nothing has to be deleted, in loops too.
"""

from __future__ import annotations

from functools import cached_property

from torch import fx

from hbpcompiler.codegen.calls import Outline
from hbpcompiler.codegen.naming import Names
from hbpcompiler.codegen.places import is_of_results
from hbpcompiler.codegen.roles import TOTAL, is_moving, role
from hbpcompiler.codegen.segments import is_text
from hbpcompiler.codegen.streams import STREAM
from hbpcompiler.compiler.program import meta


class Reused:
    """Gives names to the values of one graph, in the order of its nodes."""

    def __init__(self, graph: fx.Graph, names: Names, outline: Outline) -> None:
        self.graph, self.names, self.outline = graph, names, outline
        self.given: dict[str, int] = {}
        """Names in use that can be given again, and behind which node."""

    @cached_property
    def _place(self) -> dict[fx.Node, int]:
        """Where a node is printed: one of an outlined block at the block's last."""
        place: dict[fx.Node, int] = {}
        pending: list[fx.Node] = []
        for position, node in enumerate(self.graph.nodes):
            place[node] = position
            if node in self.outline.inside:
                pending.append(node)
            if node in self.outline.calls:
                place |= dict.fromkeys(pending, position)
                pending = []
        return place

    @cached_property
    def _last(self) -> dict[fx.Node, int]:
        """The last place where each value is read."""
        last: dict[fx.Node, int] = {}
        for node in reversed(list(self.graph.nodes)):
            last[node] = self._place[node]
            for user in node.users:
                # What may be written into the line that reads it is read there.
                last[node] = max(last[node], last[user] if self._may_be_inline(user) else self._place[user])
        return last

    def _may_be_inline(self, node: fx.Node) -> bool:
        """Whether a value may be written into the line of its one reader; see `Inlining`, which knows its text too."""
        if is_text(node):
            return True
        if len(node.users) != 1:
            return False
        block = meta.block(node)
        return not node.meta.get("hint") or (block is not None and block.part == "forward")

    def name(self, node: fx.Node, wish: str, before: fx.Node | None = None) -> str:
        """A name for a value that is printed now, or in front of a loop."""
        here = self._place[node] if before is None else self._place[before] - 1
        for name, end in list(self.given.items()):
            if end <= here:
                del self.given[name]
                self.names.taken.discard(name)
        stays = not is_moving(wish) and not is_moving(meta.hint(node)) and wish != TOTAL
        if stays or is_of_results(node):
            return self.names.fresh(wish)
        name = self.names.fresh(role(wish) if STREAM.match(wish) else wish)
        self.given[name] = self._last[node]
        return name

    def keeps(self, node: fx.Node, name: str) -> None:
        """A value has taken over the name of what it was written into."""
        if name in self.given:
            self.given[name] = max(self.given[name], self._last[node])
