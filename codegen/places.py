"""Where a large program keeps what belongs to parameters: in tables by their names, not in a variable for each.

The parameters are one table, `p`; what ends at them is one table for each kind of closing, and these are fields of
`ends`. So a function that serves many modules is told a module's path, and finds the rest: `p[path + ".weight"]`,
`ends.sum_gradient[path + ".weight"]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import fx

from hbpcompiler.arguments import ARGUMENTS, INTO
from hbpcompiler.codegen.printer import quote
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import Shape
from hbpcompiler.compiler.program.writer import INPUTS, Loop
from hbpcompiler.limits import Limits

PARAMETERS = "p"
ENDS, ENDS_CLASS = "ends", "Ends"
"""What holds the tables of all that ends at parameters, and its type."""
SHARED = "shared"
"""The table of what modules make once of their parameters, by the module's path (see `made_once`)."""
SAVED = "saved"
"""The table of what modules make on their way forward and read on their way back (see `modules`)."""
NUMBERS = "Dict[str, float]"
TENSORS = "Dict[str, Tensor]"


@dataclass(frozen=True)
class Place:
    """An entry of a table."""

    table: str
    key: str

    def under(self, path: str) -> str | None:
        """The key without the module's path, or None if it is not the module's."""
        if path and self.key == path:
            return ""
        start = f"{path}."
        return self.key[len(start):] if path and self.key.startswith(start) else None


Places = Mapping[fx.Node, Place]


def ends_at_parameters(table: str) -> bool:
    """Whether a table is a field of ENDS: neither the parameters, nor a call's argument, nor what modules share."""
    return table not in (PARAMETERS, SHARED) and table not in ARGUMENTS and not table.startswith(SAVED)


def entry_text(table: str, key: str) -> str:
    """How an entry is written, the key as code."""
    return f"{written(table)}[{key}]"


def written(table: str) -> str:
    """How a table is written."""
    return f"{ENDS}.{table}" if ends_at_parameters(table) else table


def passed(tables: Iterable[str]) -> list[str]:
    """What a function is given to reach these tables."""
    return sorted({ENDS if ends_at_parameters(table) else table for table in tables})


@dataclass(frozen=True)
class Listed:
    """The list of the parameters' names in a large program: what it is called, and what is in it."""

    name: str = ""
    keys: tuple[str, ...] = ()

    def text(self, keys: Sequence[str]) -> str:
        """These names as code: a part of the list if they stand there in a row."""
        if keys and keys[0] in self.keys:
            first = self.keys.index(keys[0])
            last = first + len(keys)
            if self.keys[first:last] == tuple(keys):
                row = f"{first or ''}:{last if last < len(self.keys) else ''}"
                return self.name if row == ":" else f"{self.name}[{row}]"
        return self.spelt(keys)

    @staticmethod
    def spelt(keys: Sequence[str]) -> str:
        return f"[{', '.join(map(quote, keys))}]"


def lengths(graph: fx.Graph, found: Places) -> dict[str, Shape]:
    """Of each parameter and buffer that the program reads, the lengths of its axes."""
    return {found[node].key: node.meta["shape"] for node in reversed(list(graph.nodes))
            if node in found and found[node].table == PARAMETERS and "shape" in node.meta}


def is_large(results: Mapping[str, Any], limits: Limits) -> bool:
    """Whether it is a large network's program."""
    return any(len(entries) > limits.listed_parameters for entries in results.values() if isinstance(entries, dict))


def places(graph: fx.Graph, results: Mapping[str, Any]) -> dict[fx.Node, Place]:
    """The place of every parameter, and of every value that the results are made of; inside loops too."""
    found = {**dict(of_parameters(graph)), **dict(_numbers(graph))}
    called = {place.key: str(node.meta["hint"]) for node, place in found.items()
              if node.meta.get("hint") and place.table == PARAMETERS}
    found |= _closings(results, called)
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            found |= dict(_inside(node, node.target, found))
    return found


def is_of_results(node: fx.Node) -> bool:
    block = node.meta.get("block")
    return block is not None and block.part == "results"


def in_inputs(node: fx.Node) -> bool:
    block = node.meta.get("block")
    return block is not None and block.title == INPUTS


def of_parameters(graph: fx.Graph) -> Iterator[tuple[fx.Node, Place]]:
    """What stands for parameters and buffers in a program, each cast and copy too."""
    state = [node for node in graph.nodes if node.op == "placeholder" and node.target == "state"]
    for entry in state[0].users if state else []:
        chain = [entry]
        for node in chain:
            chain += [user for user in node.users if in_inputs(user)]
            yield node, Place(PARAMETERS, cast("str", entry.args[1]))


def _numbers(graph: fx.Graph) -> Iterator[tuple[fx.Node, Place]]:
    """Entries of call arguments that are dicts of numbers by parameter, or of tensors that results are added to."""
    for table in graph.nodes:
        if table.op == "placeholder" and (meta.argument(table) == INTO or (
                meta.argument(table) and meta.annotation(table) == NUMBERS)):
            for entry in table.users:
                yield entry, Place(meta.argument(table), cast("str", entry.args[1]))


def kind_of_table(table: str) -> str:
    """How what `passed` names is typed."""
    return ENDS_CLASS if table == ENDS else ARGUMENTS[table].annotation if table in ARGUMENTS else TENSORS


def relaid(graph: fx.Graph, found: Places) -> list[str]:
    """Keys of the parameters that are copied into another memory layout."""
    return [found[node].key for node in graph.nodes if node in found and in_inputs(node)
            and node.op == "call_method" and node.target == "contiguous"]


def _closings(results: Mapping[str, Any], called: Mapping[str, str]) -> dict[fx.Node, Place]:
    """`called` has the name of each parameter in the program, with which those of its closings end."""
    found: dict[Place, set[fx.Node]] = {}
    for entries in results.values():
        for key, value in entries.items() if isinstance(entries, dict) else []:
            for node in _sources(value):
                hint, end = str(node.meta.get("hint") or ""), f"_{called.get(key, key)}"
                if hint.endswith(end):
                    table = hint.removesuffix(end)
                    # The quantity's own table begins empty.
                    table = f"made_{table}" if table in results else table
                    found.setdefault(Place(table, key), set()).add(node)
    return {node: place for place, nodes in found.items() if len(nodes) == 1 for node in nodes}


def _sources(value: Any) -> Iterator[fx.Node]:
    """The values of the backward pass that a result is made of."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _sources(part)
    elif isinstance(value, fx.Node):
        if is_of_results(value):
            for read in value.all_input_nodes:
                yield from _sources(read)
        elif "shape" in value.meta:
            yield value


def _inside(node: fx.Node, loop: Loop, found: Places) -> Iterator[tuple[fx.Node, Place]]:
    """Places of a loop's placeholders: of the totals that it adds to, of what it reads whole."""
    holders = [holder for holder in loop.body.nodes if holder.op == "placeholder"]
    totals, cut, whole = cast("tuple[tuple[fx.Node, ...], ...]", node.args)
    for user in node.users:
        position = cast("int", user.args[1])
        if user in found and position < loop.totals:
            yield holders[position], found[user]
    rest = holders[len(totals) + len(cut):len(totals) + len(cut) + len(whole)]
    for holder, outer in zip(rest, whole, strict=True):
        if outer in found:
            yield holder, found[outer]
