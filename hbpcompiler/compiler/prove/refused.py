"""What is said of a program that is not its model, and of one of which that cannot be told."""

from __future__ import annotations

import math

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import Comparison
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.second_order import CANCELS, EXACT_HESSIANS
from hbpcompiler.compiler.prove.suspects import suspects
from hbpcompiler.compiler.prove.twin import GRAD
from hbpcompiler.compiler.prove.verification import Verification
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import ProofError, listing

LISTED = 8
PYTHON_DRAWS = "The model draws from Python's or numpy's generator, whose traced draw a program keeps; draw with torch."
INFINITE_SLOPE = ("An infinite slope (sqrt, log, acosh, a norm, at the edge of its domain) that meets a zero one "
                  "(relu, clamp, hardtanh): torch skips it, a product of both is NaN. Stay away from the edge, as in "
                  "sqrt(h + 1e-12), or do both in one module's forward, where they are one operation.")
NOT_FINITE = ("The model's own numbers are infinite or NaN on this batch, by torch's own kernels, and the program's "
              "are not (causal attention with a scale that is not positive, sums beyond the dtype's range): neither "
              "is of use there.")
SQUEEZED = ("Of one sample, squeeze() takes the axis of the samples away too. Name the axis that is meant, as in "
            "squeeze(-1); or leave out such a batch, DataLoader(..., drop_last=True).")
DRAWS_OTHERWISE = "the model draws otherwise than the program"
OWN_AND_OTHERWISE = (
    "the program cannot be proven: from one random state it draws other numbers than the model, which draws something "
    "that its loss does not depend on, and averages over draws do not tell what hooks and custom functions do to a "
    "derivative. Leave such draws out; or write what hooks and custom functions do as operations: for a factor c, "
    "c * h - ((c - 1) * h).detach(). hbp.compile(..., verify=False) compiles without this proof")


def check(verification: Verification, candidate: Candidate, batch: Batch, draws: Draws) -> None:
    """Raise ProofError where rounding does not explain a difference."""
    wrong = verification.wrong
    if not wrong:
        return
    findings = [_described(line) for line in wrong[:LISTED]]
    if len(wrong) > LISTED:
        findings.append(f"and {len(wrong) - LISTED} more")
    off = {line.key for line in wrong}
    right = [line.parameter for line in verification if line.quantity == GRAD and line.key not in off]
    if right and any(line.quantity == GRAD for line in wrong):
        findings.append(f"the gradient agrees at {', '.join(map(repr, right[:LISTED]))}"
                        f"{', ...' if len(right) > LISTED else ''}")
    found = [*suspects(candidate, batch, draws, {line.parameter for line in wrong}),
             *(note for note in verification.notes if note == PYTHON_DRAWS),
             *[INFINITE_SLOPE for line in wrong if line.error == math.inf and wrong[0].quantity == GRAD][:1],
             *[NOT_FINITE for line in wrong if line.lost and line.quantity != GRAD][:1],
             *[CANCELS for line in wrong
               if line.quantity in EXACT_HESSIANS and line.largest and candidate.may_cancel][:1],
             *[SQUEEZED for line in wrong if line.shapes and batch.samples == 1][:1]]
    advice = ["Suspects in the model and the loss:", *(f"  - {suspect}" for suspect in found)] if found else [
        "Nothing in the model explains it. It may be hbpcompiler's own fault: please report it with the model."]
    advice.append("hbp.compile(..., verify=False) compiles without this proof; the numbers are then wrong as listed.")
    raise ProofError(listing("the program does not compute what the model itself does on this batch, and is not kept:",
                             findings, "\n".join(advice)))


def _described(line: Comparison) -> str:
    what = f"{line.quantity} of {line.parameter!r}" if line.parameter else line.quantity
    if line.shapes:
        return f"{what}: the program's shape is {line.shapes}"
    if line.lost and line.error == math.inf:
        return f"{what}: {line.lost} of the model's own numbers are infinite or NaN, the program's are others"
    if line.error == math.inf:
        return f"{what}: infinite or NaN in the program, where the model's own numbers are finite"
    return (f"{what}: off by {line.error:.2g}, where the largest number is {line.largest:.2g} and rounding explains "
            f"{line.allowed:.1g}{f' ({line.how})' if line.how else ''}")
