"""How the parts of a loss grow when the batch is laid twice."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.losses.endings import slopes
from hbpcompiler.compiler.match.losses.growth import growths
from hbpcompiler.compiler.trace.graph import N
from tests.hand_made import graph, operation, parameter, rules_of, value

X, W, Y = value("x", N, 3, role="input"), parameter("w", 2, 3), value("y", N, 2, role="target")
OUTPUT = value("output", N, 2)
LINEAR = operation("linear", OUTPUT, {"bias": None}, input=X, weight=W)
PART = operation("mse_loss", value("part"), {"reduction": 2}, in_loss=True, **{"self": OUTPUT, "target": Y})
COUNT = operation("sum", value("count"), {"dtype": None}, in_loss=True, self=Y)


def divided(by=None, **tensors):
    attributes = {} if tensors else {"other": by}
    return operation("div", value("loss"), attributes, overload="Tensor", in_loss=True, self=PART.output, **tensors)


@pytest.mark.parametrize(("end", "power"), [
    ([], 1), ([divided(3.0)], 1), ([divided(N)], 0), ([divided(2 * N)], 0), ([divided(N**2)], -1),
    ([COUNT, divided(other=COUNT.output)], 0),
])
def test_powers(end, power):
    found = graph([LINEAR, PART, *end], state=[W], inputs=[X], targets=[Y], outputs=[OUTPUT])
    rules = rules_of(found)
    grown = growths(found, rules, lambda op_of: slopes(found, rules, op_of), {})
    assert grown == {"part": pytest.approx(power, abs=0.05)}


ZEROS = {"a sum beside 0 times a mean": lambda o, y: F.cross_entropy(o, y, reduction="sum") + 0.0 * o.square().mean(),
         "0 times a mean beside a sum": lambda o, y: o.mean() * 0 + F.cross_entropy(o, y, reduction="sum"),
         "a mean beside 0 times a sum": lambda o, y: F.cross_entropy(o, y) + 0.0 * o.abs().sum()}


@pytest.mark.parametrize("name", ZEROS)
def test_what_is_multiplied_by_zero_has_no_say_in_the_scale(name):
    torch.manual_seed(0)
    model, X, y = nn.Linear(4, 3).double(), torch.randn(6, 4).double(), torch.randint(3, (6,))
    plain = nn.CrossEntropyLoss(reduction="mean" if name.startswith("a mean") else "sum")
    quantities = ["variance", "norms", "batch_loss", "clipped_grad", "kfac_emp"]
    found, right = (hbp.compile(model, loss, quantities)(X, y, max_norm=0.5) for loss in (ZEROS[name], plain))
    assert found.reduction == right.reduction
    torch.testing.assert_close(dict(found.variance), dict(right.variance), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.norms, right.norms, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.batch_loss, right.batch_loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(dict(found.clipped_grad), dict(right.clipped_grad), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.kfac_emp["weight"].B, right.kfac_emp["weight"].B, rtol=1e-10, atol=0)


def test_a_matrix_of_the_loss_is_the_one_it_is():
    """Numbers in its place have no Cholesky factor, and the batch's size is said in between."""
    torch.manual_seed(0)
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    model, X, y = nn.Linear(3, 2).double(), torch.randn(6, 3).double(), torch.randn(6, 2).double()

    def loss(output, y):
        return -torch.distributions.MultivariateNormal(output, covariance).log_prob(y).mean()

    found = hbp.compile(model, loss, quantities=["variance", "batch_loss"])(X, y)
    for key, weight in model.named_parameters():
        slopes_of = [torch.autograd.grad(loss(model(X[n : n + 1]), y[n : n + 1]), weight)[0] for n in range(6)]
        torch.testing.assert_close(found.variance[key], torch.stack(slopes_of).var(0, correction=0), rtol=1e-10, atol=0)
    assert found.reduction == "mean"
