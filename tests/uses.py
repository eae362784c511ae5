"""Small networks in which a parameter is used in each way that there is: where layers of one kind crash or go wrong in
chunks alone, ways of the planner meet them here."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.shared_exports import keep


def drawn(*shape):
    return nn.Parameter(torch.randn(*shape) / 2)


class InOut(nn.Module):
    """A weight stored [in, out], as in GPT-2."""

    def __init__(self, inner, outer):
        super().__init__()
        self.weight, self.bias = drawn(inner, outer), drawn(outer)

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Tokens(nn.Module):
    """Embeddings by the batch's indices and by constant ones, a table of biases indexed for pairs of positions,
    matrices [in, out], the embedding used again as the output layer. Axes are as long as the sizes that shapes are read
    at: five positions, eight features."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(6, 8, padding_idx=0), nn.Embedding(5, 8)
        self.norm, self.both, self.out = nn.LayerNorm(8), InOut(8, 16), drawn(8, 8)
        self.table = drawn(9)
        steps = torch.arange(5)
        self.register_buffer("steps", steps)
        self.register_buffer("apart", steps[:, None] - steps[None] + 4)

    def forward(self, x):
        x = self.words(x) + self.places(self.steps)
        query, key = self.both(self.norm(x)).chunk(2, -1)
        scores = query @ key.transpose(1, 2) + self.table[self.apart.view(-1)].view(5, 5)
        x = (scores.softmax(-1) @ x).tanh() @ self.out
        return F.linear(x[:, 0], self.words.weight)


class Scaled(nn.Module):
    """A gate of one number for each channel, a scale as ConvNeXt's layers have it, and the input added."""

    def __init__(self, channels):
        super().__init__()
        self.gate, self.conv = nn.Linear(channels, channels), nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.gamma = drawn(channels)

    def forward(self, x):
        gate = torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        return x + F.gelu(self.conv(x) * gate) * self.gamma.reshape(1, -1, 1, 1)


def images():
    """Convolutions with strides, groups and dilation, transposed ones, a gate, norms and pools."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=2, dilation=2), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), Scaled(2),
        nn.GroupNorm(1, 2), nn.ConvTranspose2d(2, 4, 2, groups=2), nn.Tanh(), nn.Conv2d(4, 2, 3, stride=2),
        nn.Flatten(), nn.Linear(2, 3))


class Recurrent(nn.Module):
    """One weight for all steps, a product of two branches, a weight made of others."""

    def __init__(self):
        super().__init__()
        self.steps, self.meet = nn.GRU(2, 2, batch_first=True), nn.Bilinear(2, 2, 3)
        self.left, self.right, self.scale = drawn(3, 1), drawn(1, 3), drawn(3, 1)

    def forward(self, x):
        last = self.steps(x)[0][:, -1]
        return F.linear(torch.tanh(self.meet(last, last.sigmoid())), self.left @ self.right * self.scale)


class StepByStep(nn.Module):
    """A cell that the model itself calls for each step: its weights are met several times."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(2, 2), nn.Linear(2, 3)

    def forward(self, x):
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.out(h)


USES = {
    "tokens": (Tokens, lambda: torch.tensor([[0, 3, 1, 5, 3], [4, 4, 2, 0, 1]])),
    "images": (images, lambda: torch.randn(2, 1, 4, 4)),
    "recurrent": (Recurrent, lambda: torch.randn(2, 2, 2)),
    "step by step": (StepByStep, lambda: torch.randn(2, 2, 2)),
}


@functools.cache
def used(name):
    """The model, which no test may change, its batch and targets."""
    torch.manual_seed(0)
    model, batch = USES[name]
    model, x = model().double().eval(), batch()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return keep(model), x.double() if x.is_floating_point() else x, torch.tensor([0, 2])
