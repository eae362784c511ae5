"""The quadratic model where it has no minimum, and where it predicts that the loss rises."""

import copy
import itertools

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.optim.models import close, flat, gradient, values, whole_ggn
from tests.selection import few


@few(1, "further cases of one kind")
@pytest.mark.parametrize("curvature", ["kfac_emp", "second_moment", "diag_h_abs"])
def test_steps_by_the_quadratic_model_lead_down_where_it_has_no_minimum(curvature):
    """Of a loss that is not convex its curvature counts by its absolute value in the span of direction and last step.
    """
    def loss(output, target):
        return torch.cos(2 * output).sum(1).mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = torch.randn(6, 3).double(), torch.zeros(6).long()
    optimizer = hbp.optim.KFAC(model, loss, curvature=curvature, damping=0.1, adapt_damping=False, update_every=1,
                               invert_every=1)
    negative, velocity = 0, None
    for step in range(6):
        before, own, G = values(model), flat(gradient(model, loss, X, y)), whole_ggn(model, loss, X, y)
        twin = copy.deepcopy(optimizer)
        twin._running.advance((X, y), step, twin._dampings)
        direction = -flat(twin._running.preconditioned(gradient(model, loss, X, y)))
        V = direction.unsqueeze(1) if velocity is None else torch.stack([direction, velocity], 1)
        Q = torch.linalg.qr(V).Q
        bends, turns = torch.linalg.eigh(Q.T @ G @ Q)
        negative += int((bends < 0).any())
        inside = turns @ (bends.abs() + 0.1).reciprocal().diag() @ turns.T
        expected = -Q @ inside @ Q.T @ own
        optimizer.step(X, y)
        velocity = flat({name: value - before[name] for name, value in values(model).items()})
        close(velocity, expected, f"{curvature}, step {step}", 1e-7)
        assert velocity @ own < 0
    assert negative


def test_damping_grows_where_the_quadratic_model_predicts_a_rise():
    """A squared error is as predicted, ratio 1, and an lr that is too long raises it until the damping has grown."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X, y = torch.randn(8, 3).double(), torch.randn(8, 2).double()
    optimizer = hbp.optim.KFAC(model, nn.MSELoss(), lr=8.0, momentum=0.0, adapt_damping=True, adapt_every=1,
                               curvature="kflr", split="exact", invert_every=1)
    found = []
    for _ in range(40):
        before = optimizer.param_groups[0]["damping"]
        loss = float(optimizer.step(X, y))
        found.append((loss, optimizer.param_groups[0]["damping"] / before, optimizer.last_ratio))
    factors = set()
    for (loss, factor, ratio), (after, _, _) in itertools.pairwise(found):
        assert ratio == pytest.approx(1.0, rel=1e-6)
        assert factor == pytest.approx(0.95 if after < loss else 1 / 0.95)
        factors.add(round(factor, 2))
    assert factors == {0.95, 1.05}
