"""What names say of where a value is, and names without that: what the value is, in a function that serves many places.

S_layer1_0_conv1 are columns S at a module's output; squares_ggn_layer1_0_conv1_weight ends at a parameter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from hbpcompiler.codegen.places import of_parameters
from hbpcompiler.codegen.streams import RUNNING, STREAM
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.writer import INPUTS

TOTAL, INPUT, OUTPUT = "total", "x", "out"
"""Of what has no other role in a function."""


def role(name: str) -> str:
    """What a value is, without where it is: S_layer1_0_conv1 is S, what blocks add to is a total, all else x."""
    if RUNNING.match(name):
        return TOTAL
    match = STREAM.match(name)
    return match["prefix"] if match is not None else INPUT


def is_moving(name: str) -> bool:
    """Whether it names what goes through many blocks: a stream's columns, or what all add to."""
    return STREAM.match(name) is not None or RUNNING.match(name) is not None


@dataclass(frozen=True)
class Where:
    """The names of a program's operations and parameters: in others' names they say of where these are."""

    outputs: frozenset[str] = frozenset()
    parameters: Mapping[str, str] = field(default_factory=dict)
    """With the last part of each one's path."""

    def without(self, name: str, leaves: Collection[str] = ()) -> str:
        """A name without where; a parameter's last word stays if it is one of `leaves`: "squares_ggn_weight"."""
        words = name.split("_")
        first, last = self._found_in(words)
        if first == last:
            return name
        leaf = self.parameters.get("_".join(words[first:last]), "")
        what = leaf if first == 0 and leaf else INPUT if first == 0 else leaf if leaf in leaves else ""
        return "_".join([*words[:first], *([what] if what else []), *words[last:]])

    def _found_in(self, words: Sequence[str]) -> tuple[int, int]:
        """The longest run of words that says where, the last of these; an empty one if none does."""
        for first, last in _longest_first(len(words)):
            where = "_".join(words[first:last])
            if where in self.outputs or where in self.parameters:
                return first, last
        return 0, 0

    def bare(self, name: str, leaves: Collection[str] = ()) -> str:
        """What a function calls a value: columns by their letter, what belongs to a layer by its role there."""
        return role(name) if is_moving(name) else self.without(name, leaves)

    def suffix(self, name: str) -> str:
        """What stands behind the name of an operation: "_mean" of layer1_norm_mean."""
        found = self.without(name)
        return found.removeprefix(INPUT) if found.startswith(f"{INPUT}_") else ""

    def says(self, name: str) -> bool:
        """Whether a name begins with where: it is the model's own, or what was made of that."""
        first, last = self._found_in(name.split("_"))
        return first == 0 and last > 0


def where_in(graph: fx.Graph) -> Where:
    """Of a program; what an operation makes beside its output, norm_mean, says no more than the output's name."""
    parameters = {meta.hint(node): place.key.rpartition(".")[2] for node, place in of_parameters(graph)
                  if meta.hint(node)}
    by_block: dict[str, list[str]] = {}
    for node in graph.nodes:
        block = meta.block(node)
        if node.op not in ("placeholder", "output") and block is not None and block.part == "forward" and (
                block.title != INPUTS and meta.hint(node) and meta.hint(node) not in parameters):
            by_block.setdefault(block.title, []).append(meta.hint(node))
    found = {hint for hints in by_block.values() for hint in hints if is_own(hint, hints)}
    return Where(frozenset(found), parameters)


def is_own(hint: str, hints: Collection[str]) -> bool:
    """Whether a name is an operation's own, of those that stand under its heading: norm, not norm_mean."""
    return not any(hint.startswith(f"{other}_") and not hint.removeprefix(f"{other}_").isdigit() for other in hints)


def _longest_first(words: int) -> Iterator[tuple[int, int]]:
    """All runs of words, the longest first, of these the last first."""
    for length in range(words, 0, -1):
        for first in range(words - length, -1, -1):
            yield first, first + length
