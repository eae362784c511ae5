"""Comparisons of numbers that somebody changes meanwhile: they say nothing, and are made again.

Threads of this library wait (see `threads`). What is seen here are loops of the user's own in other threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.prove import prove
from hbpcompiler.compiler.prove.verification import Verification
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import ProofError
from hbpcompiler.system.threads import alone

TRIES = 4
PIECE = 2**20
"""Entries of which whole numbers are made at once."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MOVED = ("The weights, or something else that the program reads, changed while it was compared with the model's own "
         f"training step, {TRIES} times in a row, so that the comparison says nothing: another thread trains the model "
         "or fills the batch meanwhile, or the model's own forward writes into its parameters. Make the first call "
         "before such a thread starts, or where it waits.")


class Trial:
    """One comparison, and whether what was compared stayed what it was."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._before = [_mark(tensor) for tensor in tensors]
        self._moved: bool | None = None

    def moved(self) -> bool:
        """Whether any of the numbers are others than when this began; what it first answers stays."""
        if self._moved is None:
            self._moved = self._before != [_mark(tensor) for tensor in self._tensors]
        return self._moved

    def told(self, error: ProofError) -> ProofError:
        """The error of a last trial: it blames nobody for numbers that moved."""
        if not self.moved():
            return error
        return ProofError(f"the program cannot be proven. {MOVED} hbp.compile(..., verify=False) compiles without this "
                          "proof")


def trials(candidate: Candidate, batch: Batch) -> Iterator[Trial]:
    """For as long as the numbers move, but not for ever; whoever is content leaves."""
    for _ in range(TRIES):
        trial = Trial((*candidate.state.values(), *batch.tensors))
        yield trial
        if not trial.moved():
            return


def settled(candidate: Candidate, batch: Batch, draws: Draws, full: bool) -> Verification:
    """The first table that agrees, or is of numbers that stayed; the last one says so where they did not."""
    with alone(candidate.model, candidate.loss):
        for trial in trials(candidate, batch):  # noqa: B007  # the last one is asked
            found = prove(candidate, batch, draws, full=full)
            if found.agrees:
                return found
        return replace(found, notes=(*found.notes, MOVED)) if trial.moved() else found


def _mark(tensor: Tensor) -> int:
    """A sum of the bits. A version would not show what is written through `.data`."""
    plain = tensor.detach()
    if plain.is_complex():
        plain = torch.view_as_real(plain.resolve_conj())
    entries = plain.resolve_neg().reshape(-1).view(_BITS[plain.element_size()])
    return sum(int(piece.sum()) for piece in entries.split(PIECE))
