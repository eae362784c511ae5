"""Programs lay images out pixel by pixel where that pays: the same numbers, results laid out as parameters are."""

import copy

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference, relative_error
from tests.selection import cases, few, slow

FIRST_ORDER = ["grad", "batch_grad", "batch_l2", "second_moment", "variance"]
LAYOUT = "contiguous(memory_format=torch.channels_last)"


def network(transposed=False):
    torch.manual_seed(0)
    middle = nn.ConvTranspose2d(6, 8, 3, 2, padding=1) if transposed else nn.Conv2d(6, 8, 3, 2, padding=1)
    front = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), middle,
                          nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten())
    X, y = torch.randn(3, 3, 15, 12), torch.randint(4, (3,))
    return nn.Sequential(*front, nn.Linear(front(X).shape[1], 4)), X, y


@few(2, "further cases of one kind")
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


def without_pools(smooth=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 20, 3, 2), nn.ReLU(),
                          nn.ConvTranspose2d(20, 16, 2), nn.Tanh() if smooth else nn.ReLU(), nn.Conv2d(16, 8, 1),
                          nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 4 * 3, 5))
    return model, torch.randn(3, 3, 17, 13), torch.randint(5, (3,))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("quantities", [["diag_ggn"], ["kflr"], ["grad", "batch_grad", "diag_ggn", "kflr"]])
@pytest.mark.parametrize("backend", ["python", pytest.param("torchscript", marks=slow("test_first_order scripts"))])
def test_columns_without_pools(quantities, backend):
    model, X, y = without_pools()
    compiled = hbp.compile(model, quantities=quantities, backend=backend)
    ours = compiled(X, y)
    assert compiled.code.count(LAYOUT) == 4
    assert ("product_over_pixels" in compiled.code) == ("kflr" in quantities)
    exact = hbp.compile(copy.deepcopy(model).double(), quantities=quantities)
    theirs = exact(X.double(), y)
    assert LAYOUT not in exact.code
    for quantity in quantities:
        for key, value in theirs[quantity].items():
            factors = quantity == "kflr"
            pairs = zip(value, ours[quantity][key], strict=True) if factors else [(value, ours[quantity][key])]
            for expected, found in pairs:
                assert (expected is None) == (found is None)
                if found is not None:
                    assert relative_error(found.double(), expected) < 1e-5, f"{quantity} of {key}"
                    assert found.is_contiguous(), f"{quantity} of {key}"


@pytest.mark.parametrize("quantity", cases(["diag_ggn", "kflr", "diag_h"], ["kflr"], "a text without a word"))
def test_many_columns_that_pools_scatter_stay_channel_by_channel(quantity):
    model, X, y = network()
    assert LAYOUT not in hbp.compile(model, quantities=[quantity], example_inputs=(X, y)).code


def test_residual_columns_stay_channel_by_channel():
    model, X, y = without_pools(smooth=True)
    assert LAYOUT in hbp.compile(model, quantities=["diag_ggn"], example_inputs=(X, y)).code
    assert LAYOUT not in hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y)).code


@pytest.mark.parametrize("quantity", cases(["kfac", "kflr", "diag_ggn"], ["kflr"], "a text without a word"))
def test_signals_have_no_such_layout(quantity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 16, 3), nn.ReLU(), nn.Conv1d(16, 16, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(96, 4))
    X, y = torch.randn(3, 3, 10), torch.randint(4, (3,))
    code = hbp.compile(model, quantities=[quantity], example_inputs=(X, y)).code
    assert LAYOUT not in code
    assert "product_over_pixels" not in code


@few(1, "further cases of one kind")
@pytest.mark.parametrize("quantities", [["diag_ggn"], ["diag_ggn", "batch_diag_ggn", "variance"]])
def test_one_column_at_a_time_is_multiplied_as_it_lies(quantities):
    model, X, y = without_pools()
    compiled = hbp.compile(model, quantities=quantities, limits=hbp.Limits(cache_bytes=1))
    ours = compiled(X, y)
    assert ("new_zeros((144, 20))" in compiled.code) == ("batch_diag_ggn" not in quantities)  # [in, out]
    exact = hbp.compile(copy.deepcopy(model).double(), quantities=quantities)(X.double(), y)
    for quantity in quantities:
        for key, value in exact[quantity].items():
            assert relative_error(ours[quantity][key].double(), value) < 1e-5, f"{quantity} of {key}"
            assert ours[quantity][key].is_contiguous(), f"{quantity} of {key}"
