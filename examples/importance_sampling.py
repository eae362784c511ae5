"""Which digits to look at: mini-batches drawn by the length of each sample's gradient, without a bias.

    python examples/importance_sampling.py

If sample n is drawn with probability p_n and its gradient weighed by 1 / (N p_n), then the mean over the samples drawn
is the gradient of all data on average, whatever p is:

    E[ w g ] = sum_n p_n (1 / (N p_n)) g_n = (1 / N) sum_n g_n .

How far it is off in one draw depends on p, and least far with p_n in proportion to |g_n| (Needell, Srebro, Ward 2014;
Katharopoulos, Fleuret 2018). The program for `batch_l2` gives these lengths at the cost of about a gradient, the one
for `grad` takes the weights as `sample_weights`. Lengths of all data are refreshed once in a while, and half of p stays
uniform, so that old lengths do little harm: no weight is above 2.

1. checks that the estimate has no bias;
2. trains a small CNN with uniform batches, with such ones, and with uniform ones of the size that costs the same, the
   refreshing of lengths counted as one gradient for each sample;
3. draws out/importance_sampling.png: how much smaller the variance is during training, and the losses over the cost.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from digit_images import digits, saved
from torch import Tensor, nn

import hbpcompiler as hbp

OUT = Path("out")
BATCH, STEPS, RATE = 16, 1000, 0.2
REFRESH = 100
"""Steps between two looks at all lengths."""
EVERY = 50
"""Steps between two points of the curves."""
SEEDS = 2
DRAWS = 500
"""Estimates for the check of their mean."""
BY_LENGTH = f"by length, {BATCH}"
COLOURS = ("#4d4d4d", "#d95f0e", "#2c7fb8")


class Data(NamedTuple):
    x: Tensor
    y: Tensor


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


# -- lengths and probabilities ---------------------------------------------------------------------------------------


def lengths(program: hbp.Compiled, data: Data) -> Tensor:
    """|g_n| [N] over all parameters together: batch_l2 has the squares of g_n / N, parameter by parameter."""
    squares = program(data.x, data.y).batch_l2.values()
    return len(data.y) * sum(squares, torch.zeros(())).sqrt()


def probabilities(norms: Tensor) -> Tensor:
    """Half by length, half uniform, [N]."""
    return 0.5 * norms / norms.sum() + 0.5 / len(norms)


def variance(norms: Tensor, gradient: Tensor, p: Tensor) -> float:
    """Of one sample's weighted gradient: sum_n |g_n|^2 / (N^2 p_n) - |mean|^2, the trace of its covariance."""
    return float((norms.square() / (len(norms) ** 2 * p)).sum() - gradient.square().sum())


def estimate(program: hbp.Compiled, data: Data, p: Tensor, size: int, generator: torch.Generator) -> hbp.Result:
    """The gradient of `size` samples drawn by p, weighed so that its mean is that of all data."""
    drawn = torch.multinomial(p, size, replacement=True, generator=generator)
    weights = 1 / (len(p) * p[drawn])
    return program(data.x[drawn], data.y[drawn], sample_weights=weights)


def flat(result: hbp.Result) -> Tensor:
    return torch.cat([part.flatten() for part in result.grad.values()])


# -- 1. the mean -----------------------------------------------------------------------------------------------------


def check(data: Data) -> float:
    """|mean of many estimates - gradient of all data| over what pure chance would make of it: about 1."""
    model = network(0)
    gradient, norms = hbp.compile(model, quantities=["grad"]), hbp.compile(model, quantities=["batch_l2"])
    whole, found = flat(gradient(data.x, data.y)), lengths(norms, data)
    p, generator = probabilities(found), torch.Generator().manual_seed(1)
    mean = torch.stack([flat(estimate(gradient, data, p, BATCH, generator)) for _ in range(DRAWS)]).mean(0)
    chance = (variance(found, whole, p) / (BATCH * DRAWS)) ** 0.5
    return float((mean - whole).norm()) / chance


# -- 2. training -----------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One training: at each point, gradients of samples so far, the loss of all data, variances over the uniform one.
    """

    cost: list[int]
    loss: list[float]
    fresh: list[float]
    stale: list[float]


def train(data: Data, seed: int, size: int, by_length: bool) -> Run:
    model, generator = network(seed), torch.Generator().manual_seed(seed)
    gradient, norms = hbp.compile(model, quantities=["grad"]), hbp.compile(model, quantities=["batch_l2"])
    uniform = torch.full((len(data.y),), 1 / len(data.y))
    p, cost, run = uniform, 0, Run([], [], [], [])
    for step in range(STEPS + 1):
        if by_length and step % REFRESH == 0:
            p, cost = probabilities(lengths(norms, data)), cost + len(data.y)
        if step % EVERY == 0:
            found, whole = lengths(norms, data), gradient(data.x, data.y)  # to look at: not counted
            plain = variance(found, flat(whole), uniform)
            run.cost.append(cost)
            run.loss.append(float(whole.loss))
            run.fresh.append(variance(found, flat(whole), probabilities(found)) / plain)
            run.stale.append(variance(found, flat(whole), p) / plain)
        result = estimate(gradient, data, p, size, generator)
        cost += size
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= RATE * result.grad[name]
    return run


# -- 3. the picture --------------------------------------------------------------------------------------------------


def mean(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).mean(0)


def draw(trained: Mapping[str, Sequence[Run]], path: Path) -> None:
    weighted = trained[BY_LENGTH]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    steps = range(0, STEPS + 1, EVERY)
    left.plot(steps, mean([run.fresh for run in weighted]), color="#2c7fb8", lw=1.4, label="lengths of this step")
    left.plot(steps, mean([run.stale for run in weighted]), color="#d95f0e", lw=1.4,
              label=f"lengths refreshed every {REFRESH} steps")
    left.axhline(1, color="0.7", lw=1, label="uniform")
    left.set_title("variance of a batch's gradient, in shares of a uniform batch's", fontsize=10)
    left.set_xlabel("training step")
    left.set_ylim(0, 1.1)
    for (name, runs), colour in zip(trained.items(), COLOURS, strict=True):
        right.semilogy(runs[0].cost, mean([run.loss for run in runs]), color=colour, lw=1.4,
                       label=f"{name} samples a step")
    right.set_title("loss of all data", fontsize=10)
    right.set_xlabel("gradients of samples computed, those for lengths counted")
    for axis in (left, right):
        axis.legend(fontsize=8)
    saved(figure, path)


def main() -> int:
    torch.set_num_threads(1)  # the tensors are too small for more
    OUT.mkdir(exist_ok=True)
    x, y = digits()
    data = Data(x[:1500], y[:1500])
    print(f"1. no bias: the mean of {DRAWS} estimates is off by {check(data):.2f} times what chance makes of it")
    larger = BATCH + len(data.y) // REFRESH
    trained = {
        f"uniform, {BATCH}": [train(data, seed, BATCH, False) for seed in range(SEEDS)],
        BY_LENGTH: [train(data, seed, BATCH, True) for seed in range(SEEDS)],
        f"uniform, {larger}": [train(data, seed, larger, False) for seed in range(SEEDS)],
    }
    stale, fresh = (mean([getattr(run, age) for run in trained[BY_LENGTH]]) for age in ("stale", "fresh"))
    print(f"2. {STEPS} steps, means of {SEEDS} runs")
    print(f"   variance over the uniform one's: {float(fresh[0]):.2f} before training, {float(fresh[-1]):.2f} after; "
          f"with lengths {EVERY} steps old {float(stale[-2]):.2f}")
    for name, runs in trained.items():
        losses = mean([run.loss for run in runs])
        print(f"   {name:15} loss {float(losses[-1]):.4f} after {runs[0].cost[-1]} gradients of samples")
    draw(trained, OUT / "importance_sampling.png")
    print(f"3. {OUT / 'importance_sampling.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
