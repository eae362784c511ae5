"""Safe, readable identifiers. Names from the user's model are data: they become identifiers here or are quoted."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Mapping

from hbpcompiler.arguments import ARGUMENTS
from hbpcompiler.codegen.paths import LONGEST, Paths
from hbpcompiler.codegen.streams import begins_as_stream
from hbpcompiler.compiler.program.kernels import FALLBACKS
from hbpcompiler.compiler.program.weighted_loss import LOSSES, WEIGHTED
from hbpcompiler.compiler.trace.containers import Structure
from hbpcompiler.compiler.trace.graph import Graph, Operation
from hbpcompiler.quantities import QUANTITIES
from hbpcompiler.rule.composite import PREFIX

RESERVED = frozenset({*keyword.kwlist, *keyword.softkwlist, *dir(builtins), "torch", "F", "Tensor", "state", "self",
                      "Result", "Program", "Factors", "Split", "Dict", "List", "NamedTuple", "Optional", "Tuple",
                      "start", "stop", "forward", "result", "WITHOUT_ONEDNN",
                      *(helper.__name__ for helper in FALLBACKS), *ARGUMENTS, LOSSES, WEIGHTED})


def identifier(text: str) -> str:
    """Letters, digits and underscores only; never empty, a keyword or a builtin."""
    name = re.sub(r"[^0-9a-zA-Z_]+", "_", text).strip("_")
    name = re.sub(r"__+", "_", name)[:60]
    if not name or name[0].isdigit():
        name = f"v_{name}" if name else "v"
    return f"{name}_" if name in RESERVED or name.startswith(PREFIX) else name


def comment(text: str) -> str:
    """A text fit for a comment or a docstring: one line, without quotes, backslashes and unprintable signs."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(sign if sign.isprintable() and sign not in "\"\\" else "?" for sign in text)


class Names:
    """Hands out each name once."""

    def __init__(self) -> None:
        self.taken: set[str] = set(RESERVED)

    def fresh(self, wish: str) -> str:
        """The wish, or the wish with the first free number."""
        base = identifier(wish)
        name, number = base, 1
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name


def output_fields(structure: Structure) -> tuple[str, ...]:
    """A field of the generated file's Result for each tensor that the model returns."""
    names = Names()
    names.taken.update(("loss", *QUANTITIES))
    return tuple(names.fresh("_".join(["output", *map(str, path)])) for path in structure.paths())


def value_names(graph: Graph) -> Mapping[str, str]:
    """A name for every value of the graph, from its module's path."""
    return _named(graph)[0]


def short_forms(graph: Graph) -> Mapping[str, str]:
    """What parts of long module paths are called in `value_names`: short form -> part."""
    return _named(graph)[1]


def short_form_notes(graph: Graph) -> list[str]:
    """For the head of a file: which parts of module paths are shortened in names, if any are."""
    forms = [f"{short} {part}" for short, part in short_forms(graph).items()]
    return [f"In names: {', '.join(forms)}."] if forms else []


def _named(graph: Graph) -> tuple[Mapping[str, str], Mapping[str, str]]:
    paths = Paths([*(operation.source.module for operation in graph.operations), *(value.key for value in graph.state)])
    names = Names()
    names.taken.add("N")
    found: dict[str, str] = {}
    for value in graph.batch:
        found[value.name] = names.fresh(value.key)
    for value in graph.state:
        found[value.name] = names.fresh(_key_name(value.key, paths))
    crowd: dict[tuple[str, bool], int] = {}
    for operation in graph.operations:
        place = (operation.source.module, operation.source.in_loss)
        crowd[place] = crowd.get(place, 0) + 1
    parts = _parts(graph)
    for operation in graph.operations:
        alone = crowd[operation.source.module, operation.source.in_loss] == 1
        wish = "loss" if operation.output is graph.loss else _operation_name(
            operation, parts.get(operation.name, ""), alone, paths, found)
        found[operation.name] = names.fresh(wish)
    return found, paths.legend()


PARTS = frozenset({"query", "key", "value"})
"""Slots that say what a value is, better than the operation that made it."""


def _parts(graph: Graph) -> Mapping[str, str]:
    """What values are to those that read them, if to all the same: an attention's query, key or value."""
    read_as: dict[str, set[str]] = {}
    for operation in graph.operations:
        for slot, value in operation.tensors.items():
            read_as.setdefault(value.name, set()).add(slot)
    return {name: next(iter(slots)) for name, slots in read_as.items() if len(slots) == 1 and slots <= PARTS}


def _key_name(key: str, paths: Paths) -> str:
    path, _, leaf = paths.shortened(key.replace(":", ".")).rpartition(".")
    return f"{leaf}_{path}" if _goes_behind(path) else f"{path}_{leaf}"


def _operation_name(operation: Operation, part: str, alone: bool, paths: Paths, found: Mapping[str, str]) -> str:
    short = part or brief(operation.plain)
    if not operation.source.module and not operation.source.in_loss:
        return _in_forward(operation, part, found)
    place = "loss" if operation.source.in_loss else operation.source.module
    if _goes_behind(place):
        return paths.shortened(f"{short}.{place}")
    return paths.shortened(place if alone else f"{place}.{short}")


def _in_forward(operation: Operation, part: str, found: Mapping[str, str]) -> str:
    """Of what the model's own forward does to one value, or to one parameter alone: its name and what is done; or what
    it is to its reader, where that name does not say so already."""
    made = [value for value in operation.tensors.values() if value.role == "result"] or [*operation.tensors.values()]
    before, short = found[made[0].name] if len(made) == 1 else "", brief(operation.plain)
    if part and part not in before.split("_"):
        return part
    return f"{before}_{short}" if before and len(f"{before}_{short}") <= LONGEST else short


def _goes_behind(path: str) -> bool:
    """Whether a path stands behind what is there: one that begins with a digit, or as names of columns do."""
    return path[:1].isdigit() or begins_as_stream(path)


def brief(short: str) -> str:
    """A long operation's name with the first letters of all but its last word."""
    *words, last = short.split("_")
    return short if len(short) <= BRIEF else "".join(word[0] for word in words) + f"_{last}"


BRIEF = 18
"""Signs that an operation's own name may have in a value's."""
