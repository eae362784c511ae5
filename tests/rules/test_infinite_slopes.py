"""Behind a ReLU nothing passes at 0, whatever slope is above it: as torch selects, where a product would be NaN."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference

pytestmark = pytest.mark.filterwarnings("ignore::hbpcompiler.errors.IndefiniteCurvatureWarning")
X = torch.tensor([[0.3, -1.2, 0.8], [1.5, 0.2, -0.7], [-0.4, 0.9, 1.1], [0.6, -0.3, 2.0], [-1.8, 0.4, 0.1],
                  [0.7, 1.6, -0.9]], dtype=torch.float64)
Y = (X[:, :2] / 3).sigmoid()


class Positive(nn.Module):
    """Outputs of exactly 0, behind which no derivative passes; of X = 0 there are none."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        nn.init.constant_(self.layer.bias, 0.5)

    def forward(self, x):
        return torch.relu(3 * self.layer(x))


LOSSES = {
    "kl_div": lambda o, y: F.kl_div(y.log_softmax(1), o, reduction="batchmean"),
    "xlogy": lambda o, y: torch.xlogy(o, o).mean() + (o * y).mean(),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_dead_outputs(name, verify):
    torch.manual_seed(0)
    model, loss = Positive().double(), LOSSES[name]
    assert bool((model(X) == 0).any())
    assert not bool((model(0 * X) == 0).any())
    compiled = hbp.compile(model, loss, quantities=["grad", "diag_h"], verify=verify)
    for x in (0 * X, X, 0 * X):
        found = compiled(x, Y)
        for quantity in ("grad", "diag_h"):
            for key, expected in reference(model, loss, (x,), Y, quantity).items():
                torch.testing.assert_close(found[quantity][key], expected, rtol=1e-9, atol=1e-11)
