"""Whether a function of the batch is the mean or the sum of what it is for each sample alone: by numbers.

Nothing is known of the function but what it makes of a batch, so many are tried. Of other sizes: what divides by N,
or by a limit of it, shows there. With one sample far larger than the others: what couples samples beyond a limit, as a
maximum, a cut or a hinge over pairs does, shows where the limit is between them. With other targets, masks and
buffers: those of the first batch may be the ones that leave nobody out. Values and first derivatives are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hbpcompiler.compiler.match.made.elsewhere import FAILURES, Draw, one_far
from hbpcompiler.compiler.match.made.probe import NotDerivableError, close
from hbpcompiler.compiler.trace.graph import Value
from hbpcompiler.rule.composite import EachSample
from hbpcompiler.rule.derivatives import pulled_back, vjp
from hbpcompiler.rules.shared.written import MEAN, SUM

Kind = str
"""MEAN or SUM."""
NEITHER = "neither"
ELSEWHERE = ", as other batches than this one show"
SIZES = tuple(10.0**power for power in range(-4, 9))
"""Of one sample beside the others', by decades: a limit may begin anywhere."""
TIMES = (1, 2, 3, 50)
"""How often the few samples are laid one behind the other."""
MOST = 1_000_000
"""Numbers in a batch that is tried, where the samples are laid more than twice."""


@dataclass(frozen=True)
class Given:
    """One argument of the function, and its tensor in the first batch."""

    value: Value
    tensor: Tensor
    active: bool

    @property
    def moves(self) -> bool:
        return self.active and self.value.batched

    @property
    def changes(self) -> bool:
        """Whether it may be another one at another call."""
        return self.value.batched or may_change(self.value)


def may_change(value: Value) -> bool:
    """Of a value of the state: all but numbers that the code has."""
    return not value.key.startswith("constant:")


def kind_of(function: EachSample, given: Sequence[Given]) -> Kind:
    """MEAN or SUM; raises NotDerivableError where it is neither on one of the batches tried, or none says anything."""
    at = [place for place, argument in enumerate(given) if argument.moves]
    said = [_kind_on(function, [argument.tensor for argument in given], at)]
    for batch in _others(given):
        try:
            said.append(_kind_on(function, batch, at))
        except FAILURES:  # it does not take such numbers
            said.append(None)
    kinds = {kind for kind in said if kind is not None}
    if len(kinds) != 1 or not any(said[1:]) or NEITHER in kinds:
        seen = ELSEWHERE if said[0] in (MEAN, SUM) and len(kinds) > 1 else ""
        raise NotDerivableError(f"the loss is neither the mean nor the sum of what it is for each sample alone{seen}")
    return kinds.pop()


def _others(given: Sequence[Given]) -> Iterator[list[Tensor]]:
    yield _drawn(given, lambda tensor: tensor * (0.5 + torch.rand_like(tensor) / 2))
    yield _drawn(given, _between)
    # What is out of a function's domain may end a process on a GPU, and is an error on a CPU.
    given = [Given(argument.value, argument.tensor.cpu(), argument.active) for argument in given]
    for of_others in (_between, _flags, _partly_unknown, torch.randn_like):
        yield _drawn(given, _between, of_others)
    for number, size in enumerate(SIZES):
        large = one_far(size, number)
        yield _drawn(given, large)
        yield _drawn(given, large, large)


def _drawn(given: Sequence[Given], moving: Draw, others: Draw | None = None) -> list[Tensor]:
    found = []
    for argument in given:
        tensor = argument.tensor
        draw = moving if argument.moves else others if argument.changes else None
        if draw is not None and tensor.dtype is torch.bool:
            tensor = torch.rand(tensor.shape, device=tensor.device) < 0.5
        elif draw is not None and tensor.is_floating_point():
            tensor = draw(tensor)
        found.append(tensor)
    return found


def _between(tensor: Tensor) -> Tensor:
    """Inside (0, 1), where all functions of shares and probabilities are smooth."""
    return 0.2 + 0.6 * torch.rand_like(tensor)


def _flags(tensor: Tensor) -> Tensor:
    """0 and 1, both in a column if it is one of numbers."""
    found = torch.rand_like(tensor).round()
    if found.dim():
        found[0], found[-1] = 1, 0
    return found


def _partly_unknown(tensor: Tensor) -> Tensor:
    """NaN at one place, as missing labels are marked."""
    found = _between(tensor)
    found.view(-1)[:1] = torch.nan
    return found


def _kind_on(function: EachSample, tensors: Sequence[Tensor], at: Sequence[int]) -> Kind | None:
    """None where these samples do not say, as they have no loss."""
    losses, whole = function(*tensors), function.whole(*tensors)
    if not losses.isfinite().all():
        return NEITHER if whole.isfinite() else None
    if not whole.isfinite():
        return NEITHER if losses.sum().isfinite() else None
    if not losses.any():
        return NEITHER if whole.any() else None
    for kind, make in ((MEAN, torch.mean), (SUM, torch.sum)):
        if all(close(_laid(function, tensors, times), make(losses.repeat(times))) for times in _times(tensors)):
            share = 1 / len(losses) if kind == MEAN else 1
            return kind if all(_slopes_are_same(function, tensors, place, share) for place in at) else NEITHER
    return NEITHER


def _times(tensors: Sequence[Tensor]) -> list[int]:
    numbers = sum(tensor.numel() for tensor in tensors)
    return [times for times in TIMES if times <= 2 or times * numbers <= MOST]


def _laid(function: EachSample, tensors: Sequence[Tensor], times: int) -> Tensor:
    found: Tensor = function.whole(*(torch.cat([tensor] * times) if own else tensor
                                     for tensor, own in zip(tensors, function.whole.batched, strict=True)))
    return found


def _slopes_are_same(function: EachSample, tensors: Sequence[Tensor], at: int, share: float) -> bool:
    _, back = vjp(lambda x: function.whole(*tensors[:at], x, *tensors[at + 1 :]), tensors[at])
    (found,) = back(torch.ones((), dtype=function.dtype, device=tensors[at].device))
    columns = torch.full((len(tensors[at]), 1), share, dtype=function.dtype, device=tensors[at].device)
    wanted = pulled_back(function, columns, list(tensors), at, one_by_one=True).squeeze(1)
    return close(found, wanted) or not (found.isfinite().all() and wanted.isfinite().all())
