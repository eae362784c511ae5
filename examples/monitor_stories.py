"""Five stories that the monitor's instruments tell, on scikit-learn's digits: a mistake or a choice, the instrument
that shows it, and a picture of that. Writes out/story_*.png and out/story_*.html, the reports of the same runs.

    python examples/monitor_stories.py

The last story is told of MNIST-1D (Greydanus 2020), too, where the package mnist1d is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from digit_images import digits
from matplotlib.axes import Axes
from torch import Tensor, nn

import hbpcompiler as hbp

OUT = Path("out")
SMOOTHED = 15
"""Losses of small batches that one point of a curve is the mean of."""
BLUE, ORANGE, GREEN, GREY = "#2563c9", "#c2410c", "#0b7a5c", "#8a93a1"


def mnist_1d() -> tuple[Tensor, Tensor]:
    """4000 sequences of 40 numbers and their labels, made by the package, always the same. ImportError without it."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    return torch.tensor(made["x"], dtype=torch.float32), torch.tensor(made["y"])


def network(depth: int = 2, activation: Callable[[], nn.Module] = nn.Tanh, width: int = 32, inputs: int = 64,
            ) -> nn.Sequential:
    """A perceptron of so many hidden layers, always with the same weights at first."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(inputs, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def watched(name: str, model: nn.Module, X: Tensor, y: Tensor, lr: float, steps: int, batch: int | None = 64,
            track: object = "economy", every: int = 4, loss: nn.Module | None = None) -> hbp.Monitor:
    """Trains by gradient descent on batches drawn anew, or on all samples, with a monitor beside."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    monitor = hbp.Monitor(model, loss or nn.CrossEntropyLoss(), optimizer, track=track, every=every, name=name)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = slice(None) if batch is None else torch.randint(len(X), (batch,), generator=generator)
        monitor.step(X[rows], y[rows])
        optimizer.step()
    return monitor


def saved(made: plt.Figure, name: str, runs: list[hbp.Monitor]) -> None:
    """The picture, and the report of its runs."""
    made.tight_layout()
    made.savefig(OUT / f"story_{name}.png", dpi=110)
    plt.close(made)
    hbp.report([monitor.run for monitor in runs], OUT / f"story_{name}.html")


def figure(columns: int = 2) -> tuple[plt.Figure, list[Axes]]:
    made, axes = plt.subplots(1, columns, figsize=(4.6 * columns, 3.1))
    for place in axes:
        place.spines[["top", "right"]].set_visible(False)
    return made, list(axes)


# -- the stories -----------------------------------------------------------------------------------------------------

def unscaled_inputs(X: Tensor, y: Tensor) -> None:
    """Images from 0 to 255 instead of 0 to 1: the histogram of the samples' gradients is as much wider."""
    runs = [watched(name, network(activation=nn.ReLU), scale * X, y, lr=0.3, steps=120)
            for name, scale in (("inputs from 0 to 1", 1), ("inputs from 0 to 255", 255))]
    made, (left, right) = figure()
    tops = []
    for monitor, colour in zip(runs, (BLUE, ORANGE), strict=True):
        counts, edges = (torch.tensor(monitor.run.series("grad_hist_1d")[1][0][key]) for key in ("counts", "edges"))
        positive = edges[:-1] > 0
        left.stairs(counts[positive], edges[-int(positive.sum()) - 1:], label=monitor.run.name, color=colour, fill=True,
                    alpha=0.4)
        above = counts.flip(0).cumsum(0).flip(0)  # entries from this bin on
        tops.append(float(edges[:-1][above >= 0.01 * counts.sum()].max()))
        right.plot(*monitor.run.series("loss"), color=colour, label=monitor.run.name)
    left.set(xscale="log", yscale="log", xlim=(1e-6, 1e4), ylabel="count",
             xlabel="entry of a sample's gradient, first step")
    right.set(yscale="log", xlabel="step", ylabel="loss")
    left.legend(fontsize=8)
    saved(made, "inputs", runs)
    print(f"unscaled inputs: one entry in a hundred is above {tops[0]:.2g}; of inputs to 255, above {tops[1]:.2g}: "
          f"{tops[1] / tops[0]:.0f} times")


def vanishing_gradients(X: Tensor, y: Tensor) -> None:
    """Eight layers of sigmoids: the first ones get next to no gradient; with ReLU they do."""
    runs = [watched(name, network(8, activation), X, y, lr=0.1, steps=80)
            for name, activation in (("sigmoid", nn.Sigmoid), ("ReLU", nn.ReLU))]
    made, axes = figure()
    for monitor, place in zip(runs, axes, strict=True):
        steps, norms = monitor.run.series("grad_norm")
        layers = [name for name in norms[0] if name.endswith("weight")]
        rows = torch.tensor([[norm[name] for norm in norms] for name in layers]).log10()
        image = place.imshow(rows, aspect="auto", cmap="viridis", vmin=-9, vmax=0,
                             extent=(steps[0], steps[-1], len(layers) - 0.5, -0.5))
        place.set(title=monitor.run.name, xlabel="step", yticks=range(len(layers)), yticklabels=layers)
        made.colorbar(image, label="log10 of the gradient's norm")
        ratio = 10 ** float(rows[-1, 0] - rows[0, 0])
        print(f"vanishing gradients: {monitor.run.name}, last layer over first: {ratio:.1e}")
    saved(made, "layers", runs)


def step_size_by_alpha(X: Tensor, y: Tensor) -> None:
    """Step sizes over two decades: alpha tells which are too small or too large."""
    rates = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    runs = [watched(f"step size {lr}", network(), X, y, lr=lr, steps=120, track=["loss", "lr", "alpha"], every=2)
            for lr in rates]
    alphas = [torch.tensor(monitor.run.series("alpha")[1]) for monitor in runs]
    ends = [float(torch.tensor(monitor.run.series("loss")[1][-10:]).mean()) for monitor in runs]
    made, (left, right) = figure()
    left.boxplot([alpha.clamp(-2, 4).numpy() for alpha in alphas], tick_labels=[str(lr) for lr in rates],
                 showfliers=False)
    left.axhline(0, color=GREY, linestyle="--")
    left.set(xlabel="step size", ylabel="alpha")
    right.plot(rates, ends, "o-", color=BLUE)
    right.set(xscale="log", yscale="log", xlabel="step size", ylabel="loss after 120 steps")
    saved(made, "alpha", [runs[0], runs[3], runs[5]])
    for lr, alpha, end in zip(rates, alphas, ends, strict=True):
        print(f"step size {lr}: median alpha {float(alpha.median()):.2f}, loss {end:.3f}")


def edge_of_stability(X: Tensor, y: Tensor) -> None:
    """Gradient descent on all samples sharpens until the step size is just not too large (Cohen et al. 2021)."""
    rates = (0.7, 1.2)
    targets = nn.functional.one_hot(y[:300]).float()
    runs = [watched(f"step size {lr}", network(), X[:300], targets, lr=lr, steps=900, batch=None, every=15,
                    track=["loss", "lr", "hess_max_ev"], loss=nn.MSELoss()) for lr in rates]
    made, (left, right) = figure()
    for monitor, lr, colour in zip(runs, rates, (BLUE, ORANGE), strict=True):
        steps, sharpest = monitor.run.series("hess_max_ev")
        left.plot(steps, sharpest, color=colour, label=monitor.run.name)
        left.axhline(2 / lr, color=colour, linestyle="--")
        right.plot(*monitor.run.series("loss"), color=colour)
        late = float(torch.tensor(sharpest[-10:]).mean())
        print(f"edge of stability: step size {lr}, sharpest direction {sharpest[0]:.2f} at first, {late:.2f} at the "
              f"end, 2 / step size {2 / lr:.2f}")
    left.set(xlabel="step", ylabel="sharpest direction\n(dashed: 2 / step size)")
    right.set(yscale="log", xlabel="step", ylabel="loss")
    left.legend(fontsize=8)
    saved(made, "sharpness", runs)


def noise_and_batch_size(X: Tensor, y: Tensor) -> None:
    """Of digits a fifth of the labels is wrong; sequences of MNIST-1D are hard to tell apart. What the gradient has to
    say shrinks, its noise does not, and more samples are needed for one step to be worth it."""
    wrong = torch.rand(len(y), generator=torch.Generator().manual_seed(1)) < 0.2
    labels = torch.where(wrong, y.roll(1), y)
    options: dict[str, Any] = {"batch": 32, "track": ["economy", "cabs"]}
    runs = [watched("digits, batches of 32", network(), X, labels, lr=0.2, steps=600, every=2, **options)]
    try:
        sequences, classes = mnist_1d()
    except ImportError:
        print("noise: the package mnist1d is not installed (pip install mnist1d), so this story is of digits alone")
    else:
        runs.append(watched("MNIST-1D, batches of 32", network(inputs=40), sequences, classes, lr=0.2, steps=3000,
                            every=10, **options))
    made, axes = figure(len(runs) + 1)
    for monitor, place, colour in zip(runs, axes, (BLUE, ORANGE), strict=False):
        run = monitor.run
        steps, tests = run.series("norm_test")
        norms = [sum(norm**2 for norm in values.values()) ** 0.5 for values in run.series("grad_norm")[1]]
        tenth = len(tests) // 10
        need = [noise_scale(tests[at:at + tenth], norms[at:at + tenth]) for at in range(0, len(tests), tenth)]
        place.plot(steps[tenth // 2::tenth], need, "o-", color=colour, label="the norm test is 1 with so many samples")
        place.plot(*run.series("cabs"), ".", color=GREEN, label="CABS")
        place.axhline(32, color=GREY, linestyle="--", label="the batch")
        place.set(title=run.name, yscale="log", xlabel="step", ylabel="samples", ylim=(0.2, 1e5))
        place.legend(fontsize=8, loc="upper left")
        losses = torch.tensor(run.series("loss")[1]).unfold(0, SMOOTHED, 1).mean(1)
        axes[-1].plot(run.series("loss")[0][SMOOTHED - 1:], losses, color=colour, label=run.name)
        cabs = torch.tensor(run.series("cabs")[1])
        print(f"noise: {run.name}: the norm test needs {need[0]:.0f} samples at first, {need[-1]:.0f} at the end; CABS "
              f"suggests {float(cabs[:tenth].mean()):.0f}, then {float(cabs[-tenth:].mean()):.0f}")
    axes[-1].set(yscale="log", xlabel="step", ylabel=f"loss, mean of {SMOOTHED}")
    axes[-1].legend(fontsize=8)
    saved(made, "noise", runs)


def noise_scale(tests: list[float], norms: list[float]) -> float:
    """Samples for which the standard error is as large as the gradient: means of both squares over some steps. The
    gradients of batches of 32 are longer than that of all samples, by their noise. Not a number where nothing else is
    left of them."""
    squares = torch.tensor(norms).square()
    errors = torch.tensor(tests).square() * squares
    left = float((squares - errors).mean())
    return 32 * float(errors.mean()) / left if left > 0 else math.nan


STORIES = (unscaled_inputs, vanishing_gradients, step_size_by_alpha, edge_of_stability, noise_and_batch_size)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    X, y = digits()
    for story in STORIES:
        story(X, y)
    print(f"pictures and reports: {OUT}/story_*.png, {OUT}/story_*.html")


if __name__ == "__main__":
    main()
