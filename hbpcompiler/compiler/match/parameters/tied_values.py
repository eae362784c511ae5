"""Which parameters of several uses must be values like any other, because their uses cannot be joined."""

from __future__ import annotations

from collections.abc import Sequence

from hbpcompiler.compiler.match.parameters.parameter_values import Uses
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.errors import UnsupportedOpError, listing
from hbpcompiler.quantities import (
    COLUMN_SUM,
    EACH,
    EIGEN,
    FACTOR,
    IN_BASES,
    INPUT_FACTOR,
    PROJECT,
    REDUCED_FACTOR,
    REDUCED_INPUT_FACTOR,
    RESIDUAL,
    RESIDUAL_MC,
    SUM,
    Closing,
    closings_of,
)
from hbpcompiler.rule import Contraction


def uses_as_values(uses: Uses, closings: frozenset[Closing]) -> set[str]:
    """Names of the tied parameters whose uses are not joined, but made one value at which columns add up.

    That gives the Hessian's cross terms between uses, which joined contractions lack, and takes uses of any layout; the
    price is columns of the parameter's size. Kronecker factors need the contractions, so not both.
    """
    tied = {key: places for key, places in uses.items() if len(places) > 1}
    found: set[str] = set()
    findings = []
    for key, places in tied.items():
        own = closings_of(closings, key)
        kinds, curved = {closing.kind for closing in own}, any(closing.stream in CURVED for closing in own)
        unlike = len({_letters(use.contraction) for use in places}) > 1
        if kinds & KRONECKER:
            if curved:
                findings.append(f"parameter '{key}' is used {len(places)} times "
                                f"({_places([use.operation for use in places])}): its Hessian diagonal and its "
                                "Kronecker factors cannot be had from one program")
        elif curved or (unlike and kinds - ADDITIVE):
            found.add(key)
    if findings:
        raise UnsupportedOpError(listing("Tied parameters:", findings, "Compile the model twice, for the Hessian's "
                                         "quantities and for those of Kronecker factors."))
    return found


CURVED = (RESIDUAL, RESIDUAL_MC)
KRONECKER = frozenset({EIGEN, FACTOR, IN_BASES, INPUT_FACTOR, REDUCED_FACTOR, REDUCED_INPUT_FACTOR})


ADDITIVE = frozenset({SUM, EACH, COLUMN_SUM, PROJECT, INPUT_FACTOR})


def _letters(contraction: Contraction | None) -> tuple[str, ...]:
    return tuple(part.replace("p", "") for part in contraction.letters) if contraction is not None else ()


def _places(operations: Sequence[Operation]) -> str:
    """Each place once, as the steps of a recurrent layer are all in one."""
    return ", ".join(dict.fromkeys(str(operation.source) for operation in operations))
