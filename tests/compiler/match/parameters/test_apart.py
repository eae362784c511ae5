"""Functions of parameters alone, and a parameter that meets what depends on it, against brute force."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hbpcompiler.rules.apart import CONVOLUTIONS, NORMS
from tests.models.test_modules import check, draw
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "diag_ggn", "diag_h"]


class StandardisedWeights(nn.Module):
    """Weights standardised by batch norm as over a batch of one, those of a linear layer by instance norm."""

    def __init__(self):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(2, 1, 2, 2)), nn.Parameter(torch.randn(2, 1, 1, 1))
        self.rows = nn.Parameter(torch.randn(2, 2))

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, 2, -1), None, None, weight=self.gain.view(-1) * 0.5, training=True,
                              momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return torch.tanh(F.conv2d(x, weight)).mean((2, 3)) @ F.instance_norm(self.rows.unsqueeze(0)).squeeze(0)


class ResampledPlaces(nn.Module):
    """Embedded places of a grid at another size, by a smooth filter, beside one that stays, and of a convolution."""

    def __init__(self):
        super().__init__()
        self.places, self.outer, self.conv = nn.Parameter(torch.randn(1, 10, 2)), nn.Linear(2, 2), nn.Conv2d(1, 2, 2)
        self.register_buffer("waves", torch.randn(1, 1, 3, 3))

    def forward(self, x):
        grid = self.places[:, 1:].reshape(1, 3, 3, 2).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(2, 2), mode="bicubic", antialias=True) + self.conv(self.waves)
        places = torch.cat([self.places[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 4, 2)], 1)
        return self.outer(torch.tanh(x + places).mean(1))


class UsedTwice(nn.Module):
    """The same norms in both rounds, so that their weights meet what depends on them."""

    def __init__(self):
        super().__init__()
        self.layer, self.rms, self.group = nn.LayerNorm(3), nn.RMSNorm(3), nn.GroupNorm(1, 3)
        self.batch, self.slope = nn.BatchNorm1d(3).eval(), nn.PReLU()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        for _ in range(2):
            x = self.layer(x + self.slope(self.inner(self.rms(self.batch(x)))))
            x = x + self.group(torch.tanh(x))
        return self.outer(x)


MODELS = {
    "standardised weights": lambda: (StandardisedWeights(), (1, 3, 3)),
    "resampled places": lambda: (ResampledPlaces(), (5, 2)),
    "used twice": lambda: (UsedTwice(), (3,)),
}


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", list(MODELS))
def test_against_brute_force(name):
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    check(model.double(), [draw(2, *shape)], torch.tensor([0, 1]), QUANTITIES)


@pytest.mark.parametrize("options", [
    {}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2}, {"padding": "same"}, {"padding": "valid"},
], ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_convolutions_written_as_products(axes, options):
    x, weight, bias = draw(3, 4, *[5, 4, 6][:axes]), draw(2, 4 // options.get("groups", 1), *[2] * axes), draw(2)
    made = CONVOLUTIONS[axes - 1].function(x, weight, bias, **options)
    torch.testing.assert_close(made, getattr(F, f"conv{axes}d")(x, weight, bias, **options))


def test_norms_with_a_product_of_their_own():
    x, weight, bias = draw(3, 4, 2), draw(4), draw(4)
    layer, rms, group, instance = [norm.function for norm in NORMS]
    torch.testing.assert_close(layer(x, [4, 2], weight.view(4, 1), None, 0.1),
                               F.layer_norm(x, [4, 2], weight.view(4, 1).expand(4, 2), None, 0.1))
    torch.testing.assert_close(rms(x, [2], weight[:2], 0.1), F.rms_norm(x, [2], weight[:2], 0.1))
    torch.testing.assert_close(group(x, 2, weight, bias, 0.1), F.group_norm(x, 2, weight, bias, 0.1))
    for own in (True, False):
        statistics = (bias, weight.square())
        torch.testing.assert_close(
            instance(x, weight, bias, *statistics, own, 0.1, 0.2, True),
            F.instance_norm(x, *[v.clone() for v in statistics], weight, bias, own, 0.1, 0.2))
