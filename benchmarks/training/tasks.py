"""The tasks: a network, its data, the size of a batch and the number of epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.training import data
from benchmarks.training.data import Data

BASELINES = ("momentum", "adam")
SAMPLED = (*BASELINES, "diag_ggn_mc", "kfac", "kfac_momentum", "kfac_free")
"""What every task can have, whatever its number of classes."""
EXACT = (*SAMPLED, "diag_ggn", "kflr")


@dataclass(frozen=True)
class Task:
    """A test problem of supervised learning with the mean cross entropy."""

    title: str
    data: Callable[[], Data]
    build: Callable[[], nn.Module]
    batch: int
    epochs: int
    methods: tuple[str, ...]
    """Those that run unless others are asked for; as in the paper, exact curvatures where there are few classes."""

    def model(self, seed: int) -> nn.Module:
        """With initial weights that depend on the seed alone; torch's own generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()


def logreg(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 10))


def net_2c2d() -> nn.Module:
    """2C2D for 8 x 8 pixels: 8,234 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def net_3c3d() -> nn.Module:
    """3C3D for sequences of 40 numbers: 14,274 parameters."""
    def pool() -> nn.Module:
        return nn.MaxPool1d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv1d(1, 16, 5), nn.ReLU(), pool(),
        nn.Conv1d(16, 24, 3), nn.ReLU(), pool(),
        nn.Conv1d(24, 32, 3, padding=1), nn.ReLU(), pool(),
        nn.Flatten(),
        nn.Linear(128, 64), nn.ReLU(),
        nn.Linear(64, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip


def allcnnc() -> nn.Module:
    """All-CNN-C for 14 x 14 pixels and 10 classes, without dropout: 9,818 parameters."""
    widths = [(1, 8, 3, 1, 1), (8, 8, 3, 1, 1), (8, 8, 3, 2, 1), (8, 16, 3, 1, 1), (16, 16, 3, 1, 1),
              (16, 16, 3, 2, 1), (16, 16, 3, 1, 0), (16, 16, 1, 1, 0), (16, 10, 1, 1, 0)]  # fmt: skip
    layers: list[nn.Module] = []
    for inner, outer, kernel, stride, padding in widths:
        layers += [nn.Conv2d(inner, outer, kernel, stride, padding), nn.ReLU()]
    return let_through(nn.Sequential(*layers[:-1], nn.AvgPool2d(2), nn.Flatten()))


def let_through(model: nn.Sequential) -> nn.Sequential:
    """With initial weights for ReLUs: nine layers of torch's own let nothing through."""
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return model


class Windows(nn.Module):
    """A sequence [N, 1, 40] as ten embedded windows of four numbers, with learned positions: [N, 10, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Conv1d(1, width, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(10, width))

    def forward(self, sequences: Tensor) -> Tensor:
        return self.embedding(sequences).transpose(1, 2) + self.positions


def transformer(width: int = 24, depth: int = 2) -> nn.Module:
    """Pre-norm, GELU, without dropout, two heads: 10,402 parameters."""
    layers = [nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True,
                                         norm_first=True) for _ in range(depth)]  # fmt: skip
    return nn.Sequential(Windows(width), *layers, nn.LayerNorm(width), networks.Mean(), nn.Linear(width, 10))


TASKS: dict[str, Task] = {
    "digits_logreg": Task("LogReg on digits", data.digits, lambda: logreg(64), 64, 20, (*EXACT, "kfra")),
    "digits_2c2d": Task("2C2D on digits", data.digits, net_2c2d, 64, 12, EXACT),
    "mnist1d_3c3d": Task("3C3D on MNIST-1D", data.mnist1d, net_3c3d, 128, 15, EXACT),
    "mnist1d_transformer": Task("Transformer on MNIST-1D", data.mnist1d, transformer, 128, 12, SAMPLED),
    "mnist5k_allcnnc": Task("All-CNN-C on 5000 of MNIST", data.mnist5k, allcnnc, 128, 8, SAMPLED),
}
"""Data at hand: what runs by default."""

UNDEFINED = {("mnist1d_transformer", "kfra"): "its recursion is defined for chains, and there are branches"}
"""What no optimizer can be run for, by task and optimizer, and why."""

PAPER: dict[str, Task] = {
    "mnist_logreg": Task("LogReg on MNIST", data.torchvision_set("MNIST"), lambda: logreg(784), 128, 50,
                         (*EXACT, "kfra")),
    "fmnist_2c2d": Task("2C2D on Fashion-MNIST", data.torchvision_set("FashionMNIST"), networks.net_2c2d, 128, 100,
                        EXACT),
    "cifar10_3c3d": Task("3C3D on CIFAR-10", data.torchvision_set("CIFAR10"), networks.net_3c3d, 128, 100, EXACT),
    "cifar100_allcnnc": Task("All-CNN-C on CIFAR-100", data.torchvision_set("CIFAR100"),
                             lambda: let_through(networks.allcnnc()), 256, 350, SAMPLED),
}
"""The paper's test problems (its Table 2), with DeepOBS's batches and epochs."""

ALL = TASKS | PAPER
