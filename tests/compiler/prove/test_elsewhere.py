"""Backward passes of the user's own that are the derivative on the first batch, and not on others."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.own_backward import TensorHooks, custom_nodes
from tests.compiler.prove.test_agreement import batch
from tests.compiler.prove.test_faults import Around, refusal
from tests.selection import few


class Clamp(torch.autograd.Function):
    """Straight through where something is cut off."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(-10, 10)

    @staticmethod
    def backward(ctx, g):
        return g


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-5, 5)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -ctx.factor * g, None


def hooked(hook):
    def function(h):
        if h.requires_grad:
            h.register_hook(hook)
        return h
    return function


def with_module_hook():
    model = Around(torch.tanh)
    model.head.register_full_backward_hook(lambda module, given, slope: (given[0].clamp(-5, 5),))
    return model


def with_parameter_hook():
    model = Around(torch.tanh)
    model.layer.weight.register_hook(lambda g: g * (g.abs() > 1e-7))
    return model


@few(2, "further cases of one kind")
@pytest.mark.parametrize("make", [
    lambda: Around(Clamp.apply), lambda: Around(Clipped.apply), lambda: Around(hooked(lambda g: g.clamp(-5, 5))),
    lambda: Around(hooked(lambda g: g / max(1.0, float(g.norm())))), with_module_hook, with_parameter_hook,
], ids=["clamp", "clip", "hook", "norm", "module", "parameter"])
def test_what_is_the_derivative_on_this_batch_alone(make):
    torch.manual_seed(0)
    model, (X, y) = make().double(), batch()
    found = hbp.compile(model, quantities=["grad"], verify=False)(X.double(), y)
    own = torch.autograd.grad(nn.CrossEntropyLoss()(model(X.double()), y), model.layer.weight)[0]
    torch.testing.assert_close(found.grad["layer.weight"], own)  # here it agrees
    text = refusal(model)
    assert "with the loss times" in text or "with parameters and inputs times" in text
    assert "layer.weight" not in text.partition("the gradient agrees at")[2].partition("\n")[0]
    assert "Nothing in the model explains it" not in text


class Binarised(nn.Module):
    """Weights far below what is cut off."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(nn.functional.linear(x, Clamp.apply(self.layer.weight), self.layer.bias)))


class Normalised(Binarised):
    """Numbers that no parameter makes large."""

    def forward(self, x):
        weight = nn.functional.normalize(self.layer.weight)
        return self.head(torch.tanh(0.02 * Clamp.apply(nn.functional.linear(0.2 * x, weight))))


class Dropped(Binarised):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x))


@pytest.mark.parametrize(("model", "where"), [(Binarised, "parameters times 64"), (Normalised, "inputs times 64"),
                                              (Dropped, "parameters times 64")])
def test_what_is_the_derivative_near_by(model, where):
    torch.manual_seed(0)
    assert where in refusal(model())


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * s * (1 + x * (1 - s))


class Overflows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.log1p(torch.exp(x))

    @staticmethod
    def backward(ctx, g):
        return g * torch.sigmoid(ctx.saved_tensors[0])


class Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.softmax(x, -1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return y * (g - (g * y).sum(-1, keepdim=True))


@few(1, "further draws")
@pytest.mark.parametrize("seed", range(4))
def test_right_ones_stay_so_far_away(seed):
    torch.manual_seed(seed)
    for function in (Swish.apply, Overflows.apply, Softmax.apply, lambda h: nn.functional.dropout(Swish.apply(h))):
        for dtype in (torch.float32, torch.float64):
            X, y = batch()
            assert hbp.compile(Around(function).to(dtype), quantities=["grad"])(X.to(dtype), y).grad


@pytest.mark.parametrize("hook", [lambda g: None, torch.nan_to_num, lambda g: 1 * g])
def test_hooks_that_are_linear_and_change_nothing(hook):
    X, y = batch()
    compiled = hbp.compile(Around(hooked(hook)), quantities=["grad"])
    compiled(X, y)
    assert "programs=1" in repr(compiled)


def test_how_to_reverse_a_derivative():
    text = refusal(Around(lambda h: Reversed.apply(h, 1.0)))
    assert "c * x - ((c - 1) * x).detach()" in text
    model = Around(lambda h: -h - (-2 * h).detach()).double()
    X, y = batch()
    found = hbp.compile(model, quantities=["grad"])(X.double(), y).grad["layer.weight"]
    model.function = lambda h: Reversed.apply(h, 1.0)
    own = torch.autograd.grad(nn.CrossEntropyLoss()(model(X.double()), y), model.layer.weight)[0]
    torch.testing.assert_close(found, own)


def test_custom_functions_and_hooks_are_seen():
    h = torch.ones(2, requires_grad=True)
    assert [node._forward_cls for node in custom_nodes((Clipped.apply(h) * 2).sum())] == [Clipped]
    assert not list(custom_nodes((h.tanh() * 2).sum()))
    with TensorHooks() as seen:
        h.tanh().sum()
        assert not seen.found
        h.register_hook(lambda g: None)
    assert seen.found
