"""What a rule declares of an operation's Jacobian: its structure, its window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Structure(Enum):
    """What the planner may exploit of an operation's Jacobian, whatever the operation is."""

    GENERAL = "general"
    """Nothing is known."""
    CONSTANT = "constant"
    """The Jacobian in the differentiated inputs is the same for every sample (a linear map with shared weights)."""
    ELEMENTWISE = "elementwise"
    """Output and input have one shape and the Jacobian is diagonal: the rule gives `derivative`."""
    SELECTION = "selection"
    """Every output copies at most one input (reshape, permutation, padding, max-pooling): coefficients 0 or 1."""


@dataclass(frozen=True)
class Window:
    """Outputs that read a neighbourhood: along each spatial axis, output y reads inputs stride * y - before +
    dilation * a for a < `size`, of all inputs that have samples, [N, channels, *spatial].

    With the attributes `unpadded` the same operation makes some of its outputs of a piece of its input; where that
    reaches beyond the image, `fill` stands there.
    """

    size: Sequence[int]
    stride: Sequence[int]
    dilation: Sequence[int]
    before: Sequence[int]
    unpadded: Mapping[str, Any] = field(default_factory=dict)
    fill: float = 0.0
