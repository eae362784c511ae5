"""Quantities for some of the parameters: the same numbers as for all, and nothing for the others."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.quantities import Chosen, Closings
from tests.agreement import close


class Positions(nn.Module):
    """A large embedding of positions, which forbids Kronecker factors, before two layers."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(5, 4000))
        self.first, self.head = nn.Linear(4000, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x.unsqueeze(2) + self.positions)).mean(1))


def test_one_large_parameter_does_not_forbid_the_others():
    model, X, y = Positions().double(), torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 1, 1])
    with pytest.raises(hbp.UnsupportedOpError, match=r"(?s)positions.*quantities=\{'kflr'"):
        hbp.compile(model, quantities=["kflr"])(X, y)
    compiled = hbp.compile(model, quantities={"kflr": ["first.*", "head.weight"], "diag_h": "head.*", "grad": "*"})
    result = compiled(X, y)
    assert list(result.kflr) == ["first.weight", "first.bias", "head.weight"]
    assert list(result.diag_h) == ["head.weight", "head.bias"]
    assert list(result.grad) == [name for name, _ in model.named_parameters()]
    model.positions.requires_grad_(False)
    whole = hbp.compile(model, quantities=["kflr", "diag_h", "grad"])(X, y)
    for name in result.kflr:
        close(result.kflr[name].B, whole.kflr[name].B, name)
    for name in result.diag_h:
        close(result.diag_h[name], whole.diag_h[name], name)
    assert "kflr is for parameters first.*, head.weight." in compiled.code
    assert "kflr is for parameters first.*, head.weight." in compiled.explain()


def test_what_is_not_chosen_costs_nothing():
    model, X, y = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(3, 3), torch.arange(3) % 2
    compiled = hbp.compile(model, quantities={"diag_ggn": "2.*"})
    compiled(X, y)
    backward = compiled.code.split("# ---- backward ----")[1]
    assert "S_linear_2" in backward
    assert "S_tanh_1" not in backward
    assert "linear_0" not in backward


def test_a_gradient_of_some_parameters_is_proven():
    model, X, y = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(3, 3), torch.arange(3) % 2
    compiled = hbp.compile(model, quantities={"grad": ["2.*"], "diag_ggn_mc": "0.*", "diag_ggn": "2.bias"})
    assert list(compiled(X, y).grad) == ["2.weight", "2.bias"]
    table = compiled.verify(X, y)
    assert table.agrees
    assert {line.parameter for line in table if line.quantity == "grad"} == set(dict(model.named_parameters()))


WRONG = [
    ({"grad": "nothing.*"}, ValueError, r"(?s)match no parameter.*grad: 'nothing\.\*'.*0\.weight"),
    ({"grad": ["0.*", "3.bias"]}, ValueError, r"grad: '3\.bias'"),
    ({"grad": 3}, TypeError, r"quantities\['grad'\] must be a pattern"),
    ({"grad": []}, TypeError, "must be a pattern"),
    ({"hessian": "*"}, ValueError, "unknown quantities: 'hessian'"),
    ({}, ValueError, "quantities is empty"),
]


@pytest.mark.parametrize(("quantities", "standard", "words"), WRONG)
def test_patterns_that_make_no_sense(quantities, standard, words):
    with pytest.raises(hbp.CompileError, match=words) as caught:
        hbp.compile(nn.Sequential(nn.Linear(3, 4)), quantities=quantities)
    assert isinstance(caught.value, standard)


def test_a_further_name_of_a_tied_parameter():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(hbp.CompileError, match=r"kfac: '2\.weight' is tied, and goes by its first name: 0\.weight"):
        hbp.compile(model, quantities={"kfac": ["2.weight"]})
    with pytest.raises(hbp.CompileError, match=r"group 'head': '2\.w\*': 2\.weight is tied, .*first name: 0\.weight"):
        hbp.compile(model, quantities=["gram"], groups={"head": ["2.w*"]})


def test_a_pattern_that_matches_a_further_name_beside_others():
    """2.bias has but one name; 2.weight, which is 0.weight, would be missing from the results."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    words = r"'2\.\*': 2\.weight is tied, and goes by its first name: 0\.weight"
    X, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    with pytest.raises(hbp.CompileError, match=f"grad: {words}"):
        hbp.compile(model, quantities={"grad": ["2.*"]})
    with pytest.raises(hbp.CompileError, match=words):
        hbp.operator(model, nn.CrossEntropyLoss(), [(X, y)], parameters=["2.*"])
    with pytest.raises(hbp.CompileError, match=words):
        hbp.spectrum(model, groups={"last": ["2.*"]})
    with pytest.raises(hbp.CompileError, match=words):
        hbp.optim.Preconditioner(model, damping={"*": 1.0, "2.*": 2.0})._dampings()
    both = hbp.compile(model, quantities={"grad": ["0.weight", "2.*"]})(X, y)
    assert set(both.grad) == {"0.weight", "2.bias"}


def test_patterns_that_choose_what_is_frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    with pytest.raises(hbp.CompileError, match=r"chosen for kfac; there are 1\.weight, 1\.bias"):
        hbp.compile(model, quantities={"kfac": "0.*", "grad": "*"})(torch.randn(2, 3), torch.tensor([0, 1]))


def test_what_a_parameter_is_asked_for_is_looked_up_once():
    asked = []
    closings = Closings(("grad", "kfac"), Chosen((("kfac", ("a.*",)),)), lambda found: asked.append(found) or found)
    asked.clear()
    assert closings.of("a.weight") is closings.of("a.weight")
    assert closings.of("a.weight") > closings.of("b.weight")
    assert len(asked) == 2
