"""What other threads do with a module while it is traced."""

import threading

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import _ModuleStackTracer
from torch.nn import functional

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.patches.other_threads import modules_of_this_thread


class Met(nn.Module):
    """A loss that two threads are in at a time: the second to come, of a trace, is the last to go."""

    def __init__(self):
        super().__init__()
        self.waits, self.came, self.left = threading.Event(), threading.Event(), threading.Event()

    def forward(self, output, target):
        if threading.current_thread() is not threading.main_thread():
            self.waits.set()
            assert self.came.wait(60)
        elif torch.compiler.is_exporting():
            self.came.set()
            assert self.left.wait(60)
        return functional.cross_entropy(output, target)


def test_a_loss_that_another_thread_trains_with():
    """torch's tracer keeps one stack of the modules that are called, in whatever thread."""
    torch.manual_seed(0)
    layers, X, y = (nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)), torch.randn(7, 4).double(), torch.randint(3, (7,))
    other, loss, failures = nn.Linear(4, 3).double(), Met(), []

    class Started(nn.Sequential):
        def forward(self, x):
            if torch.compiler.is_exporting() and not thread.ident:
                thread.start()
                assert loss.waits.wait(60)
            return super().forward(x)

    def train():
        try:
            loss(other(X), y).backward()
        except Exception as error:
            failures.append(error)
        loss.left.set()

    thread = threading.Thread(target=train)
    model = Started(*layers).double()
    right = torch.autograd.grad(functional.cross_entropy(model(X), y), list(model.parameters()))
    found = hbp.compile(model, loss, quantities=["grad"])(X, y).grad
    thread.join(60)
    assert not failures
    assert other.weight.grad.abs().max() > 0
    for own, gradient in zip(found.values(), right, strict=True):
        torch.testing.assert_close(own, gradient)


def test_the_tracer_is_put_back():
    before = _ModuleStackTracer.call_module, _ModuleStackTracer.getattr
    with modules_of_this_thread():
        assert _ModuleStackTracer.call_module is not before[0]
    assert before == (_ModuleStackTracer.call_module, _ModuleStackTracer.getattr)
