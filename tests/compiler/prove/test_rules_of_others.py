"""A wrong rule of the user's: its second derivative is compared without being asked for, as its first is."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.custom_op import Swirl

RULE = '''
from hbpcompiler.elementwise import elementwise, sympy, x

SWIRL = elementwise("hbptests.swirl", x + sympy.sin(x) ** 2, second={second})
'''


@pytest.mark.parametrize("quantity", ["diag_h", "batch_diag_h", "trace_h"])
def test_a_wrong_second_derivative_is_seen(tmp_path, quantity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Swirl(), nn.Linear(5, 3)).double()
    X, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RULE.format(second="2 * sympy.cos(2 * x)"))
    wrong.write_text(RULE.format(second="-2 * sympy.cos(2 * x)"))
    hbp.compile(model, quantities=[quantity], rules=[right])(X, y)
    with pytest.raises(hbp.ProofError, match=rf"{quantity} of '0\.(.|\n)*rule for hbptests\.swirl in .*wrong\.py"):
        hbp.compile(model, quantities=[quantity], rules=[wrong])(X, y)


class Taken(nn.Module):
    """exp overflows where it is not taken, and torch's gradient is NaN."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(torch.where(h > 0, h.sin(), h.exp()))


def test_curvature_where_the_gradient_is_nan_is_not_compared():
    torch.manual_seed(3)
    model, X, y = Taken(), torch.randn(6, 4) * 1e3, torch.randn(6, 3)
    compiled = hbp.compile(model, nn.MSELoss(), ["diag_ggn"], verify="full")
    assert compiled(X, y).diag_ggn["first.bias"].isnan().all()
    assert "the model's own gradient is infinite or NaN there" in str(compiled.verify(X, y))
