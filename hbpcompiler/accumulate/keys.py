"""The keys by which samples draw: from the seed and a sample's index in the data set, whatever batch it is in."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = -7046029254386353131
"""2^64 over the golden ratio, as a signed number."""


def keys_of(seed: int, source: int, indices: Sequence[int] | Tensor) -> Tensor:
    """[N] int64, one for each index: SplitMix64 (Steele, Lea, Flood 2014) from a state of the seed's.

    `source` tells data sets apart that count their samples each by itself; 0 for one that all ranks have parts of.
    """
    z = _state(seed, source) + (torch.as_tensor(indices, dtype=torch.int64, device="cpu") + 1) * GOLDEN
    z = (z ^ _shifted(z, 30)) * -4658895280553007687
    z = (z ^ _shifted(z, 27)) * -7723592293110705685
    return z ^ _shifted(z, 31)


@functools.cache
def _state(seed: int, source: int) -> int:
    hashed = hashlib.blake2b(f"{seed}/{source}".encode(), digest_size=8).digest()
    return int.from_bytes(hashed, "big", signed=True)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
