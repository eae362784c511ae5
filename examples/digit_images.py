"""What several examples begin and end with: scikit-learn's digits, a small network that has learned them, a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] between 0 and 1 and their labels [1797], in a random order that is always the same."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32).div(16).view(-1, 1, 8, 8)[order], torch.tensor(labels)[order]


def trained(data: TensorDataset, epochs: int = 40) -> nn.Sequential:
    """A CNN, trained until its gradient is small."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for x, y in DataLoader(data, 64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()
    return model


def saved(figure: Figure, path: Path) -> None:
    """As a file, and gone."""
    figure.savefig(path, dpi=140)
    plt.close(figure)
