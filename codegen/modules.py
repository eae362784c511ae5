"""Modules that are alike share a function for each of their ways: sixteen residual blocks are sixteen calls.

A module's run is what stands in a row under its path: its way forward, or one way back. Two runs are alike if their
calls are, numbers included; a run's function calls the functions that operations share (see `outline`). What a module
makes on its way forward and reads again on its way back alone is kept in a table by its path, and leaves it there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import fx

from hbpcompiler.codegen.calls import Outline
from hbpcompiler.codegen.forms import Form
from hbpcompiler.codegen.places import SAVED, SHARED, Place, Places
from hbpcompiler.codegen.segments import Segment, is_long, is_whole, readers, rows, under
from hbpcompiler.codegen.sharing import arguments, in_code, share
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import Shape
from hbpcompiler.compiler.program.meta import Block
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.limits import DEFAULT_LIMITS, Limits

MOST_NUMBERS = 4
"""Runs that differ in more numbers than these do not share a function: a call would not be readable."""
TRIMMED = ((0, 0), (1, 0), (0, 1))
"""Blocks left out at the beginning and at the end of a run, tried in this order: the first and the last module of a row
often begin or end differently."""
STATEMENTS = 3
"""So many calls and statements a run has at least."""
ROUNDS = 3
"""A value is kept in a table if both ways have functions, which may differ once it is."""


@dataclass(frozen=True)
class Run:
    """What stands in a row under a module's path, in one graph."""

    path: str
    graph: fx.Graph
    segments: tuple[Segment, ...]

    @property
    def part(self) -> str:
        return self.segments[0].block.part

    @property
    def whole(self) -> Segment:
        """All of it as one block."""
        nodes = [node for segment in self.segments for node in segment.nodes]
        return Segment(Block(f"{self.path}: {self.path}", self.part), nodes)


@dataclass
class Saved:
    """What modules keep: the places, and which of these are returned too, because others read them as well."""

    places: dict[fx.Node, Place] = field(default_factory=dict)
    returned: set[fx.Node] = field(default_factory=set)

    @property
    def of_the_program(self) -> dict[fx.Node, Place]:
        """What the program itself knows by its place alone."""
        return {node: place for node, place in self.places.items() if node not in self.returned}


Classes = list[list[tuple[Run, Form]]]
Rows = Sequence[tuple[fx.Graph, Sequence[Segment]]]


def shared_by_modules(graph: fx.Graph, outline: Outline, places: Places, types: Mapping[str, str],
                      limits: Limits = DEFAULT_LIMITS) -> tuple[Outline, dict[fx.Node, Place]]:
    """The outline with modules' calls in the place of their operations', and the places of what they keep.

    `types` are the modules' types, by their paths.
    """
    saved, found_rows = Saved(), list(rows(graph))
    classes = _classes(found_rows, outline, places, types, saved, limits)
    for _ in range(ROUNDS):
        before, saved = saved, _saved(graph, classes)
        if saved == before:
            break
        classes = _classes(found_rows, outline, places, types, saved, limits)
    else:
        saved = Saved()
        classes = _classes(found_rows, outline, places, types, saved, limits)
    found = Outline(dict(outline.calls), set(outline.inside))
    for members in classes:
        _share(members, outline, {**places, **saved.places}, found, types, saved.returned)
    return found, saved.of_the_program


def _classes(found_rows: Rows, outline: Outline, places: Places, types: Mapping[str, str], saved: Saved,
             limits: Limits) -> Classes:
    """Runs that share a function, those of the longest runs first."""
    used = {node for node, place in places.items() if place.table == SHARED}
    found: Classes = []
    depth = max((segment.path.count(".") + 1 for _, row in found_rows for segment in row), default=0)
    for number in range(1, depth):
        for first, last in TRIMMED:
            alike: dict[Any, list[tuple[Run, int]]] = {}
            for longest in _runs(found_rows, number, used):
                run = replace(longest, segments=longest.segments[first:len(longest.segments) - last])
                if not run.segments:
                    continue
                sketch, statements = _sketch(run, outline, types)
                if statements >= STATEMENTS:
                    alike.setdefault(sketch, []).append((run, statements))
            for runs in alike.values():
                if (len(runs) - 1) * runs[0][1] < limits.shared_statements:
                    continue
                whole = {**places, **saved.places}
                for members in _by_form([run for run, _ in runs], outline, whole, saved.returned):
                    if (len(members) - 1) * runs[0][1] >= limits.shared_statements:
                        found.append(members)
                        used.update(node for run, _ in members for node in run.whole.nodes)
    return found


def _runs(found_rows: Rows, depth: int, used: set[fx.Node]) -> Iterator[Run]:
    """Of all modules whose paths have `depth` parts."""
    for graph, row in found_rows:
        current: list[Segment] = []
        key: tuple[str, str] | None = None
        for segment in [*row, None]:
            parts = [] if segment is None else segment.path.split(".")
            free = segment is not None and len(parts) >= depth and used.isdisjoint(segment.nodes)
            own = (".".join(parts[:depth]), segment.block.part) if segment is not None and free else None
            if current and own != key:
                yield Run(cast("tuple[str, str]", key)[0], graph, tuple(current))
                current = []
            key = own
            if segment is not None and own is not None:
                current.append(segment)


def _sketch(run: Run, outline: Outline, types: Mapping[str, str]) -> tuple[Any, int]:
    """What can be seen of a run without a look at its nodes, and how many statements it has."""
    seen, statements = [], 0
    for segment in run.segments:
        call = outline.calls.get(segment.nodes[-1])
        seen.append((under(segment.block.title, run.path), None if call is None else id(call.function),
                     len(segment.nodes)))
        statements += 1 if call is not None else sum("shape" in node.meta for node in segment.nodes)
    return (run.part, types.get(run.path), tuple(seen)), statements


def _by_form(runs: Sequence[Run], outline: Outline, places: Places, returned: Collection[fx.Node]) -> Classes:
    """Runs that are alike, but for few numbers."""
    found: dict[Any, list[tuple[Run, Form]]] = {}
    for run in runs:
        whole = run.whole
        if is_whole(whole):
            form = Form(whole, places, returned)
            found.setdefault(form.key[1:], []).append((run, form))
    classes: Classes = []
    for members in found.values():
        if len(arguments([(run.whole, form) for run, form in members], outline)) <= MOST_NUMBERS:
            classes.append(members)
            continue
        same: dict[Any, list[tuple[Run, Form]]] = {}
        for run, form in members:
            same.setdefault(tuple(in_code(run.whole, form, outline)), []).append((run, form))
        classes += same.values()
    return classes


def _saved(graph: fx.Graph, classes: Classes) -> Saved:
    """What runs forward make that is read for the last time on one way back of the same module."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    back: dict[str, list[Run]] = {}
    forward_runs: dict[str, int] = {}
    for members in classes:
        for run, _ in members:
            if run.part == "backward" and run.graph is graph:
                back.setdefault(run.path, []).append(run)
            elif run.part == "forward":
                forward_runs[run.path] = forward_runs.get(run.path, 0) + 1
    saved = Saved()
    for members in classes:
        for run, _ in members:
            ways = back.get(run.path, [])
            if run.part == "forward" and len(ways) == forward_runs[run.path] == 1:  # not a module that is called twice
                forward, way = set(run.whole.nodes), set(ways[0].whole.nodes)
                for key, node in _named(run).items():
                    others = [reader for reader in readers(node) if reader not in forward and reader not in way]
                    if _may_be_saved(node, way, others, order):
                        saved.places[node] = Place(SAVED, f"{run.path}.{key}")
                        if not all(_cuts(reader, node) for reader in others):
                            saved.returned.add(node)
    saved.places |= _in_turns(graph, saved.places)
    return saved


def _named(run: Run) -> dict[str, fx.Node]:
    """The values that others read, by keys that say where they are in the module: by its part, by the operation too
    where several of that part's are there, and by what they are beside the operation's own value, as its mean."""
    values = run.whole.values()
    titles = {node: under("" if (block := meta.block(node)) is None else block.title, run.path) for node in values}
    parts = {title.rpartition(": ")[0]: title for title in titles.values()}
    alone = {part for part, last in parts.items() if all(
        title == last for title in titles.values() if title.rpartition(": ")[0] == part)}
    found: dict[str, fx.Node] = {}
    own: tuple[Block | None, str, str] = None, "", ""
    for node in values:
        part, _, operation = titles[node].rpartition(": ")
        base = part if part and part in alone else f"{part}_{operation}" if part else operation
        block, hint = meta.block(node), meta.hint(node)
        beside = block is own[0] and bool(own[1]) and hint.startswith(f"{own[1]}_")
        base = f"{own[2]}{hint.removeprefix(own[1])}" if beside else base
        key, number = base, 1
        while key in found:
            number += 1
            key = f"{base}_{number}"
        found[key] = node
        own = own if beside else (block, hint, key)
    return found


def _may_be_saved(node: fx.Node, way: set[fx.Node], others: Sequence[fx.Node], order: Mapping[fx.Node, int]) -> bool:
    """Whether the way back reads it, after all others."""
    own, shape = [order[reader] for reader in readers(node) if reader in way], meta.shape(node)
    return (bool(own) and bool(shape) and cast("Shape", shape)[0] == "N"
            and max((order[reader] for reader in others), default=-1) < min(own))


def _cuts(loop: fx.Node, node: fx.Node) -> bool:
    """Whether it is a loop through several blocks that goes through the samples of the tensor."""
    return (isinstance(loop.target, Loop) and is_long(loop.target) and loop.target.axis == 0
            and node in cast("Any", loop.args[1]))


def _in_turns(graph: fx.Graph, saved: Places) -> dict[fx.Node, Place]:
    """The places of the parts that a loop's turn reads."""
    found: dict[fx.Node, Place] = {}
    for node in graph.nodes:
        if isinstance(node.target, Loop) and is_long(node.target) and node.target.axis == 0:
            totals, cut, _ = cast("tuple[tuple[fx.Node, ...], ...]", node.args)
            holders = [holder for holder in node.target.body.nodes if holder.op == "placeholder"]
            for holder, outer in zip(holders[len(totals):], cut, strict=False):
                if outer in saved:
                    found[holder] = Place(turn_table(node.target), saved[outer].key)
    return found


def turn_table(loop: Loop) -> str:
    """The table of the parts of what is saved, in a loop's turn."""
    return f"{SAVED}_{loop.letter}"


def _share(members: Sequence[tuple[Run, Form]], outline: Outline, places: Places, found: Outline,
           types: Mapping[str, str], returned: Collection[fx.Node]) -> None:
    """One function for these runs, and a call in the place of each."""
    run, _ = members[0]
    title = types.get(run.path) or run.path.rpartition(".")[2]
    headings = [Block(f"{other.path}: {title}", other.part) for other, _ in members]
    function = share([(other.whole, form) for other, form in members], headings[0], outline, places, found, returned,
                     headings)
    for node in () if function is None else function.graph.nodes:
        block = meta.block(node)
        if block is not None and node.op != "placeholder":
            node.meta["block"] = replace(block, title=under(block.title, run.path))
