"""Functions of a batch that are a mean of samples' losses on the batch that is there, and on no other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.made.shares import ELSEWHERE
from tests.agreement import close

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 3, dtype=torch.float64, generator=GENERATOR)
SHARES = torch.rand(4, 2, dtype=torch.float64, generator=GENERATOR)
ONES = torch.ones(4, 2, dtype=torch.float64)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def squares(output, y):
    return (output - y).square().sum(1)


LIKE_A_MEAN_AT_FIRST = {
    "more beyond a limit": (
        lambda output, y: squares(output, y).mean() + F.relu(squares(output, y).mean() - 1e7), SHARES),
    "pairs that are far from each other": (
        lambda output, y: squares(output, y).mean() + F.relu(torch.cdist(output, output) - 9.0).mean(), SHARES),
    "one after the other": (lambda output, y: squares(output, y).mean() + F.relu(output[0] - output[-1] - 40.0).sum(),
                            SHARES),
    "a mean by shares": (lambda output, y: (squares(output, y) * y[:, 0]).sum() / y[:, 0].sum(), ONES),
    "a mask of flags": (lambda output, y: (squares(output, y * 1.0) * y[:, 0]).sum() / y[:, 0].sum(), ONES.bool()),
    "labels below a limit": (
        lambda output, y: (squares(output, y) * (y[:, 0] < 9)).sum() / (y[:, 0] < 9).sum().clamp(min=1), SHARES),
    "labels that are known": (lambda output, y: torch.nanmean(squares(output, y)), SHARES),
    "a limit of what is detached": (
        lambda output, y: squares(output, y).mean() / squares(output, y).mean().detach().clamp(min=50) * 50, SHARES),
    "a cut": (lambda output, y: squares(output, y).mean().clamp(max=1e5), SHARES),
}


def opaque(name, loss):
    """The loss as an operation of which only its results are known."""
    @torch.library.custom_op(f"hbptests_shares::{name.replace(' ', '_')}", mutates_args=())
    def operation(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(output, y).clone()

    def backward(ctx, gradient):
        output, y = ctx.saved_tensors
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            return gradient * torch.autograd.grad(loss(leaf, y), leaf)[0], None

    operation.register_fake(lambda output, y: output.new_empty(()))
    operation.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    return operation


@pytest.mark.parametrize("name", LIKE_A_MEAN_AT_FIRST)
def test_what_is_a_mean_on_the_first_batch_alone_is_refused(name):
    loss, y = LIKE_A_MEAN_AT_FIRST[name]
    output = model()(X).detach()
    each = torch.stack([loss(output[n : n + 1], y[n : n + 1]) for n in range(4)])
    close(loss(output, y), each.mean(), "on this batch")
    operation = opaque(name, loss)
    with pytest.raises(hbp.UnsupportedOpError, match=f"of what it is for each sample alone{ELSEWHERE}"):
        hbp.compile(model(), lambda output, y: operation(output, y), quantities=["grad"])(X, y)


LIMITS = {"divisor": lambda output, y: squares(output, y).sum() / max(len(output), 7),
          "first": lambda output, y: squares(output, y)[:32].mean()}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_the_number_of_samples(name):
    operation = opaque(name, LIMITS[name])
    with pytest.raises(hbp.UnsupportedOpError, match="neither the mean nor the sum"):
        hbp.compile(model(), lambda output, y: operation(output, y), quantities=["grad"])(X, SHARES)


def test_a_loss_that_is_zero_at_first_may_be_a_mean():
    operation = opaque("zero", lambda output, y: F.relu(squares(output, y) - 20.0).mean())
    compiled = hbp.compile(model(), lambda output, y: operation(output, y), quantities=["grad"])
    assert float(compiled(X, SHARES).loss) == 0
    y = SHARES * torch.tensor([1.0, 1e3, -9.0, 1.0], dtype=torch.float64)[:, None]
    again, result = model(), compiled(X, y)
    F.relu(squares(again(X), y) - 20.0).mean().backward()
    for key, parameter in again.named_parameters():
        close(result.grad[key], parameter.grad, key)


SUMS = {"an operation": opaque("a sum", lambda output, y: squares(output, y).sum()),
        "a norm": lambda output, y: torch.dist(output, y, 1)}


@pytest.mark.parametrize("name", SUMS)
def test_a_file_of_a_derived_sum_takes_a_batch_of_no_samples(name):
    loss = SUMS[name]
    compiled = hbp.compile(model(), lambda output, y: loss(output, y), quantities=["grad", "batch_l2"])
    compiled(X, SHARES)
    assert "derived" in compiled.code
    result = compiled.program(dict(compiled.state), X[:0], SHARES[:0])
    assert result.loss == 0
    for key, gradient in result.grad.items():
        assert not gradient.any()
        assert result.batch_l2[key].shape == (0,)


def test_a_derived_curvature_of_no_samples_is_zero():
    loss = hbp.compile(model(), lambda output, y: torch.dist(output.sinh(), y, 1), quantities=["diag_h", "diag_ggn"])
    with pytest.warns(hbp.IndefiniteCurvatureWarning):
        loss(X, SHARES)
    result = loss.program(dict(loss.state), X[:0], SHARES[:0])
    assert not any(diagonal.any() for diagonal in (*result.diag_h.values(), *result.diag_ggn.values()))


def test_a_loss_may_assert_what_it_takes():
    def function(output, y):
        assert output.abs().max() < 1e3
        return squares(output, y).mean()

    operation = opaque("that asserts", function)
    result = hbp.compile(model(), lambda output, y: operation(output, y), quantities=["grad"])(X, SHARES)
    again = model()
    squares(again(X), SHARES).mean().backward()
    for key, parameter in again.named_parameters():
        close(result.grad[key], parameter.grad, key)
