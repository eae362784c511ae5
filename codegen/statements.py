"""A program's graph as statements: a line for each value that has a name, in order; loops; calls of functions."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import fx

from hbpcompiler.codegen.bodies import several
from hbpcompiler.codegen.calls import Call, Function
from hbpcompiler.codegen.functions import Functions
from hbpcompiler.codegen.inline import Inlining, all_pure
from hbpcompiler.codegen.lifetimes import Section, free_at_last_use
from hbpcompiler.codegen.loops import Totals, counted, shape_text, total_name, why, with_shape
from hbpcompiler.codegen.made_once import rows_of_calls
from hbpcompiler.codegen.modules import turn_table
from hbpcompiler.codegen.naming import Names, comment, identifier
from hbpcompiler.codegen.outline import IN_CHUNKS
from hbpcompiler.codegen.places import SAVED, in_inputs, is_of_results
from hbpcompiler.codegen.printer import ATOM, Text, expression, quote
from hbpcompiler.codegen.reuse import Reused
from hbpcompiler.codegen.roles import TOTAL
from hbpcompiler.codegen.segments import is_long, is_text
from hbpcompiler.codegen.tables import merged
from hbpcompiler.codegen.temporaries import NAME, Temporaries, fitting
from hbpcompiler.codegen.turns import VARIABLE, Turns, length_text, part_text
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.meta import Block
from hbpcompiler.compiler.program.nodes import facts, writes_in_place
from hbpcompiler.compiler.program.writer import Loop

MADE_ONCE = Block("what the modules' later lines share, made once", "backward")


class Printer:
    """Turns nodes into statements, in order."""

    def __init__(self, graph: fx.Graph, names: Names, given: Mapping[fx.Node, str], functions: Functions,
                 placed: Mapping[fx.Node, str]) -> None:
        self.graph, self.names, self.functions = graph, names, functions
        self.texts: dict[fx.Node, Text] = {node: (name, ATOM) for node, name in given.items()}
        self.placed = placed
        """Entries of tables, which are written as such and not as variables."""
        self.texts |= {node: (text, ATOM) for node, text in placed.items() if node in functions.outline.inside}
        self.reused = Reused(graph, names, functions.outline) if functions.large else None
        self.rows = rows_of_calls(graph, functions.outline)
        self.in_rows = {node for nodes in self.rows.values() for node in nodes}
        self.inlining = Inlining(graph, functions, placed)
        self.temporaries = Temporaries(self.texts, functions.subject, functions.wished, functions.asked)
        self.totals = Totals(functions, self.look)
        self.turns = Turns(self)

    def inside(self, graph: fx.Graph, names: Names, given: Mapping[fx.Node, str], functions: Functions,
               placed: Mapping[fx.Node, str]) -> Printer:
        """One for a loop's body or a function."""
        return Printer(graph, names, given, functions, placed)

    def statements(self, without_results: bool = False) -> Iterator[tuple[Block | None, list[str]]]:
        """(block, lines) per node that needs lines."""
        for node in self.graph.nodes:
            if node.op in ("placeholder", "output") or (without_results and is_of_results(node)):
                continue
            lines = self._lines(node)
            if lines:
                yield self._heading(node), lines

    def _heading(self, node: fx.Node) -> Block | None:
        if node in self.rows:
            return MADE_ONCE
        call = self.functions.outline.calls.get(node)
        return meta.block(node) if call is None or call.block is None else call.block

    def _lines(self, node: fx.Node) -> list[str]:
        outline = self.functions.outline
        if node in self.in_rows:
            return self._row(self.rows[node]) if node in self.rows else []
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
        return [with_shape(f"{self._named(node)} = {text}", node)]

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
        hint = self.functions.asked(node)
        if not hint and not otherwise and (kept := self.temporaries.kept(node)):
            if self.reused is not None:
                self.reused.keeps(node, kept)
            return kept
        if (hint or otherwise == TOTAL) and self.reused is not None:
            return self.reused.name(node, hint or otherwise, before)
        if hint and (grown := self._grown(node)):
            return grown
        name = self.names.fresh(hint or otherwise or self.temporaries.wish(node))
        if not hint and not otherwise:
            self.temporaries.gave(node, name)
        return name

    def _grown(self, node: fx.Node) -> str:
        """The name of a sum that this node adds one more term to, if both ask for one name and nothing else reads it:
        columns arrive at a value one by one."""
        before = node.args[0] if node.target in (operator.add, "index_add") else None
        if not isinstance(before, fx.Node) or before.op == "placeholder" or list(before.users) != [node]:
            return ""
        name = self.texts[before][0]
        known = before not in self.placed and VARIABLE.fullmatch(name) is not None
        return name if known and meta.hint(before) == meta.hint(node) else ""

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
        if len(call.values) == 1 and self.inlining.in_next_line(call.values[0], text) and all_pure(call.function.graph):
            self.texts[call.values[0]] = (text, ATOM)
            return []
        values = [self._named(node, self._wish_of_call(call, inside))
                  for node, inside in zip(call.values, self.functions.inside[id(call.function)], strict=True)]
        if not values:
            return [text]
        return [f"{several(values)} = {text}  # {', '.join(shape_text(node) for node in call.values)}"]

    def _wish_of_call(self, call: Call, inside: str) -> str:
        """What a value that no name was asked for is called: where it is, and what the function calls it."""
        if call.function.block.title.endswith(IN_CHUNKS):
            return TOTAL
        where = "" if call.path == quote("") or self.functions.bare else call.path
        return fitting(identifier(f"{where}_{inside}" if NAME.fullmatch(inside) else where))

    def _row(self, nodes: Sequence[fx.Node]) -> list[str]:
        """Calls that differ by their paths alone."""
        calls = [self.functions.outline.calls[node] for node in nodes]
        text = self.functions.call(replace(calls[0], path="path"), [], self._printed)
        return [f"for path in [{', '.join(call.path for call in calls)}]:", f"    {text}"]

    def _printed(self, function: Function, names: Names, given: Mapping[fx.Node, str], placed: Mapping[fx.Node, str],
                 head: Sequence[str]) -> tuple[list[str], list[str]]:
        """A function's graph as lines, and its values."""
        functions = replace(self.functions, outline=function.outline, places={}, in_module=function.of_module,
                            sizes=function.sizes, bare=True,
                            leaves={leaf for _, leaf in function.entries.values()})
        printer = Printer(function.graph, names, given, functions, placed)
        sections = [Section("", [*head])]
        for block, lines in printer.statements():
            title, formula = (comment(block.title), comment(block.formula)) if block is not None else ("", "")
            if title != sections[-1].title:
                sections.append(Section(title, formula=formula))
            sections[-1].lines += lines
        values = [printer.look(node)[0] for node in function.values]
        if function.of_module:
            free_at_last_use(sections, values, self.functions.limits, function.sizes)
        found: list[str] = []
        for section in sections:
            long = function.of_module and sum(not line.startswith("del ") for line in section.lines) > 1
            found += [*([f"# {section.heading}"] if long and section.title else []), *section.lines]
        return found, values

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
                wish = (self.temporaries.wished(user) or self.temporaries.of_its_reader(user)
                        or f"{self.temporaries.wish(node)}_{position}")
                names[position] = self._named(user, wish)
            self.texts[user] = (names[position], ATOM)
            if "shape" in user.meta:
                shapes[position] = f"[{', '.join(user.meta['shape'])}]"
        of_each = ", ".join(shape for _, shape in sorted(shapes.items()))
        return [f"{', '.join(names)} = {text}" + f"  # {of_each}" * bool(of_each)]

    def _loop(self, node: fx.Node, loop: Loop) -> list[str]:
        accumulators, cut, whole = cast("tuple[tuple[fx.Node, ...], ...]", node.args)  # as Writer.loop wrote them
        totals, lines = self._totals_of_loop(node, accumulators)
        start = self.names.fresh("first")
        if not loop.in_one_turn:
            length = length_text(self.look(cut[0])[0], loop.axis)
            length = f"max(1, {length})" if loop.begins else length  # the first turn writes totals, over nothing too
            turn = f"{loop.chunk} {counted(cut[0], loop)} a turn{why(loop)}"
            lines.append(f"for {start} in range(0, {length}, {loop.chunk}):  # {turn}")
        stop = f"{start} + {loop.chunk}"
        slices = f"[:, {start}:{stop}]" if loop.axis else f"[{start}:{stop}]"
        at, begun = ("", "0.0") if loop.in_one_turn else (slices, f"float({start} > 0)")
        given = [*totals[:loop.totals], *(f"{name}[{start}:{stop}]" for name in totals[loop.totals:])]
        parts = [self.look(outer)[0] for outer in cut]
        rest = [*(self.look(outer)[0] for outer in whole), *([begun] if loop.begins else [])]
        holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"][len(given):]
        kept = self.functions.texts_of_places(loop.body)  # parts that stand in a table for this turn
        cuts = [kept.get(holder, part_text(holder, outer, at)) for holder, outer in zip(holders, parts, strict=False)]
        texts = [*given, *cuts, *rest]
        if is_long(loop) and self.functions.places:
            sections = merged(self.turns.turn(node, loop, texts))
            table = turn_table(loop)
            if any(text.startswith(f"{table}[") for text in cuts):
                sections[0].lines.insert(0, f"{table} = {{name: value{at} for name, value in {SAVED}.items()}}")
                sections[-1].lines.append(f"{table}.clear()")
        else:
            sections = self.turns.short(node, loop, given, parts, at, rest, texts)
        indent = "" if loop.in_one_turn else "    "
        for section in sections:
            if section.title:
                lines += ["", f"{indent}# {section.heading}"]
            lines += [f"{indent}{line}" if line else line for line in section.lines]
        self.names.taken.discard(start)  # the next loop's, which is not inside this one
        return lines

    def _totals_of_loop(self, node: fx.Node, accumulators: Sequence[fx.Node]) -> tuple[list[str], list[str]]:
        """What a loop adds to or fills, by name, and the lines that make what is not there yet."""
        lines: list[str] = []
        entries: dict[tuple[str, str], list[fx.Node]] = {}
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
            name = self.names.fresh(TOTAL) if result is None else self._named(
                result, TOTAL if self.functions.short else self.temporaries.wished(result) or total_name(result), node)
            self.texts[accumulator] = (name, ATOM)
            totals.append(name)
            if result is not None and result in self.functions.places:
                text, shape = self.totals.by_its_parameter(accumulator, result) or (text, shape_text(accumulator))
                entries.setdefault((text, shape), []).append(result)
            else:
                lines.append(with_shape(f"{name} = {text}", accumulator))
        return totals, lines + self.totals.zeros(entries)
