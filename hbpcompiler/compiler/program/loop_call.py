"""A loop's node taken apart by name: what it passes to its body, and as what; more may be passed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.writer import Loop


class Passed(NamedTuple):
    """What a loop passes to its body."""

    outer: fx.Node
    """outside, an argument of the loop."""
    inner: fx.Node
    """in the body, a placeholder."""


@dataclass(frozen=True)
class LoopCall:
    """A loop's node taken apart, by name: totals that grow, rows that are filled, tensors cut in chunks, whole ones."""

    node: fx.Node
    loop: Loop
    totals: tuple[Passed, ...]
    rows: tuple[Passed, ...]
    cut: tuple[Passed, ...]
    whole: tuple[Passed, ...]

    @classmethod
    def of(cls, node: fx.Node) -> LoopCall:
        """Raises ValueError if the body takes more, or fewer, tensors than it is given."""
        loop: Any = node.target
        accumulators, cut, whole = cast("tuple[tuple[fx.Node, ...], ...]", node.args)  # as Writer.loop wrote them
        holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"]
        holders = holders[:-1] if loop.begins else holders
        passed = tuple(Passed(*pair) for pair in zip((*accumulators, *cut, *whole), holders, strict=True))
        filled, others = passed[: len(accumulators)], passed[len(accumulators) :]
        return cls(node, loop, filled[: loop.totals], filled[loop.totals :], others[: len(cut)], others[len(cut) :])

    @property
    def filled(self) -> tuple[Passed, ...]:
        """What the loop writes: node[0], node[1], ... are its results."""
        return self.totals + self.rows

    def pass_total(self, outer: fx.Node, name: str) -> fx.Node:
        """Pass one more total, the last of them; the placeholder that stands for it in the body."""
        accumulators, cut, whole = cast("tuple[tuple[fx.Node, ...], ...]", self.node.args)
        at = self.loop.totals
        inner = self._held(outer, name, Role.TOTAL, at)
        self.node.args = ((*accumulators[:at], outer, *accumulators[at:]), cut, whole)
        self.loop.totals += 1
        return inner

    def pass_whole(self, outer: fx.Node, name: str) -> fx.Node:
        """Pass one more tensor to the body, if it does not have it; the placeholder that stands for it there."""
        for passed in LoopCall.of(self.node).whole:
            if passed.outer is outer:
                return passed.inner
        accumulators, cut, whole = cast("tuple[tuple[fx.Node, ...], ...]", self.node.args)
        inner = self._held(outer, name, Role.WHOLE, len(accumulators) + len(cut) + len(whole))
        self.node.args = (accumulators, cut, (*whole, outer))
        return inner

    def pass_cut(self, outer: fx.Node, name: str) -> fx.Node:
        """Pass the chunk's part of one more tensor, if the body does not have it; what stands for it there."""
        for passed in LoopCall.of(self.node).cut:
            if passed.outer is outer:
                return passed.inner
        accumulators, cut, whole = cast("tuple[tuple[fx.Node, ...], ...]", self.node.args)
        inner = self._held(outer, name, Role.CUT, len(accumulators) + len(cut))
        self.node.args = (accumulators, (*cut, outer), whole)
        self.loop.cut += 1
        return inner

    def drop_unread(self) -> None:
        """Pass no longer what the body does not read. One tensor that is cut stays: the turns are counted by it."""
        accumulators, _, _ = cast("tuple[tuple[fx.Node, ...], ...]", self.node.args)
        cut = [passed for passed in self.cut if passed.inner.users] or list(self.cut[:1])
        whole = [passed for passed in self.whole if passed.inner.users]
        for passed in (*self.cut, *self.whole):
            if passed not in cut and passed not in whole:
                self.loop.body.erase_node(passed.inner)
        self.node.args = (accumulators, tuple(passed.outer for passed in cut), tuple(passed.outer for passed in whole))
        self.loop.cut = len(cut)

    def begin(self) -> fx.Node:
        """Tell the body which turn is the first (see `Loop.begins`); the placeholder that says so."""
        holders = [holder for holder in self.loop.body.nodes if holder.op == "placeholder"]
        if self.loop.begins:
            return holders[-1]
        with self.loop.body.inserting_after(holders[-1]):
            kept = self.loop.body.placeholder("kept")
        meta.place(kept, self.node)
        meta.set_no_tensor(kept)
        meta.annotate_as(kept, "float")
        meta.play(kept, Role.KEPT)
        self.loop.begins = True
        return kept

    def _held(self, outer: fx.Node, name: str, role: Role, behind: int) -> fx.Node:
        """A placeholder in the body behind so many of its placeholders."""
        holders = [holder for holder in self.loop.body.nodes if holder.op == "placeholder"]
        with self.loop.body.inserting_after(holders[behind - 1]):
            inner = self.loop.body.placeholder(name)
        meta.set_own_memory(meta.copy(inner, outer), False)
        meta.play(inner, role)
        return inner
