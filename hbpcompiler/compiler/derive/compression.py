"""Fewer columns: what K columns [N, K, *z] say about a value of h < K numbers, h columns say too.

Whatever ends at parameters further down reads columns s only through sums of sign * s s^T, a matrix [N, h, h] per
value. So where a network narrows (the code of an autoencoder), any h columns with the same sum take the others' place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hbpcompiler.rule import called


def compressed(columns: Any, signs: Any, shape: Sequence[int]) -> tuple[Any, Any]:
    """Columns [N, h, *shape] with the sum of signed outer products of `columns` [N, K, *shape], and their signs.

    Without signs the triangle of a QR factorisation, which never forms the sum; with signs its eigenvectors.
    """
    flat = columns.flatten(2) if len(shape) > 1 else columns if shape else columns.unsqueeze(2)
    if signs is None:
        fewer = torch.linalg.qr(flat, mode="r")[1]
    else:
        total = torch.einsum("nka,nkb->nab", flat * signs.unsqueeze(2), flat)
        eigen = torch.linalg.eigh(total)
        values, vectors = called("eigenvalues", eigen[0]), called("eigenvectors", eigen[1])
        fewer, signs = vectors.mT * values.abs().sqrt().unsqueeze(2), values.sign()
    return (fewer.unflatten(2, tuple(shape)) if len(shape) > 1 else fewer if shape else fewer.squeeze(2)), signs
