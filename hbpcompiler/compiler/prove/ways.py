"""Whether branches that a trace passed as if a mask picked rows there make a difference: tried on single samples.

Of one sample most masks of a mixture of experts are empty, so that its own code goes the other way. Where the program
is what the model does on such samples, and on much larger and smaller ones, the branch only saves work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.prove import prove
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.refusals import CONTROL
from hbpcompiler.compiler.trace.ways import Way, seen
from hbpcompiler.errors import ModelError, ProofError, listing

ONE_WAY = "the first samples all go one way; pass others as example_inputs"
OTHERWISE = "single samples, as they are or larger or smaller, come to something else with it than without"
SAMPLES = 8
"""So many of a batch are tried, each by itself."""
TIMES = (1.0, 64.0, 1 / 64)
"""Real inputs are made so many times as large: what a branch does beside may do nothing to numbers of one size."""


def check_ways(candidate: Candidate, batch: Batch, ways: Sequence[Way]) -> None:
    """Raise ModelError unless single samples go both ways at each branch, and the program is right on either."""
    first_order = replace(candidate, may_cancel=False)  # curvature would be compared where larger samples saturate it
    with seen(ways) as gone:
        agrees = candidate.sizes.include(1) and all(_agrees(first_order, one) for one in _singles(batch))
    reasons = {f"{way.line}: {ONE_WAY if agrees else OTHERWISE}" for way in ways if not agrees or len(gone[way]) < 2}
    if reasons:
        raise ModelError(listing(
            f"the model cannot be traced: {CONTROL}. A branch that only saves work where a mask picks nothing is "
            "followed, if single samples of the first batch go both ways, and these come to the same:", sorted(reasons),
            "Without rows a mask picks nothing, and nothing is computed: such a branch may be left out."))


def _agrees(candidate: Candidate, one: Batch) -> bool:
    try:
        return prove(candidate, one, Draws.now(one.tensors[0].device)).agrees
    except ProofError:  # the model itself fails on one sample
        return False


def _singles(batch: Batch) -> Iterator[Batch]:
    for number in range(min(SAMPLES, batch.samples)):
        for times in TIMES:
            yield Batch(tuple(_scaled(tensor[number : number + 1], times if place < batch.layout.inputs else 1.0)
                              for place, tensor in enumerate(batch.tensors)), batch.layout)


def _scaled(tensor: Tensor, times: float) -> Tensor:
    return tensor * times if tensor.is_floating_point() and times != 1 else tensor
