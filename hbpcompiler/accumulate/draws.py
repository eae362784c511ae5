"""Draws by which a total depends on how the data are cut: the user is warned of them, with their lines.

Some belong to no sample, as one number for a whole batch. Others are drawn for samples, but then moved: a flip or a
transposed view of noise hands it to other samples, and to which, depends on the batch. What a program does with its
draws is seen by running it: some rows as one batch, and cut into two, must give the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.program.by_sample import draws_of
from hbpcompiler.compiler.program.nodes import called
from hbpcompiler.errors import TotalWarning, listing
from hbpcompiler.system.callers import level_of_caller

CUT = (2, 4)
"""Rows of the two parts: a reversed order gives the first row another draw in them than in the whole."""


def warn_of_draws(built: Built, left: Sequence[str]) -> None:
    """That these nodes draw what belongs to no sample."""
    _warn("what these draw belongs to no sample, and is drawn anew for each batch, so that the total depends on how "
          "the data are cut:", _places(built, left),
          "Draw along the axis of the samples, or let the data set bring the noise.")


def own_draws(built: Built) -> list[str]:
    """Names of the draws that are the model's or the loss's own, not those of labels by a quantity."""
    own = {operation.short for operation in built.matched.graph.operations}
    return [name for name in map(called, draws_of(built.draft.graph)) if name in own]


def warn_of_moves(built: Built) -> None:
    """That the model's own draws do not stay with their samples."""
    _warn("what is drawn here is moved from sample to sample, or mixed, before it meets the data, so that the total "
          "depends on how the data are cut:", _places(built, own_draws(built)),
          "Draw in the order of the samples, torch.rand(N, ...) with N the first axis, and leave that axis as it is "
          "(no flip, no transposed view, no index or sum over it), or let the data set bring the noise.")


def _places(built: Built, names: Sequence[str]) -> list[str]:
    """Lines of the model that draw so; names of what is nowhere but in the program."""
    places = [f"{operation.target} in {operation.source}" for operation in built.matched.graph.operations
              if operation.short in names]
    known = {place.partition(" in ")[0].partition(".")[2] for place in places}
    places += [f"{name} in the program" for name in names if name not in known]
    return list(dict.fromkeys(places))


def _warn(head: str, places: Sequence[str], advice: str) -> None:
    warnings.warn(listing(head, places, advice), TotalWarning, stacklevel=level_of_caller())
