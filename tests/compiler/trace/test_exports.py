"""One export of a model, loss and state of Python for whatever quantities; a new one wherever something has changed."""

import copy
import functools
import gc
import os
import pickle
import threading
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace import exports
from hbpcompiler.compiler.trace import trace as exporting
from hbpcompiler.reference import reference
from tests.agreement import agree, close
from tests.selection import few, slow


@pytest.fixture
def counted(monkeypatch):
    """The batches of all exports, without those that tests share."""
    calls, export = [], exporting.export.export

    @functools.wraps(export)
    def count(model, loss, batch, *more):
        calls.append(batch.form)
        return export(model, loss, batch, *more)

    monkeypatch.setattr(exporting, "export", count)
    return calls


class Scaled(nn.Module):
    """tanh of a linear layer, by a number that is no parameter."""

    shift = 0.0

    def __init__(self):
        super().__init__()
        self.inner, self.last, self.scale = nn.Linear(3, 4), nn.Linear(4, 2), 1.0

    def forward(self, x):
        factor = float(os.environ.get("HBP_TEST_FACTOR", "1"))
        return self.last(torch.tanh(self.scale * self.inner(x)) * factor + self.shift)


class Weighed(nn.Module):
    """A loss with a parameter, a buffer and a tensor that is neither."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.register_buffer("weight", torch.tensor([1.0, 3.0], dtype=torch.float64))
        self.plain = torch.tensor(0.5, dtype=torch.float64)

    def forward(self, output, target):
        entropy = nn.functional.cross_entropy(output, target, self.weight)
        return entropy * self.factor + self.plain * output.square().sum()


class Dropping(Scaled):
    """Drops some of its outputs, by a number that no guard sees."""

    def forward(self, x):
        rate = float(os.environ.get("HBP_TEST_RATE", "0"))
        return nn.functional.dropout(super().forward(x), rate) if rate else super().forward(x)


@dataclass
class Doubled:
    """What the model takes is twice what is held."""

    held: torch.Tensor

    def value(self):
        return 2 * self.held


@dataclass
class Tripled(Doubled):
    """The same field, another value."""

    def value(self):
        return 3 * self.held


class OfRecords(nn.Linear):
    """A linear layer of a record's value."""

    def forward(self, record):
        return super().forward(record.value())


def made(seed=0):
    torch.manual_seed(seed)
    return Scaled().double(), torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])


def test_one_export_serves_whatever_is_asked(counted):
    model, X, y = made()
    loss = nn.CrossEntropyLoss()
    first = hbp.compile(model, quantities=["grad"])
    agree(first(X, y), model, loss, [X], y, ["grad"])
    others = [first.instead(["variance", "batch_l2"]), first.also("diag_h"),
              hbp.compile(model, nn.CrossEntropyLoss(), ["diag_ggn"], joint_bias=True, backend="torchscript",
                          rules=[]),
              hbp.compile(model, loss, {"second_moment": ["inner.*"]}, curvature="ggn", memory_budget="1GiB")]
    for compiled in others[:-1]:
        agree(compiled(X, y), model, loss, [X], y)
    expected = reference(model, loss, [X], y, "second_moment")
    of_inner = others[-1](X, y).second_moment
    assert len(of_inner) == 2
    for name, value in of_inner.items():
        close(value, expected[name], name)
    jacobian = hbp.compile(model, quantities=["jacobian"])(X, y).jacobian["last.bias"]
    assert torch.equal(jacobian, torch.eye(2, dtype=torch.float64).expand(5, 2, 2))
    assert len(counted) == 1
    assert "export 0.00" in others[0].explain()


def changed_number(model):
    model.scale = 0.5


def changed_class(model):
    Scaled.shift = 0.25


def frozen(model):
    model.inner.weight.requires_grad_(False)


def hooked(model):
    model.inner.register_forward_hook(lambda module, given, output: output * 2)


def other_layer(model):
    model.last = nn.Sequential(nn.Tanh(), nn.Linear(4, 2)).double()


def of_environment(model):
    os.environ["HBP_TEST_FACTOR"] = "3"


@few(2, "the same comparison of what was traced")
@pytest.mark.parametrize("change", [changed_number, changed_class, frozen, hooked, other_layer, of_environment])
@pytest.mark.parametrize("verify", [True, False])
def test_a_change_between_two_compiles_is_met(counted, change, verify, monkeypatch):
    """Also one that no guard sees: the proof does, and without proofs nothing is shared."""
    monkeypatch.setenv("HBP_TEST_FACTOR", "1")
    monkeypatch.setattr(Scaled, "shift", 0.0)
    model, X, y = made()
    kept = hbp.compile(model, quantities=["grad"])
    kept(X, y)
    change(model)
    compiled = hbp.compile(model, quantities=["grad", "variance"], verify=verify)
    agree(compiled(X, y), model, nn.CrossEntropyLoss(), [X], y, ["grad", "variance"])
    assert len(counted) == 2


def test_losses_that_differ_in_tensors_alone_are_told_apart(counted):
    model, X, y = made()
    weights = [torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 0.5], dtype=torch.float64)]

    def weighted(weight):
        return lambda output, target: nn.functional.cross_entropy(output, target, weight)

    kept = []
    for loss in [make(weight) for make in (nn.CrossEntropyLoss, weighted) for weight in weights]:
        kept.append(hbp.compile(model, loss, ["grad", "batch_l2"]))
        agree(kept[-1](X, y), model, loss, [X], y, ["grad", "batch_l2"])
    assert len(counted) == 4


def test_other_forms_and_modes_have_their_own(counted):
    model, X, y = made()
    kept = [hbp.compile(model, quantities=[name]) for name in ("grad", "batch_l2")]
    for compiled in kept:
        for samples in (5, 1, 3):
            compiled(X[:samples], y[:samples])
    assert len(counted) == 1
    model.eval()
    for compiled in kept:
        compiled(X, y)
    assert len(counted) == 2
    model.float()
    for compiled in kept:
        compiled(X.float(), y)
    assert len(counted) == 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for compiled in kept:
            compiled(X.float(), y)
    assert len(counted) == 4


@slow("a second or more; shorter ones of its kind stay")
def test_it_goes_with_the_last_compiled_and_keeps_no_replaced_parameter(counted):
    gc.collect()
    gc.freeze()  # what other tests have left alive is not looked through each time
    model, X, y = made()
    compiled = hbp.compile(model, quantities=["grad"])
    compiled(X, y)
    old = weakref.ref(model.last.weight)
    model.last.weight = nn.Parameter(model.last.weight.detach() + 1)
    other = hbp.compile(model, quantities=["batch_l2"])
    agree(other(X, y), model, nn.CrossEntropyLoss(), [X], y, ["batch_l2"])
    agree(compiled(X, y), model, nn.CrossEntropyLoss(), [X], y, ["grad"])
    gc.collect()
    assert old() is None
    found = weakref.ref(model), id(model), weakref.ref(exports.exports_of(model))
    del compiled, other
    gc.collect()
    assert found[2]() is None
    del model
    gc.collect()
    assert found[0]() is None
    assert found[1] not in exports._OF_MODELS


def test_copies_export_anew_and_threads_share(counted):
    model, X, y = made()
    first = hbp.compile(model, quantities=["grad"])
    kept = [first, hbp.compile(model, quantities=["batch_l2"]), hbp.compile(model, quantities=["variance"])]
    results = {}
    threads = [threading.Thread(target=lambda one=one: results.update({one.quantities: one(X, y)})) for one in kept]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (quantity,), result in results.items():
        agree(result, model, nn.CrossEntropyLoss(), [X], y, [quantity])
    assert len(counted) == 1
    for copied in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        agree(copied(X, y), copied.model, nn.CrossEntropyLoss(), [X], y, ["grad"])
    assert len(counted) == 3


def test_verify_and_draws_by_sample_meet_an_outdated_trace_too(counted, monkeypatch):
    _, X, y = made()
    model = Dropping().double()
    first = hbp.compile(model, quantities=["grad"])
    first(X, y)
    monkeypatch.setenv("HBP_TEST_FACTOR", "3")
    verified = hbp.compile(model, quantities=["grad", "batch_l2"])
    assert verified.verify(X, y).agrees
    agree(verified(X, y), model, nn.CrossEntropyLoss(), [X], y, ["grad", "batch_l2"])
    assert len(counted) == 2
    monkeypatch.setenv("HBP_TEST_RATE", "0.5")
    drawn = hbp.compile(model, quantities=["grad"])
    one, two = (drawn._drawn_by_sample(lambda batch: torch.arange(batch.samples), (X, y), {}) for _ in range(2))
    assert torch.equal(one.grad["last.weight"], two.grad["last.weight"])
    assert len(counted) == 3


def test_averages_over_draws_prove_no_outdated_trace(counted, monkeypatch):
    _, X, y = made()
    model, kept = Dropping().double(), []
    for rate in ("0", "0.1", "0.11"):
        monkeypatch.setenv("HBP_TEST_RATE", rate)
        kept.append(hbp.compile(model, quantities=["grad"]))
        for _ in range(2):
            torch.manual_seed(0)
            found = kept[-1](X, y).grad["last.weight"]
            torch.manual_seed(0)
            loss = nn.functional.cross_entropy(model(X), y)
            close(found, torch.autograd.grad(loss, model.last.weight)[0], f"grad, {rate} dropped")
    assert len(counted) == 3


@few(1, "further cases of one kind")
@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_the_memory_of_a_tensor_of_the_loss_is_exchanged(backend):
    model, X, y = made()
    loss = Weighed()
    kept = []
    for quantity in ("batch_l2", "diag_ggn"):
        kept.append((quantity, hbp.compile(model, loss, ["grad", quantity], backend=backend)))
        for name, compiled in kept:
            for tensor in (loss.factor, loss.weight, loss.plain):
                result = compiled(X, y)
                assert not result.grad["last.bias"].requires_grad
                assert not result.loss.requires_grad
                tensor.data = tensor.data * 1.5
                agree(compiled(X, y), model, loss, [X], y, ["grad", name])


def test_a_forward_of_torchs_is_replaced(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    kept = hbp.compile(model, quantities=["grad"])
    for forward in (nn.Tanh.forward, lambda module, x: torch.sigmoid(x), nn.Tanh.forward):
        monkeypatch.setattr(nn.Tanh, "forward", forward)
        other = hbp.compile(model, quantities=["grad", "batch_l2"])
        agree(other(X, y), model, nn.CrossEntropyLoss(), [X], y, ["grad", "batch_l2"])
        agree(kept(X, y), model, nn.CrossEntropyLoss(), [X], y, ["grad"])


def test_records_of_other_classes_with_the_same_fields_are_told_apart():
    torch.manual_seed(0)
    model, y = OfRecords(3, 2).double(), torch.tensor([0, 1, 1, 0, 1])
    X = torch.randn(5, 3, dtype=torch.float64)
    kept = [hbp.compile(model, quantities=["grad", name]) for name in ("batch_l2", "diag_ggn")]
    for compiled in kept:
        for record in (Doubled(X), Tripled(X)):
            loss = nn.functional.cross_entropy(model(record), y)
            close(compiled((record,), y).grad["weight"], torch.autograd.grad(loss, model.weight)[0], "grad")
