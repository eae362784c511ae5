"""Values that are changed through h.detach() or h.data while their derivative stays that of the value before."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from hbpcompiler.compiler.trace.gradients_off import trained_nodes
from hbpcompiler.compiler.trace.source import source_of
from hbpcompiler.errors import ModelError, listing


def check_detached_writes(program: Any) -> None:
    """Raise ModelError where an ExportedProgram writes into a detached view of a value that is read again.

    In torch the reader gets the changed numbers and the derivative of the unchanged ones, which no graph of operations
    says.
    """
    roots: dict[Node, set[Node]] = {}
    """Of a node, the nodes whose memory it may show."""
    detached: set[Node] = set()
    changed: dict[Node, str] = {}
    """The root of what was changed, and the line that changes it."""
    found: dict[Node, str] = {}
    node: Any
    for node in program.graph_module.graph.nodes:
        for read in node.all_input_nodes:
            if read not in detached:
                found |= {root: changed[root] for root in roots.get(read, ()) if root in changed}
        shown = _shown(node)
        roots[node] = set[Node]().union(*(roots[item] for item, _ in shown)) if shown else _own(node)
        if node.target is torch.ops.aten.detach.default or any(item in detached for item, _ in shown):
            detached.add(node)
        for item, writes in shown:
            if writes and item in detached:
                changed |= dict.fromkeys(roots[item], str(source_of(node)))
    trained = trained_nodes(program) if found else set()
    lines = [line for root, line in found.items() if root in trained]
    if lines:
        raise ModelError(listing(
            "A value is changed in place through .detach() or .data and read again, so that its derivative stays that "
            "of the value before:", list(dict.fromkeys(lines))[:5],
            "Write h = h + (changed - h).detach() for this, or h = changed for the derivative of what h becomes."))


def _shown(node: Any) -> list[tuple[Node, bool]]:
    """What a node's result may show the memory of, and whether it is written into."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    return [(item, argument.alias_info.is_write) for item, argument in zip(node.args, schema.arguments, strict=False)
            if isinstance(item, Node) and argument.alias_info is not None]


def _own(node: Node) -> set[Node]:
    """A result's own memory; what is given to the program may be changed, by rules of its own."""
    return set() if node.op in ("placeholder", "get_attr") else {node}
