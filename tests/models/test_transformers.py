"""Models that nobody here wrote: tiny random configurations from transformers, in float64 against brute force."""

import pytest
import torch

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.selection import few
from tests.transformers_models import (
    bert,
    cross_entropy,
    deberta,
    gpt2,
    llama,
    mixtral,
    needed,
    resnet,
    swin,
    tied_gpt2,
    vit,
)

pytestmark = needed


def check(make, quantities, tolerance=1e-8):
    torch.manual_seed(0)
    model, x, y = make()
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases are ones and zeros at first
            parameter += 0.2 * torch.randn_like(parameter)
    result = hbp.compile(model, cross_entropy, quantities)(x, y)
    assert type(result.output) is type(model(**x))
    torch.testing.assert_close(result.output.logits, model(**x).logits, rtol=tolerance, atol=tolerance)
    for quantity in quantities:
        expected = reference(model, cross_entropy, x, y, quantity)
        assert result[quantity].keys() == expected.keys()
        for name, value in expected.items():
            # A softmax does not see the keys' bias: its derivatives are nothing but rounding.
            error = (result[quantity][name] - value).abs().max() / (1e-6 + value.abs().max())
            assert error < tolerance, f"{quantity} of {name}: relative error {error:.1e}"


@few(1, "further cases of one kind")
@pytest.mark.parametrize("make", [swin, deberta])
def test_samples_merged_with_windows_and_heads(make):
    """Of first order: `match/samples/test_windows.py` has the Hessians of smaller models."""
    check(make, ["grad", "variance"])


@pytest.mark.parametrize("make", [bert, gpt2, tied_gpt2, vit, resnet])
def test_exact(make):
    check(make, ["grad", "variance", "diag_ggn", "diag_h"])


def test_norms_in_single_precision():
    """Llama's norms go through float32, whatever the model's dtype."""
    check(llama, ["grad", "variance", "diag_ggn", "diag_h"], 1e-5)


def test_experts():
    """The model is called with experts one after the other: what it does by default has no double precision."""
    def one_by_one():
        model, x, y = mixtral()
        model.set_experts_implementation("eager")
        return model, x, y

    check(one_by_one, ["grad", "variance", "diag_ggn", "diag_h"], 1e-5)


def test_experts_by_default():
    torch.manual_seed(0)
    model, x, y = mixtral()
    result = hbp.compile(model.eval(), cross_entropy, ["grad"])(x, y)
    cross_entropy(model(**x), y).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(result.grad[name], parameter.grad)
    assert model.get_experts_implementation() == {"": "grouped_mm"}
