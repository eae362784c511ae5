"""KFAC in the place of Adam: two changed lines, and what they bring on scikit-learn's digits.

    python examples/kfac.py

trains the same small CNN twice, by the same loop but for the two lines that are marked (zero_grad, the loss and
backward() fall away, as KFAC's step is all of them), and draws out/kfac.png: the training loss over epochs, and over
the time that it took. `hbp.optim.KFAC(model, loss)` is the start; its arguments here are the defaults, written out, but
for invert_every and the damping. Adam has the best step size of 1e-3, 3e-3, 1e-2, 3e-2 and 1e-1; KFAC finds step and
momentum from its quadratic model and adapts its damping, which begins at the best of 1, 0.1 and 0.01, at the price of
more work for each step. Per epoch it is ahead, the less the longer they run; per second it is not, on a network as
small as this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from digit_images import digits
from torch import Tensor, nn

import hbpcompiler as hbp

OUT = Path("out")
EPOCHS, BATCH = 12, 128
COLOURS = {"Adam": "#4d4d4d", "KFAC": "#d95f0e"}


class Run(NamedTuple):
    """After each epoch."""

    losses: list[float]
    accuracies: list[float]
    seconds: list[float]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU(),
                         nn.Flatten(), nn.Linear(16 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10))


def batches(X: Tensor, y: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(epoch))
    for rows in order.split(BATCH):
        yield X[rows], y[rows]


def with_adam(model: nn.Module, loss_of: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)  # 1

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_of(model(x), y)
        loss.backward()
        optimizer.step()  # 2
        return loss

    return step


def with_kfac(model: nn.Module, loss_of: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    optimizer = hbp.optim.KFAC(model, loss_of, lr=None, momentum=None, damping=0.01, adapt_damping=True,  # 1
                               update_every=1, invert_every=4)

    def step(x: Tensor, y: Tensor) -> Tensor:
        return optimizer.step(x, y)  # 2

    return step


def train(make_step: Callable[[nn.Module, nn.Module], Callable[[Tensor, Tensor], Tensor]]) -> Run:
    model, loss_of = network(), nn.CrossEntropyLoss()
    images, labels = digits()
    X, y, X_test, y_test = images[:1500], labels[:1500], images[1500:], labels[1500:]
    step, run, spent = make_step(model, loss_of), Run([], [], []), 0.0
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        for x_batch, y_batch in batches(X, y, epoch):
            step(x_batch, y_batch)
        spent += time.perf_counter() - start
        with torch.no_grad():
            run.losses.append(float(loss_of(model(X), y)))
            run.accuracies.append(float((model(X_test).argmax(1) == y_test).double().mean()))
        run.seconds.append(spent)
    return run


def draw(runs: dict[str, Run]) -> Path:
    figure, (by_epoch, by_time) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for name, run in runs.items():
        for axes, places in ((by_epoch, list(range(1, EPOCHS + 1))), (by_time, run.seconds)):
            _line(axes, places, run.losses, name)
    by_epoch.set(xlabel="epochs", ylabel="training loss", yscale="log", title="by data seen")
    by_time.set(xlabel="seconds, compilation included", title="by time")
    by_epoch.legend(frameon=False)
    path = OUT / "kfac.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _line(axes: plt.Axes, places: Sequence[float], losses: Sequence[float], name: str) -> None:
    axes.plot(places, losses, color=COLOURS[name], marker="o", markersize=3, label=name)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    runs = {"Adam": train(with_adam), "KFAC": train(with_kfac)}
    print("          training loss after 1, 3, 6 and 12 epochs    test accuracy")
    for name, run in runs.items():
        losses = "   ".join(f"{run.losses[epoch - 1]:.2e}" for epoch in (1, 3, 6, 12))
        print(f"  {name:6}  {losses}    {run.accuracies[-1]:.1%}")
    print(f"drawn: {draw(runs)}")


if __name__ == "__main__":
    main()
