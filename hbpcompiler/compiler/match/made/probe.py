"""What torch can do with a function: seen by differentiating it on the values that a few samples have there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.match.operation.vmapped import without_fallback
from hbpcompiler.rule.composite import Composite, EachSample
from hbpcompiler.rule.derivatives import pulled_back, slope_in_all, vjp
from hbpcompiler.system.seeded import seed_global

COLUMNS = 2
NUDGE = 1e-3
"""How far samples that are one are moved apart, so that it shows if they mix."""
WITHOUT_SAMPLES = "it mixes the samples: its result has no sample axis; reduce over the axes after the sample axis"


class NotDerivableError(Exception):
    """Why the function has no derivative of this kind."""


@dataclass(frozen=True)
class Probe:
    """What was seen of one function at one use."""

    one_by_one: bool
    linear: bool
    second: str
    """Why there is no second derivative; empty if there is one."""
    second_one_by_one: bool
    each: EachSample | None


def probe(function: Composite, tensors: Sequence[Tensor], active: Sequence[int], expected: Tensor) -> Probe:
    """Raises NotDerivableError, in words, where torch has no first derivative or samples meet."""
    shared = [at for at in active if not function.batched[at]]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # as a program runs: torch's ways are others then
        seed_global(0, expected.device)
        try:
            return _probe(function, tensors, active, shared, expected)
        except NotDerivableError:
            raise
        except Exception as error:  # whatever an operation raises, of the user's or torch's
            raise NotDerivableError(f"torch cannot differentiate it ({first_line(error)})") from error


def apart(tensors: Sequence[Tensor], batched: Sequence[bool]) -> list[Tensor]:
    """The same with samples that differ a little."""
    found = []
    for tensor, own in zip(tensors, batched, strict=True):
        moves = own and (tensor.is_floating_point() or tensor.is_complex())
        found.append(tensor * (1 + NUDGE * torch.rand_like(tensor)) if moves else tensor)
    return found


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or ' ').splitlines()[0][:200]}"


def _probe(function: Composite, tensors: Sequence[Tensor], active: Sequence[int], shared: Sequence[int],
           expected: Tensor) -> Probe:
    given = [tensor.detach() for tensor in tensors]
    check_value(function, given, expected)
    each = _each(function, given, shared, expected) if shared else None
    samples = next((len(tensor) for tensor, own in zip(given, function.batched, strict=True) if own), 2)
    columns = torch.randn((samples, COLUMNS, *function.shape), device=expected.device).to(expected.dtype)
    one_by_one = False
    for at in active:
        whole, values = _in_which(function, each, given, at, samples)
        wanted = pulled_back(whole, columns, values, at, one_by_one=True)
        check_alone(function, given, at, columns, wanted)
        one_by_one = one_by_one or not _same(partial(pulled_back, whole, columns, values, at), wanted)
    linear, second, second_one_by_one = _second(each or function, _of_each(each, given, samples), active, columns[:, 0])
    return Probe(one_by_one, linear, second, second_one_by_one, each)


def _in_which(function: Composite, each: EachSample | None, given: Sequence[Tensor], at: int,
              samples: int) -> tuple[Composite, list[Tensor]]:
    """The function whose derivative is one of each sample, and its arguments."""
    if function.batched[at]:
        return function, list(given)
    assert each is not None
    return each, _of_each(each, given, samples)


def pulled_whole(function: Composite, each: EachSample | None, given: Sequence[Tensor], at: int,
                 columns: Tensor) -> Tensor:
    """The batch's derivative at one argument, by sample and column."""
    whole, values = _in_which(function, each, given, at, len(columns))
    return pulled_back(whole, columns, values, at, one_by_one=True)


def _of_each(each: EachSample | None, given: Sequence[Tensor], samples: int) -> list[Tensor]:
    """The tensors, with a sample axis where each sample has one of its own."""
    if each is None:
        return list(given)
    return [tensor.expand(samples, *tensor.shape) if own and not batched else tensor
            for tensor, own, batched in zip(given, each.batched, each.whole.batched, strict=True)]


def _each(function: Composite, given: Sequence[Tensor], shared: Sequence[int], expected: Tensor) -> EachSample:
    samples = next((len(tensor) for tensor, own in zip(given, function.batched, strict=True) if own), 2)
    each = EachSample(function, shared, one_by_one=False)
    wanted = expected if function.of_samples else expected.expand(samples, *expected.shape)
    if not _same(lambda: each(*_of_each(each, given, samples)), wanted):
        each = EachSample(function, shared, one_by_one=True)
    return each


def each_alone(function: Composite, given: list[Tensor], active: Sequence[int]) -> tuple[EachSample, Tensor]:
    """What it makes of each sample alone, and that of these: all samples at once, if torch can differentiate it so."""
    slow, fast = EachSample(function, [], one_by_one=True), EachSample(function, [], one_by_one=False)
    wanted = slow(*given)
    columns = torch.ones_like(wanted).unsqueeze(1)
    is_same = _same(lambda: fast(*given), wanted) and all(
        _same(partial(pulled_back, fast, columns, given, at, one_by_one=True),
              pulled_back(slow, columns, given, at, one_by_one=True)) for at in active)
    return fast if is_same else slow, wanted


def check_value(function: Composite, given: Sequence[Tensor], expected: Tensor, scale: float = 0.0) -> None:
    """Raises NotDerivableError where the function makes of one sample alone another result than in this batch; numbers
    of this scale are rounded beside it."""
    found = function(*given)
    if not close(found, expected):
        raise NotDerivableError("its result differs from one call to the next")
    if not function.of_samples:
        if any(function.batched):
            raise NotDerivableError(WITHOUT_SAMPLES)
        return
    for n in range(len(expected)):
        alone = function(*[tensor[n : n + 1] if own else tensor
                           for tensor, own in zip(given, function.batched, strict=True)])
        if not close(alone, expected[n : n + 1], scale):
            raise NotDerivableError("it mixes the samples: on one sample alone it gives another result")


def check_alone(function: Composite, given: Sequence[Tensor], at: int, columns: Tensor, wanted: Tensor) -> None:
    """The derivative of one sample alone is its part of the batch's."""
    twice = [torch.cat([tensor, tensor]) if own else tensor
             for tensor, own in zip(given, function.batched, strict=True)]
    units = [max([1.0, *own.abs().flatten().tolist()]) for own in columns]
    if function.batched[at]:
        again = pulled_back(function, torch.cat([columns, columns]), twice, at, one_by_one=True)
        if not close(again, torch.cat([wanted, wanted]), unit=max(units)):
            raise NotDerivableError("it mixes the samples: its derivative depends on how many there are")
    elif function.of_samples:  # what all samples share gets from the batch laid twice what each of them gives, twice
        _, back = vjp(lambda x: function(*twice[:at], x, *twice[at + 1 :]), twice[at])
        for k in range(COLUMNS):
            if not close(back(torch.cat([columns[:, k], columns[:, k]]))[0], 2 * wanted[:, k].sum(0), unit=max(units)):
                raise NotDerivableError("it mixes the samples: its derivative depends on how many there are")
    for n in range(len(columns)):
        alone = [tensor[n : n + 1] if own else tensor for tensor, own in zip(given, function.batched, strict=True)]
        _, back = vjp(lambda x, alone=alone: function(*alone[:at], x, *alone[at + 1 :]), alone[at])
        for k in range(COLUMNS):
            column = columns[n : n + 1, k] if function.of_samples else columns[n, k]
            found = back(column)[0]
            if not close(found.reshape(wanted[n, k].shape), wanted[n, k], unit=units[n]):
                raise NotDerivableError("it mixes the samples: the derivative of one sample alone is another one")


def _second(function: Composite, given: Sequence[Tensor], active: Sequence[int],
            gradient: Tensor) -> tuple[bool, str, bool]:
    """Whether the first derivative is constant, why there is no second, and whether it must go one by one.

    Raises NotDerivableError where torch takes the function for a constant.
    """
    leaves = {at: given[at].clone().requires_grad_() for at in active}
    with torch.enable_grad():
        result = function(*[leaves.get(at, tensor) for at, tensor in enumerate(given)])
        if not result.requires_grad:
            raise NotDerivableError("torch knows no derivative of it and takes it for a constant")
        try:
            first = torch.autograd.grad(result, list(leaves.values()), gradient, create_graph=True, allow_unused=True)
            moving = [part for part in first if part is not None and part.requires_grad]
            seconds = torch.autograd.grad(moving, list(leaves.values()), [torch.ones_like(part) for part in moving],
                                          allow_unused=True) if moving else ()
        except Exception as error:
            return False, f"torch has no second derivative of it ({first_line(error)})", False
    if all(part is None for part in seconds):
        return True, "", False
    try:
        return False, "", not _at_once(function, given, active, gradient)
    except Exception as error:
        return False, f"torch has no second derivative of it ({first_line(error)})", False


def _at_once(function: Composite | EachSample, given: Sequence[Tensor], active: Sequence[int],
             gradient: Tensor) -> bool:
    """Whether torch can send several directions through the second derivative in one go, as `residual_columns` does."""
    slope, joined = slope_in_all(function, gradient, list(given), list(active))
    directions = torch.randn((len(joined), COLUMNS, joined.shape[1]), device=joined.device).to(joined.dtype)
    wanted = pulled_back(slope, directions, [joined], 0, one_by_one=True)
    return _same(partial(pulled_back, slope, directions, [joined], 0), wanted)


def _same(make: Callable[[], Any], wanted: Tensor) -> bool:
    """Whether this can be done in one go, and gives the same; not if torch itself goes one by one, with a warning."""
    try:
        with without_fallback():
            return close(make(), wanted)
    except Exception:
        return False


def close(found: Tensor, wanted: Tensor, scale: float = 0.0, unit: float = 1.0) -> bool:
    """But for rounding of numbers as large as the largest, or of this scale; and of what cancels to zero, in units of
    the columns that it is a multiple of."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if not wanted.numel():
        return True
    if not (wanted.is_floating_point() or wanted.is_complex()):
        return bool(torch.equal(found, wanted))
    found, wanted = found.detach(), wanted.detach()
    finite = wanted[wanted.isfinite()].abs()
    scale = max(scale, float(finite.max()) if finite.numel() else 0.0)
    rounding = torch.finfo(wanted.dtype).eps
    tolerance = rounding**0.5
    return bool(torch.allclose(found, wanted, rtol=tolerance, atol=tolerance * scale + unit * rounding**0.75,
                               equal_nan=True))
