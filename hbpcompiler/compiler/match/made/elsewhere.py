"""Whether a function keeps samples apart on other batches than the first one, too: in values and first derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hbpcompiler.compiler.match.made.batches import (
    MANY,
    EndlessError,
    Given,
    lines_of,
    numbers_in,
    others,
    with_patience,
)
from hbpcompiler.compiler.match.made.probe import COLUMNS, NotDerivableError, check_alone, check_value, pulled_whole
from hbpcompiler.rule.composite import Composite, EachSample
from hbpcompiler.system.seeded import seed_global

DERIVED = 3
"""One of so many batches is differentiated too, which takes far longer than to run it; none of many numbers."""


def check_elsewhere(function: Composite, each: EachSample | None, given: Sequence[Given]) -> None:
    """Raises NotDerivableError where samples meet on another batch, though not on this one. `each` is the function of
    which all samples have trained arguments of their own, if it has some that they share."""
    if not any(function.batched):
        return
    trial = _Trial(function, each, [at for at, argument in enumerate(given) if argument.active])
    differentiated = numbers_in(given) < MANY
    first = [argument.tensor.detach() for argument in given]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        seed_global(0, first[0].device)
        lines = lines_of(lambda: trial.run(first))
        for number, batch in enumerate(others(given)):
            try:
                with with_patience(lines):
                    trial.run(batch, 10.0 ** (number % 9) if differentiated and number % DERIVED == 1 else 0.0)
            except NotDerivableError as error:
                raise NotDerivableError(f"{error}, in another batch than this one") from None
            except EndlessError:
                break
            except Exception:  # whatever an operation raises that does not take such numbers
                continue


@dataclass(frozen=True)
class _Trial:
    function: Composite
    each: EachSample | None
    active: Sequence[int]

    def run(self, tensors: Sequence[Tensor], size: float = 0.0) -> None:
        """Compare a batch with its samples alone; if `size` is not 0 also derivatives, of one column so large."""
        expected = self.function(*tensors)
        if not expected.isfinite().all():
            return
        # What goes on until all have converged leaves a small sample with the rounding of an ordinary one.
        ordinary = float(expected.abs().double().median()) if expected.numel() else 0.0
        check_value(self.function, tensors, expected, ordinary)
        if not size:
            return
        samples = next(len(tensor) for tensor, own in zip(tensors, self.function.batched, strict=True) if own)
        columns = torch.randn((samples, COLUMNS, *self.function.shape), device=expected.device).to(expected.dtype)
        columns[0] *= size
        for at in self.active:
            wanted = pulled_whole(self.function, self.each, tensors, at, columns)
            if wanted.isfinite().all():
                check_alone(self.function, tensors, at, columns, wanted)
