"""Torch's own second derivative is no judge where it is wrong: differences of the gradient are."""

import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import hbpcompiler as hbp
from hbpcompiler.compiler.prove import double, own_step
from hbpcompiler.compiler.prove.comparison import Comparison
from hbpcompiler.compiler.prove.differences import EXACTLY, SHOWN, SHOWN_FIRST, decided
from hbpcompiler.compiler.prove.prove import _Proof
from hbpcompiler.compiler.prove.twin import GRAD
from hbpcompiler.reference import forward, reference
from tests.agreement import close
from tests.selection import few, slow

SEED = torch.Generator().manual_seed(1)
X = torch.randn(3, 4, dtype=torch.float64, generator=SEED)
Y = torch.randn(3, 2, dtype=torch.float64, generator=SEED)


def normed(old=False):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        norm = nn.utils.weight_norm if old else parametrizations.weight_norm
        return nn.Sequential(norm(nn.Linear(4, 3)), nn.Tanh(), norm(nn.Linear(3, 2), dim=1)).double()


def by_differences(model, name):
    """The Hessian's diagonal in one parameter, of the gradient."""
    parameter, step = model.get_parameter(name), 1e-5

    def slope(entry, by):
        with torch.no_grad():
            parameter.view(-1)[entry] += by
        (found,) = torch.autograd.grad(nn.functional.mse_loss(model(X), Y), parameter)
        with torch.no_grad():
            parameter.view(-1)[entry] -= by
        return found.flatten()[entry]

    return torch.stack([(slope(entry, step) - slope(entry, -step)) / (2 * step)
                        for entry in range(parameter.numel())]).view_as(parameter)


@slow("one of several")
@few(1, "another form")
@pytest.mark.parametrize("old", [False, True])
def test_weight_norm(old, monkeypatch):
    """Its kernel's double backward is wrong; ours, brute force, products with the Hessian and the proof are not."""
    model = normed(old)
    compiled = hbp.compile(model, nn.MSELoss(), ["diag_h"], verify="full")
    found = compiled(X, Y).diag_h
    for name, value in reference(model, nn.MSELoss(), [X], Y, "diag_h").items():
        torch.testing.assert_close(value, by_differences(model, name), rtol=1e-6, atol=1e-7)
        close(found[name], value, name)
    (row,) = [name for name in found if name.startswith("0.") and name.endswith(("original1", "_v"))]
    operator = hbp.operator(model, nn.MSELoss(), (X, Y), "hessian", parameters=[row])
    close(operator.to_dense().diagonal().view_as(found[row]), found[row], "products")
    for module in (forward, double):
        monkeypatch.setattr(module, "right_derivatives", contextlib.nullcontext)
    torchs = reference(model, nn.MSELoss(), [X], Y, "diag_h")[row]
    assert (torchs - found[row]).abs().max() > 0.05 * torchs.abs().max(), "torch's own kernel is right now"
    lines = [line for line in compiled.verify(X, Y) if line.quantity == "diag_h"]
    assert all(line.agrees for line in lines)
    assert any(line.how == SHOWN for line in lines)


def test_group_norm_of_images_that_lie_channels_last():
    """Double backward of its bias alone ends the process, with torch 2.13."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2)).double()
    images = torch.randn(3, 2, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    labels = torch.tensor([0, 1, 1])
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["diag_h"], verify="full")
    found = compiled(images, labels).diag_h
    for name, value in reference(model, nn.CrossEntropyLoss(), [images], labels, "diag_h").items():
        close(found[name], value, name)
    assert compiled.verify(images, labels).agrees


@pytest.mark.parametrize("off", ["model", "program", "model, by much"])
def test_who_is_right_where_gradients_differ_in_their_last_digits(off, monkeypatch):
    """torch's weight_norm on CUDA is off by 1e-8 in double precision: the loss itself decides."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()

    def scaled(numbers, name, by):
        return {key: value * (1 + by) if key == name else value for key, value in numbers.items()}

    gradients, program = own_step._gradients, _Proof._program
    if off == "program":
        monkeypatch.setattr(_Proof, "_program", lambda *given: scaled(program(*given), (GRAD, "0.weight"), 1e-7))
    else:
        by = 1e-7 if off == "model" else 1e-3
        monkeypatch.setattr(own_step, "_gradients", lambda *given: scaled(gradients(*given), "0.weight", by))
    compiled = hbp.compile(model, nn.MSELoss(), ["grad"])
    if off != "model":
        with pytest.raises(hbp.ProofError, match=r"grad of '0.weight'"):
            compiled(X, Y)
        return
    (line,) = [line for line in compiled.verify(X, Y) if line.key == (GRAD, "0.weight")]
    assert line.agrees
    assert line.how == SHOWN_FIRST


def test_numbers_that_are_nan_by_torch_itself_are_not_said_to_be_ours(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    taken = own_step.take_apart

    def lost(output, leave_out):
        outputs, structure = taken(output, leave_out=leave_out)
        return [outputs[0] * torch.nan], structure

    monkeypatch.setattr(own_step, "take_apart", lost)
    with pytest.raises(hbp.ProofError) as error:
        hbp.compile(model, nn.MSELoss(), ["grad"])(X, Y)
    assert "output: 6 of the model's own numbers are infinite or NaN" in str(error.value)
    assert "by torch's own kernels" in str(error.value)
    assert "hbpcompiler's own fault" not in str(error.value)


class OfBiasAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.last(nn.functional.layer_norm(self.first(x), (6,), None, self.bias).tanh())


def test_a_norm_with_a_bias_alone():
    torch.manual_seed(0)
    model = OfBiasAlone().double()
    found = hbp.compile(model, nn.MSELoss(), ["diag_h", "diag_ggn"], verify="full")(X, Y)
    for name, value in reference(model, nn.MSELoss(), [X], Y, "diag_h").items():
        torch.testing.assert_close(value, by_differences(model, name), rtol=1e-6, atol=1e-7)
        close(found.diag_h[name], value, name)
    for name, value in reference(model, nn.MSELoss(), [X], Y, "diag_ggn").items():
        close(found.diag_ggn[name], value, name)


def test_a_loss_that_is_no_number_is_proven_to_be_none():
    """The third root of a negative sum."""
    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.pool, self.last = nn.Linear(4, 6), nn.LPPool1d(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.last(self.pool(self.first(x).unsqueeze(1)).squeeze(1))

    torch.manual_seed(0)
    result = hbp.compile(Rooted().double(), nn.MSELoss(), ["diag_h"], verify="full")(X, Y)
    assert result.loss.isnan()
    assert result.diag_h["first.bias"].isnan().any()


def test_what_differences_decide():
    line = Comparison("diag_h", "w", 0.5, 2.0, 1e-9)
    ours, torchs, between = (torch.tensor([value], dtype=torch.float64) for value in (1.0, 1.5, 1.0 + 1e-8))
    assert decided(line, ours, torchs, between, 1e-7).agrees
    assert not decided(line, torchs, ours, between, 1e-7).agrees
    assert not decided(line, ours, torchs, between, 0.1).agrees, "too coarse to tell one from the other"


@pytest.mark.parametrize("scale", [1, 1e-3, 1e-9])
def test_a_kernel_that_rounds_an_attribute_to_single_precision(scale):
    """CELU's backward in torch divides by a rounded alpha; its bend at 0 lies where differences would be taken."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.CELU(0.3), nn.Linear(3, 2)).double()
    exact = nn.Sequential(model[0], Exactly(), model[2])
    with torch.no_grad():
        model[0].bias.zero_()
    compiled = hbp.compile(model, nn.MSELoss(), ["grad", "diag_h"], verify="full")
    found = compiled(scale * X, Y)
    exact.zero_grad()
    nn.functional.mse_loss(exact(scale * X), Y).backward()
    for name, parameter in exact.named_parameters():
        torch.testing.assert_close(found.grad[name], parameter.grad, rtol=1e-13, atol=1e-15)
    lines = compiled.verify(scale * X, Y)
    assert lines.agrees
    assert EXACTLY in {line.how for line in lines}


class Exactly(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, x, 0.3 * torch.expm1(x / 0.3))
