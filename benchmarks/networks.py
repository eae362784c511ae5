"""The networks that are timed: those of the BackPACK paper (2020) and a few of ours, on synthetic data, seeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SEED = 0


@dataclass(frozen=True)
class Network:
    """A network, the shape of its data and how many parameters it must have."""

    title: str
    shape: tuple[int, ...]
    classes: int
    parameters: int
    build: Callable[[], nn.Sequential]


@dataclass(frozen=True)
class Problem:
    """What a contestant works on: a model, its loss and a batch."""

    model: nn.Sequential
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


def allcnnc() -> nn.Sequential:
    """Without dropout, so that all contestants compute the same numbers."""
    widths = [(3, 96, 3, 1, 1), (96, 96, 3, 1, 1), (96, 96, 3, 2, 1), (96, 192, 3, 1, 1), (192, 192, 3, 1, 1),
              (192, 192, 3, 2, 1), (192, 192, 3, 1, 0), (192, 192, 1, 1, 0), (192, 100, 1, 1, 0)]  # fmt: skip
    layers: list[nn.Module] = []
    for inner, outer, kernel, stride, padding in widths:
        layers += [nn.Conv2d(inner, outer, kernel, stride, padding), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(6), nn.Flatten())


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
}  # fmt: skip


def problem(name: str, size: int, dtype: torch.dtype = torch.float32) -> Problem:
    """The network with seeded parameters, and a seeded batch of `size` samples."""
    network = NETWORKS[name]
    torch.manual_seed(SEED)
    model = network.build().to(dtype)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == network.parameters, f"{network.title} has {count} parameters, not {network.parameters}"
    inputs = torch.randn(size, *network.shape, dtype=dtype)
    target = torch.randint(network.classes, (size,))
    return Problem(model, nn.CrossEntropyLoss(), inputs, target)
