"""State that Python's and torch's classes keep out of sight: read by a forward, changed, there and back, beside
autograd."""

import functools
import io
import queue

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.guards import kept
from hbpcompiler.guards.walk import Walk
from tests.guards.test_programs import X, Y, agrees, programs
from tests.selection import few

SCALES = {"a": 1.0}


class Reading(nn.Module):
    def __init__(self, held, read):
        super().__init__()
        self.layer, self.held, self.read = nn.Linear(3, 2).double(), held, read

    def forward(self, x):
        return self.layer(x) * self.read(self.held)


@functools.cache
def of_all(name):
    return SCALES[name]


@functools.lru_cache(maxsize=4)
def of_some(name):
    return SCALES[name]


@functools.lru_cache
def tensor_of(name):
    return torch.full((2,), SCALES[name], dtype=torch.float64)


def numbers(*values):
    return TensorDataset(torch.tensor(values, dtype=torch.float64))


def swapped(get, name, value):
    """Setting an attribute, and putting the old one back."""
    values = [value]

    def change(held):
        values.append(getattr(get(held), name))
        setattr(get(held), name, values.pop(0))
    return change


def forgotten(function):
    """The dict behind a function changes, and then the function forgets."""
    def change(held):
        SCALES["a"] = 4.0 - SCALES["a"]
        function.cache_clear()
    return change


def written(held):
    now = float(held.getvalue())
    held.seek(0)
    held.write(str(4.0 - now))


def counted(held):
    if held.qsize():
        held.get()
    else:
        held.put(1)


VIEWED = {"a": 1.0}
STATES = {
    "item of a data set": (lambda: numbers(1.0), lambda d: d[0][0], swapped(
        lambda d: d, "tensors", (torch.tensor([[3.0, 2.0]], dtype=torch.float64),))),
    "item of a part": (lambda: Subset([1.0, 3.0], [0]), lambda d: d[0], swapped(lambda d: d, "indices", [1])),
    "item of several": (lambda: ConcatDataset([numbers(1.0)]), lambda d: d[0][0], swapped(
        lambda d: d.datasets[0], "tensors", (torch.tensor([[3.0, 2.0]], dtype=torch.float64),))),
    "length of a part": (lambda: Subset([1, 3], [0]), lambda d: len(d), swapped(lambda d: d, "indices", [1, 0, 1])),
    "cache": (lambda: None, lambda _: of_all("a"), forgotten(of_all)),
    "cache of some": (lambda: None, lambda _: of_some("a"), forgotten(of_some)),
    "tensor in a cache": (lambda: None, lambda _: tensor_of("a"), forgotten(tensor_of)),
    "text in memory": (lambda: io.StringIO("1.0"), lambda held: float(held.getvalue()), written),
    "method of it": (lambda: io.StringIO("1.0").getvalue, lambda method: float(method()),
                     lambda method: written(method.__self__)),
    "queue": (queue.Queue, lambda held: 1 + held.qsize(), counted),
    "simple queue": (queue.SimpleQueue, lambda held: 1 + held.qsize(), counted),
    "view of a dict": (lambda: VIEWED.values(), lambda view: sum(view),
                       lambda view: VIEWED.update(a=4.0 - VIEWED["a"])),
}


@few(3, "further classes")
@pytest.mark.parametrize("name", STATES)
def test_a_change_there_and_back(name):
    make, read, change = STATES[name]
    model = Reading(make(), read)
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), quantities=["grad"])
    for _ in range(3):
        compiled(X, Y)
        change(model.held)
        agrees(compiled, model, nn.CrossEntropyLoss())
        made = programs(compiled)
        agrees(compiled, model, nn.CrossEntropyLoss())
    agrees(compiled, model, nn.CrossEntropyLoss())
    assert programs(compiled) == made


def test_what_was_remembered_before_a_change_is_what_a_program_reads():
    """As the model itself does."""
    model = Reading(None, lambda _: of_all("a"))
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), quantities=["grad"])
    of_all.cache_clear()
    of_all("a")
    agrees(compiled, model, nn.CrossEntropyLoss())
    SCALES["a"] = 5.0
    agrees(compiled, model, nn.CrossEntropyLoss())
    SCALES["a"] = 1.0
    of_all.cache_clear()
    agrees(compiled, model, nn.CrossEntropyLoss())


@pytest.mark.parametrize("size", [None, 2])
def test_what_a_cache_remembers(size):
    @functools.lru_cache(maxsize=size)
    def pair(one, other=0):
        return [one, other]

    assert kept.remembered(pair) == ({}, [])
    first, second = pair(1), pair("a", other=2)
    pair(1)
    entries, results = kept.remembered(pair)
    assert len(entries) == 2
    assert results[0] is first
    assert results[1] is second
    assert kept.remembered(len) is None


@pytest.mark.parametrize(("size", "left"), [(None, 1), (8, 0)])
def test_what_a_run_leaves_behind_is_put_back(size, left):
    @functools.lru_cache(maxsize=size)
    def twice(number):
        return 2 * number

    twice(1)
    model = Reading(io.StringIO("1.0"), lambda held: float(held.getvalue()) + twice(1))
    walk = Walk(model, nn.MSELoss())
    model(X)
    twice(1)
    walk.watched.put_back()
    assert walk.watched.unchanged()
    twice(2)
    model.held.write("22222")
    walk.watched.put_back()
    assert twice.cache_info().currsize == left
    assert model.held.getvalue() == "1.0"
    assert walk.watched.unchanged() == bool(left)
