"""The vocabulary of totals over parameters, and of second phases: what is weighed by them ends at parameters again."""

from __future__ import annotations

from dataclasses import dataclass

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.plan.pieces import Piece
from hbpcompiler.compiler.routes import Site
from hbpcompiler.compiler.trace.graph import N, Operation, Value
from hbpcompiler.quantities import Closing


@dataclass(frozen=True)
class Total:
    """A closing added up over some parameters while the backward pass runs: one number, or tensor, is alive."""

    group: str
    closing: Closing
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """A second phase begins: a total is complete, and weights [N] are made of it (see `clipping`)."""

    total: Total
    operation: Operation
    """the one whose parameter completed it, under whose heading it is printed."""


@dataclass(frozen=True)
class Weigh:
    """A piece's columns at a value, each sample's times its weight: another piece."""

    value: Value
    piece: Piece
    into: Piece
    total: Total
    """of which the weights are made."""


@dataclass(frozen=True)
class SumEach:
    """Per-sample gradients that are there already, each times its weight, summed: what Weigh and Close would give."""

    operation: Operation
    parameter: Value
    piece: Piece
    """whose closing it is."""
    site: Site
    total: Total
    """of which the weights are made."""

    def cost(self) -> Cost:
        """One pass over the per-sample gradients."""
        numbers = N * self.site.size(self.site.theta)
        return Cost(numbers, numbers * self.site.itemsize)


KEPT, AGAIN = "kept", "again"


@dataclass(frozen=True)
class SecondPhase:
    """How the columns of a second phase come about, and what was weighed."""

    way: str
    """KEPT: those of the first phase are, at each parameter (book-keeping, Bu et al. 2022). AGAIN: a second backward
    pass sends weighted seeds down to the parameters. At parameters in `formed` neither is needed."""
    kept_bytes: int
    """of one sample, if all of them are kept."""
    formed: tuple[str, ...]
    """Names of parameters whose per-sample gradients are formed in the first phase, and summed in the second."""
    repeated: tuple[int, ...]
    """Numbers of the plan's steps, in the first phase, that a second backward pass repeats or would repeat."""
    at_once: bool = False
    """Whether each total is of one parameter, whose columns are weighed where they are: nothing is kept."""
