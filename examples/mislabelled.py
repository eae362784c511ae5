"""Which training images a network learned most from, and which of them have a wrong label.

    python examples/mislabelled.py

A part of scikit-learn's digits gets wrong labels, and a small CNN learns from all. What a sample did for itself,
g_n^T (H + damping)^-1 g_n with EKFAC of all training data for H, is large where nothing but the sample itself supports
its label (Koh & Liang 2017, section 5.4): sorted by it, the wrong ones come first. Beside it they are sorted by their
loss, which tells as much where the network has not learned the wrong ones by heart, and at random. The loss does not
tell where a wrong answer comes from: for a test image, scores of pairs say which training images helped most, and which
did most harm. out/mislabelled.png shows all of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from digit_images import digits, saved, trained
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.bridges.influence import scores, self_scores

OUT = Path("out")
TRAINING, WRONG = 1000, 0.1
"""How many images are learned, and the share of them that gets a wrong label."""
SHOWN = 6
CHECKED = (0.05, 0.1, 0.2, 0.3)
"""Shares of the training data that somebody looks through."""


def with_wrong_labels(y: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of which some are another digit's, and which these are."""
    generator = torch.Generator().manual_seed(1)
    wrong = torch.zeros(len(y), dtype=torch.bool)
    wrong[torch.randperm(len(y), generator=generator)[: int(WRONG * len(y))]] = True
    away = torch.randint(1, 10, y.shape, generator=generator)
    return torch.where(wrong, (y + away) % 10, y), wrong


def found(order: Tensor, wrong: Tensor) -> Tensor:
    """[N]: the share of the wrong labels among the first ones of this order."""
    return wrong[order].float().cumsum(0) / wrong.sum()


def show(axis: plt.Axes, image: Tensor, title: str) -> None:
    axis.imshow(image.squeeze(0), cmap="gray_r")
    axis.set_title(title, fontsize=8)
    axis.axis("off")


def draw(curves: dict[str, Tensor], x: Tensor, y: Tensor, wrong: Tensor, query: tuple[Tensor, str], of_query: Tensor,
         path: Path) -> None:
    """Shares that are found, and the images that helped and harmed one test image."""
    figure = plt.figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.6])
    axis = left.subplots()
    for (label, share), style in zip(curves.items(), ("-", "--", ":"), strict=True):  # two may lie on each other
        axis.plot(torch.arange(1, len(y) + 1) / len(y), share, style, label=label, linewidth=1.6)
    axis.set_xlabel("share of the training data that is looked through")
    axis.set_ylabel("share of the wrong labels found")
    axis.legend(fontsize=8)
    axes = right.subplots(2, SHOWN + 1)
    rows = {"helped": of_query.argsort(descending=True), "harmed": of_query.argsort()}
    for line, (what, order) in zip(axes, rows.items(), strict=True):
        show(line[0], query[0], query[1] if what == "helped" else "")
        line[0].set_visible(what == "helped")
        for place, n in zip(line[1:], order[:SHOWN].tolist(), strict=True):
            show(place, x[n], f"{what}:\nlabel {int(y[n])}" + (", wrong" if wrong[n] else ""))
    saved(figure, path)


def main() -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are too small for more
    OUT.mkdir(exist_ok=True)
    x, right = digits()
    x, right, test_x, test_y = x[:TRAINING], right[:TRAINING], x[TRAINING:], right[TRAINING:]
    y, wrong = with_wrong_labels(right)
    data = TensorDataset(x, y)
    model = trained(data)
    loader = DataLoader(data, 250)

    train = hbp.compile(model, nn.CrossEntropyLoss(), ["batch_loss"])
    H = hbp.ekfac(model, nn.CrossEntropyLoss(), loader, columns="exact", progress=False)
    own = self_scores(H, train, loader, progress=False)
    losses = train(x, y).batch_loss
    curves = {"by what they did for themselves": found(own.values.argsort(descending=True), wrong),
              "by their loss": found(losses.argsort(descending=True), wrong),
              "at random": found(torch.arange(TRAINING), wrong)}
    print(f"{TRAINING} digits, {int(wrong.sum())} with a wrong label; of these are found, by looking through")
    print(" " * 34 + "".join(f"{share:>8.0%}" for share in CHECKED))
    for label, share in curves.items():
        print(f"{label:34}" + "".join(f"{float(share[int(part * TRAINING) - 1]):8.1%}" for part in CHECKED))

    # The test image that the network gets wrong most surely.
    with torch.no_grad():
        n = int(nn.functional.cross_entropy(model(test_x), test_y, reduction="none").argmax())
        answer = int(model(test_x[n : n + 1]).argmax())
    query, target = test_x[n : n + 1], test_y[n : n + 1]
    of_query = scores(H, train, [(query, target)], train, loader, progress=False).values[0]
    print(f"A test image of a {int(target)} that is taken for a {answer}:")
    for what, order in (("helped", of_query.argsort(descending=True)), ("harmed", of_query.argsort())):
        labels = ", ".join(f"{int(y[n])}" + (" (wrong)" if wrong[n] else "") for n in order[:SHOWN])
        print(f"  {what} most by training images with the labels {labels}")
    draw(curves, x, y, wrong, (query[0], f"a {int(target)},\ntaken for {answer}"), of_query, OUT / "mislabelled.png")
    print(f"Picture: {OUT / 'mislabelled.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
