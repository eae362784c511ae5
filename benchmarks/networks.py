"""The networks that are timed: those of the BackPACK paper (2020) and a few of ours, on synthetic data, seeded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SEED = 0


@dataclass(frozen=True)
class Network:
    """A network, the shape of its data and how many parameters it must have (None: any number)."""

    title: str
    shape: tuple[int, ...]
    classes: int
    parameters: int | None
    build: Callable[[], nn.Sequential]


@dataclass(frozen=True)
class Problem:
    """What a contestant works on: a model, its loss and a batch."""

    model: nn.Module
    loss: nn.Module
    inputs: Tensor
    target: Tensor

    @property
    def size(self) -> int:
        return len(self.inputs)


def logreg() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 10))


def mlp_sigmoid() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(784, 256), nn.Sigmoid(),
        nn.Linear(256, 128), nn.Sigmoid(),
        nn.Linear(128, 64), nn.Sigmoid(),
        nn.Linear(64, 10),
    )  # fmt: skip


def net_2c2d() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 1024), nn.ReLU(),
        nn.Linear(1024, 10),
    )  # fmt: skip


def net_3c3d(hidden: type[nn.Module] = nn.ReLU, last: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """`last` is the activation before the last layer, `hidden` all others."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 5), hidden(), pool(),
        nn.Conv2d(64, 96, 3), hidden(), pool(),
        nn.Conv2d(96, 128, 3, padding=1), hidden(), pool(),
        nn.Flatten(),
        nn.Linear(1152, 512), hidden(),
        nn.Linear(512, 256), last(),
        nn.Linear(256, 10),
    )  # fmt: skip


def allcnnc(hidden: type[nn.Module] = nn.ReLU, last: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Without dropout, so that all contestants compute the same numbers. `last` is the last activation."""
    widths = [(3, 96, 3, 1, 1), (96, 96, 3, 1, 1), (96, 96, 3, 2, 1), (96, 192, 3, 1, 1), (192, 192, 3, 1, 1),
              (192, 192, 3, 2, 1), (192, 192, 3, 1, 0), (192, 192, 1, 1, 0), (192, 100, 1, 1, 0)]  # fmt: skip
    layers: list[nn.Module] = []
    for inner, outer, kernel, stride, padding in widths:
        layers += [nn.Conv2d(inner, outer, kernel, stride, padding), hidden()]
    return nn.Sequential(*layers[:-1], last(), nn.AvgPool2d(6), nn.Flatten())


def sigmoid_mlp(width: int, depth: int) -> nn.Sequential:
    """`depth` hidden layers on digits of 8 x 8 pixels."""
    sizes = [64, *[width] * depth]
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(sizes):
        layers += [nn.Linear(inner, outer), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


def sigmoid_cnn(width: int, depth: int) -> nn.Sequential:
    """`depth` convolutions of `width` channels, none of which makes the image smaller."""
    channels = [1, *[width] * depth]
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(channels):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * channels[-1], 10))


class Patches(nn.Module):
    """An image as a sequence of embedded patches, with learned positions: [N, patches, width]."""

    def __init__(self, width: int, patch: int = 2, side: int = 8) -> None:
        nn.Module.__init__(self)
        self.embedding = nn.Conv2d(1, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))

    def forward(self, images: Tensor) -> Tensor:
        return self.embedding(images).flatten(2).transpose(1, 2) + self.positions


class Mean(nn.Module):
    """Over the patches."""

    def forward(self, patches: Tensor) -> Tensor:
        return patches.mean(1)


def vit(width: int, depth: int) -> nn.Sequential:
    """A small vision transformer, pre-norm, GELU, without dropout: 16 patches of 2 x 2 pixels."""
    layers = [nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True,
                                         norm_first=True) for _ in range(depth)]  # fmt: skip
    return nn.Sequential(Patches(width), *layers, nn.LayerNorm(width), Mean(), nn.Linear(width, 10))


NETWORKS: dict[str, Network] = {
    "logreg": Network("LogReg", (784,), 10, 7_850, logreg),
    "mlp": Network("MLP-sigmoid", (784,), 10, 242_762, mlp_sigmoid),
    "2c2d": Network("2C2D", (1, 28, 28), 10, 3_274_634, net_2c2d),
    "3c3d": Network("3C3D", (3, 32, 32), 10, 895_210, net_3c3d),
    "3c3d-one-sigmoid": Network("3C3D, last activation sigmoid", (3, 32, 32), 10, 895_210,
                                lambda: net_3c3d(last=nn.Sigmoid)),
    "3c3d-all-sigmoid": Network("3C3D, all sigmoid", (3, 32, 32), 10, 895_210,
                                lambda: net_3c3d(nn.Sigmoid, nn.Sigmoid)),
    "allcnnc": Network("All-CNN-C", (3, 32, 32), 100, 1_387_108, allcnnc),
    "allcnnc-one-sigmoid": Network("All-CNN-C, last activation sigmoid", (3, 32, 32), 100, 1_387_108,
                                   lambda: allcnnc(last=nn.Sigmoid)),
    "allcnnc-one-gelu": Network("All-CNN-C, last activation GELU", (3, 32, 32), 100, 1_387_108,
                                lambda: allcnnc(last=nn.GELU)),
    "allcnnc-all-sigmoid": Network("All-CNN-C, all sigmoid", (3, 32, 32), 100, 1_387_108,
                                   lambda: allcnnc(nn.Sigmoid, nn.Sigmoid)),
    "allcnnc-all-gelu": Network("All-CNN-C, all GELU", (3, 32, 32), 100, 1_387_108,
                                lambda: allcnnc(nn.GELU, nn.GELU)),
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Networks of one kind, of any width and depth."""

    title: str
    shape: tuple[int, ...]
    build: Callable[[int, int], nn.Sequential]


FAMILIES: dict[str, Family] = {
    "sigmoid-mlp": Family("MLP-sigmoid", (64,), sigmoid_mlp),
    "sigmoid-cnn": Family("CNN-sigmoid", (1, 8, 8), sigmoid_cnn),
    "vit": Family("ViT-GELU", (1, 8, 8), vit),
}


def member(family: str, width: int, depth: int) -> str:
    """The name of one network of a family, for `find`."""
    return f"{family}/{width}x{depth}"


def find(name: str) -> Network:
    """A network by its name: one of NETWORKS, or a family's, such as "vit/16x2" of width 16 and depth 2."""
    if name in NETWORKS:
        return NETWORKS[name]
    family, sizes = name.split("/")
    width, depth = map(int, sizes.split("x"))
    kind = FAMILIES[family]
    return Network(f"{kind.title} {width}x{depth}", kind.shape, 10, None, lambda: kind.build(width, depth))


def problem(name: str, size: int, dtype: torch.dtype = torch.float32) -> Problem:
    """The network with seeded parameters, and a seeded batch of `size` samples."""
    network = find(name)
    torch.manual_seed(SEED)
    model = network.build().to(dtype)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == (network.parameters or count), f"{network.title} has {count} parameters, not {network.parameters}"
    inputs = torch.randn(size, *network.shape, dtype=dtype)
    target = torch.randint(network.classes, (size,))
    return Problem(model, nn.CrossEntropyLoss(), inputs, target)
