"""Programs without many columns lay images out pixel by pixel: the same numbers, results laid out as parameters are."""

import copy

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference, relative_error

FIRST_ORDER = ["grad", "batch_grad", "batch_l2", "second_moment", "variance"]
LAYOUT = "contiguous(memory_format=torch.channels_last)"


def network(transposed=False):
    torch.manual_seed(0)
    middle = nn.ConvTranspose2d(6, 8, 3, 2, padding=1) if transposed else nn.Conv2d(6, 8, 3, 2, padding=1)
    front = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), middle,
                          nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten())
    X, y = torch.randn(3, 3, 15, 12), torch.randint(4, (3,))
    return nn.Sequential(*front, nn.Linear(front(X).shape[1], 4)), X, y


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_first_order(backend, transposed):
    model, X, y = network(transposed)
    compiled = hbp.compile(model, quantities=FIRST_ORDER, backend=backend)
    result = compiled(X, y)
    assert compiled.code.count(LAYOUT) == 3
    for quantity in FIRST_ORDER:
        expected = reference(copy.deepcopy(model).double(), nn.CrossEntropyLoss(), [X.double()], y, quantity)
        for key, value in expected.items():
            assert relative_error(result[quantity][key].double(), value) < 1e-5, f"{quantity} of {key}"
            assert result[quantity][key].is_contiguous(), f"{quantity} of {key}"


def test_one_sampled_column():
    """The same draw through both layouts."""
    model, X, y = network()
    slim = hbp.compile(model, quantities=["diag_ggn_mc"], example_inputs=(X, y))
    double = hbp.compile(copy.deepcopy(model).double(), quantities=["diag_ggn_mc"], example_inputs=(X.double(), y))
    assert LAYOUT in slim.code
    assert LAYOUT not in double.code
    ours = slim(X, y, generator=torch.Generator().manual_seed(0)).diag_ggn_mc
    theirs = double(X.double(), y, generator=torch.Generator().manual_seed(0)).diag_ggn_mc
    for key, value in theirs.items():
        assert relative_error(ours[key].double(), value) < 1e-4


@pytest.mark.parametrize("quantity", ["diag_ggn", "kflr", "diag_h"])
def test_many_columns_stay_channel_by_channel(quantity):
    model, X, y = network()
    assert LAYOUT not in hbp.compile(model, quantities=[quantity], example_inputs=(X, y)).code
