"""Random models whose draws a program cannot repeat: averages over many draws are compared instead.

The program draws what its graph draws, in the graph's order. Where the model draws something that its loss does not
depend on, in the form of what it does, or by a kernel of its own, not even seeds by form (`by_form`) give both the same
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import Comparison, Key, Numbers
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.own_step import copied_buffers, forward, unchanged
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.with_state import ordinary_mode
from hbpcompiler.system.seeded import seed_global

RUNS = 64
FIRST = 16
"""Of these draws a direction is made, along which the others are compared."""
STANDARD_ERRORS = 6.0


def in_expectation(found: Callable[[Draws], Numbers], expected: Callable[[Draws], Numbers],
                   draws: Draws) -> list[Comparison]:
    """Lines for differences between averages, up to six standard errors of theirs: in norm, and along the mean of the
    model's own first draws, where a gradient that is too short is seen best."""
    own, right, directions = _Average(), _Average(), dict[Key, torch.Tensor]()
    with drawing(replace(draws, by_form=False)):
        for run in range(RUNS):
            if run == FIRST:
                directions = {key: _unit(total) for key, total in right.total.items()}
            seed_global(run, draws.device)
            now = Draws.now(draws.device)
            own.add(found(now), directions)
            right.add(expected(now), directions)
    lines = []
    for key in right.total:
        wanted = right.mean(key)
        mean = own.mean(key) if key in own.total else torch.zeros_like(wanted)
        spread = (own.variance(key) + right.variance(key)) / RUNS
        largest = float(wanted.norm())
        allowed = STANDARD_ERRORS * spread**0.5 + torch.finfo(torch.float32).eps * largest
        line = Comparison(*key, float((mean - wanted).norm()), largest, allowed, f"in norm, averages over {RUNS} draws")
        lines.append(line if not line.agrees else _along(key, own, right, line))
    return lines


def _along(key: Key, own: _Average, right: _Average, line: Comparison) -> Comparison:
    """The line along the mean, if it disagrees there."""
    none = [0.0] * (RUNS - FIRST)
    projected = torch.tensor([each.along.get(key, none) for each in (own, right)], dtype=torch.float64, device="cpu")
    means, variances = projected.mean(1), projected.var(1)
    allowed = STANDARD_ERRORS * float(variances.sum() / (RUNS - FIRST))**0.5
    allowed += torch.finfo(torch.float32).eps * float(means[1].abs())
    along = replace(line, error=float((means[0] - means[1]).abs()), largest=float(means[1].abs()), allowed=allowed,
                    how=f"along their mean, averages over {RUNS - FIRST} draws")
    return line if along.agrees else along


def _unit(numbers: torch.Tensor) -> torch.Tensor:
    return numbers / (numbers.norm() or 1.0)


def drew_alike(candidate: Candidate, batch: Batch, draws: Draws, program: Callable[[], None]) -> bool:
    """Whether a program draws, by form, nothing but what the model draws: each form as often, and the same numbers."""
    model, loss = candidate.model, candidate.loss
    with drawing(draws) as models, ordinary_mode(), unchanged(model, loss):
        forward(model, loss, batch, copied_buffers(model), lambda run: None)
    with drawing(draws) as programs:
        program()
    assert models is not None
    assert programs is not None
    drawn = models.drawn
    return all(len(drawn.get(form, ())) == len(own) and all(map(torch.equal, own, drawn[form]))
               for form, own in programs.drawn.items())


class _Average:
    def __init__(self) -> None:
        self.total: dict[Key, torch.Tensor] = {}
        self.squares: dict[Key, float] = {}
        self.along: dict[Key, list[float]] = {}
        """What each run's numbers are along a direction"""

    def add(self, numbers: Numbers, directions: Mapping[Key, torch.Tensor]) -> None:
        for key, tensor in numbers.items():
            wide = tensor.detach().to(torch.float64)
            self.total[key] = self.total[key] + wide if key in self.total else wide
            self.squares[key] = self.squares.get(key, 0.0) + float(wide.square().sum())
            if key in directions:
                self.along.setdefault(key, []).append(float((wide * directions[key]).sum()))

    def mean(self, key: Key) -> torch.Tensor:
        return self.total[key] / RUNS

    def variance(self, key: Key) -> float:
        """Summed over entries."""
        if key not in self.total:
            return 0.0
        return max(0.0, self.squares[key] / RUNS - float(self.mean(key).square().sum()))
