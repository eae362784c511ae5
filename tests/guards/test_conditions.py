"""What is watched, one kind of place after the other: a change is seen, and nothing else is one."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from hbpcompiler.guards.conditions import PIECE, Conditions
from hbpcompiler.guards.library import Elements
from hbpcompiler.guards.watched import LONG, Watched


def second() -> int:
    return 2


def cell_of(value: Any) -> Any:
    return (lambda: value).__closure__[0]  # type: ignore[index]


def set_to(item: Any, name: str, value: Any) -> None:
    setattr(item, name, value)


LONG_DICT = dict.fromkeys(map(str, range(LONG)), 0)
MAPPINGS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "another value": ({"a": 1, "b": None}, lambda held: held.update(b=0)),
    "an equal value": ({"a": 1.0}, lambda held: held.update(a=1)),
    "one more": ({"a": 1}, lambda held: held.update(b=1)),
    "one less": ({"a": 1, "b": 1}, lambda held: held.pop("b")),
    "another order": ({"a": 1, "b": 1}, lambda held: held.update(a=held.pop("a"))),
    "a moved end": (OrderedDict(a=1, b=1), lambda held: held.move_to_end("a")),
    "the first": ({}, lambda held: held.update(a=1)),
    "names like code": ({"{0}'\"\\%s\n": 1}, lambda held: held.update({"{0}'\"\\%s\n": 2})),
    "keys that are no texts": ({(1, 2): 1, None: 2}, lambda held: held.update({None: 3})),
    "many": (dict(LONG_DICT), lambda held: held.update({"3": 1})),
    "one more than many": (dict(LONG_DICT), lambda held: held.update(more=0)),
}


@pytest.mark.parametrize("name", MAPPINGS)
def test_mappings(name: str) -> None:
    held, change = MAPPINGS[name]
    watched = Watched()
    watched.mapping(held)
    assert watched.unchanged()
    before = list(held.items())
    change(held)
    assert not watched.unchanged()
    watched.put_back()
    assert sorted(held.items(), key=str) == sorted(before, key=str)


def places() -> dict[str, tuple[Callable[[Watched], Any], Callable[[], Any]]]:
    """What is watched, and a change of it."""
    own: dict[str, Any] = {"size": 3, "hooks": {}, "other": 0}
    module, tensor, items, objects = nn.Linear(2, 2), torch.zeros(3), [1, 2], numpy.array([1, None], dtype=object)
    queue, missing, cell, item = deque([1]), {"b": 1}, cell_of(3), SimpleNamespace(a=1)

    def run() -> int:
        return 1

    return {
        "an entry": (lambda watched: watched.entries(own, ["size"]), lambda: own.update(size=4)),
        "a new entry": (lambda watched: watched.entries(own, ["size"]), lambda: own.update(more=4)),
        "an empty entry": (lambda watched: watched.empty_entry(own, "hooks"), lambda: own.update(hooks={1: 2})),
        "a name": (lambda watched: watched.keys(own), lambda: own.update(more=1)),
        "a list": (lambda watched: watched.elements(items), lambda: items.append(3)),
        "an empty queue": (lambda watched: watched.elements(queue), queue.clear),
        "an array of objects": (lambda watched: watched.elements(Elements(objects)),
                                lambda: objects.__setitem__(1, 2)),
        "code": (lambda watched: watched.function(run), lambda: set_to(run, "__code__", second.__code__)),
        "defaults": (lambda watched: watched.function(run), lambda: set_to(run, "__defaults__", (1,))),
        "a cell": (lambda watched: watched.cell(cell), lambda: set_to(cell, "cell_contents", 4)),
        "an emptied cell": (lambda watched: watched.cell(cell), lambda: delattr(cell, "cell_contents")),
        "a name that comes": (lambda watched: watched.name(missing, "a"), lambda: missing.update(a=1)),
        "a name that goes": (lambda watched: watched.name(missing, "b"), missing.clear),
        "an attribute": (lambda watched: watched.slot(item, "a"), lambda: set_to(item, "a", 2)),
        "an attribute that comes": (lambda watched: watched.slot(item, "b"), lambda: set_to(item, "b", 2)),
        "a class": (lambda watched: watched.kind(module), lambda: set_to(module, "__class__", nn.Bilinear)),
        "a shape": (lambda watched: watched.tensor(tensor), lambda: tensor.resize_(2)),
        "a dtype": (lambda watched: watched.tensor(tensor), lambda: set_to(tensor, "data", tensor.double())),
        "a derivative": (lambda watched: watched.tensor(tensor), lambda: tensor.requires_grad_()),
        "numbers": (lambda watched: watched.numbers(tensor), lambda: tensor.add_(1)),
        "what is read": (lambda watched: watched.read(lambda: items[0], False), lambda: items.insert(0, 5)),
        "what is gone": (lambda watched: watched.read(lambda: items[0] if items else None, True), items.clear),
    }


@pytest.mark.parametrize("name", places())
def test_each_kind_of_place(name: str) -> None:
    watch, change = places()[name]
    watched = Watched()
    watch(watched)
    assert watched.unchanged()
    change()
    assert not watched.unchanged()


def test_an_empty_entry_may_be_another_empty_container() -> None:
    own: dict[str, Any] = {"hooks": {}}
    watched = Watched()
    watched.empty_entry(own, "hooks")
    own["hooks"] = OrderedDict()
    assert watched.unchanged()


@pytest.mark.parametrize("count", [1, PIECE, 2 * PIECE + 1])
def test_states_of_one_form_share_a_text_and_not_their_objects(count: int) -> None:
    held = [[{} for _ in range(count)] for _ in range(2)]
    functions = []
    for dicts in held:
        conditions = Conditions()
        for one in [*dicts, *dicts]:
            conditions.when(conditions.named(one))
        functions.append(conditions.written())
    assert [len(own) for own in functions] == [-(-count // PIECE)] * 2
    held[1][-1]["a"] = 1
    assert [any(function() for function in own) for own in functions] == [False, True]
