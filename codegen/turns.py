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
from hbpcompiler.codegen.places import ENDS
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.meta import Block, Role
from hbpcompiler.compiler.program.writer import Loop

VARIABLE = re.compile(rf"(?:{ENDS}\.)?(?P<name>[A-Za-z_]\w*)")
"""At the beginning of a slice of it, or of a table's entry."""


class Prints(Protocol):
    """What turns nodes into statements (see `statements`)."""

    names: Names
    functions: Functions
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
        """The lines of a turn under one heading; the call of a function if it makes large tensors, which would live on
        in the next turn."""
        if self._frees(node, loop, texts):
            return [Section("", [self._turn_call(node, loop, texts)])]
        return self._with_slices(node, loop, totals, parts, at, rest)

    def _with_slices(self, node: fx.Node, loop: Loop, totals: Sequence[str], parts: Sequence[str], at: str,
                     rest: Sequence[str]) -> list[Section]:
        """The lines of a turn that slices at its head."""
        holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"]
        head: list[str] = []
        texts = [*totals]
        for holder, outer in zip(holders[len(totals):], parts, strict=False):
            # What is cut in a loop has the loop's letter at its end, once.
            bare = "_".join(word for word in outer.split("_") if word != loop.letter)
            texts.append(self.names.fresh(f"{bare}_{loop.letter}") if holder.users else "")
            if holder.users:
                head.append(with_shape(f"{texts[-1]} = {outer}{at}", holder))
        sections = self.turn(node, loop, [*texts, *rest])
        sections[0].lines[:0] = head
        return sections

    def _frees(self, node: fx.Node, loop: Loop, texts: Sequence[str]) -> bool:
        """Whether a turn makes large tensors, which would live on in the next one."""
        scratch = self.printer.inside(fx.Graph(), Names(), {}, self.functions.scratch(), {})
        sections = scratch.turns.turn(node, loop, texts)
        return free_at_last_use([*sections, Section("")], limits=self.functions.limits)

    def _turn_call(self, node: fx.Node, loop: Loop, texts: Sequence[str]) -> str:
        """A loop's body as the call of a function, whose frame ends what a turn has made."""
        names = Names()
        letters = letters_in(loop.body)
        names.taken.update(letters)
        given: list[str] = []
        parameters, arguments = [], []
        holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"]
        for holder, text in zip(holders, texts, strict=True):
            match = None if meta.role(holder) is Role.KEPT else VARIABLE.match(text)
            wish = match["name"] if match is not None else "kept" if meta.role(holder) is Role.KEPT else "total"
            given.append(names.fresh(wish) if holder.users else "")
            if holder.users:
                parameters.append(f"{given[-1]}: {meta.annotation(holder)}")
                arguments.append(text)
        parameters += [f"{letter}: int" for letter in letters]
        arguments += letters
        inner = self.printer.inside(fx.Graph(), names, {}, replace(self.functions, outline=Outline(), places={}), {})
        sections = inner.turns.turn(node, loop, given)
        free_at_last_use(sections, limits=self.functions.limits)
        lines: list[str] = []
        for section in sections:
            lines += [*(["", f"# {section.heading}"] if section.title else []), *section.lines]
        block = meta.block(node)
        title = comment(block.title.rpartition(": ")[2]) if block is not None else "loop"
        name = self.functions.define(f"{identifier(title)}_turn", parameters,
                                     f"{title}: one turn of a loop, which adds to its totals.", lines)
        return f"{name}({', '.join(arguments)})"

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
                sections.append(Section(comment(block.title), formula=comment(block.formula)))
                heading = block
            sections[-1].lines += lines
        return sections
