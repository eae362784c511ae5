"""The main job on real data: a small CNN on scikit-learn's digits, compiled, trained with curvature, checked, drawn.

    python examples/digits.py

1. compiles a network of 666 parameters for gradient, variance, curvature diagonals and Kronecker factors;
2. shows the beginning of the generated file;
3. compares every quantity with brute-force autograd in float64 on a small batch;
4. trains with a step preconditioned by kflr (Dangel et al. 2020, eq. 7 and 27-29) and with plain gradient descent;
5. draws each layer's diagonals: the GGN against the positive and negative parts of the residual.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from digit_images import digits, saved
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.reference import kflr, reference, relative_error

QUANTITIES = ["grad", "variance", "diag_ggn", "diag_h", "kflr"]
OUT = Path("out")
SCREEN = 44
"""Lines of the generated file that are shown."""
EPOCHS, BATCH = 3, 64
TOLERANCE = 1e-8

ALPHA, LAMBDA, ETA = 0.1, 1e-2, 1e-4
"""Step length, damping and l2-regularisation of the preconditioned step; the first two are from a small grid."""
RATES = [0.3, 1.0, 3.0]
"""Gradient descent is run at each of these step lengths; the best run is shown."""


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


# -- 3. brute force --------------------------------------------------------------------------------------------------


def check(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Print the relative error of each quantity against autograd; return the largest."""
    model, x = copy.deepcopy(model).double(), x.double()
    result = hbp.compile(model, quantities=QUANTITIES)(x, y)
    loss, worst = nn.CrossEntropyLoss(), 0.0
    for quantity in QUANTITIES:
        if quantity == "kflr":
            pairs = [(result.kflr[name], factors) for name, factors in kflr(model, loss, (x,), y).items()]
            errors = [relative_error(found.B, b) for found, (_, b) in pairs]
            errors += [relative_error(found.A, a) for found, (a, _) in pairs if a is not None]
        else:
            expected = reference(model, loss, (x,), y, quantity)
            errors = [relative_error(result[quantity][name], value) for name, value in expected.items()]
        print(f"  {quantity:<10} {max(errors):.1e}")
        worst = max(worst, *errors)
    return worst


# -- 4. training -----------------------------------------------------------------------------------------------------


def kflr_step(name: str, parameter: Tensor, result: hbp.Result) -> Tensor:
    """[G + (lambda + eta) I]^-1 (gradient + eta theta), where a weight's G is the Kronecker product of A and B."""
    gradient = result.grad[name] + ETA * parameter
    a, b = result.kflr[name]
    damping = LAMBDA + ETA
    if a is None:  # a bias has its full block
        return torch.linalg.solve(b + damping * torch.eye(len(b)), gradient)
    pi = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
    a = a + pi * damping**0.5 * torch.eye(len(a))
    b = b + damping**0.5 / pi * torch.eye(len(b))
    return torch.linalg.solve(b, torch.linalg.solve(a, gradient.flatten(1), left=False)).view_as(parameter)


def gradient_step(name: str, parameter: Tensor, result: hbp.Result) -> Tensor:
    return result.grad[name] + ETA * parameter


def train(
    compiled: hbp.Compiled, rate: float, step: Callable[[str, Tensor, hbp.Result], Tensor], x: Tensor, y: Tensor
) -> list[float]:
    """The training losses, batch by batch."""
    losses = []
    for part in batches(len(y)):
        result = compiled(x[part], y[part])
        losses.append(float(result.loss))
        with torch.no_grad():
            for name, parameter in compiled.model.named_parameters():
                parameter -= rate * step(name, parameter, result)
    return losses


def batches(count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(EPOCHS):
        yield from torch.randperm(count, generator=generator).split(BATCH)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


# -- 5. pictures -----------------------------------------------------------------------------------------------------

GGN, POSITIVE, NEGATIVE = "#4d4d4d", "#2c7fb8", "#d95f0e"


def draw_diagonals(model: nn.Module, x: Tensor, y: Tensor, path: Path) -> None:
    """Per layer: how large the parts of the Hessian's diagonal are, and which part wins for each parameter."""
    split = hbp.compile(model, quantities=["diag_h_split"])(x, y).diag_h_split
    layers = sorted({name.rpartition(".")[0] for name in split})
    parts = {
        layer: [torch.cat([getattr(split[f"{layer}.{kind}"], part).flatten() for kind in ("weight", "bias")])
                for part in ("ggn", "positive", "negative")]
        for layer in layers
    }
    everything = torch.cat([value for three in parts.values() for value in three])
    lowest = float(everything[everything > 0].log10().quantile(0.01).floor())
    highest = float(everything.max().log10().ceil())
    figure, axes = plt.subplots(2, len(layers), figsize=(4.2 * len(layers), 7.4), layout="constrained", squeeze=False)
    for (above, below), (layer, (ggn, positive, negative)) in zip(axes.T, parts.items(), strict=True):
        module = model.get_submodule(layer)
        above.set_title(f"layer {layer}, {type(module).__name__}, {len(ggn)} parameters", fontsize=9)
        _histogram(above, (ggn, positive, negative), torch.logspace(lowest, highest, 8 * int(highest - lowest) + 1))
        _scatter(below, ggn, positive - negative, (10**lowest, 10**highest))
    figure.suptitle(f"Diagonal of the Hessian after training, on {len(y)} test digits")
    saved(figure, path)


def _histogram(axis: Any, values: Sequence[Tensor], bins: Tensor) -> None:
    labels = ("GGN", "residual, positive part", "residual, negative part")
    for value, colour, label, style in zip(values, (GGN, POSITIVE, NEGATIVE), labels, ("-", "-", "--"), strict=True):
        seen = value[value > 0]
        label += "" if len(seen) == len(value) else f": {len(value) - len(seen)} are exactly 0"
        axis.hist(seen.clamp(bins[0], bins[-1]), bins, histtype="step", color=colour, label=label, lw=1.6, ls=style)
    axis.set_xscale("log")
    axis.set_xlabel("entry of the diagonal")
    axis.set_ylabel("parameters")
    axis.set_ylim(0, 1.4 * axis.get_ylim()[1])
    axis.legend(fontsize=7, loc="upper left")


def _scatter(axis: Any, ggn: Tensor, residual: Tensor, limits: tuple[float, float]) -> None:
    axis.loglog(limits, limits, color="0.7", linewidth=1, label="equal to the GGN")
    for sign, colour, label in ((1, POSITIVE, "residual adds"), (-1, NEGATIVE, "residual takes away")):
        chosen = residual * sign > 0
        if bool(chosen.any()):
            axis.loglog(ggn[chosen], residual[chosen].abs(), "o", ms=3.5, alpha=0.6, color=colour, mew=0,
                        label=f"{label} ({int(chosen.sum())})")
    negative = int((ggn + residual < 0).sum())
    flat = not bool((residual != 0).any())
    axis.set_title("no residual: only the loss is curved above" if flat else
                   f"Hessian's diagonal below 0 for {negative} of {len(ggn)}", fontsize=9)
    axis.set_xlim(*limits)
    axis.set_ylim(limits[0] / 100, limits[1])
    axis.set_xlabel("GGN")
    axis.set_ylabel("size of positive - negative part")
    axis.legend(fontsize=7, loc="upper left")


def draw_training(curves: dict[str, list[float]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for (label, losses), colour in zip(curves.items(), (NEGATIVE, GGN), strict=True):
        axis.semilogy(losses, color=colour, label=label, linewidth=1.2)
    axis.set_xlabel(f"step (batches of {BATCH})")
    axis.set_ylabel("training loss")
    axis.legend(fontsize=8)
    saved(figure, path)


def main() -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are too small for more
    OUT.mkdir(exist_ok=True)
    images, labels = digits()
    x, y, test_x, test_y = images[:1500], labels[:1500], images[1500:], labels[1500:]
    start = network()

    began = time.perf_counter()
    compiled = hbp.compile(copy.deepcopy(start), quantities=QUANTITIES, example_inputs=(x[:2], y[:2]))
    saved = compiled.save(OUT / "digits_program.py")
    lines = compiled.code.splitlines()
    print(f"Compiled for {', '.join(QUANTITIES)} in {time.perf_counter() - began:.1f} s.")
    print(f"The program: {saved} ({len(lines)} lines). It begins:\n")
    print("\n".join(f"    {line[:110]}" for line in lines[:SCREEN]))
    print("    ...\n")

    print("Relative errors against brute-force autograd, float64, 6 digits:")
    worst = check(start, x[:6], y[:6])
    if worst > TOLERANCE:
        print(f"The largest, {worst:.1e}, is above {TOLERANCE:.0e}.")
        return 1

    steps = EPOCHS * -(-len(y) // BATCH)
    print(f"\nTraining, {EPOCHS} epochs, {steps} steps each:")
    runs = []
    for rate in RATES:
        plain = hbp.compile(copy.deepcopy(start), quantities=["grad"])
        losses = train(plain, rate, gradient_step, x, y)
        runs.append((sum(losses[-10:]) / 10, rate, losses, accuracy(plain.model, test_x, test_y)))
        print(f"  gradient descent, step {rate:<4g} loss {runs[-1][0]:.3f}, test accuracy {runs[-1][3]:.1%}")
    _, best, losses_plain, _ = min(runs)
    losses = train(compiled, ALPHA, kflr_step, x, y)
    print(f"  kflr,             step {ALPHA:<4g} loss {sum(losses[-10:]) / 10:.3f}, test accuracy "
          f"{accuracy(compiled.model, test_x, test_y):.1%}  (damping {LAMBDA:g})")
    draw_training({f"kflr, step {ALPHA:g}": losses, f"gradient descent, step {best:g}": losses_plain},
                  OUT / "digits_training.png")
    draw_diagonals(compiled.model, test_x, test_y, OUT / "digits_diagonals.png")
    print(f"\nPictures: {OUT / 'digits_diagonals.png'}, {OUT / 'digits_training.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
