"""Writes torch.fx graphs by running plain torch functions on proxies; chunk loops are nodes with a graph inside.

Every node says under which heading it is printed, which step of the plan wrote it, and perhaps which name it asks for
and what it is a part of (see `meta`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from hbpcompiler.arguments import Sizes
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.meta import Block, Role
from hbpcompiler.rule import Op
from hbpcompiler.rule.composite import graph_module


class _Tracer(fx.proxy.TracerBase):
    """Appends to one graph and marks each node with the current block."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self.graph = graph
        self.block: Block | None = None
        self.step: int | None = None
        self.subject = ""

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.create_node(*args, **kwargs)
        node.meta["block"], node.meta["step"] = self.block, self.step
        meta.set_subject(node, self.subject)
        return node

    def create_arg(self, a: Any) -> Any:
        """A tensor that a rule made of numbers is written as a number; one of several is not ours to place."""
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        if a.dim():
            raise TypeError(f"generated code has no constants of several numbers, such as one of shape {list(a.shape)}")
        return self.create_node("call_function", torch.tensor, (a.item(),), {"dtype": a.dtype})


class Writer:
    """Collects what functions do to proxies in `graph`.

    Proxies are typed Any: they stand for tensors and shapes, whose methods and operators fx.Proxy does not declare.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.tracer = _Tracer(self.graph)

    def proxy(self, node: fx.Node) -> Any:
        return fx.Proxy(node, self.tracer)

    def placeholder(self, name: str) -> Any:
        return self.proxy(self.tracer.create_node("placeholder", name, (), {}, name))

    def argument(self, name: str, annotation: str, sizes: Sizes | None = None) -> Any:
        """A placeholder for a call argument (see `arguments`); of a dict, `sizes` are what the program asks."""
        proxy = self.placeholder(f"argument_{name}")
        meta.set_argument(proxy.node, name, annotation, sizes)
        return proxy

    def call(self, target: Callable[..., Any], *args: Any, hint: str = "", **kwargs: Any) -> Any:
        proxy = self.tracer.create_proxy("call_function", target, args, kwargs)
        return named(proxy, hint)

    @contextmanager
    def block(self, title: str, part: str, formula: str = "", in_loops: str = "") -> Iterator[None]:
        """Nodes written inside stand under this heading."""
        before, self.tracer.block = self.tracer.block, Block(title, part, formula, in_loops)
        try:
            yield
        finally:
            self.tracer.block = before

    @contextmanager
    def about(self, subject: str) -> Iterator[None]:
        """Nodes written inside are part of this computation, and may be called after it."""
        before, self.tracer.subject = self.tracer.subject, subject
        try:
            yield
        finally:
            self.tracer.subject = before

    def loop(
        self,
        body: Callable[[Part], None],
        *,
        op: Op | None,
        sliced: Mapping[str, Any],
        chunk: int,
        totals: Mapping[str, Any],
        rows: Mapping[str, Any] | None = None,
        axis: int = 0,
        letter: str = "",
        over: str = "",
        about: str = "",
    ) -> dict[str, Any]:
        """Write `for start in range(0, length, chunk): body(part)`, slicing along `axis`.

        `sliced` (the first one gives length, dtype and device) and what the body reads of `op` are cut into chunks.
        `totals` are zeros of the given shapes, or tensors that are there already, that the body adds to in place;
        `rows` are tensors of the given shapes behind an axis 0 of all that is cut, or are there already, and the body
        fills its own rows in place. `letter`: what the axis counts. `over` and `about`: see `Loop`.
        """
        lead = next(proxy for proxy in sliced.values() if proxy is not None)
        like: list[fx.Proxy] = []
        for total in totals.values():
            like.append(total if isinstance(total, fx.Proxy) else lead.new_zeros(total))
        for filled in (rows or {}).values():
            like.append(filled if isinstance(filled, fx.Proxy) else lead.new_empty((lead.shape[axis], *filled)))
        inner = Writer()
        inner.tracer.block, inner.tracer.subject = self.tracer.block, self.tracer.subject
        part = Part(inner, op, list(totals), list(rows or {}), sliced)
        body(part)
        inner.graph.output(None)
        part.close()
        letter = letter or ("k" if axis else "n")
        loop = Loop(inner.graph, chunk, axis, len(totals), len(rows or {}), len(part.cut), letter,
                    over=over, about=about)
        node = self.call(loop, tuple(like), tuple(part.cut), tuple(part.whole))
        names = [*totals, *(rows or {})]
        return {name: node[position] for position, name in enumerate(names)}


class Part:
    """What a loop's body sees: this chunk's slices, the totals it adds to and the rows it fills."""

    def __init__(self, writer: Writer, op: Op | None, totals: Sequence[str], rows: Sequence[str],
                 sliced: Mapping[str, fx.Proxy | None]) -> None:
        self.writer = writer
        # Placeholders in the order in which the loop passes them: totals, rows, slices, whole tensors.
        # Their own names may be no identifiers ("diagonal 0.weight").
        self.totals = {name: self._holder(f"total_{number}", Role.TOTAL) for number, name in enumerate(totals)}
        self.rows = {name: self._holder(f"rows_{number}", Role.ROWS) for number, name in enumerate(rows)}
        self.cut: list[fx.Proxy] = []
        self.whole: list[fx.Proxy] = []
        self._seen: dict[fx.Node, fx.Proxy] = {}
        self._sliced = {name: None if proxy is None else self._take(proxy, True) for name, proxy in sliced.items()}
        self._late: list[tuple[fx.Proxy, fx.Proxy]] = []
        self.op = None if op is None else op.bound_again(self.read)

    def __contains__(self, name: str) -> bool:
        return name in self._sliced

    def __getitem__(self, name: str) -> Any:
        return self._sliced[name]

    def outer(self, proxy: Any) -> Any:
        """A tensor from outside the loop, whole; or a list of them. What is no tensor stays."""
        if isinstance(proxy, list | tuple):
            return [self.outer(item) for item in proxy]
        return self._take(proxy, False) if isinstance(proxy, fx.Proxy) else proxy

    def _holder(self, name: str, role: Role) -> Any:
        proxy = self.writer.placeholder(name)
        meta.play(proxy.node, role)
        return proxy

    def _take(self, outer: fx.Proxy, cut: bool) -> fx.Proxy:
        if outer.node not in self._seen:
            number = len(self._seen)
            inner = self._holder(f"part_{number}", Role.CUT) if cut else self._holder(f"whole_{number}", Role.WHOLE)
            meta.set_annotation(inner.node, outer.node)
            self._seen[outer.node] = inner
            (self.cut if cut else self.whole).append(outer)
        return self._seen[outer.node]

    def read(self, outer: Any, batched: bool) -> Any:
        """A tensor that the rule reads: cut into chunks if it has a sample axis."""
        if isinstance(outer, list | tuple):
            return [self.read(item, batched) for item in outer]
        return self._take(outer, batched) if isinstance(outer, fx.Proxy) else outer

    def close(self) -> None:
        """Placeholders to the front, in passing order."""
        graph = self.writer.graph
        holders = [node for node in graph.nodes if node.op == "placeholder"]
        ordered = sorted(holders, key=lambda holder: holder.meta["role"])
        first = next(iter(graph.nodes))
        for node in ordered:
            if node is not first:
                first.prepend(node)
        for before, after in pairwise(ordered):
            before.append(after)


ALL = 2**20
"""Samples of one turn where nothing has to be made for them, and further turns would cost: one turn in all."""


@dataclass(eq=False)
class Loop:
    """A chunk loop as an fx call target: runs like the generated code does."""

    body: fx.Graph
    chunk: int
    axis: int
    totals: int
    rows: int
    cut: int
    letter: str = "n"
    """What the axis counts, in shapes and names."""
    begins: bool = False
    """Whether the body's last placeholder is 0.0 in the first turn, of which there is one even over nothing, and 1.0
    later: what is kept of a total."""
    over: str = ""
    """What a turn takes some of, in the name of a turn's function; nothing where its operation says enough."""
    about: str = ""
    """What a turn computes, where more is to be said than that it adds to totals."""

    __name__ = "loop"

    @property
    def in_one_turn(self) -> bool:
        """Whether it is written without a loop. What it fills by rows would have to know which."""
        return isinstance(self.chunk, int) and self.chunk >= ALL and not self.rows

    @cached_property
    def _module(self) -> fx.GraphModule:
        """The body as Python; the passes are over by the time that a loop is called."""
        return graph_module(self.body)

    def __call__(self, accumulators: Sequence[Any], sliced: Sequence[Any], whole: Sequence[Any]) -> Sequence[Any]:
        for start in range(0, max(int(self.begins), sliced[0].shape[self.axis]), self.chunk):
            part = partial(_slice, start, start + self.chunk)
            self._module(*self.turn(accumulators, sliced, whole, part, float(start > 0)))
        return accumulators

    def turn(self, accumulators: Sequence[Any], sliced: Sequence[Any], whole: Sequence[Any],
             part: Callable[[Any, int], Any], kept: float = 0.0) -> list[Any]:
        """What the body is given in one turn; `part(tensor, axis)` is the chunk's part of a tensor."""
        rows = [part(tensor, 0) for tensor in accumulators[self.totals :]]
        cut = [None if tensor is None else part(tensor, self.axis) for tensor in sliced]  # weights there may be none of
        return [*accumulators[: self.totals], *rows, *cut, *whole, *([kept] if self.begins else [])]


def _slice(start: int, stop: int, tensor: Any, axis: int) -> Any:
    return tensor[:, start:stop] if axis else tensor[start:stop]


def named(proxy: Any, hint: str) -> Any:
    """Ask for a name in the generated file; the first wish counts, an identity's input keeps its own."""
    meta.ask_for(proxy.node, hint)
    return proxy


def otherwise_named(proxy: Any, wish: str) -> Any:
    """What it is called where it gets a line of its own, which it does not ask for."""
    meta.set_wish(proxy.node, wish)
    return proxy


def added_to(total: Any, share: Any) -> None:
    """Add a turn's share to a loop's total, where it is made: it needs no name, and else is called after the total."""
    added = total.add_(share).node
    if list(share.node.users) == [added]:
        share.node.append(meta.place(added, share.node))
        meta.set_wish(share.node, f"{meta.hint(share.node)}_turn")
        meta.rename(share.node, "")


INPUTS = "Inputs and parameters"
"""The heading of the forward pass's first lines."""
