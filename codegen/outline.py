"""Blocks of operations that are alike become calls of one function: a network of fifty equal layers is written once.

A block is what stands under one heading: an operation's step back and what ends at its parameters. Two blocks are alike
if the same calls are made on the same inputs, numbers aside: numbers that differ are arguments of the function. Nothing
is searched for: every block has a canonical form, and equal forms make a class. The order of all calls is as it was.
Loops that are alike in blocks that are not share functions likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import fx

from hbpcompiler.codegen.calls import Outline
from hbpcompiler.codegen.forms import Form
from hbpcompiler.codegen.places import Places
from hbpcompiler.codegen.segments import Segment, is_text, is_whole, segments
from hbpcompiler.codegen.sharing import arguments, share
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.limits import DEFAULT_LIMITS, Limits

ENTRIES = 3
"""A block of one statement is as short as a call of it, unless it reads so many entries of tables."""
MOST_NUMBERS = 6
"""Loops that differ in more numbers than these do not share a function: a call would not be readable."""
IN_CHUNKS = "in chunks"
"""What a loop does of an operation."""

Classes = list[list[tuple[Segment, Form]]]


def outlined(graph: fx.Graph, places: Places, limits: Limits = DEFAULT_LIMITS) -> Outline:
    """The classes of a program, its loops' bodies included. `places` are entries of tables (see `places`)."""
    found_segments = list(segments(graph))
    blocks = [members for members in _by_form(found_segments, places)
              if (len(members) - 1) * members[0][1].statements >= limits.shared_statements]
    loops = _loops(found_segments, blocks, places, limits)
    found = Outline(dict(loops.calls), set(loops.inside))
    for members in blocks:
        share(members, members[0][0].block, loops, places, found)
    return found


def _by_form(parts: Sequence[Segment], places: Places) -> Classes:
    """Parts of one form, of those that may share a function."""
    classes: dict[Any, list[tuple[Segment, Form]]] = {}
    for part in parts:
        form = Form(part, places)
        if (form.statements > 1 or form.entries_read >= ENTRIES) and is_whole(part):
            classes.setdefault(form.key, []).append((part, form))
    return list(classes.values())


def _loops(found_segments: Sequence[Segment], blocks: Classes, places: Places, limits: Limits) -> Outline:
    """The loops that stand in several functions of blocks, or in blocks that have none."""
    written: dict[fx.Node, int] = {}
    """The blocks' functions, by the nodes that are inside."""
    for number, members in enumerate(blocks):
        for block, _ in members:
            written |= dict.fromkeys(block.nodes, number)
    found = Outline()
    for members in _by_form([loop for segment in found_segments for loop in _loops_in(segment)], places):
        functions = {written.get(part.nodes[-1]) for part, _ in members}
        alone = sum(part.nodes[-1] not in written for part, _ in members)
        times = len(functions - {None}) + alone
        saved = (times - 1) * _statements(members[0][0])
        if saved >= limits.shared_statements and len(arguments(members, Outline())) <= MOST_NUMBERS:
            share(members, members[0][0].block, Outline(), places, found)
    return found


def _loops_in(segment: Segment) -> Iterator[Segment]:
    """Each loop of a block with the totals that it begins with and its results, if nothing else stands between."""
    for position, node in enumerate(segment.nodes):
        if isinstance(node.target, Loop):
            totals = [total for total in cast("Any", node.args[0]) if total in segment.nodes[:position]]
            results = [user for user in segment.nodes[position:] if node in user.all_input_nodes]
            last = max([position, *(segment.nodes.index(result) for result in results)])
            between = [other for other in segment.nodes[position:last + 1] if other is not node and not is_text(other)]
            if set(between) <= set(results) and len(results) == len(node.users):
                path, _, title = segment.block.title.rpartition(": ")
                block = replace(segment.block, title=f"{path}: {title} {IN_CHUNKS}", formula="")
                own = {*totals, node, *results}
                yield Segment(block, [other for other in segment.nodes[:last + 1] if other in own])


def _statements(loop: Segment) -> int:
    """How many a loop takes, its turn's included."""
    bodies = [node.target.body for node in loop.nodes if isinstance(node.target, Loop)]
    inside = sum(node.op not in ("placeholder", "output") and not is_text(node)
                 for body in bodies for node in body.nodes)
    return inside + len(loop.nodes)
