"""Blocks of operations that are alike become calls of one function: a network of fifty equal layers is written once.

A block is what stands under one heading: an operation's step back and what ends at its parameters. Two blocks are alike
if the same calls are made on the same inputs, numbers aside: numbers that differ are arguments of the function. Nothing
is searched for: every block has a canonical form, and equal forms make a class. The order of all calls is as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from hbpcompiler.codegen.calls import Call, Function, Outline
from hbpcompiler.codegen.copying import Copy, lettered
from hbpcompiler.codegen.forms import Form, entry_of
from hbpcompiler.codegen.places import Places
from hbpcompiler.codegen.printer import quote
from hbpcompiler.codegen.segments import Segment, is_whole, segments

SAVED = 8
"""From so many statements that need not be written again, alike blocks share a function."""
ENTRIES = 3
"""A block of one statement is as short as a call of it, unless it reads so many entries of tables."""


def outlined(graph: fx.Graph, places: Places) -> Outline:
    """The classes of a program, its loops' bodies included. `places` are entries of tables (see `places`)."""
    classes: dict[Any, list[tuple[Segment, Form]]] = {}
    for segment in segments(graph):
        form = Form(segment, places)
        if (form.statements > 1 or form.entries_read >= ENTRIES) and is_whole(segment):
            classes.setdefault(form.key, []).append((segment, form))
    found = Outline()
    for members in classes.values():
        if (len(members) - 1) * members[0][1].statements >= SAVED:
            _share(members, places, found)
    return found


def _share(members: Sequence[tuple[Segment, Form]], places: Places, found: Outline) -> None:
    """One function for these blocks, and a call in the place of each."""
    first, form = members[0]
    rows = [[number for _, number in other.numbers] for _, other in members]
    in_code = [code for code, _ in form.numbers]
    written, letters = lettered(rows)
    arguments: dict[str, int] = {}
    for position, column in enumerate(zip(*rows, strict=True)):
        if column in letters and in_code[position]:
            arguments.setdefault(letters[column], position)
    function = Function(fx.Graph(), first.block, list(arguments), len(members))
    Copy(function, form.inputs, iter(written), places).run(first)
    for segment, other in members:
        inputs = [node for node in other.inputs if entry_of(node, places, segment.path) is None]
        values = [node for node in segment.values() if entry_of(node, places, segment.path) is None]
        numbers = [other.numbers[position][1] for position in arguments.values()]
        found.calls[segment.nodes[-1]] = Call(function, inputs, numbers, values, quote(segment.path))
        found.inside.update(segment.nodes)
