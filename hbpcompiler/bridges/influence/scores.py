"""`scores` and `self_scores`: from curvature, programs and loaders to numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.bridges.influence.checks import check, header_of
from hbpcompiler.bridges.influence.parts import Folder
from hbpcompiler.bridges.influence.passes import Pass, through
from hbpcompiler.bridges.influence.queries import Directions, Gradients, Inverse, dampings, slices, stored
from hbpcompiler.bridges.influence.samples import Counted, Item, Samples
from hbpcompiler.bridges.influence.shards import STRIDED, Rows, together
from hbpcompiler.compiled import Compiled
from hbpcompiler.curvature import Curvature
from hbpcompiler.errors import InputError, UnusedParametersWarning, listing
from hbpcompiler.limits import DEFAULT_LIMITS
from hbpcompiler.quantities import DIRECTIONS
from hbpcompiler.spectra.phases import escaped
from hbpcompiler.system.digest import digest_of

PASS_BYTES = 2**30
"""Of the queries' vectors that are kept while the training data go by."""
WHOLE = ""
"""The name of scores over all parameters."""
Damping = float | Mapping[str, float]


@dataclass(frozen=True, repr=False)
class Scores:
    """What `scores` and `self_scores` return, on the CPU, in the model's dtype."""

    values: Tensor
    """[Q, N]: of each query, by each training sample; [N] of self_scores."""
    by_parameter: Mapping[str, Tensor]
    """With per_parameter=True the same of each parameter, which add up to `values`; empty without."""
    left_out: tuple[str, ...]
    """Trainable parameters that the curvature has no block of: they add nothing."""
    damping: Mapping[str, float]
    """By parameter, as it was used."""

    def __repr__(self) -> str:
        each = f", by_parameter of {len(self.by_parameter)}" if self.by_parameter else ""
        left = f", left_out={list(self.left_out)}" if self.left_out else ""
        return f"Scores({list(self.values.shape)}{each}{left})"


def scores(curvature: Curvature, query: Compiled, queries: Iterable[Any], train: Compiled, data: Iterable[Any], *,
           damping: Damping | None = None, split: str = "exact", rank: int | None = None, per_parameter: bool = False,
           at_once: int | None = None, count: Callable[[Any], Any] | None = None,
           prepare: Callable[[Any], Any] | None = None, progress: bool = True, group: Any = None, order: str = STRIDED,
           checkpoint: str | Path | None = None, checkpoint_every: float = 60.0) -> Scores:
    """Scores grad m_q^T (H + damping)^-1 grad l_n of all queries and training samples.

    No per-sample gradients of training samples are formed: the queries' gradients are multiplied by the inverse, and a
    program takes the samples' derivatives along them. The training data go by once for as many queries as are kept.
    However the loaders cut their data, m_q and l_n are those of one batch of all: N times the sample's share of a mean,
    the share of a sum. Rows and columns are in the loaders' order: those must not shuffle.

    Args:
        curvature: H, what `hbp.curvature` or `hbp.ekfac` returned, of the mean training loss (that of a sum divided by
            N). Parameters without a block are left out; a warning names them.
        query: what `hbp.compile` returned for the model and the measurement m, with whatever quantities.
        queries: a loader of batches for it, as `accumulate` takes them; the same on all ranks.
        train: what `hbp.compile` returned for the model and the training loss.
        data: a loader of training batches.
        damping: as `Curvature.solve` takes it; None: for each block a tenth of the mean of its eigenvalues.
        split: "exact" or "pi", see `Curvature`.
        rank: keep the queries' vectors as products of such a rank in each block with Kronecker factors (Grosse et al.
            2023, section 3.2.2): more of them are kept for each pass. None: as they are.
        per_parameter: scores of each parameter as well.
        at_once: how many queries are kept for a pass over the training data; None: as many as fill a GiB.
        count: as `accumulate` takes it, for both loaders.
        prepare: likewise.
        progress: a bar where there is a terminal.
        group: a torch.distributed group; each rank brings its own part of the training data, and gets all scores.
        order: of the ranks' samples: "strided", as `hbp.shard` deals them out, or "contiguous".
        checkpoint: a folder that scores are written to every `checkpoint_every` seconds, on Ctrl-C and at the end; what
            is there already is not computed again.

    Raises InputError that lists all that does not fit, for a folder of another run with every difference, for loaders
    that do not repeat themselves; RankError for another rank that failed.
    """
    check(curvature, {"query": query, "train": train}, {"queries": queries, "data": data}, rank, at_once, order,
          checkpoint, checkpoint_every)
    names = tuple(curvature.names)
    inverse = _inverse(curvature, damping, split, train)
    left_out = _left_out(curvature, train)
    measured = Samples(query.instead({"batch_grad": [escaped(name) for name in names]}), queries, prepare, count,
                       "queries")
    groups = {f"group{number}": name for number, name in enumerate(names)} if per_parameter else {"all": WHOLE}
    members = {key: [escaped(name)] if name else [escaped(each) for each in names] for key, name in groups.items()}
    trained = Samples(train.instead(["project"], members), data, prepare, count, "training data")
    header = header_of(inverse, {"query": query, "train": train}, group, count, rank=rank,
                       per_parameter=per_parameter)
    folder = Folder(None if checkpoint is None else Path(checkpoint), header, _suffix(group))
    numbers = sum(stored(block, rank) for block in curvature.blocks)
    each = numbers * torch.finfo(next(train.model.parameters()).dtype).bits // 8
    most = at_once or max(1, PASS_BYTES // each)
    asked, found = Counted(), list[Rows]()
    failure: Exception | None = None
    try:
        for items in _chunks(measured, queries, most):
            for item in items:
                asked += Counted.of(measured.weight(item))
            vectors = _Directions(measured, inverse, rank, items)
            own = Pass(f"queries-{items[0].number}-{items[-1].number}", {"queries": digest_of(
                tuple(tensor for item in items for tensor in item.batch.tensors))})
            found.append(through(own, trained, data, partial(_along, trained, vectors, groups), folder,
                                 checkpoint_every, progress, found[0] if found else None))
        if not found:
            raise InputError("the loader of the queries gave no samples")
    except Exception as error:
        failure = error
    own_rows = None if failure else _stacked(found)
    rows = together(own_rows, failure, group, order)
    factor = asked.scale * rows.counted.scale
    return _scores({name: value * factor for name, value in rows.values.items()}, left_out, inverse)


def self_scores(curvature: Curvature, train: Compiled, data: Iterable[Any], *, damping: Damping | None = None,
                split: str = "exact", per_parameter: bool = False, count: Callable[[Any], Any] | None = None,
                prepare: Callable[[Any], Any] | None = None, progress: bool = True, group: Any = None,
                order: str = STRIDED, checkpoint: str | Path | None = None, checkpoint_every: float = 60.0) -> Scores:
    """Scores grad l_n^T (H + damping)^-1 grad l_n of each sample for itself: large ones are of samples that nothing but
    they themselves teaches, such as those with a wrong label.

    Per-sample gradients are formed, a batch's at a time. Arguments and errors are those of `scores`.
    """
    check(curvature, {"train": train}, {"data": data}, None, None, order, checkpoint,
          checkpoint_every)
    inverse, left_out = _inverse(curvature, damping, split, train), _left_out(curvature, train)
    trained = Samples(train.instead({"batch_grad": [escaped(name) for name in curvature.names]}), data, prepare,
                      count, "training data")
    header = header_of(inverse, {"train": train}, group, count, per_parameter=per_parameter)
    folder = Folder(None if checkpoint is None else Path(checkpoint), header, _suffix(group))

    def one(item: Item) -> tuple[dict[str, Tensor], Counted]:
        gradients, weight = trained.gradients(item, curvature.shapes)
        return _quadratic(inverse, gradients, per_parameter), Counted.of(weight)

    own: Rows | None = None
    failure: Exception | None = None
    try:
        own = through(Pass("self", {}), trained, data, one, folder, checkpoint_every, progress)
    except Exception as error:
        failure = error
    rows = together(own, failure, group, order)
    factor = rows.counted.scale**2
    return _scores({name: value[0] * factor for name, value in rows.values.items()}, left_out, inverse)


class _Directions:
    """The vectors of some queries, made when they are first needed."""

    def __init__(self, measured: Samples, inverse: Inverse, rank: int | None, items: list[Item]) -> None:
        self.measured, self.inverse, self.rank, self.items = measured, inverse, rank, items
        self._made: Directions | None = None

    def parts(self) -> Iterator[dict[str, Tensor]]:
        if self._made is None:
            curvature = self.inverse.curvature
            several = []
            for item in self.items:
                gradients, _ = self.measured.gradients(item, curvature.shapes)
                several.append(Directions(curvature, self.inverse.times(gradients), self.rank))
            self._made = Directions.joined(several)
        return self._made.parts(self.inverse.direction_bytes)


def _along(trained: Samples, directions: _Directions, groups: Mapping[str, str], item: Item,
           ) -> tuple[dict[str, Tensor], Counted]:
    """{name: [F, n]}: the derivatives of the batch's losses along the queries' vectors."""
    with trained.naming(item.number, item.given):
        asked = trained.program.names_in(DIRECTIONS, *item.arguments)
    found: dict[str, list[Tensor]] = {name: [] for name in groups.values()}
    for part in directions.parts():
        result, weight = trained.result(item, directions={name: part[name] for name in asked})
        for key, name in groups.items():
            if key in result.project:
                found[name].append(result.project[key].t() * weight.of_loss)
    return {name: torch.cat(parts) for name, parts in found.items() if parts}, Counted.of(weight)


def _quadratic(inverse: Inverse, gradients: Gradients, per_parameter: bool) -> dict[str, Tensor]:
    """{name: [1, n]}: g^T (H + damping)^-1 g of each sample."""
    found: dict[str, list[Tensor]] = {}
    for rows in slices(gradients, 4 * 8, inverse.direction_bytes):
        own = {name: part[rows] for name, part in gradients.items()}
        each = {name: (part * own[name]).flatten(1).sum(1) for name, part in inverse.times(own).items()}
        if not per_parameter:
            each = {WHOLE: torch.stack(list(each.values())).sum(0)}
        for name, part in each.items():
            found.setdefault(name, []).append(part)
    return {name: torch.cat(parts).unsqueeze(0) for name, parts in found.items()}


def _chunks(measured: Samples, queries: Iterable[Any], most: int) -> Iterator[list[Item]]:
    """Whole batches of queries together, up to `most` queries, or one batch that has more."""
    held: list[Item] = []
    for number, given in enumerate(queries):
        item = measured.item(number, given)
        if not item.batch.samples:
            continue
        if held and sum(own.batch.samples for own in held) + item.batch.samples > most:
            yield held
            held = []
        held.append(item)
    if held:
        yield held


def _stacked(passes: list[Rows]) -> Rows:
    """One pass's queries below the other's."""
    return Rows({name: torch.cat([rows.values[name] for rows in passes]) for name in passes[0].values},
                passes[0].counted)


def _inverse(curvature: Curvature, damping: Damping | None, split: str, train: Compiled) -> Inverse:
    if damping is None:
        own = dampings(curvature)
    else:
        own = dict(damping) if isinstance(damping, Mapping) else dict.fromkeys(curvature.names, damping)
    return Inverse(curvature, own, split, (train.options.limits or DEFAULT_LIMITS).direction_bytes)


def _left_out(curvature: Curvature, train: Compiled) -> tuple[str, ...]:
    """Trainable parameters without a block, of which a warning tells."""
    names = tuple(name for name, parameter in train.model.named_parameters()
                  if parameter.requires_grad and name not in curvature)
    if names:
        warnings.warn(listing("the curvature has no blocks of these trainable parameters, which are left out of the "
                              "scores:", [repr(name) for name in names]), UnusedParametersWarning, stacklevel=3)
    return names


def _scores(values: Mapping[str, Tensor], left_out: tuple[str, ...], inverse: Inverse) -> Scores:
    each = {name: value for name, value in values.items() if name != WHOLE}
    whole = values[WHOLE] if WHOLE in values else torch.stack(list(each.values())).sum(0)
    return Scores(whole, each, left_out, inverse.damping)


def _suffix(group: Any) -> str:
    if group is None:
        return ""
    return f".rank{torch.distributed.get_rank(group)}of{torch.distributed.get_world_size(group)}"
