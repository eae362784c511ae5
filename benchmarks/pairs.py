"""`python -m benchmarks.pairs`: memory of inner products in pairs of sample blocks, predicted and measured.

Gram matrices of all columns at once need all columns at once; under a budget two blocks of samples at a time meet. Each
row is a share of what the program without a budget is predicted to take; growth is that of a fresh process (`memory`).
"""

from __future__ import annotations

import json
import sys

import torch
from torch import nn

import hbpcompiler as hbp

from .memory import MEBI, growth, printed

SAMPLES = 48
SHARES = (1.0, 0.7, 0.5)
QUANTITIES = ("gram", "cross")


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Convolutions whose columns take far more memory than all the rest, and a batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Sigmoid(), nn.Conv2d(16, 32, 3), nn.Sigmoid(),
                          nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5408, 10))
    return model, torch.randn(SAMPLES, 1, 28, 28), torch.randint(10, (SAMPLES,))


def compiled(share: float) -> hbp.Compiled:
    model, X, y = network()
    whole = hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y), verify=False)
    if share == 1:
        return whole
    return hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y), verify=False,
                       memory_budget=int(share * whole.predicted_memory(SAMPLES)))


def measure(share: float) -> int:
    """Bytes by which this process grows in one call."""
    program, (_, X, y) = compiled(share), network()
    program(X, y)
    return growth(lambda: program(X, y))


def main(*arguments: str) -> None:
    if arguments:
        print(json.dumps(measure(float(arguments[0]))))
        return
    print(f"{'budget':>8} {'predicted MiB':>14} {'measured':>9} {'ratio':>6}")
    for share in SHARES:
        program = compiled(share)
        predicted, peak = program.predicted_memory(SAMPLES), printed("benchmarks.pairs", [str(share)], 600)
        pairs = "pairs_of_blocks(" in program.code
        known = f"{peak.bytes / MEBI:9.1f} {predicted / peak.bytes:6.2f}" if peak.bytes else peak.failure
        print(f"{share:8.0%} {predicted / MEBI:14.1f} {known} {'in pairs of blocks' * pairs}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
