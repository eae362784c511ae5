"""A setting that a rule's tests run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One setting that a rule's tests run on: tensors are drawn at random, float64, from the shapes.

    `shapes` lists the tensor arguments by name (a list of shapes for a list of tensors); those in
    `batched` begin with the sample axis. Of the operation it is the overload that takes these.
    """

    shapes: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    batched: Sequence[str] = ("input", "self", "target")
    index: int = 0
    make: Mapping[str, Callable[[Sequence[int]], Tensor]] = field(default_factory=dict)
    """how to draw an argument that is no normal random tensor (class indices, probabilities, running variances); where
    all that is drawn is positive, extreme values that are tried are, too."""
    constant: Sequence[str] = ()
    """tensors that carry no derivatives in this case, though the rule could send columns there."""
    numbering: Sequence[str] = ()
    """tensors whose every entry is the number of its sample, as in torch.arange(N); one of a list: "indices.0"."""

    def __post_init__(self) -> None:
        if isinstance(self.batched, str):
            raise TypeError(f"Case: batched must be a tuple of names, ({self.batched!r},), not {self.batched!r}")
        if not isinstance(self.index, int):
            raise TypeError("Case: index, which of several results is meant, must be a whole number, not "
                            f"{self.index!r} (a case is of the overload that takes its tensors and attributes)")
