"""Whether tensors are still what they were: eigenvectors are made by running the model again, on the same numbers, and
products with a block of what the call kept of its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hbpcompiler.errors import InputError, listing
from hbpcompiler.system.checksums import Checksums

MOST_NAMES = 10


class Snapshot:
    """Checksums of some tensors by name, and whether they are trained."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.found = {name: _state(tensor) for name, tensor in tensors.items()}

    def changed(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """The names of those which have changed since."""
        return [name for name, found in self.found.items() if name not in tensors or _state(tensors[name]) != found]


def refuse_changed(changed: Sequence[str], what: str) -> None:
    """InputError, if anything has changed, of which `what` is then no longer to be had."""
    if changed:
        rest = len(changed) - MOST_NAMES
        more = [f"{rest} more"] if rest > 0 else []
        raise InputError(listing(
            f"these have changed since the spectrum was computed, and {what} would be those of neither:",
            [*changed[:MOST_NAMES], *more],
            "Ask for all that you need before the step, or compute the spectrum anew."))


def _state(tensor: Tensor) -> Any:
    return tensor.requires_grad, Checksums([tensor]).now()
