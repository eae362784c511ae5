"""DP-SGD on scikit-learn's digits: clipped gradients from one program, noise, and what privacy it costs.

    python examples/dp_sgd.py

Each step draws every training digit with probability RATE (Poisson sampling), takes the sum of the drawn digits'
gradients, each clipped to MAX_NORM, adds normal noise of NOISE * MAX_NORM and divides by the expected number of digits
(Abadi et al. 2016, algorithm 1). The privacy spent is what Opacus's accountant says of noise, rate and steps alone:
`pip install opacus`; without it everything else is done.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from digit_images import digits, saved
from torch import Tensor, nn

import hbpcompiler as hbp

MAX_NORM = 1.0
NOISES = [0.0, 1.0, 2.0]
"""Standard deviations of the noise, in units of MAX_NORM; without noise nothing is private."""
TRAINED_ON = 1500
"""Digits; the others are for the test."""
RATE, STEPS, STEP_LENGTH = 0.08, 150, 1.0
DELTA = 1e-4
OUT = Path("out")


def network() -> nn.Sequential:
    """Without batch norm, which mixes samples: a gradient of one sample would be none."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def train(noise: float, x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> tuple[list[float], Tensor, Tensor]:
    """Test accuracies, step by step, and the norms of the gradients of all drawn digits in the first and last tenth."""
    model, generator = network(), torch.Generator().manual_seed(1)
    # A sum, not a mean: how many digits are drawn is a secret, so nothing is divided by it.
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction="sum"), ["clipped_grad"])
    accuracies: list[float] = []
    norms: list[Tensor] = []
    for _ in range(STEPS):
        drawn = torch.rand(len(y), generator=generator) < RATE
        result = compiled(x[drawn], y[drawn], max_norm=MAX_NORM)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                disturbance = noise * MAX_NORM * torch.randn(parameter.shape, generator=generator)
                parameter -= STEP_LENGTH * (result.clipped_grad[name] + disturbance) / (RATE * len(y))
            accuracies.append(float((model(test_x).argmax(1) == test_y).float().mean()))
        norms.append(result.norms)
    tenth = STEPS // 10
    return accuracies, torch.cat(norms[:tenth]), torch.cat(norms[-tenth:])


def epsilon(noise: float) -> str:
    """The privacy spent, as Opacus's accountant has it."""
    if noise == 0:
        return "not private"
    try:
        from opacus.accountants import RDPAccountant
    except ImportError:
        return "epsilon unknown: opacus is not installed"
    accountant: Any = RDPAccountant()
    for _ in range(STEPS):
        accountant.step(noise_multiplier=noise, sample_rate=RATE)
    return f"epsilon {accountant.get_epsilon(DELTA):.1f} at delta {DELTA:g}"


def draw(runs: dict[float, tuple[list[float], Tensor, Tensor]], path: Path) -> None:
    """Accuracy by step for each noise; and how the norms lie beside MAX_NORM, for the middle one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for noise, (accuracies, _, _) in runs.items():
        left.plot(accuracies, label=f"noise {noise:g}, {epsilon(noise)}", linewidth=1.2)
    left.set_xlabel("step")
    left.set_ylabel("test accuracy")
    left.set_ylim(0, 1)
    left.legend(fontsize=8, loc="lower right")
    _, first, last = runs[NOISES[1]]
    bins = torch.logspace(-2, 1.75, 39).tolist()
    for values, label in ((first, "first tenth of the steps"), (last, "last tenth")):
        right.hist(values.clamp(min=bins[0]).tolist(), bins, histtype="step", linewidth=1.4, label=label)
    right.axvline(MAX_NORM, color="0.4", linestyle="--", label="max_norm")
    right.set_xscale("log")
    right.set_xlabel(f"norm of a digit's gradient, noise {NOISES[1]:g}")
    right.set_ylabel("digits")
    right.legend(fontsize=8)
    saved(figure, path)


def main() -> int:
    torch.set_num_threads(1)  # the tensors are too small for more
    OUT.mkdir(exist_ok=True)
    x, y = digits()
    runs = {}
    for noise in NOISES:
        runs[noise] = train(noise, x[:TRAINED_ON], y[:TRAINED_ON], x[TRAINED_ON:], y[TRAINED_ON:])
        accuracies, _, last = runs[noise]
        clipped = float((last > MAX_NORM).float().mean())
        print(f"noise {noise:g}: test accuracy {accuracies[-1]:.1%}, {epsilon(noise)}, {clipped:.0%} clipped at last")
    draw(runs, OUT / "dp_sgd.png")
    print(f"Picture: {OUT / 'dp_sgd.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
