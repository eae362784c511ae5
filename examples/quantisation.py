"""How many bits each layer needs, told by the exact diagonal of the Hessian.

    python examples/quantisation.py

Rounding a trained network's weights to few bits moves each by some delta_i and raises the loss by about
sum_i h_ii delta_i^2 / 2 (the terms of the Hessian beside its diagonal are left out, and the gradient is about zero).
A small CNN is trained on scikit-learn's digits; one accumulated `diag_h` then predicts, for every layer and number of
bits, what rounding that layer alone costs. The table shows prediction and truth. Then bits are spent one by one where
they save most per weight; below the table is the loss with them, beside that of the same number everywhere.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping

import torch
from digit_images import digits, trained
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp

BITS = (2, 3, 4, 5, 6)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """To 2^bits - 1 values, symmetric about zero, up to the largest."""
    step = weight.abs().max() / (2 ** (bits - 1) - 0.5)
    return (weight / step).round().clamp(-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) * step


@torch.no_grad()
def loss_with(model: nn.Module, bits: Mapping[str, int], data: TensorDataset) -> float:
    """Of a copy whose weights are rounded to so many bits; those that are not named stay."""
    copied = copy.deepcopy(model)
    for name, number in bits.items():
        weight = copied.get_parameter(name)
        weight.copy_(rounded(weight, number))
    x, y = data.tensors
    return float(nn.functional.cross_entropy(copied(x), y))


def predicted_rise(weight: Tensor, curvature: Tensor, bits: int) -> float:
    delta = rounded(weight, bits) - weight
    return float((curvature.clamp(min=0) * delta.square()).sum() / 2)


def spend(rises: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], total: float) -> dict[str, int]:
    """Bits for each layer, `total` bits in all at most: one more goes where it saves most for what it costs."""
    bits = dict.fromkeys(rises, BITS[0])
    while True:
        left = total - sum(sizes[name] * number for name, number in bits.items())
        savings = {name: (rises[name][number] - rises[name][number + 1]) / sizes[name]
                   for name, number in bits.items() if number < BITS[-1] and sizes[name] <= left}
        if not savings:
            return bits
        bits[max(savings, key=lambda name: savings[name])] += 1


def main() -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are too small for more
    data = TensorDataset(*digits())
    model = trained(data)
    total = hbp.accumulate(hbp.compile(model, nn.CrossEntropyLoss(), ["diag_h"]), DataLoader(data, 256))
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.dim() > 1}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    before = loss_with(model, {}, data)

    print(f"training loss {before:.2e}; its rise where one layer alone is rounded, predicted and (measured)")
    print(f"{'layer':>10} {'weights':>8}" + "".join(f"{bits:>14} bits" for bits in BITS))
    rises: dict[str, dict[int, float]] = {}
    for name, weight in weights.items():
        rises[name] = {bits: predicted_rise(weight, total.diag_h[name], bits) for bits in BITS}
        measured = [loss_with(model, {name: bits}, data) - before for bits in BITS]
        cells = [f"{rises[name][bits]:.1e} ({rise:.1e})" for bits, rise in zip(BITS, measured, strict=True)]
        print(f"{name:>10} {sizes[name]:8}" + "".join(f"{cell:>19}" for cell in cells))
    print(f"\n{'bits a weight':>14} {'everywhere the same':>20} {'chosen':>10}   bits by layer")
    for number in BITS[1:-1]:
        chosen = spend(rises, sizes, number * sum(sizes.values()))
        same = loss_with(model, dict.fromkeys(weights, number), data)
        print(f"{number:14} {same:20.3e} {loss_with(model, chosen, data):10.3e}   {list(chosen.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
