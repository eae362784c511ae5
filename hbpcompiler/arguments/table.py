"""All call arguments, one entry each, and those that a program has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hbpcompiler.clipping import FLAT, PER_PARAMETER
from hbpcompiler.quantities import (
    BASES,
    COLUMN_WEIGHTS,
    DIRECTIONS,
    GRADIENT_EDGES,
    PARAMETER_EDGES,
    QUANTITIES,
)

from .argument import Argument
from .bases import check_bases, fitting_bases, own_bases
from .bounds import check_max_norm, check_max_norms
from .sample_weights import check_weights
from .tensors import check_dict, check_edges, fitting, no_directions, no_weights_of_columns

SAMPLE_WEIGHTS = "sample_weights"
INTO, DECAY, SHARES = "into", "decay", "shares"
"""Of programs that add their results to given tensors (see `program.adding`): those tensors, what remains of them, and
how much of the batch's results is added, by the slots' keys. No call takes them as they are (see `into`)."""
DRAW_KEYS = "draw_keys"
"""[N] int64, one for each sample: of programs that draw by sample, for data sets in parts. No call takes it."""
MAX_NORM, MAX_NORMS = "max_norm", "max_norms"
"""One bound for all parameters together; one for each of them."""
TABLE: tuple[Argument, ...] = (
    Argument(MAX_NORM, "float", check_max_norm, stand_in=lambda samples, state, sizes, vectors: 1.0),
    Argument(MAX_NORMS, "Dict[str, float]", check_max_norms, given_as=MAX_NORM,
             stand_in=lambda samples, state, sizes, vectors: dict.fromkeys(state, 1.0)),
    Argument(DRAW_KEYS, "Tensor", lambda value, call: value, of_samples=True),
    Argument(INTO, "Dict[str, Tensor]", lambda value, call: value),
    Argument(DECAY, "float", lambda value, call: value),
    Argument(SHARES, "Dict[str, float]", lambda value, call: value),
    Argument(SAMPLE_WEIGHTS, "Optional[Tensor]", check_weights, default="None", always=True, of_samples=True),
    Argument(DIRECTIONS, "Dict[str, Tensor]", check_dict(DIRECTIONS, "[F, *theta] for each parameter"),
             stand_in=no_directions, fits=fitting(False)),
    Argument(COLUMN_WEIGHTS, "Dict[str, Tensor]", check_dict(COLUMN_WEIGHTS, "[N, K, F] for each group of parameters"),
             of_samples=True, stand_in=no_weights_of_columns, fits=fitting(True)),
    *(Argument(name, "Optional[Tensor]", check_edges(name), default="None")
      for name in (GRADIENT_EDGES, PARAMETER_EDGES)),
    Argument(BASES, "Dict[str, Tensor]", check_bases, stand_in=own_bases, fits=fitting_bases),
)
"""Those without a default come first in a signature, otherwise this is the order."""
ARGUMENTS: Mapping[str, Argument] = {argument.name: argument for argument in TABLE}


def arguments_for(quantities: Sequence[str], clipping: str = FLAT) -> tuple[Argument, ...]:
    """The arguments of a program for these quantities, as its signature has them."""
    named = {MAX_NORMS if name == MAX_NORM and clipping == PER_PARAMETER else name
             for quantity in quantities for name in QUANTITIES[quantity].arguments}
    wanted = [argument for argument in TABLE if argument.always or argument.name in named]
    return tuple(sorted(wanted, key=lambda argument: argument.default is not None))
