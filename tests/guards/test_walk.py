"""What belongs to the state that a program was traced under, and what does not: no program is made here."""

import contextvars
import ctypes
import enum
import functools
import os
import random
import threading
import types
import weakref
from array import array
from collections import ChainMap, UserDict, UserList, defaultdict
from collections.abc import MutableMapping, MutableSequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from hbpcompiler.guards.ambient import ambient
from hbpcompiler.guards.walk import Walk
from tests.selection import few

GLOBAL, TABLE = 2.0, {"scale": 1.0}


class Colour(enum.Enum):
    RED = 1
    BLUE = 2

    def gain(self):
        return TABLE["scale"]


class Plain:
    """A settings object of no particular kind."""

    def __init__(self):
        self.T, self.inner, self.unread = 1.0, types.SimpleNamespace(k=1), []


class Slotted:
    __slots__ = ("T", "late")


class Defaults:
    """Settings of the class, which an object may have others than."""

    T, nested = 1.0, types.SimpleNamespace(k=1)

    class Inner:
        k = 1.0

    @functools.cached_property
    def twice(self):
        return TABLE["scale"] * 2


class OfClasses(type):
    @property
    def gain_of_class(cls):
        return TABLE["scale"]


class Reading:
    """A descriptor."""

    def __get__(self, item, kind=None):
        return TABLE["scale"]


class WithProperties(metaclass=OfClasses):
    gain = Reading()


class Settings(dict):
    """A dict that has attributes too."""


class Scale(float):
    """A number that is no plain one."""


@dataclass
class Config:
    T: float = 1.0
    layers: list = field(default_factory=lambda: [1, 2])


class Own(nn.Module):
    STEEPNESS = 1.0

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.drop, self.norm = nn.Dropout(0.1), nn.BatchNorm1d(3)
        self.T, self.flag, self.scales, self.named = 1.0, True, [1.0, {"a": (1, 2)}], {"a": 1}
        self.config, self.settings, self.slotted, self.colour = Config(), Plain(), Slotted(), Colour.RED
        self.slotted.T = 1.0
        self.act, self.dtype, self.constant = torch.tanh, torch.float32, torch.ones(3)
        self.table = np.ones(3)
        self.raw, self.array = bytearray(b"ab"), array("d", [1.0])
        self.user_dict, self.chain, self.user_list = UserDict(a=1), ChainMap({"a": 1}), UserList([1])
        self.behind = {"a": 1}
        self.proxy = types.MappingProxyType(self.behind)
        self.late = functools.partial(F.leaky_relu, negative_slope=0.1)
        self.defaults, self.subclass, self.number = Defaults(), Settings(a=1), Scale(1.0)
        self.subclass.T, self.missing = 1.0, defaultdict(list)
        self.objects, self.scalar = np.array([1.0, {"a": 1}], dtype=object), np.float64(1.0)
        self.of_c, self.behind_a_method = ctypes.c_double(1.0), {"a": 1}
        self.looked_up = self.behind_a_method.get
        self.referred, self.reference = Plain(), None
        self.reference, self.proxied = weakref.ref(self.referred), weakref.proxy(self.referred)
        self.weak = weakref.WeakValueDictionary(a=self.referred)
        self.variable, self.of_thread = contextvars.ContextVar("variable", default=1.0), threading.local()
        self.of_thread.T = 1.0

    def forward(self, x):
        return self.helper(self.one(x)) * self.settings.inner.k * self.slotted.T * GLOBAL

    def helper(self, x, times=1):
        return x * times


def weighted(o, t, eps=0.1, *, alpha=1.0):
    return nested(o, t) * GLOBAL * TABLE["scale"] + eps * alpha


def nested(o, t):
    return (lambda: F.mse_loss(o, t) * GLOBAL)()


class Trainer:
    """Has a loss, and counters that the loss never reads."""

    def __init__(self):
        self.smoothing, self.step, self.history = 0.1, 0, []

    def loss(self, o, t):
        return self.inner(o, t)

    def inner(self, o, t):
        return F.cross_entropy(o, t, label_smoothing=self.smoothing)

    def train(self):
        self.step += 1


def set_to(thing, name, value):
    """Setting an attribute, an item or a cell; calling it again puts the old value back."""
    held = [value]

    def change():
        if isinstance(thing, MutableMapping | MutableSequence | np.ndarray):
            thing[name], held[0] = held[0], thing[name]
        else:
            old = getattr(thing, name)
            setattr(thing, name, held[0])
            held[0] = old
    return change


def of(model=None, loss=None):
    return model or Own(), loss or nn.CrossEntropyLoss()


def in_model(get, name, value):
    def case():
        model = Own()
        return *of(model), set_to(get(model), name, value)
    return case


def added(get, name, value):
    """An attribute that is there or not."""
    def case():
        model = Own()
        thing = get(model)

        def change():
            if name in vars(thing):
                delattr(thing, name)
            else:
                setattr(thing, name, value)
        return *of(model), change
    return case


def by_code(code):
    """A change to what functions and classes read that only the code of a model's forward leads to."""
    def case():
        model = nn.Linear(3, 3)
        model.forward = code
        return *of(model), set_to(TABLE, "scale", 3.0)
    return case


def variable():
    model = Own()
    values = [2.0, 1.0]
    return *of(model), lambda: (model.variable.set(values[0]), values.reverse())


def default_of_a_dict():
    model = Own()
    kinds = [dict, list]

    def change():
        model.missing.default_factory = kinds[0]
        kinds.reverse()
    return *of(model), change


def slot_that_was_missing():
    model = Own()

    def change():
        if hasattr(model.slotted, "late"):
            del model.slotted.late
        else:
            model.slotted.late = 1.0
    return *of(model), change


def surroundings():
    model = nn.Linear(3, 3)
    model.forward = lambda x: x * float(os.environ.get("HBP_TEST_SCALE", "1"))

    def change():
        if os.environ.pop("HBP_TEST_SCALE", None) is None:
            os.environ["HBP_TEST_SCALE"] = "2"
    return *of(model), change


class LibraryObjects:
    """What a loss may read of objects whose classes are torch's or Python's."""

    def __init__(self):
        self.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        self.scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer)
        self.data, self.event = TensorDataset(torch.zeros(2)), threading.Event()
        self.data.scale = 1.0

    def rate(self, o, t):
        return F.cross_entropy(o, t) * self.optimizer.param_groups[0]["lr"]

    def epoch(self, o, t):
        return F.cross_entropy(o, t) * self.scheduler.last_epoch

    def last_rate(self, o, t):
        return F.cross_entropy(o, t) * self.scheduler.get_last_lr()[0]

    def scale(self, o, t):
        return F.cross_entropy(o, t) * self.data.scale

    def item(self, o, t):
        return F.cross_entropy(o, t) * self.data[0][0]

    def flag(self, o, t):
        return F.cross_entropy(o, t) * (2 if self.event.is_set() else 1)


def of_library_objects(read, get, name, value):
    def case():
        held = LibraryObjects()
        return *of(nn.Linear(3, 3), getattr(held, read)), set_to(get(held), name, value)
    return case


def in_loss(make, get, name, value):
    def case():
        loss = make()
        return *of(nn.Linear(3, 3), loss), set_to(get(loss), name, value)
    return case


def closure():
    temperature, unused = 1.0, [1.0]
    return lambda o, t: F.mse_loss(o, t) * temperature * len(unused)


def hook():
    model = Own()
    handle = []

    def change():
        if handle:
            handle.pop().remove()
        else:
            handle.append(model.one.register_forward_hook(lambda m, i, o: o * 2))
    return *of(model), change


def tied():
    model = Own()
    return *of(model), set_to(model.two, "weight", model.one.weight)


def forward():
    model = Own()

    def change():
        if "forward" in vars(model):
            del model.forward
        else:
            model.forward = lambda x: x
    return *of(model), change


def reshaped():
    model = nn.Linear(3, 3)
    new = [torch.zeros(3, 4)]

    def change():
        new[0], model.weight.data = model.weight.data, new[0]
    return *of(model), change


CHANGES = {
    "optimizer's rate": of_library_objects("rate", lambda h: h.optimizer.param_groups[0], "lr", 2.0),
    "scheduler's epoch": of_library_objects("epoch", lambda h: h.scheduler, "last_epoch", 5),
    "scheduler's rate": of_library_objects("last_rate", lambda h: h.scheduler._last_lr, 0, 2.0),
    "attribute of a data set": of_library_objects("scale", lambda h: h.data, "scale", 2.0),
    "item of a data set": of_library_objects("item", lambda h: h.data, "tensors", (torch.zeros(2, 2),)),
    "event": of_library_objects("flag", lambda h: h.event, "_flag", True),
    "number": in_model(lambda m: m, "T", 2.0), "integer for float": in_model(lambda m: m, "T", 1),
    "negative zero": in_model(lambda m: m, "T", -0.0), "flag": in_model(lambda m: m, "flag", False),
    "none": in_model(lambda m: m, "T", None), "text": in_model(lambda m: m, "T", "linear"),
    "function": in_model(lambda m: m, "act", torch.relu), "enum": in_model(lambda m: m, "colour", Colour.BLUE),
    "dtype": in_model(lambda m: m, "dtype", torch.float64),
    "list": in_model(lambda m: m.scales, 0, 2.0), "dict in list": in_model(lambda m: m.scales[1], "a", (1, 3)),
    "dict": in_model(lambda m: m.named, "a", 2), "numpy array": in_model(lambda m: m.table, 0, 5.0),
    "bytes": in_model(lambda m: m.raw, 0, 7), "array": in_model(lambda m: m.array, 0, 2.0),
    "user's dict": in_model(lambda m: m.user_dict, "a", 2), "chain of dicts": in_model(lambda m: m.chain, "a", 2),
    "user's list": in_model(lambda m: m.user_list, 0, 2), "proxy": in_model(lambda m: m.behind, "a", 2),
    "dataclass": in_model(lambda m: m.config, "T", 2.0), "list in it": in_model(lambda m: m.config.layers, 0, 5),
    "object": in_model(lambda m: m.settings, "T", 2.0), "object in it": in_model(lambda m: m.settings.inner, "k", 2),
    "slot": in_model(lambda m: m.slotted, "T", 2.0), "slot that was missing": slot_that_was_missing,
    "class's default": added(lambda m: m.defaults, "T", 2.0), "new attribute": added(lambda m: m.settings, "n", 2.0),
    "new in a namespace": added(lambda m: m.settings.inner, "n", 2.0),
    "method of one object": added(lambda m: m.defaults, "helper", lambda: 2.0),
    "object of a class": in_model(lambda m: Defaults.nested, "k", 2), "inner class": in_model(
        lambda m: Defaults.Inner, "k", 2.0),
    "attribute of a dict": in_model(lambda m: vars(m.subclass), "T", 2.0),
    "new attribute of a dict": added(lambda m: m.subclass, "n", 2.0), "default of a dict": default_of_a_dict,
    "number of a class of its own": in_model(lambda m: m, "number", Scale(2.0)),
    "numpy scalar": in_model(lambda m: m, "scalar", np.float64(2.0)),
    "numpy objects": in_model(lambda m: m.objects, 0, 5.0), "in them": in_model(lambda m: m.objects[1], "a", 5),
    "number of C's": in_model(lambda m: m.of_c, "value", 5.0),
    "behind a bound method": in_model(lambda m: m.behind_a_method, "a", 5),
    "weak reference": in_model(lambda m: m, "reference", weakref.ref(Colour.RED)),
    "referred to": in_model(lambda m: m.referred, "T", 5.0),
    "variable of a context": variable, "variable of a thread": in_model(lambda m: m.of_thread, "T", 5.0),
    "surroundings": surroundings, "cached property": by_code(lambda x: x * Defaults().twice),
    "metaclass": by_code(lambda x: x * WithProperties.gain_of_class),
    "descriptor": by_code(lambda x: x * WithProperties.gain),
    "method of an enum": by_code(lambda x: x * Colour.RED.gain()),
    "partial's keyword": in_model(lambda m: m.late.keywords, "negative_slope", 0.2),
    "submodule's": in_model(lambda m: m.drop, "p", 0.5), "epsilon": in_model(lambda m: m.norm, "eps", 0.5),
    "class": in_model(lambda m: type(m), "STEEPNESS", 2.0),
    "method": in_model(lambda m: type(m), "helper", lambda s, x: x),
    "default": in_model(lambda m: type(m).helper, "__defaults__", (2,)),
    "replaced module": in_model(lambda m: m, "one", nn.Tanh()),
    "other class": in_model(lambda m: m.one, "__class__", Own),
    "frozen": in_model(lambda m: m.one.weight, "requires_grad", False),
    "training": in_model(lambda m: m.drop, "training", False),
    "parameter's shape": in_model(lambda m: m.one, "weight", nn.Parameter(torch.zeros(3, 4))),
    "constant's shape": in_model(lambda m: m, "constant", torch.ones(1)),
    "constant's dtype": in_model(lambda m: m, "constant", torch.ones(3, dtype=torch.float64)),
    "hook": hook, "tied": tied, "forward": forward, "data of another shape": reshaped,
    "loss's flag": in_loss(nn.CrossEntropyLoss, lambda f: f, "reduction", "sum"),
    "loss's number": in_loss(nn.CrossEntropyLoss, lambda f: f, "label_smoothing", 0.1),
    "weights, or none": in_loss(lambda: nn.CrossEntropyLoss(torch.ones(3)), lambda f: f, "weight", None),
    "loss's default": in_loss(lambda: weighted, lambda f: f, "__defaults__", (0.2,)),
    "its keyword's default": in_loss(lambda: weighted, lambda f: f.__kwdefaults__, "alpha", 2.0),
    "cell": in_loss(closure, lambda f: f.__closure__[0], "cell_contents", 2.0),
    "list in a cell": in_loss(closure, lambda f: f.__closure__[1].cell_contents, 0, 2.0),
    "global": in_loss(lambda: weighted, lambda f: f.__globals__, "GLOBAL", 3.0),
    "global dict": in_loss(lambda: weighted, lambda f: TABLE, "scale", 3.0),
    "global of what it calls": in_loss(lambda: weighted, lambda f: f.__globals__, "nested", F.mse_loss),
    "partial": in_loss(lambda: functools.partial(weighted, eps=1.0), lambda f: f.keywords, "eps", 2.0),
    "bound method": in_loss(lambda: Trainer().loss, lambda f: f.__self__, "smoothing", 0.2),
    "method it calls": in_loss(lambda: Trainer().loss, lambda f: Trainer, "inner", lambda s, o,
        t: F.cross_entropy(o, t)),
    "lambda's code": in_loss(lambda: weighted, lambda f: f, "__code__", (lambda o, t, eps=1, *,
        alpha=1: o.sum()).__code__),
}


@few(3, "further cases of one kind")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_going_back_finds_the_old_state(name):
    model, loss, change = CHANGES[name]()
    first = Walk(model, loss)
    assert first.watched.unchanged()
    assert Walk(model, loss).key == first.key
    change()
    assert not first.watched.unchanged()
    second = Walk(model, loss)
    assert second.key != first.key
    change()
    assert not second.watched.unchanged()
    assert Walk(model, loss).key == first.key


def counters():
    loss = Trainer().loss
    return nn.Linear(3, 3), loss, lambda: (loss.__self__.train(), loss.__self__.history.append(1))


def unread():
    model = Own()
    return *of(model), lambda: model.settings.unread.append(1)


def beside():
    """A loss that is a method of what holds an optimizer and its schedule, and reads neither."""
    held = LibraryObjects()
    return nn.Linear(3, 3), held.scale, lambda: (held.optimizer.step(), held.scheduler.step())


def numbers():
    model, loss = Own(), nn.CrossEntropyLoss(torch.ones(3))

    def change():
        for tensor in (*model.parameters(), *model.buffers(), loss.weight, model.constant):
            tensor.data.add_(1)
    return model, loss, change


UNSEEN = {"counters that the loss never reads": counters, "an object that nothing names": unread,
          "an optimizer and its schedule": beside,
          "numbers of tensors": numbers}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_no_trace_reads_changes_nothing(name):
    model, loss, change = UNSEEN[name]()
    walk = Walk(model, loss)
    change()
    assert walk.watched.unchanged()
    assert Walk(model, loss).key == walk.key


@pytest.mark.parametrize("held", [
    lambda plain: weakref.ref(plain), lambda plain: weakref.proxy(plain), lambda plain: weakref.WeakSet([plain]),
    lambda plain: weakref.WeakKeyDictionary({plain: 1}), lambda plain: weakref.WeakMethod(plain.__eq__),
], ids=["reference", "proxy", "set", "keys", "method"])
def test_what_only_a_weak_reference_leads_to(held):
    plain, model = Plain(), nn.Linear(3, 3)
    comparison = {"__eq__": lambda self, other: self is other, "__hash__": lambda self: 0}
    plain.__class__ = type("Compared", (Plain,), comparison)
    model.held = held(plain)
    walk = Walk(model, nn.MSELoss())
    assert walk.watched.unchanged()
    plain.T = 5.0
    assert not walk.watched.unchanged()
    assert Walk(model, nn.MSELoss()).key != walk.key
    plain.T = 1.0
    again = Walk(model, nn.MSELoss())
    assert again.key == walk.key
    del plain
    assert not again.watched.unchanged()


def test_each_thread_has_its_own_values():
    model, seen = nn.Linear(3, 3), []
    model.held = threading.local()
    model.held.T = 1.0
    walk = Walk(model, nn.MSELoss())

    def other():
        model.held.T = 2.0
        seen.append((walk.watched.unchanged(), Walk(model, nn.MSELoss()).key == walk.key))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [(False, False)]
    assert walk.watched.unchanged()


def test_tensors_replaced_are_another_identity_and_the_same_state():
    model, loss = Own(), nn.CrossEntropyLoss(torch.ones(3))
    walk = Walk(model, loss)
    loss.weight, model.constant = torch.zeros(3), torch.zeros(3)
    model.one.weight = nn.Parameter(torch.zeros(3, 3))
    assert not walk.watched.unchanged()
    assert Walk(model, loss).key == walk.key


def test_values_in_circles_end():
    model = Own()
    model.settings.inner.k = model
    model.scales.append(model.scales)
    model.named["forward"] = model.forward
    assert Walk(model, model.forward).key == Walk(model, model.forward).key


def test_hooks_of_every_module():
    model, loss = of(nn.Linear(2, 2))
    walk = Walk(model, loss)
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: o)
    assert not walk.watched.unchanged()
    assert Walk(model, loss).key != walk.key
    handle.remove()
    assert Walk(model, loss).key == walk.key


def test_generators_are_found():
    model = Own()
    model.settings.T, model.named["r"] = np.random.default_rng(0), random.Random(0)
    assert len(Walk(model, nn.MSELoss()).generators) == 2


def test_surroundings():
    states = [ambient(["cpu"])]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            states.append(ambient(["cpu"]))
    torch.set_default_dtype(torch.float64)
    try:
        states.append(ambient(["cpu"]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(set(states)) == 4
    assert ambient(["cpu"]) == states[0]
