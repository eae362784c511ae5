"""Products by torch's kernel for one sample: exact for all that they close, whatever the chunks of columns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.routes.chunks import NativeProduct
from tests.agreement import agree, close

QUANTITIES = ["grad", "batch_grad", "batch_l2", "second_moment", "diag_ggn", "diag_h"]


def only_native(weight, columns=None):
    """The kernel is taken wherever it can be; perhaps for so many columns at a time of this convolution."""
    size = {} if columns is None else {"cache_bytes": columns * weight.nbytes}
    return hbp.Limits(route_times=((NativeProduct.name, 0),), **size)


@given(st.integers(0, 2**31), st.integers(2, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2),
       st.integers(1, 3), st.sampled_from([None, 1, 2]))
def test_random_convolutions(seed, axes, stride, padding, dilation, samples, columns):
    torch.manual_seed(seed)
    convolution = (nn.Conv2d, nn.Conv3d)[axes - 2](2, 2, 4, stride, padding, dilation)
    size = 3 * dilation + 2 + (axes == 2)
    X, y = torch.randn(samples, 2, *[size] * axes, dtype=torch.float64), torch.randint(0, 3, (samples,))
    front = nn.Sequential(convolution, nn.Tanh(), nn.Flatten()).double()
    model = nn.Sequential(*front, nn.Linear(front(X).shape[1], 3), nn.Sigmoid(), nn.Linear(3, 3)).double()
    compiled = hbp.compile(model, quantities=[*QUANTITIES, "batch_diag_ggn"],
                           limits=only_native(convolution.weight, columns))
    result = compiled(X, y)
    assert "convolution_backward(" in compiled.code
    agree(result, model, nn.CrossEntropyLoss(), [X], y, QUANTITIES)
    for key, value in result.batch_diag_ggn.items():
        close(value.sum(0), result.diag_ggn[key], f"batch_diag_ggn of {key}")


@pytest.mark.parametrize(("kernel", "size", "native"), [(5, 28, True), (3, 28, False), (3, 64, True)])
def test_it_is_taken_where_the_kernel_is_the_fast_one(kernel, size, native):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 32, kernel), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 5))
    example = torch.randn(2, 8, size, size), torch.tensor([0, 1])
    compiled = hbp.compile(model, quantities=["variance"], example_inputs=example)
    step = next(step for step in compiled._current().draft.plan.closings() if step.parameter.key == "0.weight")
    assert any(isinstance(choice.route, NativeProduct) for choice in step.choices) == native


def test_torchscript():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 4), nn.Sigmoid(), nn.Flatten(), nn.Linear(27, 4)).double()
    X, y = torch.randn(3, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 3, 1])
    limits = only_native(model[0].weight, 2)
    plain, scripted = (hbp.compile(model, quantities=QUANTITIES, backend=backend, limits=limits)(X, y)
                       for backend in ("python", "torchscript"))
    for quantity in QUANTITIES:
        for key, value in plain[quantity].items():
            close(scripted[quantity][key], value, f"{quantity} of {key}")
