"""Whether a function of the batch is the mean or the sum of what it is for each sample alone: by numbers.

Nothing is known of the function but what it makes of a batch, so many are tried (see `batches`), each of other sizes,
too: what divides by N, or by a limit of it, shows there. Values and first derivatives are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hbpcompiler.compiler.match.made.batches import EndlessError, Given, lines_of, others, with_patience
from hbpcompiler.compiler.match.made.probe import NotDerivableError, close
from hbpcompiler.rule.composite import EachSample
from hbpcompiler.rule.derivatives import pulled_back, vjp
from hbpcompiler.rules.shared.written import MEAN, SUM

Kind = str
"""MEAN or SUM."""
NEITHER = "neither"
ELSEWHERE = ", as other batches than this one show"
TIMES = (1, 2, 3, 50)
"""How often the few samples are laid one behind the other."""
MOST = 1_000_000
"""Numbers in a batch that is tried, where the samples are laid more than twice."""


def kind_of(function: EachSample, given: Sequence[Given]) -> Kind:
    """MEAN or SUM; raises NotDerivableError where it is neither on one of the batches tried, or none says anything."""
    at = [place for place, argument in enumerate(given) if argument.moves]
    said: list[Kind | None] = []
    lines = lines_of(lambda: said.append(_kind_on(function, [argument.tensor for argument in given], at)))
    for batch in others(given):
        try:
            with with_patience(lines):
                said.append(_kind_on(function, batch, at))
        except EndlessError:
            break
        except Exception:  # whatever a function raises that does not take such numbers
            said.append(None)
    kinds = {kind for kind in said if kind is not None}
    if len(kinds) != 1 or not any(said[1:]) or NEITHER in kinds:
        seen = ELSEWHERE if said[0] in (MEAN, SUM) and len(kinds) > 1 else ""
        raise NotDerivableError(f"the loss is neither the mean nor the sum of what it is for each sample alone{seen}")
    return kinds.pop()


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
