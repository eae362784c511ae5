"""Steps by the quadratic model of a loss that is not convex."""

import copy

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
