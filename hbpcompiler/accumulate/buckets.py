"""Sums over ranks of many tensors, in few messages: small ones go together in flat buckets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.limits import DEFAULT_LIMITS


def all_reduce(tensors: Sequence[Tensor], group: Any, *, most: int = DEFAULT_LIMITS.message_bytes) -> None:
    """Sum each over the ranks, in place: tensors of the same shapes and in the same order on each.

    Beside the tensors there is never more than one bucket, of so many bytes; a larger tensor goes by itself, where it
    lies.
    """
    for bucket in buckets(tensors, most):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            torch.distributed.all_reduce(bucket[0], group=group)
            continue
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        torch.distributed.all_reduce(flat, group=group)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def buckets(tensors: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype and device, together as long as they have no more than so many bytes."""
    held: list[Tensor] = []
    size = 0
    for tensor in tensors:
        own = tensor.numel() * tensor.element_size()
        if held and (size + own > most or (tensor.dtype, tensor.device) != (held[0].dtype, held[0].device)):
            yield held
            held, size = [], 0
        held.append(tensor)
        size += own
    if held:
        yield held
