"""Models that are no chains, each quantity in float64 against brute force."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference

from .graph_models import MODELS, Attention, image, made, resnet, tokens

QUANTITIES = ("grad", "batch_grad", "variance", "diag_ggn", "diag_h")


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_brute_force(name):
    check(*made(name))


def check(model, x, y):
    result = hbp.compile(model, quantities=QUANTITIES)(x, y)
    for quantity in QUANTITIES:
        for parameter, expected in reference(model, nn.CrossEntropyLoss(), [x], y, quantity).items():
            torch.testing.assert_close(result[quantity][parameter], expected, rtol=1e-8, atol=1e-11,
                                       msg=lambda text, at=f"{quantity} of {parameter}": f"{at}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_kronecker_factors_have_their_parameters_sizes(name):
    model, x, y = made(name)
    factors = hbp.compile(model, quantities=["kflr"])(x, y).kflr
    for parameter, value in model.named_parameters():
        left = 1 if factors[parameter].A is None else factors[parameter].A.shape[0]
        assert left * factors[parameter].B.shape[0] in (value.numel(), value.shape[0])
        assert all(torch.isfinite(factor).all() for factor in factors[parameter] if factor is not None)


def refusal(model, x):
    with pytest.raises(hbp.CompileError) as caught:
        hbp.compile(model.double(), quantities=["grad"])(x, torch.zeros(2, dtype=torch.long))
    return str(caught.value)


def test_an_embedding_that_counts_indices_is_refused():
    model = nn.Sequential(nn.Embedding(5, 2, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(8, 2))
    assert "mixes the samples" in refusal(model, tokens(4))


def test_dropout_inside_attention_is_refused():
    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    assert "set its dropout to 0" in refusal(Attention(attend), torch.randn(2, 3, 3).double())


def test_batch_norm_in_train_mode_is_refused():
    assert "mixes the samples" in refusal(resnet(nn.Tanh).train(), image().double())


class Around(nn.Module):
    """A function between a convolution and the output."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(1, 4, 2), function

    def forward(self, x):
        return self.function(torch.tanh(self.conv(x))).flatten(1)[:, :6]


FUNCTIONS = {
    "detach": lambda x: x * torch.sigmoid(x.detach()),
    "zeros_like": lambda x: x.square() + torch.zeros_like(x) + torch.full_like(x, 2),
    "index": lambda x: x[:, [2, 0]] * x[:, :, [0, 1, 1], [1, 0, 0]][:, 1:3, :2, None],
    "roll": lambda x: x * x.roll(1, 2),
    "repeat": lambda x: x.square().repeat(1, 2, 1, 1)[:, 3:],
    "var_mean": lambda x: torch.cat(torch.var_mean(x, (2, 3)), 1)[:, 1:],
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2).square(),
    "nearest": lambda x: F.interpolate(x, scale_factor=2).square(),
    "bilinear": lambda x: F.interpolate(x, size=(3, 4), mode="bilinear").square(),
    "bicubic": lambda x: F.interpolate(x, size=(3, 4), mode="bicubic"),
    "unfold": lambda x: F.unfold(x, 2).square(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_stands_between_agrees_with_brute_force(name):
    torch.manual_seed(0)
    check(Around(FUNCTIONS[name]).double(), image(3).double(), torch.tensor([0, 1]))


def test_columns_cross_a_cast():
    torch.manual_seed(0)
    model, x, y = Around(lambda x: x.float().square().double()).double(), image(3).double(), torch.tensor([0, 1])
    found = hbp.compile(model, quantities=["diag_h"])(x, y).diag_h
    for name, expected in reference(model, nn.CrossEntropyLoss(), [x], y, "diag_h").items():
        assert found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
