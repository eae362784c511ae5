"""A program's graph as statements: a line for each value that has a name, in order; loops; calls of functions."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import fx

from hbpcompiler.codegen.copying import letters_in
from hbpcompiler.codegen.functions import Functions, function_stem, several
from hbpcompiler.codegen.inline import Inlining, all_pure
from hbpcompiler.codegen.lifetimes import Section, free_at_last_use
from hbpcompiler.codegen.naming import Names, comment, identifier
from hbpcompiler.codegen.outline import Call, Outline
from hbpcompiler.codegen.places import in_inputs, is_of_results
from hbpcompiler.codegen.printer import ATOM, Text, expression, quote
from hbpcompiler.codegen.reuse import Reused
from hbpcompiler.codegen.segments import blocks_in, is_text
from hbpcompiler.codegen.tables import merged
from hbpcompiler.codegen.temporaries import Temporaries
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.meta import Block, Role
from hbpcompiler.compiler.program.nodes import facts, writes_in_place
from hbpcompiler.compiler.program.writer import Loop

COUNTED = {"n": "samples", "k": "columns"}
"""By the letter of a loop's axis."""
VARIABLE = re.compile(r"[A-Za-z_]\w*")
"""At the beginning of a slice of it."""


class Printer:
    """Turns nodes into statements, in order."""

    def __init__(self, graph: fx.Graph, names: Names, given: Mapping[fx.Node, str], functions: Functions,
                 placed: Mapping[fx.Node, str]) -> None:
        self.graph, self.names, self.functions = graph, names, functions
        self.texts: dict[fx.Node, Text] = {node: (name, ATOM) for node, name in given.items()}
        self.placed = placed
        """Entries of tables, which are written as such and not as variables."""
        self.texts |= {node: (text, ATOM) for node, text in placed.items() if node in functions.outline.inside}
        self.reused = Reused(graph, names, functions.outline) if functions.places else None
        self.inlining = Inlining(graph, functions, placed)
        self.temporaries = Temporaries(self.texts)

    def statements(self, without_results: bool = False) -> Iterator[tuple[Block | None, list[str]]]:
        """(block, lines) per node that needs lines."""
        for node in self.graph.nodes:
            if node.op in ("placeholder", "output") or (without_results and is_of_results(node)):
                continue
            lines = self._lines(node)
            if lines:
                yield node.meta.get("block"), lines

    def _lines(self, node: fx.Node) -> list[str]:
        outline = self.functions.outline
        if node in outline.calls:
            return self._call(outline.calls[node])
        if node in outline.inside or is_text(node):
            return []
        if node in self.placed and in_inputs(node):
            self.texts[node] = (self.placed[node], ATOM)
            return []  # its table is made in front of all
        if isinstance(node.target, Loop):
            return self._loop(node, node.target)
        if self._accumulator(node):
            return []  # printed where its loop begins
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and isinstance(
            node.args[0].target, Loop
        ):
            return []  # the loop's printing named it
        if node in self.texts:
            return []  # named where its tuple was unpacked
        text, binds = expression(node, self.look)
        if "results" in node.meta:
            return self._unpacked(node, text)
        if self._keeps_its_name(node):
            return [text]
        if not node.users:
            return [text] if writes_in_place(node) else []
        if self.inlining.is_inline(node, text):
            self.texts[node] = (text, binds)
            return []
        return [_with_shape(f"{self._named(node)} = {text}", node)]

    def look(self, node: fx.Node) -> Text:
        """How a node is written; shapes and numbers when they are read, as their tensor may be a function's result."""
        if node not in self.texts and is_text(node):
            self.texts[node] = expression(node, self.look)
        return self.texts[node]

    def _named(self, node: fx.Node, otherwise: str = "", before: fx.Node | None = None) -> str:
        """The name of a value from here on: an entry of a table, or a variable."""
        name = self.placed.get(node) or self._variable(node, otherwise, before)
        self.texts[node] = (name, ATOM)
        return name

    def _variable(self, node: fx.Node, otherwise: str, before: fx.Node | None) -> str:
        """The name that was asked for, or one after what the node is made of."""
        hint = str(node.meta.get("hint") or "")
        if not hint and not otherwise and (kept := self.temporaries.kept(node)):
            if self.reused is not None:
                self.reused.keeps(node, kept)
            return kept
        if hint and self.reused is not None:
            return self.reused.name(node, hint, before)
        name = self.names.fresh(hint or otherwise or self.temporaries.wish(node))
        if not hint and not otherwise:
            self.temporaries.gave(node, name)
        return name

    def _keeps_its_name(self, node: fx.Node) -> bool:
        """Whether a variable is changed in place and goes on under the name that was asked for: a running total."""
        before = node.args[0] if writes_in_place(node) else None
        if not isinstance(before, fx.Node) or before not in self.texts or node in self.placed:
            return False
        name, asked = self.texts[before][0], meta.hint(node)
        if VARIABLE.fullmatch(name) is None or not asked or asked != meta.hint(before):
            return False
        self._goes_on(node, name)
        return True

    def _goes_on(self, node: fx.Node, name: str) -> None:
        """The node has the name of what it changes."""
        self.texts[node] = (name, ATOM)
        if self.reused is not None:
            self.reused.keeps(node, name)

    def _call(self, call: Call) -> list[str]:
        """A block as a call of the function that it shares with others."""
        text = self.functions.call(call, [self.look(node)[0] for node in call.inputs], self._printed)
        otherwise = f"{identifier(call.path)}_part" if call.path else ""
        if len(call.values) == 1 and self.inlining.in_next_line(call.values[0], text) and all_pure(call.function.graph):
            self.texts[call.values[0]] = (text, ATOM)
            return []
        values = [self._named(node, otherwise) for node in call.values]
        if not values:
            return [text]
        return [f"{several(values)} = {text}  # {' '.join(_shape(node) for node in call.values)}"]

    def _printed(self, graph: fx.Graph, names: Names, given: Mapping[fx.Node, str], placed: Mapping[fx.Node, str],
                 ) -> tuple[list[str], Callable[[fx.Node], str]]:
        """A function's graph as lines."""
        printer = Printer(graph, names, given, replace(self.functions, outline=Outline(), places={}), placed)
        lines = [line for _, part in printer.statements() for line in part]
        return lines, lambda node: printer.look(node)[0]

    @staticmethod
    def _accumulator(node: fx.Node) -> bool:
        if len(node.users) != 1 or not facts(node).buffer:
            return False
        (user,) = node.users
        return isinstance(user.target, Loop) and node in cast("tuple[fx.Node, ...]", user.args[0])

    def _unpacked(self, node: fx.Node, text: str) -> list[str]:
        """`values, indices = call(...)`: a name for each result that is read."""
        names = ["_"] * node.meta["results"]
        shapes: dict[int, str] = {}
        for user in node.users:
            if user.target is not operator.getitem or not isinstance(user.args[1], int):
                raise TypeError(f"{text}: a call with several results must be read by index")
            position = user.args[1]
            if names[position] == "_":
                names[position] = self._named(user, meta.wish(user) or f"{self.temporaries.wish(node)}_{position}")
            self.texts[user] = (names[position], ATOM)
            if "shape" in user.meta:
                shapes[position] = f"[{', '.join(user.meta['shape'])}]"
        of_each = ", ".join(dict.fromkeys(shape for _, shape in sorted(shapes.items())))
        return [f"{', '.join(names)} = {text}" + f"  # {of_each}" * bool(of_each)]

    def _loop(self, node: fx.Node, loop: Loop) -> list[str]:
        accumulators, cut, whole = cast("tuple[tuple[fx.Node, ...], ...]", node.args)  # as Writer.loop wrote them
        lines: list[str] = []
        entries: dict[str, list[fx.Node]] = {}
        results = {cast("int", user.args[1]): user for user in node.users}  # getitem's index
        totals: list[str] = []
        for position, accumulator in enumerate(accumulators):
            result = results.get(position)
            if accumulator in self.texts:  # a total that goes on
                totals.append(self.texts[accumulator][0])
                if result is not None:
                    self._goes_on(result, totals[-1])
                continue
            text, _ = expression(accumulator, self.look)
            name = self.names.fresh("total") if result is None else self._named(result, _total(result), node)
            self.texts[accumulator] = (name, ATOM)
            totals.append(name)
            if result is not None and result in self.functions.places:
                entries.setdefault(_with_shape(text, accumulator), []).append(result)
            else:
                lines.append(_with_shape(f"{name} = {text}", accumulator))
        lines += self._zeros(entries)
        start = self.names.fresh("first")
        lead = self.look(cut[0])[0]
        length = f"{lead}.shape[{loop.axis}]"
        length = f"max(1, {length})" if loop.begins else length  # the first turn writes its totals, over nothing too
        turn = f"{loop.chunk} {_counted(cut[0], loop)} a turn"
        lines.append(f"for {start} in range(0, {length}, {loop.chunk}):  # {turn}")
        stop = f"{start} + {loop.chunk}"
        at = f"[:, {start}:{stop}]" if loop.axis else f"[{start}:{stop}]"
        given = [*totals[:loop.totals], *(f"{name}[{start}:{stop}]" for name in totals[loop.totals:])]
        parts = [self.look(outer)[0] for outer in cut]
        rest = [*(self.look(outer)[0] for outer in whole), *([f"float({start} > 0)"] if loop.begins else [])]
        texts = [*given, *(f"{outer}{at}" for outer in parts), *rest]
        if blocks_in(loop) > 1 and self.functions.places:
            sections = merged(self._turn(node, loop, texts))
        elif self._frees(node, loop, texts):
            sections = [Section("", [self._turn_call(node, loop, texts)])]
        else:
            sections = self._short_turn(node, loop, given, parts, at, rest)
        for section in sections:
            if section.title:
                lines += ["", f"    # {section.heading}"]
            lines += [f"    {line}" if line else line for line in section.lines]
        return lines

    def _zeros(self, entries: Mapping[str, Sequence[fx.Node]]) -> list[str]:
        """Totals that stand in tables, those of one size in a line or a loop."""
        lines = []
        for text, nodes in entries.items():
            tables: dict[str, list[str]] = {}
            for node in nodes:
                tables.setdefault(self.functions.places[node].table, []).append(self.functions.places[node].key)
            for table, keys in tables.items():
                if len(keys) == 1:
                    lines.append(f"{table}[{quote(keys[0])}] = {text}")
                else:
                    name = self.names.fresh("name")
                    lines += [f"for {name} in [{', '.join(map(quote, keys))}]:", f"    {table}[{name}] = {text}"]
                    self.names.taken.discard(name)
        return lines

    def _short_turn(self, node: fx.Node, loop: Loop, totals: Sequence[str], parts: Sequence[str], at: str,
                    rest: Sequence[str]) -> list[Section]:
        """The lines of a loop that slices at its head."""
        holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"]
        head: list[str] = []
        texts = [*totals]
        for holder, outer in zip(holders[len(totals):], parts, strict=False):
            # What is cut in a loop has the loop's letter at its end, once.
            bare = "_".join(word for word in outer.split("_") if word != loop.letter)
            texts.append(self.names.fresh(f"{bare}_{loop.letter}") if holder.users else "")
            if holder.users:
                head.append(_with_shape(f"{texts[-1]} = {outer}{at}", holder))
        sections = self._turn(node, loop, [*texts, *rest])
        sections[0].lines[:0] = head
        return sections

    def _frees(self, node: fx.Node, loop: Loop, texts: Sequence[str]) -> bool:
        """Whether a turn makes large tensors, which would live on in the next one."""
        scratch = Printer(fx.Graph(), Names(), {}, self.functions.scratch(), {})
        sections = scratch._turn(node, loop, texts)
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
            wish = match[0] if match is not None else "kept" if meta.role(holder) is Role.KEPT else "total"
            given.append(names.fresh(wish) if holder.users else "")
            if holder.users:
                parameters.append(f"{given[-1]}: {meta.annotation(holder)}")
                arguments.append(text)
        parameters += [f"{letter}: int" for letter in letters]
        arguments += letters
        inner = Printer(fx.Graph(), names, {}, replace(self.functions, outline=Outline(), places={}), {})
        sections = inner._turn(node, loop, given)
        free_at_last_use(sections, limits=self.functions.limits)
        lines: list[str] = []
        for section in sections:
            lines += [*(["", f"# {section.heading}"] if section.title else []), *section.lines]
        block = meta.block(node)
        title = comment(block.title.rpartition(": ")[2]) if block is not None else "loop"
        name = self.functions.define(f"{function_stem(title)}_turn", parameters,
                                     f"{title}: one turn of a loop, which adds to its totals.", lines)
        return f"{name}({', '.join(arguments)})"

    def _turn(self, node: fx.Node, loop: Loop, given: Sequence[str]) -> list[Section]:
        """A loop's body, `given` the texts of its placeholders."""
        holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"]
        placed = self.functions.texts_of_places(loop.body)
        printer = Printer(loop.body, self.names, dict(zip(holders, given, strict=True)), self.functions, placed)
        sections = [Section("")]
        heading: Block | None = node.meta.get("block")
        for block, lines in printer.statements():
            if block is not None and heading is not None and block.title != heading.title:
                sections.append(Section(comment(block.title), formula=comment(block.formula)))
                heading = block
            sections[-1].lines += lines
        return sections


def _total(result: fx.Node) -> str:
    """What a loop's total is called that no name was asked for: after what is made of it."""
    readers = [user.meta.get("hint") for user in result.users if user.meta.get("hint")]
    return f"{readers[0]}_total" if readers else "total"


def _counted(lead: fx.Node, loop: Loop) -> str:
    """What a loop goes through, in words."""
    if loop.letter not in COUNTED:
        return f"{loop.letter}s"
    shape = meta.shape(lead)
    merged = shape is not None and "*" in shape[loop.axis]  # samples times what each was cut into
    return "rows" if merged else COUNTED[loop.letter]


def _with_shape(line: str, node: fx.Node) -> str:
    return line if "shape" not in node.meta else f"{line}  # {_shape(node)}"


def _shape(node: fx.Node) -> str:
    return f"[{', '.join(node.meta['shape'])}]"
