"""Functions of a generated file: one for each class of alike blocks (see `outline`), one for a loop's turn that frees.

A function is printed as the program is, with short names: the module's path stands in the call. Its frame ends the
tensors that it made, so that a loop which calls it needs no `del`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from hbpcompiler.codegen.copying import Function
from hbpcompiler.codegen.naming import Names, comment, identifier
from hbpcompiler.codegen.outline import Call, Outline
from hbpcompiler.codegen.places import PARAMETERS, Places, kind_of_table
from hbpcompiler.codegen.printer import quote
from hbpcompiler.compiler.program import meta
from hbpcompiler.limits import DEFAULT_LIMITS, Limits

Print = Callable[[fx.Graph, Names, Mapping[fx.Node, str], Mapping[fx.Node, str]],
                 "tuple[list[str], Callable[[fx.Node], str]]"]
"""(graph, names, texts of its placeholders, of entries of tables) -> lines, and how a node is written afterwards."""
STREAM = re.compile(r"^(?:pooled_)?(?P<prefix>[a-zA-Z]|sign|index)_")
"""Of a name such as S_layer1_0_conv1: what it is, in front of where it is."""
RUNNING = re.compile(r"^total_")
"""Of a name of what goes on through many blocks, each of which adds to it."""

LONG = 50
DOCSTRING = 106
DECORATION = re.compile(r"^native_|_legit|_no_training|_with_indices")
"""What torch adds to an operation's name, and no reader needs in a function's."""


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
    texts: dict[str, str] = field(default_factory=dict)
    """Name -> definition, in the order of first calls; a function stands behind those that it calls."""
    known: dict[int, str] = field(default_factory=dict)
    bodies: dict[tuple[str, ...], str] = field(default_factory=dict)

    def scratch(self) -> Functions:
        """Functions that are written on trial."""
        names = Names()
        names.taken = set(self.names.taken)
        return replace(self, names=names, texts=dict(self.texts), known=dict(self.known), bodies=dict(self.bodies))

    def texts_of_places(self, graph: fx.Graph) -> dict[fx.Node, str]:
        """How the entries of tables are written in a program or a loop of it."""
        return {node: f"{place.table}[{quote(place.key)}]" for node in graph.nodes
                if (place := self.places.get(node)) is not None}

    def call(self, call: Call, inputs: Sequence[str], print_graph: Print) -> str:
        """A block as a call; its function is written at the first one."""
        function = call.function
        if id(function) not in self.known:
            self.known[id(function)] = self._written(function, print_graph)
        arguments = [*inputs, *function.tables]
        if function.entries:
            arguments.insert(0, quote(call.path))
        numbers = [f"{letter}={number}" for letter, number in zip(function.letters, call.numbers, strict=True)]
        return f"{self.known[id(function)]}({', '.join([*arguments, *numbers])})"

    def _written(self, function: Function, print_graph: Print) -> str:
        names = Names()
        names.taken.update(["path", *function.letters, *function.tables])
        given: dict[fx.Node, str] = {}
        parameters = ["path: str"] if function.entries else []
        head = []
        for holder in (node for node in function.graph.nodes if node.op == "placeholder"):
            entry = function.entries.get(holder)
            if entry is None:
                given[holder] = names.fresh(role(str(holder.meta.get("hint") or holder.name)))
                parameters.append(f"{given[holder]}: {meta.annotation(holder)}")
            else:
                given[holder] = names.fresh(entry[1] if entry[0] == PARAMETERS else f"{entry[0]}_{entry[1]}")
                head.append(f'{given[holder]} = {_entry(entry)}')
        parameters += [f"{table}: {kind_of_table(table)}" for table in function.tables]
        parameters += [f"{letter}: int" for letter in function.letters]
        _without_path(function)
        placed = {node: _entry(entry) for node, entry in function.entries.items() if node.op != "placeholder"}
        lines, look = print_graph(function.graph, names, given, placed)
        title = comment(function.block.title.rpartition(": ")[2])
        backward = function.block.part == "backward"
        bare = function_stem(title)
        wish = f"{bare}_back" if backward else bare
        way = "back" if backward else "forward"
        about = f"{title}, {way}, at {function.members} places."
        formula = comment(function.block.formula)
        if "T =" not in formula or len(function.tables) > (PARAMETERS in function.tables):  # not of a part before it
            about = f"{about} {formula}".rstrip()
        return self.define(wish, parameters, about, [*head, *lines], [look(node) for node in function.values])

    def define(self, wish: str, parameters: Sequence[str], about: str, lines: Sequence[str],
               values: Sequence[str] = ()) -> str:
        """The name of a function with this body, written if none is alike."""
        result = "None" if not values else "Tensor" if len(values) == 1 else (
            f"Tuple[{', '.join(['Tensor'] * len(values))}]")
        body = (", ".join(parameters), result, *lines, ", ".join(values))
        if body not in self.bodies:
            name = self.names.fresh(wish)
            inside = [*_docstring(about), *lines]
            if values:
                inside.append(f"return {several(values)}")
            head = f"def {name}({', '.join(parameters)}) -> {result}:"
            self.texts[name] = "\n".join([head, *(f"    {line}" if line else "" for line in inside)])
            self.bodies[body] = name
        return self.bodies[body]


def _without_path(function: Function) -> None:
    """The names that a block's values ask for, without where they are."""
    leaves = {leaf for _, leaf in function.entries.values()}
    hints = [str(node.meta.get("hint") or "") for node in function.graph.nodes]
    # norm_gradient_layers_3_down_weight: what is between the first word and the leaf says where it is.
    places = {hint.removesuffix(leaf).partition("_")[2] for hint in hints for leaf in leaves
              if hint.endswith(f"_{leaf}") and not STREAM.match(hint)} - {""}
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
            node.meta["wish"] = role(meta.wish(node))
        subject = str(node.meta.get("subject") or "")
        for leaf in leaves:
            if f"_{leaf}_" in f"{subject}_":
                node.meta["subject"] = f"{subject.split('_')[0]}_{leaf}"


def function_stem(title: str) -> str:
    """How functions of an operation begin."""
    return identifier(DECORATION.sub("", title))


def several(names: Sequence[str]) -> str:
    """Names of a call's values; in brackets where they may not fit a line."""
    text = ", ".join(names)
    return f"({text})" if len(text) > LONG else text


def _docstring(text: str) -> list[str]:
    """On one line, or with the closing quotes on one of their own."""
    lines = textwrap.wrap(text, DOCSTRING, break_on_hyphens=False)
    return [f'"""{text}"""'] if len(lines) == 1 else [f'"""{lines[0]}', *lines[1:], '"""']


def _entry(entry: tuple[str, str]) -> str:
    table, leaf = entry
    return f"{table}[path + {quote('.' + leaf)}]"
