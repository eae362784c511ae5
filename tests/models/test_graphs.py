"""Models that are no chains, each quantity in float64 against brute force."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import kflr, reference
from tests.graph_models import MODELS, Attention, image, made, resnet, tokens
from tests.selection import few

QUANTITIES = ("grad", "batch_grad", "batch_l2", "batch_inner", "second_moment", "variance", "diag_ggn", "diag_h")


@few(5, "further cases of one kind")
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_brute_force(name):
    check(*made(name))


def check(model, x, y):
    own = (*QUANTITIES, "batch_diag_ggn", "batch_diag_h", "trace_ggn", "trace_h", "diag_h_split", "batch_dot")
    result = hbp.compile(model, quantities=own)(x, y)
    for quantity in QUANTITIES:
        for parameter, expected in reference(model, nn.CrossEntropyLoss(), [x], y, quantity).items():
            near(result[quantity][parameter], expected, f"{quantity} of {parameter}")
    for parameter in result.grad:
        each = result.batch_grad[parameter].reshape(len(y), -1)
        near(result.batch_dot[parameter], each @ each.T, f"batch_dot of {parameter}")
        for diagonal, kind in ((result.diag_ggn[parameter], "ggn"), (result.diag_h[parameter], "h")):
            near(result[f"batch_diag_{kind}"][parameter].sum(0), diagonal, f"batch_diag_{kind} of {parameter}")
            near(result[f"trace_{kind}"][parameter], diagonal.sum(), f"trace_{kind} of {parameter}")
        split = result.diag_h_split[parameter]
        near(split.ggn + split.positive - split.negative, result.diag_h[parameter], f"diag_h_split of {parameter}")


def near(found, expected, what):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11, msg=lambda text: f"{what}: {text}")


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", MODELS)
def test_kronecker_factors(name):
    """Of linear layers and convolutions against the definition; of all parameters, their sizes."""
    model, x, y = made(name)
    factors = hbp.compile(model, quantities=["kflr"])(x, y).kflr
    expected = kflr(model, nn.CrossEntropyLoss(), [x], y)
    for parameter, (left, right) in expected.items():
        near(factors[parameter].B, right, f"B of {parameter}")
        if left is not None:
            near(factors[parameter].A, left, f"A of {parameter}")
    assert expected
    for parameter, value in model.named_parameters():
        left = 1 if factors[parameter].A is None else factors[parameter].A.shape[-1]
        sizes = (value.numel(), value.shape[0], value.numel() // value.shape[0])
        assert left * factors[parameter].B.shape[-1] in sizes, parameter


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


class Outputs(nn.Module):
    """What a recurrent layer returns, without its last state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def test_dropout_inside_modules_is_refused_and_eval_of_the_module_helps():
    x, advice = torch.randn(3, 5, 4), "in train mode; use dropout=0.0, or call eval() on that module"
    encoder = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    recurrent = [Outputs(kind(4, 4, num_layers=2, dropout=0.5, batch_first=True)) for kind in (nn.LSTM, nn.GRU)]
    for model, inner in [(encoder, encoder[0].self_attn), *((model, model.layer) for model in recurrent)]:
        compiled = hbp.compile(model, nn.MSELoss(), quantities=["grad"])
        with pytest.raises(hbp.UnsupportedOpError) as caught:
            compiled(x, x)
        assert advice in str(caught.value)
        inner.eval()
        assert set(compiled(x, x).grad) == {name for name, _ in model.named_parameters()}


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


@few(3, "other pairs of operations")
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
