"""What operators are multiplied with, and that they give back what they were given."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import Forward
from tests.operators.dense import dense, same


@pytest.fixture(scope="module")
def operator():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    batch = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    return hbp.operator(model, nn.CrossEntropyLoss(), batch, "hessian")


def test_every_form_is_the_same_product(operator):
    matrix, many = operator.to_dense(), torch.randn(17, 11, dtype=torch.float64)
    expected, one = matrix @ many, many[:, 0]
    same(operator @ many, expected)
    same(operator @ one, expected[:, 0])
    several, single = operator.to_dict(many), operator.to_dict(one)
    assert {name: tensor.shape for name, tensor in several.items()} == {
        name: (11, *shape) for name, shape in operator.parameters.items()}
    for given, flat in ((several, expected), (single, expected[:, 0])):
        found = operator @ given
        assert list(found) == list(given)
        same(operator.to_flat(found), flat)
        for kind in (list, tuple):
            listed = operator @ kind(given.values())
            assert isinstance(listed, kind)
            same(operator.to_flat(listed), flat)
    assert (operator @ many[:, :0]).shape == (17, 0)
    assert operator.shape == (17, 17)
    assert operator.T is operator
    assert operator.adjoint() is operator
    assert repr(operator) == "Operator(Sequential, kind='hessian', shape=[17, 17], samples=4)"


def test_what_does_not_fit_is_named(operator):
    good = operator.to_dict(torch.ones(17, dtype=torch.float64))
    bad = {**good, "0.weight": torch.ones(2, 3, dtype=torch.float64), "stranger": good["0.bias"],
           "2.bias": good["2.bias"].float(), "2.weight": "w"}
    del bad["0.bias"]
    with pytest.raises(hbp.InputError) as found:
        operator @ bad
    for part in ("'0.bias' is missing", "'stranger' is no parameter", "'2.weight' is no tensor but str",
                 "'0.weight' has shape [2, 3], not [3, 2] or [F, 3, 2]",
                 "'2.bias' has dtype torch.float32, the parameters have torch.float64"):
        assert part in str(found.value)
    with pytest.raises(hbp.InputError, match=r"equally many vectors, but .* one vector for .*; F = 2 for 2.bias"):
        operator @ {**good, "2.bias": torch.ones(2, 2, dtype=torch.float64)}
    with pytest.raises(hbp.InputError, match=r"shape \[16\], not \[17\] or \[17, F\]"):
        operator @ torch.ones(16, dtype=torch.float64)
    with pytest.raises(hbp.InputError, match=r"dtype torch\.float32"):
        operator @ torch.ones(17)
    with pytest.raises(hbp.InputError, match="a list of 2 tensors was given for the operator's 4 parameters"):
        operator @ [good["0.bias"], good["2.bias"]]
    with pytest.raises(hbp.InputError, match="not int"):
        operator @ 3
    with pytest.raises(hbp.InputError, match=r"17 rows, which is more than 5; to_dense\(most=17\)"):
        operator.to_dense(5)


def test_options_that_make_no_sense():
    model, batch = nn.Linear(2, 2), (torch.randn(3, 2), torch.tensor([0, 1, 1]))
    loss = nn.CrossEntropyLoss()
    for options, message in [
        ({"kind": "fisher"}, "kind 'fisher' is unknown; choose one of ggn, hessian, fisher_empirical, fisher_sampled"),
        ({"mc_samples": 0}, "mc_samples must be a positive integer"),
        ({"chunk": 1.5}, "chunk must be a positive integer"),
        ({"seed": "x"}, "seed must be an integer"),
        ({"parameters": ["bias", "head.*"]}, r"match no trainable parameter:\n  - 'head.\*'\nThere are weight, bias"),
        ({"parameters": []}, "none was given"),
        ({"parameters": 3}, "a pattern of names or a list of some"),
    ]:  # fmt: skip
        with pytest.raises(hbp.HbpError, match=message):
            hbp.operator(model, loss, batch, **options)
    with pytest.raises(hbp.HbpError, match="nothing trainable"):
        hbp.operator(nn.Linear(2, 2).requires_grad_(False), loss, batch)
    with pytest.raises(hbp.HbpError, match="one dtype on one device"):
        hbp.operator(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), loss, batch)
    with pytest.raises(hbp.InputError, match="y does not fit the loss"):
        hbp.operator(model, loss, (batch[0], batch[1].float()))


class Spectral(nn.Module):
    """A parameter that is read as complex numbers, behind so many others."""

    def __init__(self, before):
        super().__init__()
        self.before = nn.Parameter(torch.randn(before, dtype=torch.float64))
        self.pairs = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
        self.last = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x):
        spectrum = torch.fft.fft(x * self.before[:3]) * torch.view_as_complex(self.pairs)
        return self.last(spectrum.real.tanh())


@pytest.mark.parametrize("before", [3, 4])
@pytest.mark.parametrize("kind", ["ggn", "hessian", "fisher_empirical"])
def test_parameters_that_are_read_as_complex_numbers(before, kind):
    torch.manual_seed(0)
    model = Spectral(before)
    batch = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    operator = hbp.operator(model, nn.CrossEntropyLoss(), batch, kind)
    expected = dense(Forward(model, nn.CrossEntropyLoss(), (batch[0],), batch[1]), kind)
    same(operator.to_dense(), expected)
    many = torch.randn(expected.shape[0], 3, dtype=torch.float64)
    same(operator @ many, expected @ many)
    same(operator @ many[:, 0], expected @ many[:, 0])
