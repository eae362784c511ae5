"""Layers that carry a vector along with fewer tensors than torch's own forward mode: the same numbers."""

import pytest
import torch
import torch.nn.functional as F

from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.operators.carried import with_few_tensors

CASES = {
    "linear": (lambda x, w, b: F.linear(x, w, b), (5, 4), (3, 4)),
    "linear of sequences": (lambda x, w, b: F.linear(x, w, bias=b), (2, 6, 4), (3, 4)),
    "linear of one sample": (lambda x, w, b: F.linear(x, w, b), (4,), (3, 4)),
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, 2, padding=1), (2, 4, 9), (6, 4, 3)),
    "conv2d, groups": (lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), groups=2), (2, 4, 7, 6), (6, 2, 3, 2)),
    "conv2d, same": (lambda x, w, b: F.conv2d(x, w, b, padding="same"), (2, 4, 7, 6), (6, 4, 3, 3)),
    "conv3d": (lambda x, w, b: torch.conv3d(x, w, b), (2, 2, 4, 5, 4), (3, 2, 2, 2, 2)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("varying", ["xwb", "xw", "wb", "x", "w", "b"])
def test_vectors_are_carried_as_torch_does(case, varying):
    """Whatever of input, weight and bias has a tangent, and without a bias."""
    function, of_x, of_weight = CASES[case]
    tensors = {"x": torch.randn(of_x), "w": torch.randn(of_weight), "b": torch.randn(of_weight[0])}
    tensors = {letter: tensor.double() for letter, tensor in tensors.items()}
    at = tuple(tensors[letter] for letter in varying)
    along = tuple(torch.randn_like(tensor) for tensor in at)

    def layer(*values):
        given = tensors | dict(zip(varying, values, strict=True))
        out = function(torch.tanh(given["x"]), given["w"], given["b"])
        return torch.sin(out), function(given["x"], given["w"], None)

    expected = torch.func.jvp(layer, at, along)
    with torch.no_grad(), with_few_tensors():
        found = torch.func.jvp(layer, at, along)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close([tensors[letter] for letter in varying], list(at), rtol=0, atol=0)


def test_fewer_tensors_are_held():
    x, w, b = torch.randn(1000, 8), torch.randn(8, 8), torch.randn(8)

    def peak():
        with torch.no_grad(), Meter() as meter:
            torch.func.jvp(lambda *at: F.linear(*at), (x, w, b), (x, w, b))
        return meter.peak

    ordinary = peak()
    with with_few_tensors():
        assert peak() <= 0.75 * ordinary
