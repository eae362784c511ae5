"""What travels backwards: pieces of streams, and how generated code names them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hbpcompiler.compiler.routes import COLUMNS, MATRIX
from hbpcompiler.compiler.trace.graph import N, Value
from hbpcompiler.quantities import (
    CLIPPED,
    GGN,
    GGN_MC,
    GRADIENT,
    KFRA,
    OUTPUT,
    RESIDUAL,
    RESIDUAL_MC,
    RESIDUAL_PARTS,
    SUM_GGN,
    SUM_GGN_MC,
)

PREFIX = {GRADIENT: "g", GGN: "S", GGN_MC: "M", RESIDUAL: "R", RESIDUAL_MC: "Q", RESIDUAL_PARTS: "P", KFRA: "G",
          OUTPUT: "J", CLIPPED: "C", SUM_GGN: "W", SUM_GGN_MC: "Z"}
"""How the values of a stream are named in generated code."""
BEFORE_MEAN = "H"
"""KFRA's stream is averaged where the model ends; before that it is the Hessian of each l_n in the output."""
OPERAND = "U"
"""What columns meet at a parameter: a layer's inputs, a convolution's patches."""


@dataclass(frozen=True)
class Piece:
    """Something that travels: a stream's part with one origin and one form."""

    name: str
    stream: str
    form: str
    columns: int
    signed: bool
    group: str = ""
    """The one group of parameters that it is for, where it is not for all."""
    only: frozenset[str] | None = None
    """The keys of the parameters that have something of it; None: all on its way. For the others its columns add up to
    zero, but for rounding, or to what another piece has for them exactly."""

    def concerns(self, parameter: Value) -> bool:
        return self.only is None or parameter.key in self.only

    def elements(self, value: Value) -> Any:
        """How many numbers it has at a value."""
        size = math.prod(value.sample_shape)
        return size**2 if self.form == MATRIX else N * size * (self.columns if self.form == COLUMNS else 1)
