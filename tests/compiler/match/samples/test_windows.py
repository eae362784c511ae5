"""Samples merged with windows, patches, frames or heads, against brute force."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.models.test_modules import check, draw
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "diag_ggn", "diag_h"]


class ShiftedWindows(nn.Module):
    """Attention in windows of two by two pixels of an image that was rolled, with a mask and a bias for each pair of
    places, in scores written out or in torch's own function."""

    def __init__(self, own):
        super().__init__()
        self.own, self.heads = own, 2
        self.qkv, self.head, self.table = nn.Linear(2, 6), nn.Linear(2, 2), nn.Parameter(torch.randn(9, 2))
        self.register_buffer("places", torch.tensor([[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]))
        self.register_buffer("mask", -3.0 * (torch.arange(4).view(4, 1, 1) * torch.ones(4, 4)).triu(1))

    def windows(self, x):
        n, height, width, channels = x.shape
        return x.view(n, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels)

    def image(self, x):
        n = x.shape[0] // 4
        return x.view(n, 2, 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, 4, 4, -1)

    def forward(self, x):
        x = self.windows(torch.roll(x, (-1, -1), (1, 2)))
        rows = self.qkv(x)
        q, k, v = rows.reshape(-1, 4, 3, self.heads, 1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places.view(-1)].view(4, 4, -1).permute(2, 0, 1).unsqueeze(0)
        if self.own:
            mask = self.mask.view(1, 4, 1, 4, 4).expand(rows.shape[0] // 4, -1, 2, -1, -1).reshape(-1, 2, 4, 4)
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias + mask)
        else:
            scores = (q @ k.transpose(-2, -1) + bias).view(-1, 4, self.heads, 4, 4) + self.mask.unsqueeze(1)
            x = torch.softmax(scores.view(-1, self.heads, 4, 4), -1) @ v
        x = self.image(x.transpose(1, 2).reshape(-1, 4, 2))
        return self.head(torch.tanh(torch.roll(x, (1, 1), (1, 2))).mean((1, 2)))


class Frames(nn.Module):
    """A network for images on each frame of a film: convolutions, batch and group norm, pools, a mask of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 2, groups=2)
        self.groups, self.last, self.head = nn.GroupNorm(1, 2), nn.Conv1d(2, 1, 2), nn.Linear(1, 2)
        self.norm.running_mean.add_(0.3)

    def forward(self, x):
        n, frames = x.shape[:2]
        x = F.max_pool2d(torch.sigmoid(self.norm(self.first(x.flatten(0, 1)))), 2, 1)
        x = self.groups(F.avg_pool2d(self.second(x), 1)).flatten(2)
        return self.head(self.last(F.pad(x, (0, 1))).view(n, frames, 1).tanh().sum(1))


class TimeMajor(nn.Module):
    """Positions counted before samples, [T*N, d]."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        rows = self.inner(x.transpose(0, 1).reshape(-1, 2))
        rows = torch.softmax(rows, -1) + F.conv1d(rows.unsqueeze(1), torch.ones(1, 1, 1, dtype=x.dtype)).squeeze(1)
        return self.outer(rows.view(3, -1, 3)[-1]) + self.outer(rows.view(3, -1, 3).transpose(0, 1).amax(1))


class RelativePlaces(nn.Module):
    """Embedded distances, projected as the keys are and repeated for all samples and heads."""

    def __init__(self):
        super().__init__()
        self.keys, self.places, self.head = nn.Linear(4, 4), nn.Embedding(3, 4), nn.Linear(2, 2)

    def heads(self, x):
        return x.view(x.shape[0], -1, 2, 2).permute(0, 2, 1, 3).reshape(-1, x.shape[1], 2)

    def forward(self, x):
        keys = self.heads(self.keys(x))
        places = self.heads(self.keys(self.places.weight.unsqueeze(0))).repeat(keys.shape[0] // 2, 1, 1)
        scores = torch.bmm(keys, places.transpose(-1, -2))
        return self.head(torch.bmm(torch.softmax(scores, -1), places).view(-1, 2, 2, 2).mean((1, 2)))


MODELS = {
    "shifted windows": lambda: (ShiftedWindows(False), (4, 4, 2)),
    "shifted windows in torch's attention": lambda: (ShiftedWindows(True), (4, 4, 2)),
    "frames": lambda: (Frames(), (2, 1, 4, 4)),
    "time major": lambda: (TimeMajor(), (3, 2)),
    "relative places": lambda: (RelativePlaces(), (2, 4)),
}


@few(1, "other windows")
@pytest.mark.parametrize("name", list(MODELS))
def test_against_brute_force(name):
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    check(model.double().eval(), [draw(2, *shape)], torch.tensor([0, 1]), QUANTITIES)


class Film(nn.Module):
    """The same convolution of frames in two or in three dimensions."""

    def __init__(self, weight, whole):
        super().__init__()
        self.conv, self.head = nn.Conv3d(1, 2, (1, 2, 2)) if whole else nn.Conv2d(1, 2, 2), nn.Linear(2, 2)
        with torch.no_grad():
            self.conv.weight.copy_(weight.view(self.conv.weight.shape))
            self.conv.bias.copy_(weight[:, 0, 0, 0])
            self.head.weight.copy_(weight[:, 0, 1, :])
            self.head.bias.zero_()
        self.whole = whole

    def forward(self, x):
        if self.whole:
            return self.head(self.conv(x.unsqueeze(1)).sin().mean((2, 3, 4)))
        return self.head(self.conv(x.flatten(0, 1).unsqueeze(1)).view(x.shape[0], 3, 2, -1).sin().mean((1, 3)))


def test_kronecker_factors_sum_over_the_parts():
    torch.manual_seed(0)
    weight, x, y = draw(2, 1, 2, 2), draw(4, 3, 3, 3), torch.tensor([0, 1, 1, 0])
    found, expected = [hbp.compile(Film(weight, whole).double(), quantities=["kflr", "batch_l2"])(x, y)
                       for whole in (False, True)]
    for name, pair in expected.kflr.items():
        for mine, theirs in zip(found.kflr[name], pair, strict=True):
            assert (mine is None) == (theirs is None)
            if theirs is not None:
                torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(found.batch_l2[name], expected.batch_l2[name])


@pytest.mark.parametrize("mixing", [
    lambda x: torch.softmax(x.reshape(-1, 2), 0),
    lambda x: F.conv1d(x.reshape(1, 1, -1), torch.ones(1, 1, 3, dtype=x.dtype), padding=1),
    lambda x: F.scaled_dot_product_attention(x.reshape(-1, 2), x.reshape(-1, 2), x.reshape(-1, 2)),
    lambda x: x.transpose(0, 1).reshape(-1, 2).reshape(-1, 3, 2),
], ids=["softmax", "conv1d", "attention", "reshape"])
def test_what_mixes_samples_is_refused(mixing):
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(2, 2), nn.Linear(6, 2)

        def forward(self, x):
            return self.outer(mixing(self.inner(x)).reshape(x.shape[0], -1))

    with pytest.raises(hbp.UnsupportedOpError, match=r"samples?"):
        hbp.compile(Mixing().double(), quantities=["grad"])(draw(2, 3, 2), torch.tensor([0, 1]))
