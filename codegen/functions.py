"""Functions of a generated file: one for each class of alike blocks (see `outline`), one for a loop's turn that frees.

A function is printed as the program is, with short names: the module's path stands in the call. Its frame ends the
tensors that it made, so that a loop which calls it needs no `del`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from hbpcompiler.codegen.bodies import GIVEN, PLACES, Body, lengths_of, without_names
from hbpcompiler.codegen.calls import Call, Function, Outline
from hbpcompiler.codegen.naming import Names, brief, comment, identifier
from hbpcompiler.codegen.places import PARAMETERS, SAVED, Listed, Places, entry_text, kind_of_table
from hbpcompiler.codegen.printer import quote
from hbpcompiler.codegen.roles import INPUT, OUTPUT, Where, is_moving
from hbpcompiler.codegen.segments import is_text, readers, times_read, under
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import Shape
from hbpcompiler.compiler.program.meta import Block
from hbpcompiler.compiler.program.writer import INPUTS, Loop
from hbpcompiler.limits import DEFAULT_LIMITS, Limits

Print = Callable[[Function, Names, Mapping[fx.Node, str], Mapping[fx.Node, str], Sequence[str]],
                 tuple[list[str], list[str]]]
"""(function, names, texts of its placeholders, of entries of tables, its first lines) -> all lines, and its values."""
BATCH_SIZE = "N"
SOFTMAX = "softmax"
"""What a loss calls p, where the table of parameters is called so."""


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
    inside: dict[int, list[str]] = field(default_factory=dict)
    """What functions call the values that they return."""
    bodies: dict[tuple[str, str], Body] = field(default_factory=dict)
    """By the name that is asked for, and by what is computed."""
    told: dict[tuple[str, str], str] = field(default_factory=dict)
    """Titles with formulas that stand in a docstring already, and the function whose that is."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """What letters stand for in the function that is being printed (see `Function.sizes`)."""
    in_module: bool = False
    """Whether a module's function is being printed."""
    where: Where = field(default_factory=Where)
    bare: bool = False
    """Whether names say nothing of where: in a function."""
    leaves: Collection[str] = ()
    """The parameters that the function being printed finds by its path, by the last words of theirs."""

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
                       told=dict(self.told))

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
                given[holder] = meta.argument(holder) or names.fresh(self.argument(holder, module))
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
        placed = {node: _entry(entry) for node, entry in function.entries.items() if node.op != "placeholder"}
        lines, values = print_graph(function, names, given, placed, head)
        self.inside[id(function)] = values
        title = comment(function.block.title.rpartition(": ")[2])
        tensors = [f"{text}{shape_of(holder)}" for holder, text in given.items()
                   if holder not in function.entries and meta.annotation(holder) == "Tensor" and shape_of(holder)]
        name = self.define(_wish(function, title), parameters, self._about(function, title), lines, values,
                           function.members, tensors)
        self.told.setdefault((title, comment(function.block.formula)), name)
        return name

    def _about(self, function: Function, title: str) -> str:
        """What a function does; what it computes where that is said for the first time."""
        way = "back" if function.block.part == "backward" else "forward"
        about = f"{title}, {way}, at {PLACES}.{GIVEN}"
        formula = comment(function.block.formula)
        if not formula or ("T =" in formula and len(function.tables) <= (PARAMETERS in function.tables)):
            return about  # of a part before it
        known = self.told.get((title, formula))
        return f"{about}{formula}" if known is None else f"{about}Formulas as in {known}."

    def define(self, wish: str, parameters: Sequence[str], about: str, lines: Sequence[str],
               values: Sequence[str] = (), members: int = 1, given: Sequence[str] = ()) -> str:
        """The name of a function with this body, written if none is alike. `given`: its tensors and their shapes."""
        alike = wish, without_names(parameters, lines, values)
        known = self.bodies.get(alike)
        name = self.names.fresh(wish) if known is None else known.name
        lengths = lengths_of([*lines, *given])
        body = Body(name, tuple(parameters), about, tuple(lines), tuple(values), (lengths,), members, tuple(given))
        self.bodies[alike] = body if known is None else known.with_member(body)
        self.texts[name] = self.bodies[alike].text()
        return name

    def asked(self, node: fx.Node) -> str:
        """The name that a value asks for, in functions without where it is; what is a result is called so where results
        stand in no table."""
        hint = meta.hint(node) if self.short else meta.result(node) or meta.hint(node)
        block = meta.block(node)
        if hint == PARAMETERS and self.short and block is not None and block.part == "backward":
            return SOFTMAX
        if not self.bare or not hint:
            return hint
        if self.in_module and block is not None and not is_moving(hint):
            return f"{_by_place(block.title)}{self.where.suffix(hint)}"
        found = self.where.bare(hint, self.leaves)
        return OUTPUT if found == INPUT else found.removeprefix(f"{INPUT}_")

    def subject(self, node: fx.Node) -> str:
        """What a value is a part of, likewise."""
        return self.where.without(meta.subject(node), self.leaves) if self.bare else meta.subject(node)

    def wished(self, node: fx.Node) -> str:
        """What a value is called if it gets a line of its own, likewise."""
        return self.where.without(meta.wish(node), self.leaves) if self.bare else meta.wish(node)

    def argument(self, holder: fx.Node, module: Block | None) -> str:
        """What a function calls a value from outside: a stream's columns by their letter, what the `module` itself
        makes after where it does."""
        hint, block = meta.hint(holder), meta.block(holder)
        if hint == BATCH_SIZE or meta.annotation(holder) == "int":  # a loop's body does not say that it is called so
            return BATCH_SIZE
        if module is not None and block is not None and block.title != INPUTS and not is_moving(hint):
            inside = under(block.title, module.title.rpartition(": ")[0])
            return f"{_by_place(inside)}{self.where.suffix(hint)}" if inside != block.title else INPUT
        if hint:
            return self.where.bare(hint)
        wish = self.where.without(meta.wish(holder))
        return wish if wish.strip("_") == wish != "" else INPUT


def _by_place(title: str) -> str:
    """A name after a heading: after the module inside, or after what is done."""
    path, _, operation = title.rpartition(": ")
    return identifier(path or brief(operation))


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


def shape_of(node: fx.Node) -> str:
    """The comment behind the line that makes a value."""
    shape = meta.shape(node)
    return "" if shape is None else f"  # [{', '.join(shape)}]"


def _entry(entry: tuple[str, str]) -> str:
    table, leaf = entry
    return entry_text(table, f"path + {quote('.' + leaf)}" if leaf else "path")


def _taken(entry: tuple[str, str]) -> str:
    """An entry that is read for the last time."""
    table, leaf = entry
    return f"{table}.pop(path + {quote('.' + leaf)})"
