"""Call arguments: what a call brings beside its batch, as arguments of the generated `forward`.

They change from call to call without a new program. A program has those that its quantities need (`Quantity.arguments`)
and those that are for all quantities. An entry of `TABLE` says everything about one: how the generated signature has
it, what is checked before anything runs, and what stands for it where a program runs on tensors without memory.
"""

from .argument import Argument, Call, Sizes
from .calls import Brought, brought_by, check_arguments, check_fit, of_reached, rows_of, without_weights
from .table import (
    ARGUMENTS,
    DECAY,
    DRAW_KEYS,
    INTO,
    MAX_NORM,
    MAX_NORMS,
    SAMPLE_WEIGHTS,
    SHARES,
    TABLE,
    arguments_for,
)

__all__ = [
    "ARGUMENTS", "DECAY", "DRAW_KEYS", "INTO", "MAX_NORM", "MAX_NORMS", "SAMPLE_WEIGHTS", "SHARES", "TABLE",
    "Argument", "Brought", "Call", "Sizes", "arguments_for", "brought_by", "check_arguments", "check_fit", "of_reached",
    "rows_of", "without_weights",
]
