"""Modules called with other tensors in the place of their own, and what they are afterwards."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.with_state import call_with_state
from hbpcompiler.monitor.settings import changes_buffers


def used_twice():
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.BatchNorm1d(3), nn.Linear(3, 2)).double()


def own(model):
    return {name: tensor for module in model.modules() for name, tensor in [*module._parameters.items(),
                                                                              *module._buffers.items()]}


def same(model, before):
    assert [id(tensor) for tensor in own(model).values()] == [id(tensor) for tensor in before.values()]
    assert isinstance(model[0].weight, nn.Parameter)


def test_a_layer_with_two_names_keeps_its_parameters():
    model, x = used_twice(), torch.randn(4, 3, dtype=torch.float64)
    before, given = own(model), {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    found = call_with_state(model, given, {}, (x,))
    assert (found == 0).all()
    same(model, before)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        call_with_state(model, given, {}, (x[:, :2],))
    same(model, before)


def test_nothing_of_the_users_changes_in_proofs_operators_and_monitors():
    model, loss = used_twice(), nn.CrossEntropyLoss()
    model[3].eval()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    before = own(model)
    result = hbp.compile(model, loss, quantities=["diag_h"], verify="full")(X, y)
    assert set(result.diag_h) == {name for name, _ in model.named_parameters()}
    same(model, before)
    assert not changes_buffers(model, loss, batch_of((X, y)))
    same(model, before)
    operator = hbp.operator(model, loss, (X, y), "hessian", verify=True)
    torch.testing.assert_close(operator.diagonal()["0.weight"], result.diag_h["0.weight"])
    same(model, before)


class Advancing(nn.Module):
    """A loss that writes into a buffer of its own, in place or by another tensor, before or after reading it."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.register_buffer("k", torch.ones((), dtype=torch.float64))
        self.inner = nn.BatchNorm1d(1).double() if how == "inner" else None

    def forward(self, output, target):
        loss = nn.functional.cross_entropy(output, target)
        if self.how == "counter":
            self.k += 1
        elif self.how == "another":
            self.k = self.k + loss.detach()
        elif self.how == "average":
            self.k.mul_(0.9).add_(0.1 * loss.detach())
        elif self.how == "inner":
            return loss * (1 + self.inner.running_mean.add_(1).sum())
        return loss * self.k if self.how != "after" else self._after(loss)

    def _after(self, loss):
        scaled = loss * self.k.clone()
        self.k.add_(loss.detach())
        return scaled


@pytest.mark.parametrize("how", ["counter", "another", "average", "inner", "after"])
def test_what_a_loss_writes_into_its_buffers_is_gone_after_each_call(how):
    torch.manual_seed(0)
    model, loss, X, y = nn.Linear(4, 3).double(), Advancing(how), torch.randn(6, 4).double(), torch.randint(3, (6,))
    before = {name: (value, value.clone()) for name, value in loss.named_buffers()}
    compiled = hbp.compile(model, loss, quantities=["grad", "diag_h", "kfac_emp"], verify="full")
    found = [compiled(X, y), compiled(X, y)]
    operator = hbp.operator(model, loss, (X, y), "hessian")
    diagonals = [operator.diagonal()["weight"], operator.diagonal()["weight"]]
    assert compiled.verify(X, y).agrees
    for name, value in loss.named_buffers():
        assert value is before[name][0]
        torch.testing.assert_close(value, before[name][1], rtol=0, atol=0)
    right = loss(model(X), y)
    gradient, = torch.autograd.grad(right, model.weight, create_graph=True)
    rows = [torch.autograd.grad(entry, model.weight, retain_graph=True)[0].flatten()[number]
            for number, entry in enumerate(gradient.flatten())]
    for result, diagonal in zip(found, diagonals, strict=True):
        torch.testing.assert_close(result.loss, right.detach(), rtol=1e-10, atol=0)
        torch.testing.assert_close(result.grad["weight"], gradient.detach(), rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(result.diag_h["weight"].flatten(), torch.stack(rows), rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(diagonal.flatten(), torch.stack(rows), rtol=1e-10, atol=1e-14)


class Counted(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return super().forward(x)


def test_a_monitor_sees_buffers_that_model_or_loss_change():
    torch.manual_seed(0)
    X, y = torch.randn(6, 4).double(), torch.randint(3, (6,))
    assert changes_buffers(Counted().double(), nn.CrossEntropyLoss(), batch_of((X, y)))
    model, loss = nn.Linear(4, 3).double(), Advancing("counter")
    assert not changes_buffers(model, nn.CrossEntropyLoss(), batch_of((X, y)))
    monitor = hbp.Monitor(model, loss, track=["loss"], every=1)
    values = [float(monitor.step(X, y)) for _ in range(2)]
    assert float(loss.k) == 3
    torch.testing.assert_close(values[1], values[0] * 1.5)
