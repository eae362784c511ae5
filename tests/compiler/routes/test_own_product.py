"""Products that a rule makes itself, of one channel by one, without patches: exact for all that they close."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.agreement import agree, close

QUANTITIES = ["grad", "batch_grad", "batch_l2", "second_moment", "diag_ggn", "diag_h"]


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(0, 2),
       st.integers(1, 2), st.integers(1, 3), st.sampled_from([{}, {"cache_bytes": 1}, {"cache_bytes": 300}]))
def test_random_convolutions_of_single_channels(seed, axes, outputs, stride, padding, dilation, samples, chunks):
    torch.manual_seed(seed)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    convolution = kind(2, 2 * outputs, (3, 2, 1)[:axes], stride, padding, dilation, groups=2)
    X, y = torch.randn(samples, 2, *(6, 5, 4)[:axes], dtype=torch.float64), torch.randint(0, 3, (samples,))
    front = nn.Sequential(convolution, nn.Tanh(), nn.Flatten()).double()
    model = nn.Sequential(*front, nn.Linear(front(X).shape[1], 3)).double()
    compiled = hbp.compile(model, quantities=[*QUANTITIES, "batch_diag_ggn"], limits=hbp.Limits(**chunks))
    result = compiled(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y, QUANTITIES)
    for key, value in result.batch_diag_ggn.items():
        close(value.sum(0), result.diag_ggn[key], f"batch_diag_ggn of {key}")


def test_no_patches_are_made_of_wide_windows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 4))
    X, y = torch.randn(3, 8, 16, 16), torch.tensor([0, 3, 1])
    plain, scripted = (hbp.compile(model, quantities=["grad", "variance", "batch_l2"], backend=backend)
                       for backend in ("python", "torchscript"))
    result, again = plain(X, y), scripted(X, y)
    assert "patches(" not in plain.code
    assert "convolution_backward(" not in plain.code
    for key, value in reference(model, nn.CrossEntropyLoss(), [X], y, "variance").items():
        torch.testing.assert_close(result.variance[key], value, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(again.variance[key], result.variance[key])
