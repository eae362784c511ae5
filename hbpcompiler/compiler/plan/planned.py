"""What planning ends in: the steps of the backward pass, with all that holds for the whole of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from hbpcompiler.clipping import PER_PARAMETER
from hbpcompiler.compiler.match.parameters.tied_values import KRONECKER
from hbpcompiler.compiler.plan.joint import Joint
from hbpcompiler.compiler.plan.phases import SecondPhase, SumEach, Total, Weigh, Weights
from hbpcompiler.compiler.plan.pieces import Piece
from hbpcompiler.compiler.plan.steps import Birth, Close, Pull, Seed, Step, Tied, Widen, flat
from hbpcompiler.compiler.routes import COLUMNS
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.quantities import PARAMETER, Chosen, Quantity


@dataclass(frozen=True)
class Plan:
    """The steps of the backward pass, for the quantities asked for."""

    quantities: tuple[str, ...]
    mc_samples: int
    steps: tuple[Step, ...]
    pools: Mapping[tuple[str, str], Operation]
    """(value, piece) -> the pool behind which the piece's columns are kept pooled as well."""
    curvature: str
    """How residuals enter (see `schemes`)."""
    indefinite: bool = False
    """Whether the loss's own curvature, and so the GGN, is not known to be positive."""
    curvature_dtype: torch.dtype | None = None
    """The dtype of curvature columns, if it is not the model's (see `precision`)."""
    chosen: Chosen = field(default_factory=Chosen)
    """Which parameters each quantity is for."""
    joint: Joint = field(default_factory=Joint)
    """Which weights and biases share a Kronecker block."""
    by_pixels: bool = False
    """Whether images, and columns of images, lie in memory pixel by pixel (see `memory_format`)."""
    sums: tuple[Total, ...] = ()
    """What is added up over parameters, for norms and second phases."""
    clipping: str = ""
    """The style by which a second phase weighs the samples."""
    second: SecondPhase | None = None
    """How its columns come about."""

    def per(self, quantity: Quantity) -> str:
        """What there is a value of it for: of norms each parameter, where each is clipped by its own."""
        return PARAMETER if quantity.summed and self.clipping == PER_PARAMETER else quantity.per

    def gives(self, quantity: Quantity, parameter: str) -> bool:
        """Whether the parameter has a value of the quantity; its weight's holds that of a bias in its block."""
        of_block = any(closing.kind in KRONECKER for closing in quantity.needs) and self.joint.in_another(parameter)
        return self.chosen.asks(quantity.name, parameter) and not of_block

    def flat(self) -> Iterator[Step]:
        """All steps, those of tails too."""
        for step in self.steps:
            yield from flat(step)

    def closings(self) -> list[Close | Tied]:
        """What ends at parameters, in order of execution."""
        return [step for step in self.flat() if isinstance(step, Close | Tied)]

    def crossed(self) -> set[str]:
        """Names of operations that something crosses or is born at: their forward must save what rules read."""
        kinds = Birth | Pull | Widen | Seed | Close
        uses = {use.operation.name for step in self.flat() if isinstance(step, Tied) for use in step.uses}
        return uses | {step.operation.name for step in self.flat() if isinstance(step, kinds)}

    @cached_property
    def single(self) -> bool:
        """Whether all that travels backwards is one column per sample, in the dtype of the values that it meets."""
        def is_single(piece: Piece | None) -> bool:
            return piece is None or (piece.form == COLUMNS and piece.columns == 1 and not piece.signed)

        return self.curvature_dtype is None and all(
            isinstance(step, Seed | Pull | Close | Tied | Weights | Weigh | SumEach)
            and is_single(getattr(step, "piece", None)) for step in self.flat())
