"""The compiler's lock first, then a model: in no other order, so that two threads never wait for one another."""

import threading

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.monitor.settings import changes_buffers
from hbpcompiler.system import threads

CPU = torch.device("cpu")


@pytest.fixture
def taken(monkeypatch):
    """Counts how often the lock is taken; by a thread that holds a model only if it has the lock already."""
    own, times = threads.Lock.__enter__, []

    def enter(lock):
        thread = threading.get_ident()
        has = lock._depth > 0 and lock._owner == thread
        assert has or lock is not threads.TRACING or all(thread not in held for held in threads._holders.values())
        times.append(1)
        return own(lock)

    monkeypatch.setattr(threads.Lock, "__enter__", enter)
    return times


def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, nn.CrossEntropyLoss(), torch.randn(8, 3).double(), torch.randint(2, (8,))


def test_order_of_calls(taken):
    model, loss, X, y = task()
    model.eval()
    compiled = hbp.compile(model, loss, quantities=["grad", "diag_ggn_mc"])
    compiled(X, y, generator=torch.Generator().manual_seed(0))
    compiled(X, y)
    assert compiled.verify(X, y).agrees
    with pytest.raises(hbp.InputError):
        compiled(X, y + 7)
    hbp.optim.KFAC(model, loss).step(X, y)
    assert taken


def test_order_of_passes(taken):
    model, loss, X, y = task()
    model.eval()
    operator = hbp.operator(model, loss, (X, y), kind="hessian")
    operator @ torch.randn(operator.shape[0]).double()
    assert not changes_buffers(model, loss, batch_of((X, y)))
    assert taken


def test_order_in_a_monitor(taken):
    model, loss, X, y = task()
    model.eval()
    monitor = hbp.Monitor(model, loss, track=["loss", "tic_trace", "hess_max_ev"], every=1)
    monitor.observe(X, y)
    monitor.step(X, y)
    assert taken


def test_draws_are_put_back_in_their_order():
    """What one thread finds and puts back is never what another draws from for a while."""
    seen = []

    def draw():
        with drawing(Draws.seeded(1, CPU)):
            seen.append("other")

    before = torch.get_rng_state()
    thread = threading.Thread(target=draw, daemon=True)
    with drawing(Draws.seeded(0, CPU)):
        thread.start()
        thread.join(0.2)
        seen.append("own")
    thread.join(60)
    assert seen == ["own", "other"]
    assert torch.equal(torch.get_rng_state(), before)
