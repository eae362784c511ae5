"""ResNet-50 and DenseNet-121, written after their papers with torchvision's names of layers: they need only torch.

He et al. 2015, but with the stride in the 3 x 3 convolution, as everyone has it; Huang et al. 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .networks import SEED, Problem

CLASSES = 1000


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, and x itself or, where its shape changes, a convolution of it."""

    expansion = 4

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        outer = width * self.expansion
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Bottlenecks in layers of so many blocks."""

    def __init__(self, blocks: Sequence[int], classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        inner, self.count = 64, len(blocks)
        for number, count in enumerate(blocks):
            width = 64 * 2**number
            layer = nn.Sequential()
            for block in range(count):
                stride = 2 if block == 0 and number > 0 else 1
                layer.append(Bottleneck(inner, width, stride))
                inner = width * Bottleneck.expansion
            self.add_module(f"layer{number + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(self.count):
            x = self.get_submodule(f"layer{number + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class DenseLayer(nn.Module):
    """From all features so far to `growth` more, through a bottleneck."""

    def __init__(self, inner: int, growth: int, bottleneck: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inner, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        narrow = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(narrow)))


class DenseBlock(nn.Module):
    """Each layer sees what all layers before it made."""

    def __init__(self, count: int, inner: int, growth: int) -> None:
        super().__init__()
        for number in range(count):
            self.add_module(f"denselayer{number + 1}", DenseLayer(inner + number * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.children():
            features.append(layer(features))
        return torch.cat(features, 1)


def transition(inner: int, outer: int) -> nn.Sequential:
    """Fewer channels, and half as many pixels on each side."""
    made = nn.Sequential()
    made.add_module("norm", nn.BatchNorm2d(inner))
    made.add_module("relu", nn.ReLU(inplace=True))
    made.add_module("conv", nn.Conv2d(inner, outer, 1, bias=False))
    made.add_module("pool", nn.AvgPool2d(2))
    return made


class DenseNet(nn.Module):
    """Dense blocks of so many layers, with transitions between them."""

    def __init__(self, blocks: Sequence[int], growth: int = 32, classes: int = CLASSES) -> None:
        super().__init__()
        inner = 2 * growth
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, inner, 7, 2, padding=3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(inner))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, padding=1))
        for number, count in enumerate(blocks, 1):
            self.features.add_module(f"denseblock{number}", DenseBlock(count, inner, growth))
            inner += count * growth
            if number < len(blocks):
                self.features.add_module(f"transition{number}", transition(inner, inner // 2))
                inner //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(inner))
        self.classifier = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = nn.functional.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1))


@dataclass(frozen=True)
class Large:
    """A network, how many parameters it must have (None: any number), and the programs that are wanted of it."""

    title: str
    parameters: int | None
    build: Callable[[], nn.Module]
    quantities: tuple[str, ...]
    """As in "grad+kfac", one program for both."""


LARGE: dict[str, Large] = {
    "resnet50": Large("ResNet-50", 25_557_032, lambda: ResNet([3, 4, 6, 3]), ("grad+batch_l2+kfac",)),
    "densenet121": Large("DenseNet-121", 7_978_856, lambda: DenseNet([6, 12, 24, 16]),
                         ("grad+batch_l2+kfac", "grad+batch_l2+variance+kfac")),
}  # fmt: skip


def problem(name: str, size: int, pixels: int) -> Problem:
    """The network with seeded parameters in evaluation mode, and a seeded batch of `size` square images."""
    large = LARGE[name]
    torch.manual_seed(SEED)
    model = large.build().eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == (large.parameters or count), f"{large.title} has {count} parameters, not {large.parameters}"
    return Problem(model, nn.CrossEntropyLoss(), torch.randn(size, 3, pixels, pixels), torch.randint(CLASSES, (size,)))
