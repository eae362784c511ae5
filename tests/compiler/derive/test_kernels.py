"""A single column goes through torch's kernels; several, and those of another dtype, through the rules' formulas."""

import re

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from hbpcompiler.rule import fused_attention, fused_attention_back
from tests.selection import slow

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
    return [name for name in re.findall(r"aten\.(\w+)\(", compiled.code.split("class Program")[1]) if name in KERNELS]


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


class Attention(nn.Module):
    """Heads of one width, causal or not; what comes back to the first is an expanded gradient."""

    def __init__(self, causal):
        super().__init__()
        self.causal = causal
        self.given, self.out = nn.Linear(4, 18), nn.Linear(6, 3)

    def forward(self, x):
        query, key, value = self.given(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        met = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(met.transpose(1, 2).flatten(2)).mean(1)


@slow("2 s; a way that is taken for speed")
def test_attention_is_one_kernel_where_gradients_alone_come_back():
    X, y = torch.randn(3, 5, 4, dtype=torch.float64), torch.tensor([0, 2, 1])
    for causal in (False, True):
        torch.manual_seed(0)
        model, wanted = Attention(causal).double(), ["grad", "batch_l2", "variance"]
        compiled = hbp.compile(model, nn.CrossEntropyLoss(), wanted, example_inputs=(X, y))
        assert "fused_attention_back(" in compiled.code
        assert "softmax(" not in compiled.code.split("class Program")[1].split("cross_entropy")[0]
        for size in (3, 1):
            found = compiled(X[:size], y[:size])
            for name in wanted:
                for key, value in reference(model, nn.CrossEntropyLoss(), (X[:size],), y[:size], name).items():
                    torch.testing.assert_close(found[name][key], value, rtol=1e-11, atol=1e-13)
        scripted = hbp.compile(model, nn.CrossEntropyLoss(), ["clipped_grad"], backend="torchscript",
                               limits=hbp.Limits(formed_time=0, kept_bytes=0))
        expected = hbp.compile(model, nn.CrossEntropyLoss(), ["clipped_grad"])(X, y, max_norm=0.1).clipped_grad
        for key, value in scripted(X, y, max_norm=0.1).clipped_grad.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-11, atol=1e-13)
    assert "fused_attention" not in hbp.compile(model, nn.CrossEntropyLoss(), ["grad", "diag_ggn"],
                                                example_inputs=(X, y)).code


class Elsewhere(torch.Tensor):
    """As on a device that has no such kernel."""

    is_cpu = False


def test_attention_without_the_kernel():
    query, key, value = (torch.randn(2, 2, length, 3, dtype=torch.float64, requires_grad=True) for length in (4, 5, 5))
    for causal in (False, True):
        output = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=0.3)
        gradient = torch.randn_like(output)
        expected = torch.autograd.grad(output, (query, key, value), gradient)
        with torch.no_grad():
            given = [tensor.as_subclass(Elsewhere) for tensor in (query, key, value)]
            made, log_sums = fused_attention(*given, causal, 0.3)
            found = fused_attention_back(gradient, *given, made, log_sums, causal, 0.3)
        for one, other in zip((made, *found), (output, *expected), strict=True):
            torch.testing.assert_close(one.as_subclass(torch.Tensor), other.detach(), rtol=1e-11, atol=1e-13)


def test_one_column_beside_several_meets_their_local_derivative():
    model, X, y = given(torch.float64)
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad", "diag_ggn"])
    found = compiled(X, y)
    assert not {"gelu_backward", "threshold_backward"} & {*called(compiled)}
    assert "native_layer_norm_backward" in called(compiled)
    for name in ("grad", "diag_ggn"):
        for key, value in reference(model, nn.CrossEntropyLoss(), (X,), y, name).items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-10, atol=1e-12)
