"""Random models whose draws a program cannot repeat: averages over many draws are compared instead.

The program draws what its graph draws, in the graph's order. Where the model draws something that its loss does not
depend on, or by a kernel that torch's own table takes apart, one random state gives two sets of draws.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hbpcompiler.compiler.prove.comparison import Comparison, Key, Numbers
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.seeded import seed_global

RUNS = 64
STANDARD_ERRORS = 6.0


def in_expectation(found: Callable[[Draws], Numbers], expected: Callable[[Draws], Numbers],
                   draws: Draws) -> list[Comparison]:
    """Lines for the norms of differences between averages, up to six standard errors of theirs."""
    own, right = _Average(), _Average()
    with drawing(draws):
        for run in range(RUNS):
            seed_global(run, draws.device)
            now = Draws.now(draws.device)
            own.add(found(now))
            right.add(expected(now))
    lines = []
    for key in right.total:
        wanted = right.mean(key)
        mean = own.mean(key) if key in own.total else torch.zeros_like(wanted)
        spread = (own.variance(key) + right.variance(key)) / RUNS
        largest = float(wanted.norm())
        allowed = STANDARD_ERRORS * spread**0.5 + torch.finfo(torch.float32).eps * largest
        lines.append(Comparison(*key, float((mean - wanted).norm()), largest, allowed,
                                f"in norm, averages over {RUNS} draws"))
    return lines


class _Average:
    def __init__(self) -> None:
        self.total: dict[Key, torch.Tensor] = {}
        self.squares: dict[Key, float] = {}

    def add(self, numbers: Numbers) -> None:
        for key, tensor in numbers.items():
            wide = tensor.detach().to(torch.float64)
            self.total[key] = self.total[key] + wide if key in self.total else wide
            self.squares[key] = self.squares.get(key, 0.0) + float(wide.square().sum())

    def mean(self, key: Key) -> torch.Tensor:
        return self.total[key] / RUNS

    def variance(self, key: Key) -> float:
        """Summed over entries."""
        if key not in self.total:
            return 0.0
        return max(0.0, self.squares[key] / RUNS - float(self.mean(key).square().sum()))
