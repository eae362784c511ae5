"""Calls with a loader's batches: the program that each of them runs, its draws, and what it counts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.accumulate.adding import Adding
from hbpcompiler.accumulate.batches import One
from hbpcompiler.accumulate.cut import Cut
from hbpcompiler.accumulate.draws import CUT, own_draws, warn_of_draws, warn_of_moves
from hbpcompiler.accumulate.keys import keys_of
from hbpcompiler.accumulate.statistics import Look, mixes, statistics_of, warn_of_statistics
from hbpcompiler.accumulate.ways import Ways
from hbpcompiler.accumulate.weigh import Weigher, Weight, not_ignored
from hbpcompiler.arguments import SAMPLE_WEIGHTS, arguments_for, brought_by
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import NoTermsError, NothingChosenError
from hbpcompiler.system.seeded import seed_global

LOSSES = "batch_loss"


class BatchCalls:
    """Of one compiled model, with these arguments `beside` each batch."""

    def __init__(self, compiled: Compiled, seed: int, rank: int, beside: Mapping[str, Any], with_loss: bool,
                 device: torch.device) -> None:
        self.compiled, self.seed, self.rank, self.beside, self.device = compiled, seed, rank, beside, device
        self._with_loss = with_loss
        """Whether the program itself knows how many terms a batch's loss has."""
        self._reaching: dict[Any, Compiled] = {}
        """By the form of batches that do not reach any parameter of some quantity: the model without that."""
        self._otherwise: dict[Any, bool] = {}
        """By the form of batches, see `_draws_otherwise`."""
        self._weighers: dict[int, tuple[Built, Weigher]] = {}
        self._told_of_moves = False
        """Whether draws were found that do not stay with their samples."""
        self._told_of_statistics = False
        self._ways = Ways()
        self._looks: dict[Any, Look] = {}
        """By the form of batches: at numbers that are made of a whole batch."""

    def ran(self, one: One, number: int, behind: int, adding: Adding | None = None) -> tuple[Built, Any]:
        """The program for batch `number`, `behind` so many samples, and what it returned.

        A quantity of which the batch reaches no parameter is not in that: its samples have zeros.
        """
        compiled = self._reaching.get(one.batch.form, self.compiled)
        try:
            return self._ran(compiled, one, number, behind, adding)
        except NothingChosenError as error:
            self._reaching[one.batch.form] = _without(compiled, error.quantities)
            return self.ran(one, number, behind, adding)
        except NoTermsError:
            # It counts for nothing but in averages over inputs, whatever its labels are, if some are not ignored.
            return self._ran(compiled, one._replace(batch=not_ignored(one.batch)), number, behind, adding)

    def _ran(self, compiled: Compiled, one: One, number: int, behind: int, adding: Adding | None) -> tuple[Built, Any]:
        """Draws are the samples', so that they do not depend on how the data are cut, and a run that was interrupted
        draws what it would have drawn; what belongs to no sample is drawn anew for each batch."""
        arguments = self.beside if compiled is self.compiled else _taken(compiled, self.beside)
        if one.sample_weights is not None and one.sample_weights.any():
            arguments = {**arguments, SAMPLE_WEIGHTS: one.sample_weights}
        beside = compiled._beside(arguments, one.batch)
        keys = partial(self._keys, one, behind)
        draws_otherwise = self._draws_otherwise(compiled, one.batch, beside)
        if not draws_otherwise and not self._told_of_moves:
            self._look_for_statistics(compiled, one.batch, beside, number)
        if not draws_otherwise:
            built, result = compiled._ran(one.batch, beside, keys=keys, into=adding)
            self._ways.meet(compiled, built, one.batch, beside)
            return built, result
        key = hashlib.blake2b(f"{self.seed}/{self.rank}/{number}".encode(), digest_size=7).digest()
        with drawing(Draws.now(self.device)):
            seed_global(int.from_bytes(key, "big"), self.device)
            return compiled._ran(one.batch, beside, keys=keys, into=adding)

    def _draws_otherwise(self, compiled: Compiled, batch: Batch, beside: Mapping[str, Any]) -> bool:
        """Whether batches like this one are served by a program that draws numbers which belong to no sample."""
        form = batch.form
        if form not in self._otherwise:
            built = compiled._program(batch, brought_by(beside))[1]
            left = built.by_sample[1] if built.draws else []
            if left and not any(self._otherwise.values()):
                warn_of_draws(built, left)
            elif not left and built.draws and not self._told_of_moves and own_draws(built):
                rows = Batch(batch.rows(sum(CUT)), batch.layout)
                self._told_of_moves = not self._cut(compiled, beside).adds_up(rows, CUT[0])
                if self._told_of_moves:
                    warn_of_moves(built)
            self._otherwise[form] = bool(left)
        return self._otherwise[form]

    def _look_for_statistics(self, compiled: Compiled, batch: Batch, beside: Mapping[str, Any], number: int) -> None:
        """Warn of numbers that model or loss make of a whole batch, if they make a difference."""
        look = self._looks.setdefault(batch.form, Look())
        rows = look.gather(batch)
        if rows is None or not (number or self.rank):  # of one batch alone they are those of all samples
            return
        places = statistics_of(compiled._program(batch, brought_by(beside))[1])
        found = bool(places) and mixes(self._cut(compiled, beside), rows)
        look.looked(found or not places)
        if found and not self._told_of_statistics:
            self._told_of_statistics = True
            warn_of_statistics(places)

    def look_at_ways(self, total: int) -> None:
        """Warn of code that would go another way for all samples as one batch, if it makes a difference."""
        if not self._told_of_statistics:
            self._ways.look(total, self._cut)

    def _cut(self, compiled: Compiled, beside: Mapping[str, Any]) -> Cut:
        return Cut(compiled, beside, self._weigh_rows, self._with_loss)

    def _keys(self, one: One, behind: int, batch: Batch) -> Tensor:
        """By which the batch's samples draw."""
        indices = one.indices()
        if indices is not None and len(indices) == batch.samples:
            keys = keys_of(self.seed, self.rank if one.own_data else 0, indices)
        else:
            keys = keys_of(self.seed, self.rank, range(behind, behind + batch.samples))
        return keys.to(self.device)

    def weight(self, one: One, built: Built) -> Weight:
        """What a batch counts with this program."""
        if id(built) not in self._weighers:
            self._weighers[id(built)] = built, Weigher(self.compiled, built)
        return self._weighers[id(built)][1].weight(one.batch, one.terms, one.sample_weights)

    def _weigh_rows(self, batch: Batch, built: Built) -> Weight:
        return self.weight(One(batch, None, None, lambda: None, own_data=False), built)


def _without(compiled: Compiled, quantities: tuple[str, ...]) -> Compiled:
    """The same model for what is left; for what needs no parameters where that is nothing."""
    patterns = dict(compiled.options.chosen.patterns)
    left = {name: patterns.get(name, ("*",)) for name in compiled.quantities if name not in quantities}
    return compiled.instead(left or [LOSSES])


def _taken(compiled: Compiled, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that its quantities take."""
    names = {argument.given_as or argument.name
             for argument in arguments_for(compiled.quantities, compiled.options.clipping)}
    return {name: value for name, value in arguments.items() if name in names}
