"""How much of the gradient lies in the few directions of largest curvature, while a network learns to read digits.

    python examples/eigenspace.py

A small CNN is trained on scikit-learn's digits. On the way, at steps farther and farther apart, `hbp.spectrum` gives
the top C eigenvectors of the generalised Gauss-Newton matrix, C the number of classes, of a mini-batch and of all
training data. out/eigenspace.png shows (after Dangel, Tatzel, Hennig 2022, and Gur-Ari, Roberts, Dyer 2018):

1. which share of the squared gradient lies in that space; in the space of as many random directions it would be C / D;
2. how much of the whole data's space a mini-batch finds: with exact columns, with one sampled column for each sample,
   and exactly from an eighth of the batch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from digit_images import digits, saved
from torch import Tensor, nn

import hbpcompiler as hbp

OUT = Path("out")
CLASSES, BATCH, STEPS = 10, 64, 300
RATE = 0.05
MEASURED = sorted({int(STEPS ** (number / 9)) for number in range(10)} | {0})
"""Steps at which spectra are computed: equally far apart in logarithms."""


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


def share_of_gradient(spectrum: hbp.Spectrum) -> float:
    """|P g|^2 / |g|^2, P the projection on the top eigenvectors. The slopes along them say it; no vector is made."""
    along = spectrum.slopes[:, :CLASSES].mean(0)
    length = sum(float(part.square().sum()) for part in spectrum.grad.values())
    return float(along.square().sum()) / length


def space(spectrum: hbp.Spectrum) -> Tensor:
    """Orthonormal columns that span the top eigenvectors' space, [D, C]."""
    vectors: Mapping[str, Tensor] = spectrum.vectors(top=CLASSES)
    flat = torch.cat([part.flatten(1) for part in vectors.values()], 1)
    return torch.linalg.qr(flat.mT.double()).Q


def overlap(one: Tensor, other: Tensor) -> float:
    """|U^T V|^2 / C: 1 for the same space, 0 for orthogonal ones."""
    return float((one.mT @ other).square().sum()) / CLASSES


def measure(exact: hbp.CompiledSpectrum, sampled: hbp.CompiledSpectrum, x: Tensor, y: Tensor, part: Tensor,
            step: int) -> dict[str, float]:
    """The numbers of one step: of all data, and of the mini-batch `part`."""
    whole, batch = exact(x, y), exact(x[part], y[part])
    few = part[: len(part) // 8]
    true = space(whole)
    return {
        "all data": share_of_gradient(whole),
        "mini-batch": share_of_gradient(batch),
        "exact": overlap(space(batch), true),
        "sampled": overlap(space(sampled(x[part], y[part], generator=torch.Generator().manual_seed(step))), true),
        "an eighth": overlap(space(exact(x[few], y[few])), true),
        "loss": float(whole.loss),
    }


COLOURS = ("#4d4d4d", "#2c7fb8", "#d95f0e", "#1b9e77")
LEFT = {"all data": "gradient and GGN of all data", "mini-batch": f"of a mini-batch of {BATCH}"}
RIGHT = {"exact": f"mini-batch of {BATCH}", "sampled": f"{BATCH}, one sampled column each",
         "an eighth": f"{BATCH // 8} samples"}


def draw(rows: Mapping[int, Mapping[str, float]], parameters: int, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained", sharex=True)
    steps = [max(step, 0.5) for step in rows]  # step 0 has a place on the logarithmic axis, too
    panels = ((LEFT, f"share of the gradient in the top {CLASSES} directions"),
              (RIGHT, f"overlap with all data's top {CLASSES} directions"))
    for axis, (lines, title) in zip(axes, panels, strict=True):
        for (key, label), colour in zip(lines.items(), COLOURS, strict=False):
            axis.semilogx(steps, [row[key] for row in rows.values()], "o-", ms=3.5, lw=1.2, color=colour, label=label)
        axis.axhline(CLASSES / parameters, color="0.7", lw=1, label=f"random directions: {CLASSES} / {parameters}")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("training step (the first point: before training)")
        axis.set_ylim(0, 1.02)
        axis.legend(fontsize=8)
    saved(figure, path)


def main() -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are too small for more
    OUT.mkdir(exist_ok=True)
    x, y = digits()
    model = network()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    exact, sampled = hbp.spectrum(model), hbp.spectrum(model, columns="sampled")
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    generator = torch.Generator().manual_seed(1)

    print(f"{parameters} parameters, {len(y)} digits, batches of {BATCH}; the top {CLASSES} directions of the GGN")
    print(f"{'step':>5} {'loss':>6}   share of gradient: {', '.join(LEFT):24} overlap: {', '.join(RIGHT)}")
    rows = {}
    for step in range(STEPS + 1):
        part = torch.randperm(len(y), generator=generator)[:BATCH]
        if step in MEASURED:
            row = rows[step] = measure(exact, sampled, x, y, part, step)
            print(f"{step:5} {row['loss']:6.3f}   {row['all data']:28.3f} {row['mini-batch']:14.3f} "
                  f"{row['exact']:14.3f} {row['sampled']:8.3f} {row['an eighth']:8.3f}")
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    draw(rows, parameters, OUT / "eigenspace.png")
    print(f"\nPicture: {OUT / 'eigenspace.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
