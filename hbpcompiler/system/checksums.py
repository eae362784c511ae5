"""Checksums of tensors' numbers, which tell whether anybody has written to them.

torch's count of what is written, `Tensor._version`, does not see fused optimizers, `.data`, or arrays of numpy's that
share the memory. Here all is read, once, at about memory's speed: each word of eight bytes times an odd number of its
own, so that no change of one word is lost, nor one of all words alike, nor words that change places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

WORD = 8
"""Bytes."""
AT_ONCE = 1 << 16
"""Words that a processor reads at once: they and their factors stay in its cache."""
AT_ONCE_ELSEWHERE = 1 << 22
"""Words that another device reads at once, which it takes long to be asked for."""


class Checksums:
    """Of some tensors, whenever asked; `at_once`: the most words that are read at once."""

    def __init__(self, tensors: Iterable[Tensor], at_once: int | None = None) -> None:
        self.tensors, self._at_once = tuple(tensors), at_once
        self._places: list[Any] = []
        self._pieces: list[_Piece] = []

    def now(self) -> tuple[Any, ...]:
        """Equal where the tensors' shapes, dtypes and numbers are."""
        places = [(tensor.data_ptr(), tensor.stride()) if _lies_plainly(tensor) else None for tensor in self.tensors]
        forms = [(tensor.shape, tensor.dtype) for tensor in self.tensors]
        if None in places or [forms, places] != self._places:
            self._pieces, self._places = list(_pieces(self.tensors, self._at_once)), [forms, places]
        return tuple(forms), *_numbers([piece.sum() for piece in self._pieces])


class _Piece:
    """Some memory of one device, as bytes: that of one large tensor, or of several small ones."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts, self.padding = list(parts), -sum(map(len, parts)) % WORD
        whole = parts[0] if len(parts) == 1 and not self.padding and parts[0].data_ptr() % WORD == 0 else None
        self.words = None if whole is None or whole.storage_offset() % WORD else whole.view(torch.int64)
        if self.padding:
            self.parts.append(parts[0].new_zeros(self.padding))
        self.factors = _factors(parts[0].device)[: sum(map(len, self.parts)) // WORD]

    def sum(self) -> Tensor:
        words = torch.cat(self.parts).view(torch.int64) if self.words is None else self.words
        return torch.dot(words, self.factors) if words.is_cpu else (words * self.factors).sum()


def _lies_plainly(tensor: Tensor) -> bool:
    """Whether its bytes are its memory."""
    return tensor.layout is torch.strided and tensor.is_contiguous()


def _bytes(tensor: Tensor) -> Tensor:
    plain = tensor.detach()
    dense = plain if plain.layout is torch.strided else plain.to_dense()
    return dense.contiguous().reshape(-1).view(torch.uint8)


def _pieces(tensors: Sequence[Tensor], at_once: int | None) -> Iterator[_Piece]:
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor)
    for device, own in by_device.items():
        waiting, room = list[Tensor](), WORD * (at_once or _at_once(device))
        for tensor in own:
            for part in _bytes(tensor).split(room) if tensor.numel() else ():
                if waiting and sum(map(len, waiting)) + len(part) > room:
                    yield _Piece(waiting)
                    waiting = []
                waiting.append(part)
        if waiting:
            yield _Piece(waiting)


def _numbers(sums: Sequence[Tensor]) -> list[int]:
    """A device is waited for once."""
    found = list[int]()
    for device in dict.fromkeys(each.device for each in sums):
        found += torch.stack([each for each in sums if each.device == device]).tolist()
    return found


def _at_once(device: torch.device) -> int:
    return AT_ONCE if device.type == "cpu" else AT_ONCE_ELSEWHERE


@lru_cache(maxsize=4)
def _factors(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(-(1 << 63), (1 << 63) - 1, (_at_once(device),), generator=generator, device="cpu") | 1
    return drawn.to(device)
