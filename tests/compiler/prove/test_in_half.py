"""Half precision: a backward of the user's own that is off by a factor is seen in a gradient's length."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.comparison import compared
from hbpcompiler.compiler.prove.in_half import in_length
from tests.compiler.prove.test_random import Scaled
from tests.selection import few

EPS = torch.finfo(torch.bfloat16).eps



class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 3)

    def forward(self, x):
        h = Scaled.apply(self.layer(x)).relu()
        return self.head(h + torch.tanh(self.norm(h)))


def compiled(seed, autocast):
    torch.manual_seed(seed)
    model, X, y = Net(), torch.randn(16, 8), torch.randint(0, 3, (16,))
    if not autocast:
        model, X = model.bfloat16(), X.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return hbp.compile(model, quantities=["grad"])(X, y)


@few(2, "further draws")
@pytest.mark.parametrize("seed", range(6))
def test_a_factor_is_seen_and_rounding_is_not(seed, monkeypatch):
    for autocast in (True, False):
        monkeypatch.setattr(Scaled, "factor", 1.0)
        assert compiled(seed, autocast).grad
        monkeypatch.setattr(Scaled, "factor", 0.95)
        with pytest.raises(hbp.ProofError, match=r"of the gradient's length(.|\n)*Scaled"):
            compiled(seed, autocast)


def test_in_length():
    right = {("grad", "w"): torch.randn(500, generator=torch.Generator().manual_seed(0)), ("loss", ""): torch.ones(())}

    def again(run):
        return {key: number * (1 + run * 1e-3) for key, number in right.items()}

    for factor, agrees in ((1.0, True), (1.01, True), (0.95, False), (1.05, False), (0.0, False)):
        found = {key: factor * number for key, number in right.items()}
        lines = in_length(compared(found, right, EPS), found, right, EPS, again)
        assert {line.quantity: line.agrees for line in lines}["grad"] == agrees
