"""Operations without a rule that couple samples on other batches than the first one."""

import sys

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.made.batches import EndlessError, Given, lines_of, one_far, others, with_patience
from hbpcompiler.compiler.match.made.elsewhere import check_elsewhere
from hbpcompiler.compiler.match.made.probe import NotDerivableError, close
from hbpcompiler.compiler.trace.graph import N, Value


def custom(name, function):
    """An operation of the user's, which torch differentiates and no rule knows."""
    @torch.library.custom_op(f"tests_elsewhere::{name}", mutates_args=())
    def operation(h: torch.Tensor) -> torch.Tensor:
        return function(h).clone()

    @operation.register_fake
    def _(h):
        return torch.empty_like(h)

    def backward(ctx, gradient):
        with torch.enable_grad():
            h = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(function(h), h, gradient)[0]

    operation.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    return operation


class Calls(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.inner, self.operation, self.outer = nn.Linear(3, 4), operation, nn.Linear(4, 2)

    def forward(self, x):
        return self.outer(self.operation(self.inner(x)))


def gradient_by_sample(model, X, y):
    losses = [nn.functional.mse_loss(model(x[None]), t[None]) for x, t in zip(X, y, strict=True)]
    return torch.stack([torch.autograd.grad(loss, model.inner.weight)[0] for loss in losses])


@pytest.mark.parametrize(("name", "function"), [
    ("above_a_mean", lambda h: h - (h.mean(0) - 5).relu()),
    ("below_a_mean", lambda h: h + (-50 - h.mean(0)).relu()),
    ("by_the_largest", lambda h: h / h.abs().max().clamp(min=50.0)),
    ("by_the_norm", lambda h: h * (1e4 / h.norm()).clamp(max=1.0)),
])
def test_samples_that_meet_beyond_a_limit_are_refused(name, function):
    torch.manual_seed(0)
    model, X, y = Calls(custom(name, function)).double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    with pytest.raises(hbp.HbpError, match=r"it mixes the samples.*in another batch than this one"):
        hbp.compile(model, nn.MSELoss(), ["batch_l2"])(X, y)


@pytest.mark.parametrize(("name", "function"), [
    ("sine", torch.sin), ("logarithm", lambda h: (h.abs() + 1e-3).log()), ("root", lambda h: h.square().sqrt()),
    ("within_a_sample", lambda h: h / h.norm(dim=1, keepdim=True).clamp(min=50.0)),
    ("exponential", torch.exp),
])
def test_samples_that_never_meet_are_not(name, function):
    torch.manual_seed(0)
    model = Calls(custom(f"apart_{name}", function)).double()
    X, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    found = hbp.compile(model, nn.MSELoss(), ["batch_grad"])(X, y).batch_grad["inner.weight"]
    torch.testing.assert_close(found * len(X), gradient_by_sample(model, X, y))


def test_one_sample_is_far():
    torch.manual_seed(0)
    drawn = one_far(1e5, 7)(torch.zeros(5, 3))
    assert drawn[2].abs().min() > 1e3
    assert drawn[[0, 1, 3, 4]].abs().max() < 10


def test_what_takes_no_negative_numbers_is_given_positive_ones_too():
    class Function:
        batched, of_samples, shape, dtype = (True,), True, (2,), torch.float32

        def __call__(self, x):
            if (x < 0).any():
                raise ValueError("negative")
            return x - x.mean(0) if len(x) > 1 and x.max() > 1e4 else x * 1.0

    x = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotDerivableError, match="mixes"):
        check_elsewhere(Function(), None, [Given(Value("x", (N, 2), torch.float32, "input"), x, True)])


def of_two(name, function, backward):
    """An operation of a value and something beside it, with a backward pass of its own."""
    @torch.library.custom_op(f"tests_elsewhere::{name}", mutates_args=())
    def operation(h: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return function(h, other).clone()

    operation.register_fake(lambda h, other: torch.empty_like(h))
    operation.register_autograd(lambda ctx, gradient: (backward(gradient, *ctx.saved_tensors), None),
                                setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    return operation


def cut(h, limit):
    return h * (limit / h.norm()).clamp(max=1.0)


def less_the_mean_of_a_group(h, group):
    same = (group[:, None] == group).to(h.dtype)
    return h - (same @ h / same.sum(1, keepdim=True)) * (same.sum(1, keepdim=True) > 1)


class Buffered(Calls):
    def __init__(self, operation, other):
        super().__init__(operation)
        self.register_buffer("other", other)

    def forward(self, x, *others):
        return self.outer(self.operation(self.inner(x), *others or (self.other,)))


COUPLED = {
    "a limit in a buffer": of_two("buffer", cut, lambda g, h, limit: g * (limit / h.norm()).clamp(max=1.0)),
    "a derivative that is cut by values": of_two(
        "by_values", lambda h, _: h.square(), lambda g, h, _: 2 * h * g * (1e4 / h.norm()).clamp(max=1.0)),
    "a derivative that is cut by itself": of_two(
        "by_itself", lambda h, _: h + 0, lambda g, h, _: g * (1e3 / (g.norm() + 1e-9)).clamp(max=1.0)),
}


@pytest.mark.parametrize("name", COUPLED)
def test_samples_that_meet_with_another_buffer_or_in_a_derivative_alone_are_refused(name):
    torch.manual_seed(0)
    model = Buffered(COUPLED[name], torch.tensor(1e20)).double()
    with pytest.raises(hbp.UnsupportedOpError, match=r"it mixes the samples.*in another batch than this one"):
        hbp.compile(model, nn.MSELoss(), ["grad"])(torch.randn(5, 3).double(), torch.randn(5, 2).double())


def test_samples_that_meet_by_their_labels_are_refused():
    torch.manual_seed(0)
    model = Buffered(of_two("labels", less_the_mean_of_a_group, lambda g, _, group: less_the_mean_of_a_group(g, group)),
                     torch.zeros(())).double()
    X = torch.randn(5, 3).double(), torch.arange(5)
    with pytest.raises(hbp.UnsupportedOpError, match="it mixes the samples"):
        hbp.compile(model, nn.MSELoss(), ["grad"])(X, torch.randn(5, 2).double())


def root(h, by):
    """t of t^3 + t = h, to an absolute error that large numbers in floating point never come down to."""
    t = h.sign() * h.abs().pow(1 / 3)
    while (t**3 + t - h).abs().max() > by:
        t = t - (t**3 + t - h) / (3 * t**2 + 1)
    return t


def test_what_goes_on_until_it_converges_is_not_waited_for_where_it_never_does():
    torch.manual_seed(0)
    operation = of_two("root", root, lambda g, h, by: g / (3 * root(h, by) ** 2 + 1))
    model = Buffered(operation, torch.tensor(1e-10)).double()
    X, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    found = hbp.compile(model, nn.MSELoss(), ["batch_grad"])(X, y).batch_grad["inner.weight"]
    torch.testing.assert_close(found * len(X), gradient_by_sample(model, X, y))


def test_patience():
    def counted(most):
        for number in range(most):
            assert number >= 0

    lines = lines_of(lambda: counted(10))
    assert 20 <= lines < 40
    before = sys.gettrace()
    with with_patience(lines):
        counted(100)
    with pytest.raises(EndlessError), with_patience(lines):
        counted(1_000_000)
    assert sys.gettrace() is before


@pytest.mark.parametrize("beside", [torch.ones(2, 3).t(), torch.ones(0, 4), torch.ones(())])
def test_what_is_drawn_has_any_layout(beside):
    x = torch.ones(4, 2, 3).transpose(1, 2)
    given = [Given(Value("x", (N, 3, 2), x.dtype, "input"), x, True),
             Given(Value("b", tuple(beside.shape), beside.dtype, "buffer", "b"), beside, False)]
    batches = [*others(given)]
    assert len(batches) > 20
    assert all([*map(torch.Tensor.size, batch)] == [x.shape, beside.shape] for batch in batches)


class OwnError(Exception):
    """Of the user's, which nobody else knows."""


def that_asserts(h):
    assert h.abs().max() < 1e3
    return h.sin()


def that_raises(h):
    if h.abs().max() > 1e3:
        raise OwnError
    return h.sin()


@pytest.mark.parametrize("function", [that_asserts, that_raises])
def test_whatever_an_operation_raises_that_takes_no_large_numbers(function):
    torch.manual_seed(0)
    model = Calls(custom(function.__name__, function)).double()
    X, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    found = hbp.compile(model, nn.MSELoss(), ["batch_grad"])(X, y).batch_grad["inner.weight"]
    torch.testing.assert_close(found * len(X), gradient_by_sample(model, X, y))


def test_whatever_an_operation_raises_of_one_sample_alone_is_why_it_has_no_rule():
    def function(h):
        assert len(h) > 1
        return h.sin()

    model = Calls(custom("of_several", function)).double()
    with pytest.raises(hbp.UnsupportedOpError, match="AssertionError"):
        hbp.compile(model, nn.MSELoss(), ["batch_grad"])(torch.ones(5, 3).double(), torch.ones(5, 2).double())


def test_rounding_of_a_derivative_that_cancels_is_no_meeting_of_samples():
    """Of a column of 22,147 a zero is known to 1e-11: processors that take more numbers at once round otherwise."""
    rounded, zero = torch.tensor([-1.5e-11, 2e-13]).double(), torch.zeros(2).double()
    assert not close(rounded, zero)
    assert close(rounded, zero, unit=22147.0)
    assert not close(1e5 * rounded, zero, unit=22147.0)
