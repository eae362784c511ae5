"""`python -m benchmarks.sampled_diagonal`: how far diag_h_mc is from diag_h, beside Hutchinson's estimate v * (H v).

Cost is counted, not timed: in passes, the numbers that one gradient sends back through the network. For diag_h_mc all
its streams are counted off the plan: the gradient, the exact GGN's columns, the sampled residual columns; what closes
at the parameters (squares for ours, products for Hutchinson's) is left out on both sides. A product H v by double
backward goes through the gradient's graph and the network's: two passes for each v, and one for the gradient itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import click
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import number
from hbpcompiler.explain import travellers

LOSS = nn.CrossEntropyLoss()
Diagonal = Mapping[str, Tensor]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 16), nn.Sigmoid(),
                         nn.Linear(16, 10))


def cnn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.Tanh(),
                         nn.Flatten(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 10))


NETWORKS: Mapping[str, Callable[[], nn.Sequential]] = {"MLP-sigmoid": mlp, "CNN-tanh": cnn}


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images).unsqueeze(1) / 16, torch.tensor(data.target)


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        chosen = torch.randint(len(images), (128,))
        optimiser.zero_grad()
        LOSS(model(images[chosen]), labels[chosen]).backward()
        optimiser.step()


def hutchinson(model: nn.Module, x: Tensor, y: Tensor, probes: int) -> Diagonal:
    """The mean of v * (H v) over random signs v, for all parameters at once."""
    parameters = dict(model.named_parameters())
    slopes = torch.autograd.grad(LOSS(model(x), y), list(parameters.values()), create_graph=True)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for _ in range(probes):
        signs = [torch.randint_like(slope, 2) * 2 - 1 for slope in slopes]
        products = torch.autograd.grad(slopes, list(parameters.values()), signs, retain_graph=True)
        for name, sign, product in zip(parameters, signs, products, strict=True):
            total[name] += sign * product / probes
    return total


def passes(compiled: hbp.Compiled, batch: int) -> float:
    """The numbers that all streams send back, over those of the gradient."""
    built = compiled._current()
    rows = [(form, number(numbers, batch)) for _, _, form, numbers, *_ in travellers(built.matched, built.draft.plan)]
    return sum(count for _, count in rows) / sum(count for form, count in rows if form.startswith("gradient"))


def error(found: Diagonal, exact: Diagonal, names: Sequence[str]) -> float:
    """Euclidean, relative, over the named parameters."""
    wrong = sum(float((found[name] - exact[name]).square().sum()) for name in names)
    return (wrong / sum(float(exact[name].square().sum()) for name in names)) ** 0.5


def mean_error(draw: Callable[[], Diagonal], exact: Diagonal, repeats: int) -> str:
    """Over all parameters and over the first weight alone, means over draws."""
    drawn = [draw() for _ in range(repeats)]
    parts = [sum(error(found, exact, names) for found in drawn) / repeats
             for names in (list(exact), list(exact)[:1])]
    return f"{parts[0]:14.3f} {parts[1]:14.3f}"


@click.command()
@click.option("--batch", default=64, show_default=True, help="Digits in the batch.")
@click.option("--steps", default=200, show_default=True, help="Steps of Adam before the measurement; 0: at the start.")
@click.option("--repeats", default=20, show_default=True, help="Draws that an error is the mean of.")
@click.option("--samples", default="1,4,16", show_default=True, help="mc_samples of diag_h_mc, with commas.")
def main(batch: int, steps: int, repeats: int, samples: str) -> None:
    """Relative errors of sampled Hessian diagonals, per call and at equal cost."""
    images, labels = digits()
    for title, build in NETWORKS.items():
        torch.manual_seed(0)
        model = build().double()
        train(model, images, labels, steps)
        x, y = images[:batch], labels[:batch]
        exact = hbp.compile(model, LOSS, ["diag_h"])
        truth = exact(x, y).diag_h
        print(f"\n{title}, {batch} digits after {steps} steps; exact diag_h: {passes(exact, batch):.1f} passes")
        print(f"{'estimate':34} {'passes':>7} {'error, all':>14} {'first weight':>14}")
        for count in [int(sample) for sample in samples.split(",")]:
            ours = hbp.compile(model, LOSS, ["diag_h_mc"], mc_samples=count)
            found = mean_error(lambda: ours(x, y).diag_h_mc, truth, repeats)
            cost = passes(ours, batch)
            print(f"{f'diag_h_mc, mc_samples={count}':34} {cost:7.1f} {found}")
            for probes, name in ((count, "as many v"), (max(1, round((cost - 1) / 2)), "as many passes")):
                theirs = mean_error(lambda: hutchinson(model, x, y, probes), truth, repeats)
                print(f"{f'  Hutchinson, {name}: {probes}':34} {1 + 2 * probes:7.1f} {theirs}")


if __name__ == "__main__":
    main()
