"""Whether branches that a trace passed as if a mask picked rows there make a difference: tried on single samples.

Of one sample most masks of a mixture of experts are empty, so that its own code goes the other way. Where the program
is what the model does on such samples, too, the branch only saves work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.prove import prove
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.refusals import CONTROL
from hbpcompiler.compiler.trace.statements import Place
from hbpcompiler.compiler.trace.values import recorded
from hbpcompiler.compiler.trace.ways import Way
from hbpcompiler.errors import ModelError, ProofError, listing

SAMPLES = 8
"""So many of a batch are tried, each by itself."""


def check_ways(candidate: Candidate, batch: Batch, ways: Sequence[Way]) -> None:
    """Raise ModelError unless single samples go both ways, and the program is right on either."""
    seen: dict[Place, set[bool]] = defaultdict(set)
    agrees = True
    for number in range(min(SAMPLES, batch.samples)):
        one = Batch(tuple(tensor[number : number + 1] for tensor in batch.tensors), batch.layout)
        if not candidate.sizes.include(1):
            agrees = False
            break
        with recorded() as answers:
            try:
                agrees = agrees and prove(candidate, one, Draws.now(one.tensors[0].device)).agrees
            except ProofError:  # the model itself fails on one sample
                agrees = False
        for (_, place), values in answers.items():
            seen[place].update(map(bool, values))
    doubtful = ways if not agrees else [way for way in ways if way.is_told and len(seen[way.place]) < 2]
    if doubtful:
        raise ModelError(listing(
            f"the model cannot be traced: {CONTROL}. A branch that only saves work where a mask picks nothing is "
            "followed, if single samples of the first batch show both ways to come to the same:",
            sorted({way.line for way in doubtful})))
