"""Stage 6, emit: the optimised graph as one readable file of straight-line Python."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import jinja2
from torch import fx

from hbpcompiler.codegen.definitions import definitions
from hbpcompiler.codegen.layout import laid_out
from hbpcompiler.codegen.lifetimes import Section, free_at_last_use
from hbpcompiler.codegen.naming import Names, comment
from hbpcompiler.codegen.printer import ATOM, Text, expression, quote
from hbpcompiler.codegen.temporaries import Temporaries
from hbpcompiler.compiler.program.meta import Block
from hbpcompiler.compiler.program.nodes import facts, is_pure, writes_in_place
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.quantities import QUANTITIES

INLINE_WIDTH = 88
"""An expression longer than this gets its own line."""


@dataclass
class Header:
    """What the file says about itself."""

    model: str
    quantities: tuple[str, ...]
    versions: str
    table: Sequence[str]
    notes: Sequence[str] = ()


class _Printer:
    """Turns nodes into statements, in order."""

    def __init__(self, graph: fx.Graph, names: Names, given: Mapping[fx.Node, str] | None = None) -> None:
        self.graph, self.names = graph, names
        self.texts: dict[fx.Node, Text] = {node: (name, ATOM) for node, name in (given or {}).items()}
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.temporaries = Temporaries(self.texts)
        self.writes = [position for node, position in self.order.items() if writes_in_place(node)]

    def statements(self) -> Iterator[tuple[Block | None, list[str]]]:
        """(block, lines) per node that needs lines."""
        for node in self.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            lines = self._lines(node)
            if lines:
                yield node.meta.get("block"), lines

    def _lines(self, node: fx.Node) -> list[str]:
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
        text, binds = expression(node, self.texts.__getitem__)
        if "results" in node.meta:
            return self._unpacked(node, text)
        if not node.users:
            return [text] if writes_in_place(node) else []
        if self._inline(node, text):
            self.texts[node] = (text, binds)
            return []
        name = self._name(node)
        self.texts[node] = (name, ATOM)
        return [_with_shape(f"{name} = {text}", node)]

    @staticmethod
    def _accumulator(node: fx.Node) -> bool:
        if len(node.users) != 1:
            return False
        (user,) = node.users
        return isinstance(user.target, Loop) and node in cast("tuple[fx.Node, ...]", user.args[0])

    def _name(self, node: fx.Node) -> str:
        """The name that was asked for, or one after what the node is made of."""
        if node.meta.get("hint"):
            return self.names.fresh(node.meta["hint"])
        if kept := self.temporaries.kept(node):
            return kept
        name = self.names.fresh(self.temporaries.wish(node))
        self.temporaries.gave(node, name)
        return name

    def _inline(self, node: fx.Node, text: str) -> bool:
        """A short pure expression that one line reads is written into that line."""
        if "shape" not in node.meta and not node.meta.get("hint") and is_pure(node):
            return True  # numbers, shapes and dtypes
        if node.meta.get("hint") or len(node.users) != 1:
            return False
        (user,) = node.users
        if not is_pure(node) and (not facts(node).buffer or writes_in_place(user)):
            return False
        if isinstance(user.target, Loop) or user.op == "output" or user.meta.get("block") != node.meta.get("block"):
            return False
        if any(self.order[node] < position < self.order[user] for position in self.writes):
            return False  # it would be computed after something was overwritten
        reads = [used for used in _nodes_in((user.args, user.kwargs)) if used is node]
        return len(text) <= INLINE_WIDTH and len(reads) == 1

    def _unpacked(self, node: fx.Node, text: str) -> list[str]:
        """`values, indices = call(...)`: a name for each result that is read."""
        names = ["_"] * node.meta["results"]
        shapes: dict[int, str] = {}
        for user in node.users:
            if user.target is not operator.getitem or not isinstance(user.args[1], int):
                raise TypeError(f"{text}: a call with several results must be read by index")
            position = user.args[1]
            names[position] = names[position] if names[position] != "_" else self.names.fresh(
                user.meta.get("hint") or f"{self.temporaries.wish(node)}_{position}")
            self.texts[user] = (names[position], ATOM)
            if "shape" in user.meta:
                shapes[position] = f"[{', '.join(user.meta['shape'])}]"
        of_each = ", ".join(dict.fromkeys(shape for _, shape in sorted(shapes.items())))
        return [f"{', '.join(names)} = {text}" + f"  # {of_each}" * bool(of_each)]

    def _loop(self, node: fx.Node, loop: Loop) -> list[str]:
        accumulators, cut, whole = cast("tuple[tuple[fx.Node, ...], ...]", node.args)  # as Writer.loop wrote them
        lines: list[str] = []
        results = {cast("int", user.args[1]): user for user in node.users}  # getitem's index
        inner_names: list[str] = []
        for position, accumulator in enumerate(accumulators):
            result = results.get(position)
            name = self.names.fresh(_total(result))
            text, _ = expression(accumulator, self.texts.__getitem__)
            lines.append(_with_shape(f"{name} = {text}", accumulator))
            self.texts[accumulator] = (name, ATOM)
            if result is not None:
                self.texts[result] = (name, ATOM)
            inner_names.append(name)
        start = self.names.fresh("first")
        stop = f"{start} + {loop.chunk}"
        at = f"[:, {start}:{stop}]" if loop.axis else f"[{start}:{stop}]"
        lead = self.texts[cut[0]][0]
        lines.append(f"for {start} in range(0, {lead}.shape[{loop.axis}], {loop.chunk}):")
        sections = [Section("")]
        given: dict[fx.Node, str] = {}
        holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"]
        for position, holder in enumerate(holders):
            if position < loop.totals:
                given[holder] = inner_names[position]
            elif position < loop.totals + loop.rows:
                given[holder] = f"{inner_names[position]}[{start}:{stop}]"
            elif position < loop.totals + loop.rows + loop.cut:
                if not holder.users:
                    continue
                outer = self.texts[cut[position - loop.totals - loop.rows]][0]
                name = self.names.fresh(f"{outer}_{'k' if loop.axis else 'n'}")
                sections[-1].lines.append(_with_shape(f"{name} = {outer}{at}", holder))
                given[holder] = name
            else:
                given[holder] = self.texts[whole[position - loop.totals - loop.rows - loop.cut]][0]
        heading: Block | None = node.meta.get("block")
        for block, part in _Printer(loop.body, self.names, given).statements():
            if block is not None and heading is not None and block.title != heading.title:
                sections.append(Section(comment(block.title), ["", f"# {comment(block.title)}"]))
                heading = block
            sections[-1].lines += part
        free_at_last_use(sections, in_loop=True)
        return lines + ["    " + line if line else line for section in sections for line in section.lines]


def _total(result: fx.Node | None) -> str:
    """What a loop's total is called: as asked for, or after what is made of it."""
    if result is None:
        return "total"
    readers = [user.meta.get("hint") for user in result.users if user.meta.get("hint")]
    return str(result.meta.get("hint") or (f"{readers[0]}_total" if readers else "total"))


def _nodes_in(item: Any) -> Iterator[fx.Node]:
    """Every mention of a node in a call's arguments, repeated ones too."""
    if isinstance(item, fx.Node):
        yield item
    elif isinstance(item, dict):
        yield from _nodes_in(list(item.values()))
    elif isinstance(item, list | tuple):
        for part in item:
            yield from _nodes_in(part)


def _with_shape(line: str, node: fx.Node) -> str:
    shape = node.meta.get("shape")
    if shape is None:
        return line
    return f"{line}  # [{', '.join(shape)}]"


def emit(graph: fx.Graph, header: Header, inputs: Mapping[str, str], outputs: Sequence[str] = ("output",)) -> str:
    """The file's text. `inputs` maps placeholders of inputs and targets to their names, in order; `outputs` are the
    result's fields for the model's outputs."""
    names = Names()
    given: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            given[node] = "state" if node.target == "state" else names.fresh(inputs[str(node.target)])
    printer = _Printer(graph, names, given)
    parts: dict[str, list[Section]] = {"forward": [], "backward": [], "results": []}
    for block, lines in printer.statements():
        part, title = (block.part, comment(block.title)) if block else ("forward", "")
        sections = parts[part]
        if not sections or sections[-1].title != title:
            sections.append(Section(title))
        sections[-1].lines += lines
    output = next(node for node in graph.nodes if node.op == "output")
    returned = {printer.texts[node][0] for node in output.all_input_nodes}
    free_at_last_use([section for sections in parts.values() for section in sections], returned)
    loss, predictions, results = output.args[0]  # as derive wrote it
    look = printer.texts
    fields = [_field(name, results[name], look) for name in header.quantities]
    records = {record["name"]: record for record in (_record(name) for name in header.quantities) if record}
    text = _template().render(
        table=[comment(line) for line in header.table],
        header=header,
        helpers=definitions(graph),
        records=list(records.values()),
        lists=any(QUANTITIES[name].lists for name in header.quantities),
        fields=fields,
        parts=parts,
        arguments=[given[node] for node in graph.nodes if node.op == "placeholder" and node.target != "state"],
        loss=look[loss][0],
        outputs=[(name, look[node][0]) for name, node in zip(outputs, predictions, strict=True)],
    )
    return laid_out(text)


def _record(name: str) -> dict[str, Any] | None:
    quantity = QUANTITIES[name]
    if not quantity.fields:
        return None
    special = {**dict.fromkeys(quantity.optional, "Optional[Tensor]"), **dict.fromkeys(quantity.lists, "List[Tensor]")}
    return {"name": quantity.record, "fields": [(part, special.get(part, "Tensor")) for part in quantity.fields]}


def _field(name: str, results: Mapping[str, Any], look: Mapping[fx.Node, Text]) -> dict[str, Any]:
    quantity = QUANTITIES[name]
    entries = []
    for key, value in results.items():
        if quantity.fields:
            inside = ", ".join(_entry(value[part], look) for part in quantity.fields)
            entries.append((quote(key), f"{quantity.record}({inside})"))
        else:
            entries.append((quote(key), look[value][0]))
    return {"name": name, "type": quantity.record or "Tensor", "entries": entries, "summary": quantity.summary}


def _entry(value: Any, look: Mapping[fx.Node, Text]) -> str:
    """What a field of a named tuple is given: a tensor, None, or a list of tensors."""
    if isinstance(value, list):
        return f"[{', '.join(look[item][0] for item in value)}]"
    return "None" if value is None else look[value][0]


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hbpcompiler.codegen", "."), trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, undefined=jinja2.StrictUndefined, autoescape=False,
    )
    return environment.get_template("program.py.jinja")
