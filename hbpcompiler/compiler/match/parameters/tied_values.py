"""Which parameters of several uses must be values like any other, because their uses cannot be joined."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hbpcompiler.compiler.match.parameters.parameter_values import Uses
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.errors import UnsupportedOpError, listing
from hbpcompiler.quantities import (
    COLUMN_SUM,
    DIAGONAL,
    EACH,
    EIGEN,
    FACTOR,
    IN_BASES,
    INPUT_FACTOR,
    KFRA,
    NEGATIVE,
    NORM,
    POSITIVE,
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
    apart, unlike = [], []
    for key, places in tied.items():
        own = closings_of(closings, key)
        kinds, curved = {closing.kind for closing in own}, any(closing.stream in CURVED for closing in own)
        contractions = [use.contraction for use in places]
        joined = len({_letters(contraction) for contraction in contractions}) == 1 or (
            kinds - ADDITIVE <= BY_ROWS and meet_by_rows(contractions))
        if kinds & KRONECKER:
            what = f"parameter '{key}' is used {len(places)} times ({_places([use.operation for use in places])})"
            if curved and (reason := never_joined(own)):
                unlike.append(f"{what}: {reason}")
            elif curved and not joined and None not in contractions:
                unlike.append(f"{what}: {NOT_ALIKE}")
            elif curved:
                apart.append(f"{what}: its Hessian diagonal and its Kronecker factors cannot be had from one program")
        elif curved or (kinds - ADDITIVE and not joined):
            found.add(key)
    if unlike:
        raise UnsupportedOpError(listing("Tied parameters:", [*unlike, *apart], ADVICE))
    if apart:
        raise UnsupportedOpError(listing("Tied parameters:", apart, "Compile the model twice, for the Hessian's "
                                         "quantities and for those of Kronecker factors."))
    return found


def never_joined(own: Collection[Closing]) -> str:
    """Why a parameter of several uses has no such closings at all, whatever else is asked for; "" if it has."""
    if any(closing.kind == REDUCED_INPUT_FACTOR for closing in own):
        return "the reduced factors of several uses are not defined; ask for kfac, kflr or kfac_emp"
    if any(closing.stream == KFRA for closing in own):
        return "KFRA averages the curvature on its way, and has no factors of several uses; ask for kfac or kflr"
    return ""


NOT_ALIKE = ("the uses meet it in different ways, so their contractions cannot be joined, and it has no Kronecker "
             "factors (an embedding and a linear layer, say, or a scale and a shift)")
ADVICE = ("Give each use its own parameter, freeze it (requires_grad=False), ask for other quantities, or choose "
          "parameters without it, quantities={'kfac': ['layer1.*']}.")


CURVED = (RESIDUAL, RESIDUAL_MC)
KRONECKER = frozenset({EIGEN, FACTOR, IN_BASES, INPUT_FACTOR, REDUCED_FACTOR, REDUCED_INPUT_FACTOR})


ADDITIVE = frozenset({SUM, EACH, COLUMN_SUM, PROJECT, INPUT_FACTOR})


BY_ROWS = frozenset({NORM, DIAGONAL, POSITIVE, NEGATIVE})
"""Closings that a parameter has where some of its uses meet the others by rows."""


def meet_by_rows(contractions: Sequence[Contraction | None]) -> bool:
    """Whether some uses take rows of a matrix by an index and the others multiply with the whole of it: an embedding
    and the head of a language model."""
    known = [contraction for contraction in contractions if contraction is not None]
    multiplied = [contraction for contraction in known if contraction.index is None]
    return 0 < len(multiplied) < len(known) == len(contractions) and all(map(_has_rows, multiplied))


def _has_rows(contraction: Contraction) -> bool:
    """Whether the columns are of the rows of a matrix, and what they meet is of its columns."""
    left, right, _ = _letters(contraction)
    return len(left) == 3 and len(right) == 2 and contraction.letters[2] == left + right[1:]


def _letters(contraction: Contraction | None) -> tuple[str, ...]:
    return tuple(part.replace("p", "") for part in contraction.letters) if contraction is not None else ()


def _places(operations: Sequence[Operation]) -> str:
    """Each place once, as the steps of a recurrent layer are all in one."""
    return ", ".join(dict.fromkeys(str(operation.source) for operation in operations))
