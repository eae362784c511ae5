"""A step's batch over the ranks of a torch.distributed group: each has its part of it, all make the same step.

Values enter with the weights that they have in the batch of all ranks together (see `accumulate.weigh`), so that
parts may have unequal sizes, or none; samples draw by their number in that batch. Without a group all is as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hbpcompiler.accumulate.buckets import all_reduce
from hbpcompiler.accumulate.keys import keys_of
from hbpcompiler.accumulate.ranks import Ranks
from hbpcompiler.accumulate.sums import Sums
from hbpcompiler.accumulate.weigh import Weigher, Weight, not_ignored
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.ekfac.bases import agreed
from hbpcompiler.errors import HbpError, InputError, NoTermsError, RankError
from hbpcompiler.quantities import OF_LOSS
from hbpcompiler.system.digest import digest_of
from hbpcompiler.system.group import waiting

Found = TypeVar("Found")
NOT_HERE = "the step failed"
MESSAGE_BYTES = 2**20
"""Of small tensors that go to other ranks together: more would be copies of a whole step's results."""
OTHER_PARAMETERS = "the ranks' models have different trainable parameters"


class Part(NamedTuple):
    """A tensor that a batch has, and how such tensors add up over batches (see `quantities.vocabulary`)."""

    how: str
    tensor: Tensor
    parameter: str


Parts = Mapping[Hashable, Part]


@dataclass(frozen=True)
class _Told:
    """What a rank tells the others of its part of the batch."""

    failure: str
    weight: Weight | None
    tensors: list[tuple[Any, tuple[int, ...]]]


class Together:
    """This process among the ranks; None: it is alone."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.ranks = Ranks(group)
        self.samples = 0
        """Of the present batch, on all ranks."""
        self.share = 1.0
        """What this rank's part of it counts for in a value on the scale of L."""
        self.draws_as = self.ranks.rank
        """The rank that draws of no one sample are those of."""
        self._before = 0
        self._same_model = False
        self._weighers: dict[int, tuple[Built, Weigher]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Together:
        return Together(self.group)

    @property
    def several(self) -> bool:
        return self.ranks.several

    def begin(self, model: nn.Module, batch: tuple[Any, ...], check: Callable[[], None]) -> None:
        """A step begins on all ranks. Raises what `check` raises, and InputError for a batch that does not fit
        (RankError on the others); and where the ranks have different models, which is looked at once."""
        if not self.several:
            check()
            self.samples = check_batch(model, batch).samples
            if not self.samples:
                raise InputError("this batch has no samples, so that there is no step to make: leave it out")
            return
        failure: HbpError | None = None
        samples, digest = 0, ""
        try:
            check()
            samples = check_batch(model, batch).samples
            digest = "" if self._same_model else digest_of([*model.parameters(), *model.buffers()])
        except HbpError as error:
            failure = error
        told = agreed(self.ranks, NOT_HERE, failure, (samples, digest))
        if len({digest for _, digest in told}) > 1:
            raise InputError("the ranks' models differ in their parameters or buffers, or not all of them take their "
                             "first step: give all the same numbers, as DistributedDataParallel does")
        self._same_model = True
        self._before = sum(samples for samples, _ in told[: self.ranks.rank])
        self.samples = sum(samples for samples, _ in told)
        if not self.samples:
            raise InputError("no rank has a sample in this batch")

    def keys(self, seed: int, step: int) -> Callable[[Batch], Tensor]:
        """By which this rank's samples draw: from the seed, the step's number and their own in the batch of all."""
        def of(batch: Batch) -> Tensor:
            numbers = range(self._before, self._before + batch.samples)
            return keys_of(seed, step, numbers).to(batch.tensors[0].device)

        return of

    # -- averages over ranks -------------------------------------------------------------------------------------------

    def averaged(self, model: nn.Module, batch: tuple[Any, ...],
                 compute: Callable[[], tuple[Compiled, Parts]]) -> dict[Any, Tensor]:
        """What `compute` gives of this rank's part, as that of the whole batch. It is called once; what it raises is
        raised, and RankError on the other ranks."""
        if not self.several:
            return {key: part.tensor for key, part in compute()[1].items()}
        parts: dict[Hashable, Part] = {}
        failure: Exception | None = None
        weight = None
        try:
            program, computed = compute()
            parts = dict(computed)
            del computed
            weight = self._weight(program, check_batch(model, batch))
        except Exception as error:  # whatever it is, the other ranks wait to be told
            failure = error
        shapes = [(key, tuple(part.tensor.shape)) for key, part in parts.items()]
        told = self._told(failure, _Told(_text(failure), weight, shapes))
        if any(own.tensors != shapes for own in told):
            raise InputError(OTHER_PARAMETERS)
        assert weight is not None
        whole = Sums((), torch.float64, False)
        for own in told:
            if own.weight is not None and own.weight.samples:
                whole.count(own.weight)
        if weight.mean and not any(own.weight.terms for own in told if own.weight is not None):
            raise NoTermsError("all labels of this batch are ignored, on all ranks, so that the mean loss is nan")
        self.share = whole.share(OF_LOSS, "", weight)
        found = {}
        for key in list(parts):  # each is given up as its scaled copy is there
            part = parts.pop(key)
            found[key] = _scaled(part.tensor, whole.share(part.how, part.parameter, weight))
            del part
        with waiting(self.ranks.rank):
            all_reduce(list(found.values()), self.group, most=MESSAGE_BYTES)
        return found

    def on_whole(self, batch: tuple[Any, ...],
                 compute: Callable[[tuple[Any, ...]], Mapping[Hashable, Tensor]]) -> dict[Any, Tensor]:
        """What `compute` gives of the batch of all ranks, of what is no sum over parts of it: each rank computes all,
        and their mean is the same to the last digit. It raises as `averaged` does."""
        if not self.several:
            return dict(compute(batch))
        whole, before = self.whole(batch), self._before
        failure: Exception | None = None
        parts: dict[Hashable, Tensor] = {}
        self._before, self.draws_as = 0, 0
        try:
            parts = dict(compute(whole))
        except Exception as error:  # whatever it is, the other ranks wait to be told
            failure = error
        self._before, self.draws_as = before, self.ranks.rank
        shapes = [(key, tuple(tensor.shape)) for key, tensor in parts.items()]
        if any(own.tensors != shapes for own in self._told(failure, _Told(_text(failure), None, shapes))):
            raise InputError(OTHER_PARAMETERS)
        found = {key: parts.pop(key) / self.ranks.world for key in list(parts)}  # tensors of its own
        with waiting(self.ranks.rank):
            all_reduce(list(found.values()), self.group, most=MESSAGE_BYTES)
        return found

    def _told(self, failure: Exception | None, own: _Told) -> list[_Told]:
        told: list[Any] = [None] * self.ranks.world
        try:
            with waiting(self.ranks.rank):
                torch.distributed.all_gather_object(told, own, group=self.group)
        except RankError:
            if failure is None:
                raise
        if failure is not None:
            raise failure
        if failures := [f"rank {rank}: {each.failure}" for rank, each in enumerate(told) if each.failure]:
            raise RankError(f"{NOT_HERE} on other ranks: {'; '.join(failures)}")
        return told

    def on_samples(self, model: nn.Module, batch: tuple[Any, ...], run: Callable[[tuple[Any, ...]], Found]) -> Found:
        """`run` on this rank's part of the batch. In the place of one without samples: on a sample of zeros, whose
        values have the right shapes, and no share. Of one whose labels are all ignored, which has no share in the loss
        either: on its inputs, which averages over inputs count."""
        if not self.several:
            return run(batch)
        given = check_batch(model, batch)
        try:
            return run(batch if given.samples else Batch(given.rows(1), given.layout).arguments)
        except NoTermsError:
            return run(not_ignored(given).arguments)

    def total(self, compute: Callable[[], Tensor], like: Tensor) -> Tensor:
        """What `compute` gives of this rank's part of the batch, on the scale of L, as that of the whole: of the shape
        and dtype of `like`."""
        if not self.several:
            return compute()
        failure: Exception | None = None
        own = torch.zeros_like(like)
        try:
            if self.share:
                own = compute() * self.share
        except Exception as error:  # whatever it is, the other ranks wait to be told
            failure = error
        told = torch.cat([own.reshape(-1), own.new_tensor([float(failure is not None)])])
        with waiting(self.ranks.rank):
            torch.distributed.all_reduce(told, group=self.group)
        if failure is not None:
            raise failure
        if told[-1]:
            raise RankError(f"{NOT_HERE} on another rank")
        return told[:-1].view(like.shape)

    def mean(self, tensors: list[Tensor]) -> None:
        """In place, of what all ranks have computed of the same: products may differ in the last digit between them,
        and what is then done with it would drift apart."""
        if self.several:
            with waiting(self.ranks.rank):
                all_reduce(tensors, self.group, most=MESSAGE_BYTES)
            for tensor in tensors:
                tensor.div_(self.ranks.world)

    def whole(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch of all ranks, on each."""
        if not self.several:
            return batch
        own = pytree.tree_map(lambda item: item.cpu() if isinstance(item, Tensor) else item, batch)
        told: list[Any] = [None] * self.ranks.world
        with waiting(self.ranks.rank):
            torch.distributed.all_gather_object(told, own, group=self.group)

        def joined(item: Any, *others: Any) -> Any:
            return torch.cat(others).to(item.device) if isinstance(item, Tensor) else item

        found: tuple[Any, ...] = pytree.tree_map(joined, batch, *told)
        return found

    def check_alike(self, gradient: Mapping[str, Tensor]) -> None:
        """InputError where gradients that did not come from here are not the same on all ranks."""
        if not self.several:
            return
        own = digest_of(gradient.values())
        if len(set(agreed(self.ranks, NOT_HERE, None, own))) > 1:
            raise InputError("the gradients in p.grad differ between the ranks: average them first, as "
                             "DistributedDataParallel does in backward()")

    def _weight(self, program: Compiled, batch: Batch) -> Weight:
        built = program._current()
        if id(built) not in self._weighers:
            self._weighers[id(built)] = built, Weigher(program, built)
        return self._weighers[id(built)][1].weight(batch, None)


def _text(failure: Exception | None) -> str:
    return "" if failure is None else f"{type(failure).__name__}: {failure}"


def _scaled(tensor: Tensor, share: float) -> Tensor:
    """A new tensor; zeros for no share, whatever was computed of no samples."""
    return tensor * share if share else torch.zeros_like(tensor)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are; by the least and the largest of each tensor, which NaN is handed on to. On a processor
    that is ten times as fast as the norm that is their maximum, and a sum may overflow."""
    ends = [torch.stack(torch.aminmax(tensor)) for tensor in tensors if tensor.numel()]
    return not ends or bool(torch.stack([pair.isfinite().all() for pair in ends]).all())
