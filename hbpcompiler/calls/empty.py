"""Batches without samples, as Poisson sampling makes them: zeros for a sum, an error for a mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.arguments import rows_of
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import InputError

UNKNOWN = "unknown"
"""The kind of a loss of which no derivatives are taken."""


def result_of_none(run: Callable[..., Any], arguments: Mapping[str, Tensor], batch: Batch, kind: str,
                   beside: Mapping[str, Any]) -> Any:
    """The program's result for N = 0: zeros, with axes of length 0 for those that count samples.

    Which axes these are is seen by running the program on one sample of zeros and on two: not every kernel of torch's
    takes a batch of none. A mean over no samples (A of kfac, second_moment) is zero too. Where nothing says whether
    the loss is a mean, which has no value then, the loss is NaN. Raises InputError for a loss that is a mean.
    """
    if kind not in ("sum", UNKNOWN):
        raise InputError(f"{batch.layout.labels[0]} of shape {list(batch.tensors[0].shape)} is an empty batch: a mean "
                         "over no samples has no value; with a summed loss, reduction='sum', an empty batch gives "
                         "zeros (for private training divide by the expected batch size, and add noise all the same)")
    devices = sorted({tensor.device.index for tensor in batch.tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices):
        one, two = (run(arguments, *batch.rows(count), **rows_of(beside, count)) for count in (1, 2))
    result = _zeros(one, two)
    return result._replace(loss=result.loss + torch.nan) if kind == UNKNOWN else result


def _zeros(one: Any, two: Any) -> Any:
    """Of the shape that follows from those of one sample and of two."""
    if isinstance(one, Tensor):
        lengths = [0 if a != b else a for a, b in zip(one.shape, two.shape, strict=True)]
        return one.new_zeros(lengths)
    if isinstance(one, dict):
        return {key: _zeros(item, two[key]) for key, item in one.items()}
    if isinstance(one, list):
        return [_zeros(a, b) for a, b in zip(one, two, strict=True)]
    if isinstance(one, tuple):  # named ones
        return type(one)(*map(_zeros, one, two))
    return one
