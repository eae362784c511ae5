"""A loop's turn: in its place, where it slices at its head, or as a call of a function."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from torch import fx

from hbpcompiler.codegen.calls import Outline
from hbpcompiler.codegen.copying import letters_in
from hbpcompiler.codegen.functions import Functions
from hbpcompiler.codegen.lifetimes import Section, free_at_last_use
from hbpcompiler.codegen.loops import with_shape
from hbpcompiler.codegen.naming import Names, comment, identifier
from hbpcompiler.codegen.places import ENDS, PARAMETERS
from hbpcompiler.codegen.roles import TOTAL
from hbpcompiler.codegen.segments import is_long, times_read
from hbpcompiler.codegen.temporaries import Temporaries
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.meta import Block, Role
from hbpcompiler.compiler.program.writer import Loop

ENTRY = re.compile(rf"(?:{ENDS}\.)?\w+\[[^\]]*?(?P<leaf>[A-Za-z_]\w*)\"\]")
"""At the beginning of a table's entry, or of a slice of it: the last part of its key."""
OF_TOTAL = re.compile(rf"(^|_){TOTAL}(_\d+)?$")
VARIABLE = re.compile(rf"(?:{ENDS}\.)?(?P<name>[A-Za-z_]\w*)")
"""At the beginning of a slice of it, or of a table's entry."""

CUT = re.compile(r"\[(?P<first>:|\w+:[\w + ]+)(?:, (?P<second>\w+:[\w + ]+))?\]$")
"""At the end of a text: a slice along the first axis, along the second, or both."""


NONE_IF = "None if "


def cut_again(text: str, at: str) -> str:
    """A slice of a tensor, which may be a slice along the other axis already: one slice along both."""
    before, now = CUT.search(text), CUT.match(at)
    if before is None or now is None:
        return f"{text}{at}"
    if before["second"] is None and now["second"] is not None:
        return f"{text[:before.start()]}[{before['first']}, {now['second']}]"
    if before["first"] == ":" and now["second"] is None:
        return f"{text[:before.start()]}[{now['first']}, {before['second']}]"
    return f"{text}{at}"


def part_text(holder: fx.Node, text: str, at: str) -> str:
    """What stands for a chunk's part in a turn; of weights, of which there may be none, none."""
    part = cut_again(text, at)
    return f"{NONE_IF}{text} is None else {part}" if meta.annotation(holder).startswith("Optional") else part


def length_text(text: str, axis: int) -> str:
    """How long a tensor is along the first or the second axis, of which a slice along the other says nothing."""
    cut = CUT.search(text)
    if cut is not None and axis:
        whole = text[:cut.start()] + ("" if cut["second"] is None else f"[:, {cut['second']}]")
    elif cut is not None and cut["second"] is not None:
        whole = text[:cut.start()] + ("" if cut["first"] == ":" else f"[{cut['first']}]")
    else:
        whole = text
    return f"{whole}.shape[{axis}]"


class Prints(Protocol):
    """What turns nodes into statements (see `statements`)."""

    names: Names
    functions: Functions
    temporaries: Temporaries
    turns: Turns

    def inside(self, graph: fx.Graph, names: Names, given: Mapping[fx.Node, str], functions: Functions,
               placed: Mapping[fx.Node, str]) -> Prints: ...

    def statements(self, without_results: bool = False) -> Iterator[tuple[Block | None, list[str]]]: ...


class Turns:
    """Writes the turns of one graph's loops."""

    def __init__(self, printer: Prints) -> None:
        self.printer, self.names, self.functions = printer, printer.names, printer.functions

    def short(self, node: fx.Node, loop: Loop, totals: Sequence[str], parts: Sequence[str], at: str,
              rest: Sequence[str], texts: Sequence[str]) -> list[Section]:
        """The lines of a turn under one heading, which slices at its head; the call of a function if it has a loop
        inside, or names for large tensors or slices of large tensors, which would live on behind it."""
        if any(isinstance(inside.target, Loop) for inside in loop.body.nodes):
            return [Section("", [self._turn_call(node, loop, texts)])]
        names = Names()
        names.taken = set(self.names.taken)
        trial = self.printer.inside(fx.Graph(), names, {}, self.functions.scratch(), {}).turns
        slices, sections = trial._with_slices(node, loop, totals, parts, at, rest)
        sections = [Section("", slices), *sections, Section("")]
        if free_at_last_use(sections, (), self.functions.limits, self.functions.sizes):
            return [Section("", [self._turn_call(node, loop, texts)])]
        head, sections = self._with_slices(node, loop, totals, parts, at, rest)
        sections[0].lines[:0] = head
        return sections

    def _with_slices(self, node: fx.Node, loop: Loop, totals: Sequence[str], parts: Sequence[str], at: str,
                     rest: Sequence[str]) -> tuple[list[str], list[Section]]:
        """The slices at the head of a turn, and its lines. What is read once is cut where it is read: a slice with a
        name would keep its whole tensor alive when the loop is over and that tensor's own name is gone."""
        holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"]
        head: list[str] = []
        texts = [*totals]
        for holder, outer in zip(holders[len(totals):], parts, strict=False):
            texts.append(part_text(holder, outer, at))
            if sum(times_read(holder, user) for user in holder.users) > 1:
                # What is cut in a loop has the loop's letter at its end, once.
                bare = "_".join(word for word in CUT.sub("", outer).split("_") if word != loop.letter)
                head.append(with_shape(f"{self.names.fresh(f'{bare}_{loop.letter}')} = {texts[-1]}", holder))
                texts[-1] = head[-1].partition(" = ")[0]
        return head, self.turn(node, loop, [*texts, *rest])

    def _turn_call(self, node: fx.Node, loop: Loop, texts: Sequence[str]) -> str:
        """A loop's body as the call of a function, whose frame ends what a turn has made."""
        names = Names()
        letters, bare = letters_in(loop.body), self.functions.bare or self.functions.short or not is_long(loop)
        names.taken.update(letters)
        given: list[str] = []
        parameters, arguments = [], []
        holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"]
        alone = sum(meta.role(holder) in (Role.TOTAL, Role.ROWS) for holder in holders) == 1
        for holder, text in zip(holders, texts, strict=True):
            given.append(names.fresh(self._inside(holder, text, alone, bare)) if holder.users else "")
            if holder.users:
                parameters.append(f"{given[-1]}: {meta.annotation(holder)}")
                arguments.append(text)
        parameters += [f"{letter}: int" for letter in letters]
        arguments += letters
        functions = replace(self.functions, outline=Outline(), places={}, bare=bare)
        inner = self.printer.inside(fx.Graph(), names, {}, functions, {})
        sections = inner.turns.turn(node, loop, given)
        free_at_last_use(sections, (), self.functions.limits, self.functions.sizes)
        lines: list[str] = []
        for section in sections:
            lines += [*([""] if section.title and lines else []), *([f"# {section.heading}"] if section.title else []),
                      *section.lines]
        block = meta.block(node)
        title = comment(block.title.rpartition(": ")[2]) if block is not None else "loop"
        name = self.functions.define(f"{identifier('_'.join([title, loop.over]))}_turn", parameters,
                                     f"{title}: {loop.about or 'one turn of a loop, which adds to its totals'}.", lines)
        return f"{name}({', '.join(arguments)})"

    def _inside(self, holder: fx.Node, text: str, alone: bool, bare: bool) -> str:
        """What a turn's function calls what it is given: if `bare` its role, without where it is; an `alone` total
        so."""
        match = VARIABLE.match(text.removeprefix(NONE_IF))
        if meta.role(holder) is Role.KEPT or match is None:
            return "kept" if meta.role(holder) is Role.KEPT else TOTAL
        name = match["name"]
        if not bare:
            return name
        entry = ENTRY.match(text)
        if entry is not None and name == PARAMETERS:
            return entry["leaf"]
        if meta.role(holder) in (Role.TOTAL, Role.ROWS):
            return TOTAL if alone or OF_TOTAL.search(name) else self.functions.where.without(name)
        if meta.annotation(holder) != "Tensor":
            return name
        origin = self.printer.temporaries.origin(name)
        found = self.functions.where.bare(origin)
        return f"{found}{name.removeprefix(origin)}" if name.startswith(origin) else found

    def turn(self, node: fx.Node, loop: Loop, given: Sequence[str]) -> list[Section]:
        """A loop's body, `given` the texts of its placeholders."""
        holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"]
        placed = self.functions.texts_of_places(loop.body)
        texts = dict(zip(holders, given, strict=True))
        printer = self.printer.inside(loop.body, self.names, texts, self.functions, placed)
        sections = [Section("")]
        heading: Block | None = node.meta.get("block")
        for block, lines in printer.statements():
            if block is not None and heading is not None and block.title != heading.title:
                sections.append(Section(comment(block.title), formula=comment(block.in_loops)))
                heading = block
            sections[-1].lines += lines
        return sections
