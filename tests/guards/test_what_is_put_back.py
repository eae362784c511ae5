"""What a run leaves behind is put back, and what is not."""

import multiprocessing
from array import array
from collections import deque

import numpy as np
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.guards.walk import Walk
from tests.guards.test_walk import LibraryObjects, Own


def test_what_a_run_leaves_behind_is_put_back():
    model = Own()
    cell, walk = [], None

    def loss(o, t):
        nonlocal cell
        cell = [1]

    kept, walk = cell, Walk(model, loss)
    model.T, model.new, model.named["b"], model.settings.T, model.settings.new = 5.0, 1, 2, 3, 4
    model.scales.append(1)
    loss(1, 1)
    walk.watched.put_back()
    assert (model.T, hasattr(model, "new"), model.named, model.settings.T) == (1.0, False, {"a": 1}, 1.0)
    assert (len(model.scales), cell is kept, hasattr(model.settings, "new")) == (2, True, False)
    assert walk.watched.unchanged()


def test_numbers_and_slots_are_put_back():
    model = Own()
    model.table, model.objects = np.arange(6.0).reshape(2, 3).T, np.array([np.zeros(2), model.table], dtype=object)
    model.seen = memoryview(model.raw)[:1]
    walk = Walk(model, nn.MSELoss())
    for held in (model.table, model.raw, model.array, model.objects[0]):
        held[0] += 1
    model.seen[0] = 7
    model.of_c.value, model.slotted.T, model.slotted.late = 5.0, 6.0, 7.0
    assert not walk.watched.unchanged()
    walk.watched.put_back()
    assert walk.watched.unchanged()
    assert (model.table.tolist(), bytes(model.raw), model.array.tolist()) == ([[0, 3], [1, 4], [2, 5]], b"ab", [1.0])
    assert (model.of_c.value, model.slotted.T, hasattr(model.slotted, "late")) == (1.0, 1.0, False)


def test_arrays_that_have_grown_are_put_back():
    model = nn.Linear(3, 3)
    model.raw, model.array = bytearray(b"ab"), array("d", [1.0])
    walk = Walk(model, nn.MSELoss())
    model.raw.append(1)
    model.array.append(2.0)
    walk.watched.put_back()
    assert walk.watched.unchanged()


def test_windows_sets_and_counters_of_classes_are_put_back():
    class Keeps(nn.Linear):
        seen, names = 0, {"a"}

        def forward(self, x):
            type(self).seen += 1
            self.names.add(str(self.seen))
            self.latest.append(x.mean())
            return super().forward(x)

    model = Keeps(3, 3)
    model.latest = deque([1.0], maxlen=2)
    walk = Walk(model, nn.CrossEntropyLoss())
    for _ in range(3):
        model(torch.zeros(2, 3))
    assert not walk.watched.unchanged()
    walk.watched.put_back()
    assert (Keeps.seen, Keeps.names, list(model.latest), model.latest.maxlen) == (0, {"a"}, [1.0], 2)
    assert walk.watched.unchanged()


def test_what_objects_of_libraries_hold_is_not_put_back():
    """Another thread may have set it meanwhile, and a third one waits for it."""
    held = LibraryObjects()
    for loss, read in ((held.flag, held.event.is_set), (held.rate, lambda: held.optimizer.param_groups[0]["lr"] == 2)):
        walk = Walk(nn.Linear(3, 3), loss)
        held.event.set()
        held.optimizer.param_groups[0]["lr"] = 2.0
        assert not walk.watched.unchanged()
        walk.watched.put_back()
        assert read()
        held.event.clear()
        held.optimizer.param_groups[0]["lr"] = 1.0


def test_what_processes_share_is_not_put_back():
    model = nn.Linear(3, 3)
    model.shared = multiprocessing.Value("d", 1.0)
    walk = Walk(model, nn.MSELoss())
    model.shared.value = 2.0
    walk.watched.put_back()
    assert model.shared.value == 2.0
    assert not walk.watched.unchanged()


def test_what_a_class_finds_out_about_itself_is_put_back():
    """Libraries keep such answers where they are asked for first: the program of that call serves the next."""
    class Asked(nn.Linear):
        def forward(self, x):
            if not hasattr(type(self), "is_wide"):
                type(self).is_wide = self.in_features > 2
            return super().forward(x)

    model, X, y = Asked(3, 3), torch.randn(4, 3), torch.randint(3, (4,))
    compiled = hbp.compile(model, quantities=["batch_l2"])
    compiled(X, y)
    assert not hasattr(Asked, "is_wide")
    compiled(X, y)
    assert len(compiled._guards) == 1


def test_a_class_that_lets_nobody_change_it_is_put_back():
    class Closed(type):
        def __delattr__(cls, name):
            raise AttributeError(name)

        def __setattr__(cls, name, value):
            if name in cls.__dict__:
                raise AttributeError(name)
            super().__setattr__(name, value)

    class Asked(nn.Linear, metaclass=Closed):
        calls = 0

        def forward(self, x):
            if not hasattr(Asked, "is_wide"):
                Asked.is_wide = self.in_features > 2
            type.__setattr__(Asked, "calls", Asked.calls + 1)
            return super().forward(x)

    hbp.compile(Asked(3, 3), quantities=["grad"])(torch.randn(4, 3), torch.randint(3, (4,)))
    assert not hasattr(Asked, "is_wide")
    assert Asked.calls == 0
