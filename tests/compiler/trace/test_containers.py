"""Nested containers into tensors and back."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hbpcompiler.compiler.trace.containers import ONE, StrangerError, take_apart

Pair = namedtuple("Pair", ["left", "right"])


@dataclass(frozen=True)
class Record:
    logits: Any
    note: str = "kept"


@dataclass(frozen=True)
class OtherRecord(Record):
    """The same fields, of another class."""


A, B, C = torch.zeros(1), torch.ones(2), torch.ones(3)


@pytest.mark.parametrize(("tree", "paths"), [
    (A, [()]),
    ((A, B), [(0,), (1,)]),
    ({"x": A, "y": [B, C]}, [("x",), ("y", 0), ("y", 1)]),
    (Pair(A, {"k": B}), [("left",), ("right", "k")]),
    ([A, None, 3, "text"], [(0,)]),
    (Record(A), [("logits",)]),
    ({"out": Record((A, B))}, [("out", "logits", 0), ("out", "logits", 1)]),
], ids=["tensor", "tuple", "dict", "named tuple", "constants", "dataclass", "dataclass in a dict"])
def test_taken_apart_and_built_again(tree, paths):
    tensors, structure = take_apart(tree)
    assert structure.paths() == paths
    doubled = structure.build([2 * tensor for tensor in tensors])
    again, other = take_apart(doubled)
    assert type(doubled) is type(tree)
    assert all(torch.equal(two, 2 * one) for one, two in zip(tensors, again, strict=True))
    assert other.identity() == structure.identity()


def test_a_dataclass_keeps_its_other_fields_and_the_template_its_tensors():
    template = Record(A, "mine")
    tensors, structure = take_apart(template)
    built = structure.build([B])
    assert built.note == "mine"
    assert built.logits is B
    assert template.logits is tensors[0]


def test_identities_differ():
    trees = [A, (A,), (A, B), [A, B], {"x": A}, {"y": A}, (A, None), (A, 1), (A, 2), Record(A), Record((A,)),
             OtherRecord(A)]
    assert len({take_apart(tree)[1].identity() for tree in trees}) == len(trees)


def test_one_tensor():
    assert take_apart(A)[1] is ONE
    assert ONE.is_one_tensor
    assert not take_apart((A,))[1].is_one_tensor


@pytest.mark.parametrize(("tree", "path"), [
    ((A, object()), "[1]"), ({"x": {"y": object()}}, "['x']['y']"), ([Record(object())], "[0]['logits']")])
def test_a_stranger_is_named_by_its_place(tree, path):
    with pytest.raises(StrangerError) as caught:
        take_apart(tree)
    assert caught.value.path == path
    assert type(caught.value.item) is object
