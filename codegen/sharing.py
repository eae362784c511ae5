"""One function for alike parts of a program, and a call in the place of each.

What shares functions inside of these parts already stays a call of them: loops in blocks, blocks in modules.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

from hbpcompiler.codegen.calls import Call, Function, Outline
from hbpcompiler.codegen.copying import Copy, Letter, lettered
from hbpcompiler.codegen.forms import CODE, INPUT, Form, entry_of
from hbpcompiler.codegen.places import Places
from hbpcompiler.codegen.printer import quote
from hbpcompiler.codegen.segments import Segment
from hbpcompiler.compiler.program.meta import Block

Members = Sequence[tuple[Segment, Form]]
"""Alike parts, and their forms."""


def arguments(members: Members, inner: Outline) -> list[tuple[int, ...]]:
    """The numbers in code that differ, one for each part."""
    columns = zip(*(in_code(part, form, inner) for part, form in members), strict=True)
    return list(dict.fromkeys(column for column in columns if len(set(column)) > 1))


def in_code(part: Segment, form: Form, inner: Outline) -> list[int]:
    """The numbers in a part's own statements, and those that its calls are given."""
    own = [number for (where, number), owner in zip(form.numbers, form.owners, strict=True)
           if where == CODE and owner not in inner.inside]
    return own + [number for node in part.nodes if node in inner.calls for number in inner.calls[node].numbers]


def share(members: Members, block: Block, inner: Outline, places: Places, found: Outline,
          returned: Collection[fx.Node] = (), headings: Sequence[Block] = ()) -> Function | None:
    """The function of these parts, its calls entered in `found`; None if there can be none.

    `inner` are the calls inside. `returned` are values that stand in tables, and are returned too. `headings` are
    those that modules' calls stand under.
    """
    first, form = members[0]
    written, letters = lettered([[number for _, number in own.numbers] for _, own in members],
                                [where == INPUT for where, _ in form.numbers], form.meanings)
    differing = arguments(members, inner)
    if not letters.keys() >= set(differing):
        return None  # a number of a call that stands nowhere in the nodes
    function = Function(fx.Graph(), block, [letters[column] for column in differing], len(members),
                        sizes={letter: max(column) for column, letter in letters.items()}, of_module=bool(headings))
    copy = Copy(function, form.inputs, iter(written), places, returned)
    copy.run(first)
    _calls_inside(function, members, copy, inner, letters)
    for number, (part, own) in enumerate(members):
        inputs = [node for node in own.inputs if entry_of(node, places, part.path) is None]
        values = [node for node in part.values()
                  if node in returned or entry_of(node, places, part.path) is None]
        for node in part.nodes:
            found.calls.pop(node, None)
        numbers = [column[number] for column in differing]
        found.calls[part.nodes[-1]] = Call(function, inputs, numbers, values, quote(part.path),
                                           headings[number] if headings else None)
        found.inside.update(part.nodes)
    return function


def _calls_inside(function: Function, members: Members, copy: Copy, inner: Outline,
                  letters: dict[tuple[int, ...], str]) -> None:
    """The function's own outline: what its parts call."""
    first, _ = members[0]
    calls = [[node for node in part.nodes if node in inner.calls] for part, _ in members]
    for node in first.nodes:
        if node in inner.inside:
            function.outline.inside.add(copy.known[node])
        if node in inner.calls:
            call = inner.calls[node]
            alike = [inner.calls[row[len(function.outline.calls)]].numbers for row in calls]
            given = [column[0] if len(set(column)) == 1 else Letter(letters[column])
                     for column in zip(*alike, strict=True)]
            function.outline.calls[copy.known[node]] = Call(
                call.function, [copy.known[read] for read in call.inputs], given,
                [copy.known[value] for value in call.values], _path_inside(call, first.path))


def _path_inside(call: Call, path: str) -> str:
    """The path of a part's module, in the function of a part around it."""
    rest = call.path.removeprefix(quote(path)[:-1])
    return "path" if rest == '"' else f'path + "{rest}'
