"""The child of a fork: it has none of the other threads, and waits for none."""

import os
import signal
import threading
import traceback
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace import exports
from hbpcompiler.compiler.trace.patches.replaced import replaced
from hbpcompiler.errors import ModelError
from hbpcompiler.system.threads import TRACING, alone, traced, undisturbed

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here"),
              pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]


def in_a_child(function):
    """Runs in one; what it raises is printed. It is ended after a minute."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(60)
            torch.set_num_threads(1)  # those that the parent computed with are not here either
            function()
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextmanager
def meanwhile(function):
    """Another thread is in the middle of `function`, where that calls what it is given."""
    inside, go = threading.Event(), threading.Event()

    def stop():
        inside.set()
        assert go.wait(60)

    thread = threading.Thread(target=function, args=(stop,), daemon=True)
    thread.start()
    assert inside.wait(60)
    try:
        yield
    finally:
        go.set()
        thread.join(60)


def test_locks_and_holders():
    model, other = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)

    def hold(stop):
        with TRACING, exports._LOCK, alone(model):
            stop()

    def child():
        with TRACING, exports._LOCK, alone(other):
            assert undisturbed(other, lambda: 7) == 7
        for use in (lambda: undisturbed(model[0], lambda: 7), lambda: alone(model).__enter__()):
            with pytest.raises(ModelError, match="forked while another thread"):
                use()

    with meanwhile(hold):
        in_a_child(child)
    with TRACING, alone(model):
        assert undisturbed(model, lambda: 7) == 7


def test_a_fork_in_the_middle_of_ones_own_pass():
    """As a loader's workers are made: what the thread holds it holds in the child, till it leaves."""
    model, seen = nn.Linear(2, 2), []

    def enter():
        with TRACING, alone(model):
            seen.append("other")

    pid, code = None, 1
    try:
        with TRACING, alone(model):
            pid = os.fork()
            if not pid:
                signal.alarm(60)
                thread = threading.Thread(target=enter, daemon=True)
                thread.start()
                thread.join(0.2)
                seen.append("own")
        if not pid:
            thread.join(30)
            code = 0 if seen == ["own", "other"] else 2
    finally:
        if pid == 0:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_is_replaced_in_a_thread_that_is_gone():
    """A new thread may have its ident."""
    class Owner:
        @staticmethod
        def function():
            return "own"

    def replace(stop):
        with replaced(Owner, "function", lambda: "instead"):
            stop()

    def child():
        found = []
        for _ in range(4):
            thread = threading.Thread(target=lambda: found.append(Owner.function()), daemon=True)
            thread.start()
            thread.join(30)
        assert found == ["own"] * 4

    with meanwhile(replace):
        in_a_child(child)


def test_a_model_that_is_traced_elsewhere():
    model = nn.Linear(2, 2)

    def trace(stop):
        with TRACING, traced(model):
            stop()

    def child():
        with pytest.raises(ModelError, match="forked while another thread"), traced(model):
            pass

    with meanwhile(trace):
        assert undisturbed(model, lambda: 7) == 7
        in_a_child(child)


@pytest.mark.parametrize("exporting", [False, True])
def test_compiling_in_a_child(exporting):
    """While another thread runs or exports another model."""
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double(), nn.CrossEntropyLoss()
    X, y = torch.randn(5, 3).double(), torch.randint(2, (5,))
    ready, held = hbp.compile(model, loss, quantities=["grad"]), []
    ready(X, y)

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2).double()

        def forward(self, x):
            if held and torch.compiler.is_exporting() == exporting:
                held.pop()()
            return self.inner(x)

    slow = Slow()

    def compile_it(stop):
        held.append(stop)
        hbp.compile(slow, loss, quantities=["grad"])(X, y)

    def child():
        right = torch.autograd.grad(loss(model(X), y), list(model.parameters()))
        for compiled in (ready, hbp.compile(model, loss, quantities=["diag_h", "grad"])):
            for own, other in zip(compiled(X, y).grad.values(), right, strict=True):
                torch.testing.assert_close(own, other)
        with pytest.raises(ModelError, match="forked while another thread"):
            hbp.compile(slow, loss, quantities=["grad"])(X, y)

    with meanwhile(compile_it):
        in_a_child(child)
