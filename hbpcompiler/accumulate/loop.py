"""`hbp.accumulate`: a compiled model over a loader's batches."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.accumulate.adding import Adding
from hbpcompiler.accumulate.batch_calls import BatchCalls
from hbpcompiler.accumulate.batches import One, Said, batches_from, is_loader, length_of, shuffles_anew
from hbpcompiler.accumulate.checkpoint import (
    check_resumes,
    header_of,
    read,
    write,
)
from hbpcompiler.accumulate.checks import check_adds, check_has_average, check_reached
from hbpcompiler.accumulate.interrupts import Interrupts
from hbpcompiler.accumulate.progress import Progress
from hbpcompiler.accumulate.ranks import Ranks
from hbpcompiler.accumulate.same_model import SameModel
from hbpcompiler.accumulate.sums import Sums
from hbpcompiler.accumulate.total import Total
from hbpcompiler.compiled import Compiled
from hbpcompiler.entries import advice_for, not_cut, warn_of_optional
from hbpcompiler.errors import InputError, InputTypeError, TotalWarning
from hbpcompiler.limits import DEFAULT_LIMITS
from hbpcompiler.quantities import QUANTITIES, SPREAD
from hbpcompiler.system.callers import level_of_caller
from hbpcompiler.system.checksums import Checksums
from hbpcompiler.system.digest import digest_of, digest_of_tree

DTYPES = (torch.float64, torch.float32)
MEANING = ("curvature", "mc_samples", "curvature_dtype", "joint_bias", "clipping")
"""Options that change what totals are, or which parameters they are of."""


def accumulate(compiled: Compiled, loader: Iterable[Any], *, dtype: torch.dtype = torch.float64,
               compensated: bool = False, count: Callable[[Any], Any] | None = None,
               prepare: Callable[[Any], Any] | None = None, sample_weights: Callable[[Any], Any] | None = None,
               indices: Callable[[Any], Any] | None = None, seed: int = 0, progress: bool = True, group: Any = None,
               checkpoint: str | Path | None = None, checkpoint_every: float = 60.0,
               max_batches: int | None = None, arguments: Mapping[str, Any] | None = None) -> Total:
    """The compiled quantities of all of a loader's samples, as those of one batch of them would be.

    However the data are cut, the total is that of the whole: batches weigh as the terms of their loss do (samples,
    elements, or labels that are not ignored), A of Kronecker factors as samples, variances are merged about their means
    (Chan, Golub, LeVeque 1983). Memory: one copy of the result in `dtype`, two of a variance or of compensated totals;
    the program adds to it itself, each result as soon as it is there. On a CPU there are up to 64 MiB beside it, for
    symmetric matrices of float32 programs: sums of eight batches, which float64 totals get together.

    Args:
        compiled: what `hbp.compile` returned, for quantities that add up. Those that do not are refused by name.
        loader: any iterable of batches: (X, y), (X1, X2, y), or dicts with the target under "labels" or "label".
        dtype: of the totals: torch.float64 or torch.float32.
        compensated: keep what additions round off (Kahan 1965), for float32 totals of many batches.
        count: from a batch, as the loader gives it, how many terms its loss counts; the total is then a mean over
            terms. Needed only where the program cannot know: class weights, labels that the loss itself shifts or
            masks.
        prepare: from a batch, as the loader gives it, the arguments of a call, (X, y).
        sample_weights: from a batch, as the loader gives it, a weight for each of its samples, [N]: every quantity is
            that of sum_n w_n l_n, as of one call with `sample_weights` for all samples.
        indices: from a batch, as the loader gives it, the indices of its samples in the whole data set, [N] integers,
            for draws that do not depend on cutting and ranks. A DataLoader over a data set with indices needs none.
        seed: of the random draws (sampled quantities, dropout). Each sample's follow from the seed and its index in the
            data set, however that is cut and over however many ranks (see docs/data-sets.md).
        progress: a bar with the loss and samples per second, where there is a terminal.
        group: a torch.distributed group; each of its ranks brings its own part of the data (see `shard`) and gets the
            total of all.
        checkpoint: a file (with several ranks, one each: its name gets ".rank0", ...) that totals are written to every
            `checkpoint_every` seconds, on Ctrl-C and at the end. If it is there already, accumulation goes on behind
            the last batch that is in.
        max_batches: stop there.
        arguments: of every call, beside its batch: {"bases": ...} for the quantity `eigenvalues`.

    Raises InputError for a batch that does not fit, naming its number; for a checkpoint of another run, with every
    difference; for a loader that gives other batches than before, or changes the model or its modes; and for a rank
    that failed.
    Warns (TotalWarning) of draws that belong to no sample, so that the total depends on the cutting, naming their
    lines; of a loader with a checkpoint that will shuffle otherwise when it is resumed; and of batches (X, other, y)
    whose second entry is an argument that the forward has a default for.
    """
    _check(compiled, loader, dtype, checkpoint_every, max_batches)
    ranks = Ranks(group, limits=compiled.options.limits or DEFAULT_LIMITS)
    said = Said(prepare, count, sample_weights, indices)
    run = _Run(compiled, dtype, compensated, seed, ranks, checkpoint, said, dict(arguments or {}))
    failure: BaseException | None = None
    try:
        run.go(loader, progress, checkpoint_every, max_batches)
    except BaseException as error:
        if not ranks.several or not isinstance(error, Exception):
            raise
        failure = error
    sums = ranks.together(run.sums, failure, run.header, run.device)
    run.calls.look_at_ways(sums.samples)
    check_reached(sums)
    check_has_average(sums)
    return Total(sums, run.header, compiled.model)


def _check(compiled: Any, loader: Any, dtype: Any, checkpoint_every: Any, max_batches: Any) -> None:
    if not is_loader(loader):
        raise InputTypeError(f"the loader is a {type(loader).__name__}, not an iterable of batches (X, y)")
    if not isinstance(compiled, Compiled):
        raise InputTypeError(f"accumulate takes what hbp.compile returned, not {type(compiled).__name__}: "
                             "hbp.accumulate(hbp.compile(model, loss, ['grad']), loader)")
    check_adds(compiled.quantities)
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(map(str, DTYPES))}, not {dtype!r}")
    if isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, int | float) or checkpoint_every < 0:
        raise InputError(f"checkpoint_every must be a number of seconds, not {checkpoint_every!r}")
    if max_batches is not None and (isinstance(max_batches, bool) or not isinstance(max_batches, int)
                                    or max_batches < 1):
        raise InputError(f"max_batches must be a positive integer, not {max_batches!r}")


class _Run:
    """One rank's way through its batches."""

    def __init__(self, compiled: Compiled, dtype: torch.dtype, compensated: bool, seed: int, ranks: Ranks,
                 checkpoint: str | Path | None, said: Said, beside: Mapping[str, Any]) -> None:
        asked = compiled.quantities
        spread = any(QUANTITIES[name].adds == (SPREAD,) for name in asked)
        self.compiled = compiled.also("grad") if spread and "grad" not in asked else compiled
        self.sums = Sums(asked, dtype, compensated, limits=ranks.limits)
        self.ranks, self.said = ranks, said
        self.path = ranks.own(Path(checkpoint)) if checkpoint is not None else None
        options = compiled.options
        meaning = {name: str(getattr(options, name)) for name in MEANING}
        meaning |= {f"group {name!r}": ", ".join(patterns) for name, patterns in options.chosen.groups}
        self.header = header_of(
            compiled.model, compiled.loss, asked, "; ".join(options.chosen.notes()), meaning, dtype=str(dtype),
            compensated=compensated, sample_weights=said.sample_weights is not None, counted=said.count is not None,
            arguments=digest_of_tree(beside) if beside else "", seed=seed, world=ranks.world, rank=ranks.rank)
        self.batches = 0
        """How many are in."""
        self.last: tuple[Tensor, ...] = ()
        self.numbers: tuple[Any, ...] = ()
        """Checksums of its tensors, where there is a file."""
        self.same = SameModel(compiled, self.header)
        self.interrupts = Interrupts()
        self.device = next(compiled.model.parameters()).device
        self.calls = BatchCalls(self.compiled, seed, ranks.rank, beside, said.count is None, self.device)

    def go(self, loader: Iterable[Any], progress: bool, every: float, most: int | None) -> None:
        """Through the loader, from where the checkpoint ends."""
        done = self._resumed()
        if self.path is not None and not done and shuffles_anew(loader):
            warnings.warn("the loader shuffles by torch's global generator, which has to stand where it stands now if "
                          "this run is ever to go on from its checkpoint: DataLoader(..., shuffle=True, "
                          "generator=torch.Generator().manual_seed(0)) gives the same order each time", TotalWarning,
                          stacklevel=level_of_caller())
        if most is not None and most < done:
            raise InputError(f"{self.path} has {done} batches in, more than max_batches={most}")
        lengths = [number for number in (length_of(loader), most) if number is not None]
        saved = time.monotonic()
        with Progress(progress and self.ranks.rank == 0, min(lengths, default=None), done) as bar, self.interrupts:
            try:
                # The last batch that is in is read once more, to see that the loader gives what it gave before.
                number = max(done - 1, 0)
                for item in batches_from(loader, number):
                    if most is not None and number >= most:
                        break
                    if not self.batches:
                        warn_of_optional(self.compiled.model, item.batch, self.said.prepare)
                    try:
                        one = self.said.of(item, self.compiled.model, self.device)
                        if number >= done:
                            self.same.check()
                            self._add(one, number)
                    except InputError as error:
                        advice = not_cut(loader) + advice_for(error, item.batch, self.said.prepare)
                        raise type(error)(f"batch {number} of the loader: {error}{advice}") from error
                    if number < done:
                        self._check_repeats(one, number)
                    else:
                        bar.advance(self.sums)
                    number += 1
                    if self.path is not None and number > done and time.monotonic() - saved >= every:
                        self._save()
                        saved = time.monotonic()
            except KeyboardInterrupt:
                self._save()
                raise
        if number < done:
            raise InputError(f"{self.path} has {done} batches in, but the loader gives no more than {number}: it is "
                             "not the loader of that run")
        if not self.sums.samples and not self.ranks.several:
            raise InputError("the loader gave no samples: there is nothing to accumulate")
        self._save(complete=True)
        self.sums.finish()  # not in the file, from which a run that goes on adds as if it had not been interrupted

    def _add(self, one: One, number: int) -> None:
        if not one.batch.samples:
            self._count(one, number)
        elif self.sums.first is not None and self.sums.grow_in_place:
            # The program adds to the totals while it runs: all of the batch is in, or nothing.
            with self.interrupts.whole():
                adding = Adding(self.sums, partial(self.calls.weight, one))
                built, result = self.calls.ran(one, number, self.sums.samples, adding)
                assert adding.weight is not None
                self.sums.add(result, built.stored, adding.weight, adding.added)
                self._count(one, number)
        else:
            built, result = self.calls.ran(one, number, self.sums.samples)
            with self.interrupts.whole():
                self.sums.add(result, built.stored, self.calls.weight(one, built))
                self._count(one, number)

    def _count(self, one: One, number: int) -> None:
        """A batch is in."""
        self.batches = number + 1
        self.same.called()
        self._keep(one)

    def _keep(self, one: One) -> None:
        """As the last one, to know it again."""
        self.last = one.tensors
        if self.path is not None:
            self.numbers = Checksums(one.tensors).now()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _resumed(self) -> int:
        """How many batches are in already."""
        if self.path is None or not self.path.exists():
            return 0
        sums, held = read(self.path, limits=self.ranks.limits)
        check_resumes(self.path, held, self.header)
        for tensors in (sums.totals, sums.lost, sums.partials.sums):
            for key, tensor in tensors.items():
                tensors[key] = tensor.to(self.device)
        self.sums, self.header, self.batches = sums, replace(held, complete=False), held.batches
        return held.batches

    def _check_repeats(self, one: One, number: int) -> None:
        if self.header.last_batch and digest_of(one.tensors) != self.header.last_batch:
            raise InputError(f"batch {number} is not the one that {self.path} has in: this loader does not repeat "
                             "itself, or the data are cut, weighed or counted otherwise. Use batches of the same size, "
                             "and shuffle=False or a generator with a fixed seed, or begin anew without the file")
        self._keep(one)

    def _save(self, complete: bool = False) -> None:
        """Into the header what is in, and into the file, if there is one. A loader that fills the same memory again may
        have begun to do so: then nobody knows the last batch any more."""
        self.same.check_settings()
        known = self.path is not None and self.batches and self.numbers == Checksums(self.last).now()
        last = digest_of(self.last) if known else ""
        self.header = replace(self.header, batches=self.batches, last_batch=last, complete=complete)
        if self.path is not None:
            write(self.path, self.sums, self.header)
