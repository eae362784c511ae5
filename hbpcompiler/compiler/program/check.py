"""What holds of every program, from pass to pass: checked in one walk, so that the pass that breaks it is found."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.nodes import shows_its_input
from hbpcompiler.compiler.program.writer import Loop


class Level(IntEnum):
    """How far a program is; at each level all of the one below holds too."""

    DERIVED = 0
    """As the backward pass wrote it."""
    SHAPED = 1
    """Of every node it is said what it makes."""
    FINAL = 2
    """Values may be overwritten: nothing can be moved or shared any more."""


class BrokenProgramError(AssertionError):
    """A program is not what it must be: a fault of the compiler."""


def check_program(graph: fx.Graph, level: Level) -> None:
    """Raises BrokenProgramError, naming the node and what is wrong with it. Loops' bodies are checked as well."""
    for node, fault in faults(graph, level):
        raise BrokenProgramError(f"{node.format_node() or node.name}: {fault}")


def faults(graph: fx.Graph, level: Level) -> Iterator[tuple[fx.Node, str]]:
    """Each node with each thing that is wrong with it."""
    seen: set[fx.Node] = set()
    reads, readers = 0, 0
    for node in graph.nodes:
        inputs = node.all_input_nodes
        reads, readers = reads + len(inputs), readers + len(node.users)
        for read in inputs:
            if read not in seen:
                yield node, f"it reads {read.name}, which {'was erased' if read._erased else 'does not come before it'}"
            if node not in read.users:
                yield node, f"{read.name} does not know that it is read here"
        seen.add(node)
        if node.op == "output":
            continue
        if not meta.is_placed(node):
            yield node, "it is not said under which heading, and in which step, it stands"
        if level >= Level.SHAPED and not meta.is_known(node):
            yield node, "it is not said what it makes (shape and dtype of a tensor)"
        if isinstance(node.target, Loop):
            yield from _passing(node)
            yield from faults(node.target.body, level)
    if reads != readers:
        yield from _false_readers(graph)
    if level >= Level.FINAL:
        yield from _late_reads(graph)


def _false_readers(graph: fx.Graph) -> Iterator[tuple[fx.Node, str]]:
    """Nodes that are said to read another one, but do not."""
    for node in graph.nodes:
        for user in node.users:
            if user._erased or node not in user.all_input_nodes:
                yield node, f"it takes {user.name} for a reader"


def _passing(node: fx.Node) -> Iterator[tuple[fx.Node, str]]:
    """A loop passes totals, rows, cut and whole tensors, in this order and each to its placeholder."""
    loop: Any = node.target
    try:
        call = LoopCall.of(node)
    except ValueError:
        yield node, "its body does not take as many tensors as it is given"
        return
    if len(call.totals) != loop.totals or len(call.rows) != loop.rows or len(call.cut) != loop.cut:
        yield node, (f"it says {loop.totals} totals, {loop.rows} rows, {loop.cut} cut tensors, and passes "
                     f"{len(call.totals)}, {len(call.rows)}, {len(call.cut)}")
    ordered = (Role.TOTAL, call.totals), (Role.ROWS, call.rows), (Role.CUT, call.cut), (Role.WHOLE, call.whole)
    for role, passed in ordered:
        for each in passed:
            if meta.role(each.inner) is not role:
                yield each.inner, f"it stands where the loop passes {role.name.lower()}"


def _late_reads(graph: fx.Graph) -> Iterator[tuple[fx.Node, str]]:
    """Nodes that read an overwritten value otherwise than through the write."""
    roots: dict[fx.Node, fx.Node] = {}
    """Whose memory a node shows."""
    seen: dict[fx.Node, int] = {}
    """How often that had been overwritten when the node was made."""
    written: dict[fx.Node, int] = {}
    for node in graph.nodes:
        for read in node.all_input_nodes:
            if read in roots and seen[read] != written.get(roots[read], 0):
                yield node, f"it reads {read.name}, which was overwritten before"
        before = _shown(node)
        root = roots.get(before, node) if before is not None else node
        if meta.role(node) is Role.OVERWRITES:
            written[root] = written.get(root, 0) + 1
        roots[node], seen[node] = root, written.get(root, 0)


def _shown(node: fx.Node) -> fx.Node | None:
    """The node whose memory this one shows, if it shows another's."""
    before: Any = node.args[0] if node.args and shows_its_input(node) else None
    if not isinstance(before, fx.Node):
        return None
    if isinstance(before.target, Loop):
        accumulators: Any = before.args[0]
        before = accumulators[node.args[1]]
    return before if isinstance(before, fx.Node) else None
