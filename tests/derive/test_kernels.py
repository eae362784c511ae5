"""A single column goes through torch's kernels; several, and those of another dtype, through the rules' formulas."""

import re

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference

KERNELS = ("gelu_backward", "threshold_backward", "native_layer_norm_backward", "native_group_norm_backward",
           "_softmax_backward_data")


class Mixed(nn.Module):
    """Activations, both norms and a softmax over positions; the mean hands an expanded gradient to the GELU."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)
        self.layer, self.groups = nn.LayerNorm(6), nn.GroupNorm(2, 6)

    def forward(self, x):
        x = torch.softmax(self.layer(torch.relu(self.inner(x))), 1)
        x = self.groups(x.transpose(1, 2)).transpose(1, 2)
        return self.outer(nn.functional.gelu(x).mean(1))


def given(dtype):
    torch.manual_seed(0)
    return Mixed().to(dtype), torch.randn(3, 5, 4, dtype=dtype), torch.tensor([0, 2, 1])


def called(compiled):
    return [name for name in re.findall(r"aten\.(\w+)\(", compiled.code) if name in KERNELS]


def test_the_gradient_in_single_and_in_double_precision():
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model, X, y = given(dtype)
        compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad", "batch_l2"])
        found = compiled(X, y)
        for name in ("grad", "batch_l2"):
            for key, value in reference(model, nn.CrossEntropyLoss(), (X,), y, name).items():
                torch.testing.assert_close(found[name][key], value, rtol=tolerance, atol=tolerance)
        assert sorted(called(compiled)) == sorted(KERNELS)


def test_scripts_call_them_too():
    model, X, y = given(torch.float64)
    scripted = hbp.compile(model, nn.CrossEntropyLoss(), ["clipped_grad"], backend="torchscript")
    expected = hbp.compile(model, nn.CrossEntropyLoss(), ["clipped_grad"])(X, y, max_norm=0.1).clipped_grad
    for key, value in scripted(X, y, max_norm=0.1).clipped_grad.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)


def test_several_columns_and_those_of_another_dtype():
    model, X, y = given(torch.float64)
    several = hbp.compile(model, nn.CrossEntropyLoss(), ["diag_ggn"])
    found = several(X, y).diag_ggn
    for key, value in reference(model, nn.CrossEntropyLoss(), (X,), y, "diag_ggn").items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-12)
    assert not called(several)
    rounded = hbp.compile(model, nn.CrossEntropyLoss(), ["diag_ggn_mc"], curvature_dtype=torch.float32,
                          example_inputs=(X, y))
    assert not called(rounded)
    assert called(hbp.compile(model, nn.CrossEntropyLoss(), ["diag_ggn_mc"], example_inputs=(X, y)))
