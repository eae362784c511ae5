"""Functions of a generated file: one for each class of alike blocks (see `outline`), one for a loop's turn that frees.

A function is printed as the program is, with short names: the module's path stands in the call. Its frame ends the
tensors that it made, so that a loop which calls it needs no `del`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from hbpcompiler.codegen.calls import Call, Function, Outline
from hbpcompiler.codegen.naming import Names, comment, identifier
from hbpcompiler.codegen.places import PARAMETERS, SAVED, Listed, Places, entry_text, kind_of_table
from hbpcompiler.codegen.printer import quote
from hbpcompiler.codegen.segments import is_text, readers, times_read, under
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import Shape
from hbpcompiler.compiler.program.meta import Block
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.limits import DEFAULT_LIMITS, Limits

Print = Callable[[Function, Names, Mapping[fx.Node, str], Mapping[fx.Node, str], Sequence[str]],
                 tuple[list[str], list[str]]]
"""(function, names, texts of its placeholders, of entries of tables, its first lines) -> all lines, and its values."""
STREAM = re.compile(r"^(?:pooled_)?(?P<prefix>[a-zA-Z]|sign|index)_")
"""Of a name such as S_layer1_0_conv1: what it is, in front of where it is."""
RUNNING = re.compile(r"^total_")
"""Of a name of what goes on through many blocks, each of which adds to it."""

BATCH_SIZE = "N"
LONG = 50
DOCSTRING = 106


def role(name: str) -> str:
    """What a value is, without where it is: S_layer1_0_conv1 is S, what blocks add to is a total, all else x."""
    if RUNNING.match(name):
        return "total"
    match = STREAM.match(name)
    return match["prefix"] if match is not None else "x"


@dataclass
class Functions:
    """The functions of one file, each written once."""

    names: Names
    outline: Outline
    places: Places = field(default_factory=dict)
    limits: Limits = DEFAULT_LIMITS
    listed: Listed = field(default_factory=Listed)
    lengths: Mapping[str, Shape] = field(default_factory=dict)
    """Of the parameters' axes."""
    texts: dict[str, str] = field(default_factory=dict)
    """Name -> definition, in the order of first calls; a function stands behind those that it calls."""
    known: dict[int, str] = field(default_factory=dict)
    bodies: dict[tuple[str, ...], str] = field(default_factory=dict)
    told: set[tuple[str, str]] = field(default_factory=set)
    """Titles with formulas that stand in a docstring already."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """What letters stand for in the function that is being printed (see `Function.sizes`)."""
    in_module: bool = False
    """Whether a module's function is being printed."""

    @property
    def short(self) -> bool:
        """Whether names need not say of what: in a large program, and in its functions."""
        return bool(self.listed.name)

    @property
    def large(self) -> bool:
        """Whether the program is, so that names are given again and short operations are chained."""
        return bool(self.places) or self.in_module

    def scratch(self) -> Functions:
        """Functions that are written on trial."""
        names = Names()
        names.taken = set(self.names.taken)
        return replace(self, names=names, texts=dict(self.texts), known=dict(self.known), bodies=dict(self.bodies),
                       told=set(self.told))

    def texts_of_places(self, graph: fx.Graph) -> dict[fx.Node, str]:
        """How the entries of tables are written in a program or a loop of it."""
        return {node: entry_text(place.table, quote(place.key)) for node in graph.nodes
                if (place := self.places.get(node)) is not None}

    def call(self, call: Call, inputs: Sequence[str], print_graph: Print) -> str:
        """A block as a call; its function is written at the first one."""
        function = call.function
        if id(function) not in self.known:
            self.known[id(function)] = self._written(function, print_graph)
        arguments = [*inputs, *function.tables]
        if function.entries:
            arguments.insert(0, call.path)
        numbers = [f"{letter}={number}" for letter, number in zip(function.letters, call.numbers, strict=True)]
        return f"{self.known[id(function)]}({', '.join([*arguments, *numbers])})"

    def _written(self, function: Function, print_graph: Print) -> str:
        for call in function.outline.calls.values():
            if id(call.function) not in self.known:
                self.known[id(call.function)] = self._written(call.function, print_graph)
        names = Names()
        names.taken.update(["path", *function.letters, *function.tables, *(self.texts if function.of_module else [])])
        given: dict[fx.Node, str] = {}
        parameters = ["path: str"] if function.entries else []
        head = []
        for holder in (node for node in function.graph.nodes if node.op == "placeholder"):
            entry = function.entries.get(holder)
            if entry is None:
                module = function.block if function.of_module else None
                given[holder] = meta.argument(holder) or names.fresh(_argument_name(holder, module))
                parameters.append(f"{given[holder]}: {meta.annotation(holder)}")
            elif (text := _read_in_place(function, holder, entry)) is not None:
                given[holder] = text
            else:
                table, leaf = entry
                given[holder] = names.fresh(leaf if table in (PARAMETERS, SAVED) else f"{table}_{leaf}")
                text = _taken(entry) if table == SAVED else _entry(entry)
                head.append(f"{given[holder]} = {text}" + (shape_of(holder) if table == SAVED else ""))
        parameters += [f"{table}: {kind_of_table(table)}" for table in function.tables]
        parameters += [f"{letter}: int" for letter in function.letters]
        _without_path(function)
        placed = {node: _entry(entry) for node, entry in function.entries.items() if node.op != "placeholder"}
        lines, values = print_graph(function, names, given, placed, head)
        title = comment(function.block.title.rpartition(": ")[2])
        return self.define(_wish(function, title), parameters, self._about(function, title), lines, values)

    def _about(self, function: Function, title: str) -> str:
        """What a function does; what it computes where that is said for the first time."""
        way = "back" if function.block.part == "backward" else "forward"
        about = f"{title}, {way}, at {function.members} places."
        formula = comment(function.block.formula)
        if "T =" in formula and len(function.tables) <= (PARAMETERS in function.tables):
            return about  # of a part before it
        if not formula or (title, formula) in self.told:
            return about
        self.told.add((title, formula))
        return f"{about} {formula}"

    def define(self, wish: str, parameters: Sequence[str], about: str, lines: Sequence[str],
               values: Sequence[str] = ()) -> str:
        """The name of a function with this body, written if none is alike."""
        result = "None" if not values else "Tensor" if len(values) == 1 else (
            f"Tuple[{', '.join(['Tensor'] * len(values))}]")
        body = (", ".join(parameters), result, *lines, ", ".join(values))
        if body not in self.bodies:
            name = self.names.fresh(wish)
            inside = [*_docstring(about), *returning(lines, values)]
            head = f"def {name}({', '.join(parameters)}) -> {result}:"
            self.texts[name] = "\n".join([head, *(f"    {line}" if line else "" for line in inside)])
            self.bodies[body] = name
        return self.bodies[body]


def _argument_name(holder: fx.Node, module: Block | None) -> str:
    """What a value from outside is called: a stream's columns by their letter, what the `module` itself makes after
    where it does."""
    hint, block = meta.hint(holder) or holder.name, meta.block(holder)
    if hint == BATCH_SIZE or meta.annotation(holder) == "int":  # the body of a loop does not say that it is called so
        return BATCH_SIZE
    if module is not None and block is not None and not STREAM.match(hint):
        inside, outside = under(block.title, module.title.rpartition(": ")[0]), block.title
        return _by_place(inside) if inside != outside else "x"
    return role(hint)


def _by_place(title: str) -> str:
    """A name after a heading: after the module inside, or after what is done."""
    path, _, operation = title.rpartition(": ")
    return identifier(path or operation)


def _read_in_place(function: Function, holder: fx.Node, entry: tuple[str, str]) -> str | None:
    """How an entry is written where it is read, if it gets no line at the head of its function."""
    table, leaf = entry
    if not leaf:
        return _entry(entry)
    if not function.of_module:
        return _entry(entry) if table != SAVED and _is_read_once(holder, function) else None
    if table != SAVED:
        return _entry(entry)
    direct = any(reader not in function.outline.inside for reader in readers(holder))
    given = [read for call in function.outline.calls.values() for read in call.inputs if read is holder]
    return _taken(entry) if not direct and len(given) == 1 else None


def _is_read_once(holder: fx.Node, function: Function) -> bool:
    """Whether at most one line reads it, once, and not a loop, which would look it up in each turn."""
    direct = [reader for reader in holder.users if reader not in function.outline.inside]
    return (sum(times_read(holder, reader) for reader in direct) <= 1
            and not any(isinstance(reader.target, Loop) or is_text(reader) for reader in direct))


def _wish(function: Function, title: str) -> str:
    """What a function would like to be called; a module's after its type, in small letters."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", title).lower() if function.of_module else title
    return identifier(name) + "_back" * (function.block.part == "backward")


def _without_path(function: Function) -> None:
    """The names that a block's values ask for, without where they are."""
    if function.of_module:
        _inside_module(function)
        return
    leaves = {leaf for _, leaf in function.entries.values()}
    hints = [str(node.meta.get("hint") or "") for node in function.graph.nodes]
    places = places_in(hints, leaves)
    for node in function.graph.nodes:
        hint = str(node.meta.get("hint") or "")
        where = next((place for place in places if f"_{place}" in hint), "")
        if STREAM.match(hint) or RUNNING.match(hint):
            node.meta["hint"] = role(hint)
        elif where:
            node.meta["hint"] = hint.replace(f"_{where}", "_")
        elif node in function.values:
            node.meta["hint"] = "y"
        if meta.wish(node):
            node.meta["wish"] = role(meta.wish(node)) if STREAM.match(meta.wish(node)) else meta.wish(node)
        subject = str(node.meta.get("subject") or "")
        for leaf in leaves:
            if f"_{leaf}_" in f"{subject}_":
                node.meta["subject"] = f"{subject.split('_')[0]}_{leaf}"


def places_in(hints: Collection[str], leaves: Collection[str]) -> list[str]:
    """What names of results say of where they are, the shortest first: of squares_0_weight and mean_inputs_0_weight it
    is "0_", so that the latter keeps its second word. A parameter's own name says nothing else."""
    stems = {hint.removesuffix(leaf) for hint in hints for leaf in leaves
             if hint.endswith(f"_{leaf}") and not STREAM.match(hint)}
    found = set()
    for stem in stems:
        is_all_place = any(other.endswith(f"_{stem}") for other in stems)
        found.add(stem if is_all_place else stem.partition("_")[2])
    return sorted(found - {""}, key=lambda place: (len(place), place))


def _inside_module(function: Function) -> None:
    """Names of what a module makes, after the module inside that makes it, or after what is done."""
    for node in function.graph.nodes:
        hint, block = meta.hint(node), meta.block(node)
        if node.op == "placeholder" or not hint or block is None:
            continue
        if not STREAM.match(hint) and not RUNNING.match(hint):
            meta.rename(node, _by_place(block.title))


def shape_of(node: fx.Node) -> str:
    """The comment behind the line that makes a value."""
    shape = meta.shape(node)
    return "" if shape is None else f"  # [{', '.join(shape)}]"


def several(names: Sequence[str]) -> str:
    """Names of a call's values; in brackets where they may not fit a line."""
    text = ", ".join(names)
    return f"({text})" if len(text) > LONG else text


def returning(lines: Sequence[str], values: Sequence[str]) -> list[str]:
    """A function's lines with their `return`: of what the last line makes, if that is all."""
    if not values:
        return [*lines]
    last = lines[-1] if lines else ""
    if len(values) == 1:
        if values[0].isidentifier() and last.startswith(f"{values[0]} = "):
            return [*lines[:-1], f"return {last.partition(' = ')[2]}"]
        if re.match(rf"{re.escape(values[0])}\.[a-z_]+_\(", last):
            return [*lines[:-1], f"return {last}"]
    return [*lines, f"return {several(values)}"]


def _docstring(text: str) -> list[str]:
    """On one line, or with the closing quotes on one of their own."""
    lines = textwrap.wrap(text, DOCSTRING, break_on_hyphens=False)
    return [f'"""{text}"""'] if len(lines) == 1 else [f'"""{lines[0]}', *lines[1:], '"""']


def _entry(entry: tuple[str, str]) -> str:
    table, leaf = entry
    return entry_text(table, f"path + {quote('.' + leaf)}" if leaf else "path")


def _taken(entry: tuple[str, str]) -> str:
    """An entry that is read for the last time."""
    table, leaf = entry
    return f"{table}.pop(path + {quote('.' + leaf)})"
