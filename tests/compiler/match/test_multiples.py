"""Elementwise operations that multiply what is not negative by a number, as numbers show."""

import pytest
import torch

from hbpcompiler.compiler.match.multiples import multiple_of_not_negative
from hbpcompiler.compiler.trace.graph import N
from tests.hand_made import operation, value

X = value("x", N, 3)
CASES = {
    "relu": ({}, 1.0), "leaky_relu": ({"negative_slope": 0.1}, 1.0), "abs": ({}, 1.0), "neg": ({}, -1.0),
    "elu": ({"alpha": 1.0, "scale": 1.5, "input_scale": 1}, 1.5), "threshold": ({"threshold": 0, "value": 0}, 1.0),
    "clamp": ({"min": -2.0, "max": None}, 1.0), "hardtanh": ({"min_val": -1, "max_val": 1e6}, None),
    "softplus": ({"beta": 1, "threshold": 20}, None), "sinh": ({}, None), "sign": ({}, None),
    "bernoulli": ({"generator": None}, None), "cumsum": ({"dim": 1, "dtype": None}, None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_number(name, dtype):
    attributes, factor = CASES[name]
    given = value("x", N, 3, dtype=dtype)
    found = multiple_of_not_negative(operation(name, value("y", N, 3, dtype=dtype), attributes, self=given))
    assert found == factor


def test_not_of_two_tensors_or_of_the_batchs_size():
    assert multiple_of_not_negative(operation("mul", value("y", N, 3), {"other": N}, self=X)) is None
    assert multiple_of_not_negative(operation("maximum", value("y", N, 3), {}, self=X, other=X)) is None
