"""Networks for second order: a ResNet-18 for CIFAR with three pairs of norm and activation, a ViT and a GPT."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import SEED, Problem

CLASSES = 10
CHARACTERS, LENGTH = 65, 32
Make = Callable[..., nn.Module]


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inner: int, outer: int, stride: int, norm: Make, activation: Make) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), norm(outer), activation())
        self.second = nn.Sequential(nn.Conv2d(outer, outer, 3, 1, 1, bias=False), norm(outer))
        same = stride == 1 and inner == outer
        self.skip = nn.Identity() if same else nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False),
                                                            norm(outer))
        self.last = activation()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.second(self.first(x)) + self.skip(x))
        return result


def resnet18(norm: Make, activation: Make) -> nn.Module:
    """11.2 million parameters."""
    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), norm(64), activation()]
    inner = 64
    for outer, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers.append(Block(inner, outer, stride, norm, activation))
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, CLASSES))


class Layer(nn.Module):
    """Attention and two linear layers with GELU, each behind a norm and beside a way around."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


class ViT(nn.Module):
    """Four layers over 64 patches."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, width, 4, 4), nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.layers = nn.Sequential(*[Layer(width, heads, False) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        result: Tensor = self.head(self.norm(self.layers(x)).mean(1))
        return result


class GPT(nn.Module):
    """Two layers over 32 characters, each of which has the next one for its target."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(LENGTH, width)
        self.layers = nn.Sequential(*[Layer(width, heads, True) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.places(torch.arange(text.shape[1], device=text.device))
        logits: Tensor = self.head(self.norm(self.layers(x)))
        return logits.transpose(1, 2)


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet18-relu": lambda: resnet18(nn.BatchNorm2d, nn.ReLU),
    "resnet18-silu": lambda: resnet18(nn.BatchNorm2d, nn.SiLU),
    "resnet18-groups": lambda: resnet18(group_norm, nn.ReLU),
    "vit": ViT,
    "gpt": GPT,
}
"""Batch norms in eval mode, group norms of 8 groups."""


def given(name: str, batch: int) -> Problem:
    """The network with random weights, and a random batch; KeyError for another name."""
    torch.manual_seed(SEED)
    model = NETWORKS[name]().eval()
    if name == "gpt":
        text = torch.randint(CHARACTERS, (batch, LENGTH + 1))
        return Problem(model, nn.CrossEntropyLoss(), text[:, :-1], text[:, 1:])
    return Problem(model, nn.CrossEntropyLoss(), torch.randn(batch, 3, 32, 32), torch.randint(CLASSES, (batch,)))
