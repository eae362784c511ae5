"""Newton's method block by block, until the gradient is as good as zero.

    python examples/block_newton.py

A small network learns the three wines of scikit-learn's set, with an l2 term, so that there is a minimum to arrive at.
Each step solves (H + l2) x = -g for every parameter by conjugate gradients, with H the parameter's own block of the
positive-curvature Hessian (Dangel, Harmeling, Hennig 2020, "pch_abs"), which is never formed. Gradient descent runs
beside it with the best of four step sizes. Draws out/block_newton.png: the gradients' norms.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn

import hbpcompiler as hbp

OUT = Path("out")
STEPS, ENOUGH = 400, 1e-11
L2 = 1e-2
RATES = (0.1, 0.3, 1.0, 3.0)


def wines() -> tuple[Tensor, Tensor]:
    """178 wines: 13 measurements, standardised, and their class."""
    measured, classes = load_wine(return_X_y=True)
    X = torch.tensor(measured)
    return (X - X.mean(0)) / X.std(0), torch.tensor(classes)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(13, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def block_newton(X: Tensor, y: Tensor) -> list[float]:
    """The gradient's norm before each step, until it is small enough."""
    model = network()
    optimizer = hbp.optim.BlockNewton(model, nn.CrossEntropyLoss(), lr=0.5, damping=0.0, l2=L2, curvature="pch_abs",
                                      most_iterations=100, progress=0.0)
    norms = [norm_of_gradient(model, X, y)]
    while norms[-1] > ENOUGH and len(norms) <= STEPS:
        optimizer.step(X, y)
        norms.append(norm_of_gradient(model, X, y))
    return norms


def gradient_descent(X: Tensor, y: Tensor, rate: float) -> list[float]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=L2)
    norms = []
    for _ in range(STEPS):
        norms.append(norm_of_gradient(model, X, y))
        optimizer.step()
    return norms


def norm_of_gradient(model: nn.Module, X: Tensor, y: Tensor) -> float:
    """Of the loss with its l2 term; p.grad is that without."""
    model.zero_grad()
    nn.functional.cross_entropy(model(X), y).backward()
    squares = [(parameter.grad + L2 * parameter.detach()).square().sum() for parameter in model.parameters()
               if parameter.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def draw(runs: dict[str, list[float]]) -> Path:
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for (name, norms), colour in zip(runs.items(), ("#d95f0e", "#4d4d4d"), strict=True):
        axes.plot(norms, color=colour, label=name)
    axes.set(xlabel="steps", ylabel="norm of the gradient", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = OUT / "block_newton.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def main() -> None:
    OUT.mkdir(exist_ok=True)
    X, y = wines()
    newton = block_newton(X, y)
    rate, descent = min(((rate, gradient_descent(X, y, rate)) for rate in RATES), key=lambda run: run[1][-1])
    print(f"  block Newton      norm of the gradient {newton[0]:.1e} -> {newton[-1]:.1e} in {len(newton) - 1} steps")
    print(f"  gradient descent  norm of the gradient {descent[0]:.1e} -> {descent[-1]:.1e} in {STEPS} steps of {rate}")
    print(f"drawn: {draw({'block Newton': newton, f'gradient descent, {rate}': descent})}")


if __name__ == "__main__":
    main()
