"""Hashes of tensors, to tell whether two are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def digest_of(tensors: Iterable[Tensor]) -> str:
    """Of their shapes, dtypes and numbers."""
    hashed = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        hashed.update(f"{list(tensor.shape)} {tensor.dtype}".encode())
        hashed.update(bytes_of(tensor))
    return hashed.hexdigest()


def digest_of_tree(held: Any) -> str:
    """Of all tensors, numbers and texts in nested dicts, lists and tuples, and of where they are."""
    hashed = hashlib.blake2b(digest_size=16)
    for path, item in sorted((pytree.keystr(path), item) for path, item in pytree.tree_leaves_with_path(held)):
        own = digest_of((item,)) if isinstance(item, Tensor) else repr(item)
        hashed.update(f"{path} {own}\n".encode())
    return hashed.hexdigest()


def bytes_of(tensor: Tensor) -> Any:
    """Its numbers as a buffer."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy() if plain.numel() else b""
