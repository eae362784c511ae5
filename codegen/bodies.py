"""Definitions of a generated file's functions: bodies that differ in the names of variables alone are one function.

Where the shapes behind their lines differ, lengths that differ are letters there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hbpcompiler.codegen.copying import lettered
from hbpcompiler.codegen.layout import wrapped_formulas
from hbpcompiler.compiler.program.lengths import shown

SHAPES = re.compile(r"  # (?=\[)(?P<shapes>.*)$")
NUMBER = re.compile(r"\d+")
PLACES = "\0places"
"""In what is said of a function: the number of parts of the program that share it."""
GIVEN = "\0given"
"""There: between what a function does and its formulas."""
LONG = 50
DOCSTRING = 116


@dataclass(frozen=True)
class Body:
    """A function's definition, as its first member asked for it, and the lengths in each member's shapes."""

    name: str
    parameters: tuple[str, ...]
    about: str
    lines: tuple[str, ...]
    values: tuple[str, ...]
    lengths: tuple[tuple[int, ...], ...]
    members: int = 1
    given: tuple[str, ...] = ()
    """Its tensors with the shapes behind them, as lines say theirs; none where these have other axes in other members.
    """

    @property
    def result(self) -> str:
        """The annotation."""
        return result_of(self.values)

    def with_member(self, other: Body) -> Body:
        """Serving another part of the program."""
        if _axes(self.given) != _axes(other.given):
            return self._without_given().with_member(other._without_given()) if self.given or other.given else self
        new = [lengths for lengths in other.lengths if lengths not in self.lengths]
        return replace(self, lengths=(*self.lengths, *new), members=self.members + other.members)

    def _without_given(self) -> Body:
        numbers = len(lengths_of(self.lines))
        lengths = tuple(dict.fromkeys(member[:numbers] for member in self.lengths))
        return replace(self, given=(), lengths=lengths)

    def text(self) -> str:
        """The definition."""
        lines = _with_lengths([*self.lines, *self.given], self.lengths)
        about, _, formulas = self.about.replace(PLACES, f"{self.members} places").partition(GIVEN)
        told = [f'"""{about}{_given(lines[len(self.lines) :])}', *([formulas] if formulas else [])]
        told[-1] += '"""'
        inside = [*wrapped_formulas(told, DOCSTRING), *returning(lines[: len(self.lines)], self.values)]
        head = f"def {self.name}({', '.join(self.parameters)}) -> {self.result}:"
        return "\n".join([head, *(f"    {line}" if line else "" for line in inside)])


def _axes(given: Sequence[str]) -> list[str]:
    """The shapes behind names, without numbers."""
    return [NUMBER.sub("#", line.partition("  # ")[2]) for line in given]


def _given(lines: Sequence[str]) -> str:
    """In words: names with their shapes, those of one shape together."""
    names: dict[str, list[str]] = {}
    for line in lines:
        name, _, shape = line.partition("  # ")
        names.setdefault(shape, []).append(name)
    said = [f"{', '.join(alike)} {shape} each" if len(alike) > 2 else f"{' and '.join(alike)} {shape}"
            for shape, alike in names.items()]
    return f" Of {', '.join(said)}." if said else ""


def lengths_of(lines: Sequence[str]) -> tuple[int, ...]:
    """The numbers in the shapes behind lines."""
    return tuple(int(number) for line in lines if (found := SHAPES.search(line)) is not None
                 for number in NUMBER.findall(found["shapes"]))


def without_names(parameters: Sequence[str], lines: Sequence[str], values: Sequence[str]) -> str:
    """A body's calls, whatever its variables are called: arguments that are numbers keep their names, by which calls
    give them."""
    returned = f"return [{', '.join(values)}]"
    inside = "\n".join(f"    {line}" for line in [*lines, returned])
    tree = ast.parse(shown(f"def body({', '.join(parameters)}):\n{inside}"))
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        name = _bound(node)
        if name:
            known.setdefault(name, f"v{len(known)}")
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.arg = known.get(node.arg, node.arg)
        elif isinstance(node, ast.Name):
            node.id = known.get(node.id, node.id)
    layout = [NUMBER.sub("#", found["shapes"]) if (found := SHAPES.search(line)) is not None else
              line.partition("  # ")[2] for line in lines]
    return "\n".join([ast.dump(tree), *layout])


def _bound(node: ast.AST) -> str:
    """The variable that a node binds: an argument, or what is assigned to."""
    if isinstance(node, ast.arg):
        return "" if isinstance(node.annotation, ast.Name) and node.annotation.id == "int" else node.arg
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else ""


def _with_lengths(lines: Sequence[str], members: Sequence[Sequence[int]]) -> list[str]:
    """Lines with letters for the lengths that differ between members."""
    written: list[Any] = lettered(members, [False] * len(members[0]))[0]
    lengths = iter(written)
    found = []
    for line in lines:
        shapes = SHAPES.search(line)
        if shapes is not None:
            texts = NUMBER.sub(lambda _: str(next(lengths)), shapes["shapes"])
            line = f"{line[:shapes.start()]}  # {texts}"
        found.append(line)
    return found


def result_of(values: Sequence[str]) -> str:
    """The annotation of what a function returns."""
    if not values:
        return "None"
    return "Tensor" if len(values) == 1 else f"Tuple[{', '.join(['Tensor'] * len(values))}]"


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
