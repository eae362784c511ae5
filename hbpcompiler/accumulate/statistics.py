"""Numbers that the model or the loss make of a whole batch, as a mean over its samples: by them a total may depend on
how the data are cut. Divisors at the loss's end are counted (see `weigh`); whether others matter is seen by running
some rows as one batch, and cut into two."""

from __future__ import annotations

import warnings

from hbpcompiler.callers import level_of_caller
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.samples.sample_wise import order_of_result
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.errors import TotalWarning, listing


def statistics_of(built: Built) -> list[str]:
    """The places of what samples may meet in without a derivative: with one they are kept apart, or refused."""
    return list(dict.fromkeys(f"{operation.target} in {operation.source}"
                              for operation in built.matched.graph.operations
                              if operation.name not in built.matched.active and _meets(operation)))


def _meets(operation: Operation) -> bool:
    if not aten.is_torchs(operation) or not any(value.of_batch for value in operation.tensors.values()):
        return False
    if aten.is_pointwise(operation):
        return False
    return not operation.output.of_batch or order_of_result(operation, frozenset()) is None


def warn_of_statistics(places: list[str]) -> None:
    """That rows cut into two batches do not come to what they come to as one."""
    warnings.warn(listing(
        "what these make of a whole batch, as a mean over its samples, is another for each batch, so that the total is "
        "not that of all samples as one batch:", places,
        "Make it of the whole data set beforehand, and let the data set bring it or keep it in a buffer."),
        TotalWarning, stacklevel=level_of_caller())
