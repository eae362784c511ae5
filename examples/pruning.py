"""Optimal brain damage: which weights a trained network can do without, told by the exact diagonal of its Hessian.

    python examples/pruning.py

Removing weight w_i from a trained network raises its loss by about h_ii w_i^2 / 2, h_ii the Hessian's diagonal entry
(LeCun, Denker, Solla 1989, eq. 4; the gradient of a trained network is about zero). A small CNN is trained on
scikit-learn's digits, `hbp.accumulate` gives the diagonal of all training data, and weights go in the order of what
they cost, without any training afterwards. Beside it: weights by their size, by the diagonal of the generalised
Gauss-Newton matrix (which costs less than the Hessian's), and in random order. The table and out/pruning.png show the
accuracy on held-out digits against the share of weights that are gone, and what was predicted of the loss.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from digit_images import digits, saved, trained
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp

OUT = Path("out")
HELD_OUT = 400
SHARES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
"""Of the weights that are gone."""
Scores = Mapping[str, Tensor]
"""By parameter: what removing each weight is thought to cost."""


def scores(model: nn.Module, data: TensorDataset) -> dict[str, Scores]:
    """What each way of choosing thinks of each weight matrix and kernel; biases stay."""
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["diag_h", "diag_ggn"])
    total = hbp.accumulate(compiled, DataLoader(data, 256))
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.dim() > 1}

    def saliency(diagonal: Mapping[str, Tensor]) -> Scores:
        """Where the loss curves down, nothing is gained by going to zero: the minimum is not that far."""
        return {name: diagonal[name].clamp(min=0) * weight.square() / 2 for name, weight in weights.items()}

    generator = torch.Generator().manual_seed(1)
    return {
        "Hessian diagonal": saliency(total.diag_h),
        "GGN diagonal": saliency(total.diag_ggn),
        "size": {name: weight.abs() for name, weight in weights.items()},
        "random": {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()},
    }


def pruned(model: nn.Module, score: Scores, share: float) -> nn.Module:
    """A copy without the share of weights that score least."""
    left = copy.deepcopy(model)
    every = torch.cat([values.flatten() for values in score.values()]).sort().values
    limit = every[int(share * len(every))] if share else -1.0
    with torch.no_grad():
        for name, values in score.items():
            left.get_parameter(name).mul_(values >= limit)
    return left


@torch.no_grad()
def quality(model: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """Loss and accuracy."""
    x, y = data.tensors
    output = model(x)
    return float(nn.functional.cross_entropy(output, y)), float((output.argmax(1) == y).float().mean())


COLOURS = ("#2c7fb8", "#1b9e77", "#d95f0e", "#9e9e9e")


def draw(accuracy: Mapping[str, list[float]], losses: list[float], predicted: list[float], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for (name, values), colour in zip(accuracy.items(), COLOURS, strict=True):
        left.plot(SHARES, values, "o-", ms=3.5, lw=1.2, color=colour, label=f"by {name}" if name != "random" else name)
    left.set(xlabel="share of weights that are gone", ylim=(0, 1.02))
    left.set_title("accuracy on held-out digits", fontsize=10)
    left.legend(fontsize=8)
    right.semilogy(SHARES[1:], losses[1:], "o-", ms=3.5, lw=1.2, color=COLOURS[0], label="measured")
    right.semilogy(SHARES[1:], predicted[1:], "--", lw=1.2, color="0.4", label="predicted by the Hessian diagonal")
    right.set(xlabel="share of weights that are gone")
    right.set_title("rise of the training loss", fontsize=10)
    right.legend(fontsize=8)
    saved(figure, path)


def main() -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are too small for more
    OUT.mkdir(exist_ok=True)
    x, y = digits()
    training, held_out = TensorDataset(x[HELD_OUT:], y[HELD_OUT:]), TensorDataset(x[:HELD_OUT], y[:HELD_OUT])
    model = trained(training)
    ways = scores(model, training)
    before, _ = quality(model, training)
    accuracy: dict[str, list[float]] = {name: [] for name in ways}
    losses, predicted = [], []

    print(f"accuracy on {HELD_OUT} held-out digits\n{'gone':>5}  {'  '.join(f'{name:>16}' for name in ways)}")
    for share in SHARES:
        for name, score in ways.items():
            accuracy[name].append(quality(pruned(model, score, share), held_out)[1])
        print(f"{share:5.0%}  {'  '.join(f'{values[-1]:16.3f}' for values in accuracy.values())}")
        saliency = torch.cat([values.flatten() for values in ways["Hessian diagonal"].values()]).sort().values
        predicted.append(float(saliency[: int(share * len(saliency))].sum()))
        losses.append(quality(pruned(model, ways["Hessian diagonal"], share), training)[0] - before)
    draw(accuracy, [max(loss, 1e-6) for loss in losses], predicted, OUT / "pruning.png")
    print(f"\nPicture: {OUT / 'pruning.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
