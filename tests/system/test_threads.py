"""Passes of one model in several threads: one at a time, and nobody of this library reads it meanwhile."""

import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.checks import check_runs
from hbpcompiler.system.seeded import seeded
from hbpcompiler.system.threads import REMEMBERED, TRACING, alone, trainable_of, undisturbed


@contextmanager
def background(function):
    """It runs in another thread meanwhile, and what it raised is raised."""
    stop, failures = threading.Event(), []

    def run():
        try:
            while not stop.is_set():
                function()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def test_one_at_a_time():
    model, inside = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), []

    def enter(own):
        with alone(own):
            inside.append(1)
            assert sum(inside) == 1
            inside.append(-1)

    with background(lambda: enter(model[0])):
        for _ in range(200):
            enter(model)
            with alone(model), alone(model[1]):  # again in the same thread
                assert undisturbed(model, lambda: 7) == 7


def test_nobody_reads_meanwhile():
    model = nn.Linear(2, 2)

    def change():
        with alone(model):
            for value in (False, True):
                for parameter in model.parameters():
                    parameter.requires_grad = value

    with background(change):
        for _ in range(200):
            assert list(trainable_of(model)) == ["weight", "bias"]


def test_what_reading_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        undisturbed(nn.Linear(2, 2), lambda: 1 / 0)


@pytest.mark.parametrize("kind", ["ggn", "fisher_empirical", "hessian"])
def test_a_program_beside_an_operators_products(kind):
    """A ready program, a new one, and an optimizer's step."""
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double(), nn.CrossEntropyLoss()
    X, y = torch.randn(7, 4).double(), torch.randint(3, (7,))
    compiled = hbp.compile(model, loss, quantities=["grad"])
    right = compiled(X, y).grad
    operator = hbp.operator(model, loss, (X, y), kind=kind, parameters=["2.*"])
    vector = torch.randn(operator.shape[0]).double()
    with background(lambda: operator @ vector):
        for _ in range(20):
            found = compiled(X, y).grad
            assert found.keys() == right.keys()
            torch.testing.assert_close(found["0.weight"], right["0.weight"])
        assert hbp.compile(model, loss, quantities=["grad"])(X, y).grad.keys() == right.keys()
        optimizer = hbp.optim.KFAC(model, loss, lr=0.1)
        before = model[0].weight.clone()
        for _ in range(3):
            optimizer.step(X, y)
            assert not torch.equal(model[0].weight, before), "a step is kept"
            before = model[0].weight.clone()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_calls_with_a_generator_wait_for_traces():
    """One lock: a first call takes both, the generator's first, and an optimizer's step both the other way round."""
    seen = []

    def trace():
        with TRACING:
            seen.append("trace")

    thread = threading.Thread(target=trace, daemon=True)
    with seeded(torch.Generator(), torch.device("cpu")):
        thread.start()
        thread.join(0.2)
        seen.append("call")
    thread.join(60)
    assert seen == ["call", "trace"]


def test_a_call_with_a_generator_beside_an_optimizer():
    torch.manual_seed(0)
    model, loss = nn.Linear(4, 3).double(), nn.CrossEntropyLoss()
    X, y = torch.randn(7, 4).double(), torch.randint(3, (7,))
    optimizer = hbp.optim.KFAC(nn.Linear(4, 3).double(), loss, mc_samples=1)
    right = hbp.compile(model, loss, quantities=["kfac"])(X, y, generator=torch.Generator().manual_seed(3)).kfac
    with background(lambda: optimizer.step(X, y)):
        for _ in range(4):  # first calls
            found = hbp.compile(model, loss, quantities=["kfac"])(X, y, generator=torch.Generator().manual_seed(3)).kfac
            for own, other in zip(found["weight"], right["weight"], strict=True):
                torch.testing.assert_close(own, other)


@contextmanager
def in_the_middle(exporting):
    """Another thread compiles another model, and is in its forward, within an export or not."""
    inside, go = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, x):
            if torch.compiler.is_exporting() == exporting and not go.is_set():
                inside.set()
                assert go.wait(60)
            return self.inner(x)

    model = Slow()
    with background(lambda: hbp.compile(model, nn.CrossEntropyLoss(), quantities=["grad"])(
            torch.randn(5, 4), torch.randint(2, (5,)))):
        try:
            assert inside.wait(60)
            yield
        finally:
            go.set()


def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    return model, torch.randn(7, 4).double(), torch.randint(3, (7,))


def own_loss(output, target):
    return functional.cross_entropy(output, target) + torch.where(output > 0, output.exp(), output.cos()).mean()


@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), own_loss], ids=["torch's", "own"])
def test_a_ready_program_beside_another_models_trace(exporting, loss):
    """It does not wait, and its numbers are right."""
    model, X, y = task()
    compiled, found = hbp.compile(model, loss, quantities=["grad"]), []
    compiled(X, y)
    right = torch.autograd.grad(loss(model(X), y), list(model.parameters()))
    with in_the_middle(exporting):
        thread = threading.Thread(target=lambda: found.append(compiled(X, y).grad), daemon=True)
        thread.start()
        thread.join(60)
        assert found, "it waits"
    for own, gradient in zip(found[0].values(), right, strict=True):
        torch.testing.assert_close(own, gradient)


@pytest.mark.parametrize("exporting", [False, True])
def test_a_ready_torchscript_program_beside_another_models_trace(exporting):
    """torch's export changes the calls of TorchScript's methods in all threads: it waits."""
    model, X, y = task()
    loss, found = nn.CrossEntropyLoss(), []
    compiled = hbp.compile(model, loss, quantities=["grad"], backend="torchscript")
    compiled(X, y)
    right = torch.autograd.grad(loss(model(X), y), list(model.parameters()))
    thread = threading.Thread(target=lambda: found.append(compiled(X, y).grad), daemon=True)
    with in_the_middle(exporting):
        thread.start()
        thread.join(0.2)
    thread.join(60)
    for own, gradient in zip(found[0].values(), right, strict=True):
        torch.testing.assert_close(own, gradient)


def test_a_ready_program_beside_products_of_another_model():
    """However many there are of them."""
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    inside, go, found = threading.Event(), threading.Event(), []

    def hold():
        with TRACING, alone(other):
            inside.set()
            go.wait(60)

    def read():
        for _ in range(REMEMBERED - 1):
            with alone(other):
                pass
        return len(found)

    with background(hold):
        assert inside.wait(60)
        thread = threading.Thread(target=lambda: found.append(undisturbed(model, lambda: 7)), daemon=True)
        thread.start()
        thread.join(60)
        assert found == [7], "it waits"
        go.set()
    assert undisturbed(model, read) == 1


def test_passes_that_come_while_a_model_is_read():
    """What was read meanwhile is read again: after a pass of a part of this model, or of nobody knows which."""
    model, other, reads = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2), []

    def in_another(*passes):
        def enter():
            for each in passes:
                with alone(each):
                    pass

        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        thread.join(60)

    def read(*passes):
        reads.append(1)
        if len(reads) == 1:
            in_another(*passes)
        return len(reads)

    for passes, expected in (((other,), 1), ((model[0],), 2), ((model[0], *[other] * (REMEMBERED - 1)), 2),
                             ([other] * (REMEMBERED + 1), 2)):
        reads.clear()
        assert undisturbed(model, lambda passes=passes: read(*passes)) == expected


def test_models_that_two_threads_try_leave_torch_as_it_was():
    """What stands for torch's own functions meanwhile is put back in the order in which it came."""
    inside, left, before = threading.Event(), threading.Event(), [dict(vars(owner)) for owner in (torch.Tensor, torch)]
    X, y = torch.randn(3, 2), torch.randn(3, 2)

    class First(nn.Linear):
        def forward(self, x):
            thread.start()
            inside.wait(0.3)
            return super().forward(x)

    class Second(nn.Linear):
        def forward(self, x):
            inside.set()
            left.wait(60)
            return super().forward(x)

    first, second = First(2, 2), Second(2, 2)
    thread = threading.Thread(target=lambda: check_runs(second, nn.MSELoss(), batch_of((X, y))), daemon=True)
    check_runs(first, nn.MSELoss(), batch_of((X, y)))
    left.set()
    thread.join(60)
    for owner, own in zip((torch.Tensor, torch), before, strict=True):
        assert {name for name, value in own.items() if vars(owner).get(name) is not value} == set()
