"""Operations without a rule that couple samples on other batches than the first one."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.made.elsewhere import check_elsewhere, one_far
from hbpcompiler.compiler.match.made.probe import NotDerivableError


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


def test_what_takes_no_negative_numbers_is_given_none():
    seen = []

    class Function:
        batched = (True,)
        of_samples = True

        def __call__(self, x):
            seen.append(x)
            if len(x) > 1 and x.max() > 1e4:
                return x - x.mean(0)
            return x

    with pytest.raises(NotDerivableError, match="mixes"):
        check_elsewhere(Function(), [torch.rand(4, 2)])
    assert all((x >= 0).all() for x in seen)
