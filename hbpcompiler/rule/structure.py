"""What a rule declares of an operation's Jacobian: its structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from hbpcompiler.rule.op import Op


class Structure(Enum):
    """What the planner may exploit of an operation's Jacobian, whatever the operation is."""

    GENERAL = "general"
    """Nothing is known."""
    CONSTANT = "constant"
    """The Jacobian in the differentiated inputs is the same for every sample (a linear map with shared weights)."""
    ELEMENTWISE = "elementwise"
    """Output and input have one shape and the Jacobian is diagonal: the rule gives `derivative`."""
    SELECTION = "selection"
    """Every output copies at most one input (reshape, permutation, padding, max-pooling): coefficients 0 or 1.
    A `Selection` says more: which one."""


@dataclass(frozen=True)
class Selection:
    """SELECTION within channels, of known places: outputs [N, c, *out] that copy each one input of their own channel.

    `index(op)` says which: [N, c, out flattened] of numbers in the flattened input positions. It is known, and the
    structure a `Selection`, where there are channels; a rule's `structure` may be a function of op that says so.
    """

    index: Callable[[Op], Tensor]
