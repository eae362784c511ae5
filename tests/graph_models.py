"""Small models that are no chains, and a batch for each."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.selection import cases
from tests.shared_exports import keep


class Basic(nn.Module):
    """ResNet's BasicBlock; a stride or new width gives it a downsampling branch."""

    def __init__(self, inner, outer, stride, activation):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.act = activation()
        changes = stride > 1 or inner != outer
        self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride), nn.BatchNorm2d(outer)) if changes else None

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))) + shortcut)


def resnet(activation):
    blocks = Basic(2, 2, 1, activation), Basic(2, 3, 2, activation)
    return nn.Sequential(nn.Conv2d(1, 2, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


class Wide(nn.Module):
    """WideResNet's block: normalisation and activation first, both branches from the activated value."""

    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(1), nn.Conv2d(1, 3, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.shortcut, self.head = nn.Conv2d(1, 3, 1), nn.Linear(3, 2)

    def forward(self, x):
        x = F.silu(self.bn1(x))
        x = self.conv2(F.silu(self.bn2(self.conv1(x)))) + self.shortcut(x)
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """DenseNet: each layer sees all before it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.cat([x, torch.tanh(self.a(x))], 1)
        x = torch.cat([x, torch.sigmoid(self.b(self.norm(x)))], 1)
        return self.head(F.avg_pool2d(x, 3).flatten(1))


class UNet(nn.Module):
    """Down, up again by a transposed convolution, and the skipped value concatenated; a class for each pixel."""

    def __init__(self):
        super().__init__()
        self.down, self.bottom = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        skip = torch.tanh(self.down(x))
        x = F.softplus(self.bottom(F.max_pool2d(skip, 2)))
        return self.out(torch.cat([skip, self.up(x)], 1))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.reduce, self.expand = nn.Conv2d(1, 2, 3), nn.Linear(2, 1), nn.Linear(1, 2)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.conv(x)
        gate = torch.sigmoid(self.expand(torch.tanh(self.reduce(x.mean((2, 3))))))
        return self.head((x * gate[:, :, None, None]).flatten(1))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm1, self.norm2 = nn.Linear(2, 3), nn.LayerNorm(3), nn.LayerNorm(3)
        self.tokens, self.channels = nn.Linear(4, 4), nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + F.gelu(self.tokens(self.norm1(x).transpose(1, 2))).transpose(1, 2)
        x = x + F.gelu(self.channels(self.norm2(x)))
        return self.head(x.mean(1))


class Attention(nn.Module):
    """By hand, or by torch's own function."""

    def __init__(self, attend):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
        self.head, self.attend = nn.Linear(2, 2), attend

    def forward(self, x):
        return self.head(self.attend(self.q(x), self.k(x), self.v(x)).mean(1))


def by_hand(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


def causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 1]]).bool())

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, self.mask)


class Transformer(nn.Module):
    """A pre-norm block with two heads and a causal mask, written by hand, on embedded tokens with positions."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(5, 4), nn.Parameter(torch.randn(3, 4))
        self.norm1, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.norm2, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)
        self.register_buffer("mask", torch.ones(3, 3).triu(1).bool())

    def forward(self, x):
        x = self.tokens(x) + self.positions
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        scores = (q @ k.transpose(-1, -2) / 2**0.5).masked_fill(self.mask, float("-inf"))
        attended = torch.softmax(scores, -1) @ v
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x)[:, -1])


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gate, self.up, self.down = nn.RMSNorm(3), nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 3)
        self.stem, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(x)


class Tokens(nn.Module):
    """Embedded tokens, one of them padding, and a parameter for each position."""

    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(5, 3, padding_idx=0), nn.Parameter(torch.randn(4, 3))
        self.scale, self.head = nn.Parameter(torch.randn(3)), nn.Linear(3, 2)

    def forward(self, x):
        return self.head((torch.tanh(self.embedding(x) + self.positions) * self.scale).mean(1))


def normed(norm):
    return nn.Sequential(nn.Conv2d(1, 4, 2), norm, nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 2))


def image(size=4):
    return torch.randn(2, 1, size, size)


def tokens(length):
    return torch.tensor([[0, 3, 1, 3], [4, 4, 2, 0]])[:, :length]


MODELS = {
    "resnet, smooth": (lambda: resnet(nn.Tanh), image),
    "resnet, ReLU": (lambda: resnet(nn.ReLU), image),
    "wide resnet": (Wide, lambda: image(3)),
    "densenet": (Dense, lambda: image(3)),
    "u-net": (UNet, image),
    "squeeze and excitation": (SqueezeExcite, image),
    "mixer": (Mixer, lambda: torch.randn(2, 4, 2)),
    "attention by hand": (lambda: Attention(by_hand), lambda: torch.randn(2, 3, 3)),
    "attention": (lambda: Attention(F.scaled_dot_product_attention), lambda: torch.randn(2, 3, 3)),
    "causal attention": (lambda: Attention(causal), lambda: torch.randn(2, 3, 3)),
    "masked attention": (lambda: Attention(Masked()), lambda: torch.randn(2, 3, 3)),
    "transformer": (Transformer, lambda: tokens(3)),
    "tokens": (Tokens, lambda: tokens(4)),
    "GLU": (lambda: nn.Sequential(nn.Linear(3, 6), nn.GLU(), nn.Linear(3, 2)), lambda: torch.randn(2, 3)),
    "SwiGLU": (SwiGLU, lambda: torch.randn(2, 2)),
    "group norm": (lambda: normed(nn.GroupNorm(2, 4)), lambda: image(3)),
    "instance norm": (lambda: normed(nn.InstanceNorm2d(4, affine=True)), lambda: image(3)),
    "instance norm, running": (lambda: normed(nn.InstanceNorm2d(4, track_running_stats=True)), lambda: image(3)),
    "layer norm of two axes": (lambda: normed(nn.LayerNorm((2, 2))), lambda: image(3)),
}

FEW = ("resnet, smooth", "u-net", "squeeze and excitation", "transformer")
"""Of all kinds: convolutions and norms, their transposes, pools, gates, embeddings, attention, branches that meet."""
FEW_MODELS = cases(MODELS, FEW, "all graphs go through every quantity in test_graphs; these have no other structure")
"""For parametrize."""


@functools.cache
def made(name):
    """The model, which no test may change, and its batch."""
    torch.manual_seed(0)
    model, batch = MODELS[name]
    model, x = model().double().eval(), batch()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = x.double() if x.is_floating_point() else x
    return keep(model), x, torch.randint(2, model(x)[:, 0].shape)
