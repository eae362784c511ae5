"""Helpers of generated files that make symmetric matrices: products of rows with each other."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from hbpcompiler.compiler.program.products import (
    add_product_,
    onednn_add_product_,
    onednn_linear,
    product_over_pixels,
)
from hbpcompiler.rule.idioms import idiom


@idiom
def sum_outer(x: Tensor) -> Tensor:
    """sum over n of x[n] x[n]^T: [n, i] -> [i, i]."""
    return x.t() @ x


@idiom
def gram_to_(total: Tensor, x: Tensor, axis: int, chunk: Optional[int] = None, over: int = 1,  # noqa: UP045  # for TorchScript
             kept: float = 1.0) -> Tensor:
    """total = kept * total + sum of x x^T over all axes but one, `chunk` samples (of axis 0) at a time, / over."""
    samples = max(1, x.shape[0] if chunk is None else chunk)
    for first in range(0, max(1, x.shape[0]), samples):
        rows = x[first : first + samples].movedim(axis, 0).flatten(1)
        add_product_(total, rows, rows, 1.0 / max(1, over), kept if first == 0 else 1.0)
    return total


@idiom
def onednn_gram_to_(total: Tensor, x: Tensor, axis: int, chunk: Optional[int] = None, over: int = 1,  # noqa: UP045
                    kept: float = 1.0, fewest: int = 320) -> Tensor:
    """total = kept * total + sum of x x^T over all axes but one, / over, by oneDNN."""
    samples = max(1, x.shape[0] if chunk is None else chunk)
    for first in range(0, max(1, x.shape[0]), samples):
        rows = x[first : first + samples].movedim(axis, 0).flatten(1).contiguous()
        onednn_add_product_(total, rows, rows, 1.0 / max(1, over), kept if first == 0 else 1.0, fewest)
    return total


@idiom
def pixel_gram_to_(total: Tensor, x: Tensor, axis: int, chunk: Optional[int] = None, over: int = 1,  # noqa: UP045
                   kept: float = 1.0) -> Tensor:
    """`gram_to_` of columns [n, k, o, p] of images, as they lie."""
    if kept == 0.0:
        total.zero_()
    elif kept != 1.0:
        total.mul_(kept)
    for first in range(0, x.shape[0], x.shape[0] if chunk is None else chunk):
        images = x[first : x.shape[0] if chunk is None else first + chunk].flatten(0, 1)
        total.add_(product_over_pixels(images, images), alpha=1.0 / max(1, over))
    return total


@idiom
def gram(x: Tensor, axis: int, chunk: Optional[int] = None, dtype: Optional[torch.dtype] = None,  # noqa: UP045
         over: int = 1) -> Tensor:
    """sum of x x^T over all axes but one, / over, `chunk` samples (of axis 0) at a time; in `dtype` if given."""
    size = x.shape[axis]
    total = x.new_empty((size, size), dtype=x.dtype if dtype is None else dtype)
    return gram_to_(total, x, axis, chunk, over, 0.0)


@idiom
def onednn_gram(x: Tensor, axis: int, chunk: Optional[int] = None, dtype: Optional[torch.dtype] = None,  # noqa: UP045
                over: int = 1, fewest: int = 320) -> Tensor:
    """Sum of x x^T over all axes but one, / over, by oneDNN."""
    size = x.shape[axis]
    total = x.new_empty((size, size), dtype=x.dtype if dtype is None else dtype)
    return onednn_gram_to_(total, x, axis, chunk, over, 0.0, fewest)


@idiom
def pixel_gram(x: Tensor, axis: int, chunk: Optional[int] = None, dtype: Optional[torch.dtype] = None,  # noqa: UP045
               over: int = 1) -> Tensor:
    """`gram` over n, k and p for columns [n, k, o, p] of images, as they lie."""
    size = x.shape[axis]
    total = x.new_empty((size, size), dtype=x.dtype if dtype is None else dtype)
    return pixel_gram_to_(total, x, axis, chunk, over, 0.0)


@idiom
def add_gram_(total: Tensor, rows: Tensor, others: Optional[Tensor] = None, block: int = 256,  # noqa: UP045
              over: int = 1, kept: float = 1.0) -> Tensor:
    """total = kept * total + rows @ rows.t() / over on and above the diagonal: a block of rows meets those below.

    Or rows @ others.t(), where that is symmetric as well.
    """
    right = rows if others is None else others
    for first in range(0, rows.shape[0], block):
        add_product_(total[first : first + block, first:], rows[first : first + block], right[first:],
                     1.0 / max(1, over), kept)
    return total


@idiom
def onednn_add_gram_(total: Tensor, rows: Tensor, others: Optional[Tensor] = None, block: int = 256,  # noqa: UP045
                     over: int = 1, kept: float = 1.0, fewest: int = 320) -> Tensor:
    """total = kept * total + rows @ rows.t() / over, or rows @ others.t(), on and above the diagonal, by oneDNN."""
    left = rows.contiguous()
    right = left if others is None else others.contiguous()
    for first in range(0, rows.shape[0], block):
        onednn_add_product_(total[first : first + block, first:], left[first : first + block], right[first:],
                            1.0 / max(1, over), kept, fewest)
    return total


@idiom
def add_products_of_pairs_(total: Tensor, x: Tensor, z: Optional[Tensor], u: Tensor, numbers: int) -> Tensor:  # noqa: UP045
    """total[n k, m j] += sum over p, q of (x[n, k, p] . z[m, j, q]) (u[n, p] . u[m, q]), `numbers` at a time.

    Without z it is x again, and the total is right on and above the diagonal.
    """
    y = x if z is None else z
    each = x.shape[1]
    samples = max(1, numbers // max(1, each * total.shape[1]))
    for first in range(0, x.shape[0], samples):
        start = first if z is None else 0
        own, others = x[first : first + samples], y[start:]
        tile = total[first * each : (first + samples) * each, start * y.shape[1] :]
        tile = tile.unflatten(1, [others.shape[0], others.shape[1]]).unflatten(0, [own.shape[0], each])
        for p in range(x.shape[2]):
            for q in range(y.shape[2]):
                products = own[:, :, p].flatten(0, 1) @ others[:, :, q].flatten(0, 1).t()
                weights = u[first : first + samples, p] @ u[start:, q].t()
                tile.addcmul_(products.view(tile.shape), weights.unsqueeze(1).unsqueeze(3))
    return total


@idiom
def add_products_by_index_(total: Tensor, x: Tensor, z: Optional[Tensor], index: Tensor, numbers: int) -> Tensor:  # noqa: UP045
    """total[n k, m j] += sum over p, q of x[n, k, p] . z[m, j, q] where index[n, p] = index[m, q] >= 0.

    `numbers` at a time. Without z it is x again, and the total is right on and above the diagonal.
    """
    y = x if z is None else z
    each = x.shape[1]
    samples = max(1, numbers // max(1, y.numel()))
    for first in range(0, x.shape[0], samples):
        start = first if z is None else 0
        own, others = x[first : first + samples], y[start:]
        at = index[first : first + samples].unsqueeze(1).unsqueeze(3)
        same = (at == index[start:].unsqueeze(1)) & (at >= 0)
        met = same.type_as(y).unsqueeze(2) @ others  # [n, m, j, p, d]: at p, what others have at the same index
        products = own.flatten(2) @ met.flatten(3).flatten(1, 2).transpose(1, 2)
        total[first * each : (first + samples) * each, start * y.shape[1] :].add_(products.flatten(0, 1))
    return total


def _mirrored_on_meta(total: Any, block: int = 64) -> Any:
    """As much memory as the first strip takes, which is the longest."""
    strip, own = torch.empty_like(total[:block, block:]), total[:block, :block]
    turned = strip.new_empty(strip.shape[::-1])
    del turned
    halves = [own.new_empty(own.shape) for _ in range(3)]
    del halves, strip
    return total.copy_(total.t())


@idiom(on_meta=_mirrored_on_meta)
def mirror_(total: Tensor, block: int = 64) -> Tensor:
    """What is below the diagonal becomes what is above it: in strips that stay in cache, each turned where it is alone,
    as numbers that lie a power of two apart in memory push one another out."""
    for first in range(0, total.shape[0], block):
        last = first + block
        strip = total[first:last, last:].contiguous()
        total[last:, first:last].copy_(strip.t().contiguous())
        own = total[first:last, first:last]
        own.copy_(own.triu() + own.triu(1).t())
    return total


def _half_on_meta(x: Any, others: Any = None, axis: int = 0, chunk: int | None = None, block: int = 256, over: int = 1,
                  fewest: int = 0) -> Any:
    """As for many columns, all at once: what is predicted grows as a polynomial with them."""
    rows = x.movedim(axis, 0).flatten(1)
    return mirror_(add_gram_(x.new_empty((rows.shape[0], rows.shape[0])), rows, None, block, over, 0.0))


@idiom(on_meta=_half_on_meta)
def half_gram(x: Tensor, others: Optional[Tensor] = None, axis: int = 0, chunk: Optional[int] = None,  # noqa: UP045
              block: int = 256, over: int = 1, fewest: int = 0) -> Tensor:
    """`gram` of x, or of x and others where that is symmetric: half of it is made, and mirrored.

    All of it from fewer columns than `fewest`, symmetric to rounding: their product takes less time than to mirror.
    """
    size = x.shape[axis]
    total = x.new_empty((size, size))
    whole = x.numel() < fewest * size
    samples = max(1, x.shape[0] if chunk is None or whole else chunk)
    for first in range(0, max(1, x.shape[0]), samples):
        rows = x[first : first + samples].movedim(axis, 0).flatten(1)
        right = rows if others is None else others[first : first + samples].movedim(axis, 0).flatten(1)
        add_gram_(total, rows, right, size if whole else block, over, 0.0 if first == 0 else 1.0)
    return total if whole else mirror_(total)


@idiom(on_meta=_half_on_meta)
def onednn_half_gram(x: Tensor, others: Optional[Tensor] = None, axis: int = 0,  # noqa: UP045
                     chunk: Optional[int] = None, block: int = 256, over: int = 1, fewest: int = 0) -> Tensor:  # noqa: UP045
    """Sum of x x^T over all axes but one, / over, by oneDNN; or of x and others, where that is symmetric.

    Half of it is made, and mirrored; all of it from fewer columns than `fewest`, whose product takes less time.
    """
    size = x.shape[axis]
    if 0 < x.numel() < fewest * size:
        scale = over**-0.5  # of both, which keeps it symmetric to the bit
        rows = x.movedim(axis, 0).flatten(1) * scale
        return onednn_linear(rows, rows if others is None else others.movedim(axis, 0).flatten(1) * scale)
    total = x.new_empty((size, size))
    samples = max(1, x.shape[0] if chunk is None else chunk)
    for first in range(0, max(1, x.shape[0]), samples):
        rows = x[first : first + samples].movedim(axis, 0).flatten(1)
        right = None if others is None else others[first : first + samples].movedim(axis, 0).flatten(1)
        onednn_add_gram_(total, rows, right, block, over, 0.0 if first == 0 else 1.0, fewest)
    return mirror_(total)


@idiom
def by_places(windows: list[Tensor], channels: int) -> Tensor:
    """A symmetric matrix whose rows and columns count (channel, place, inner) from its blocks, [channel * inner] twice.

    windows[d][p] is the block of the places p and p + d. Whole lines of channels are moved at a time.
    """
    places, size = len(windows), windows[0].shape[1]
    inner = size // channels
    whole = windows[0].new_empty((channels, places, inner, channels, places, inner))
    for apart, blocks in enumerate(windows):
        for place in range(places - apart):
            block = blocks[place].reshape(channels, inner, channels, inner)
            for column in range(inner):
                whole[:, place, :, :, place + apart, column].copy_(block[:, :, :, column])
                if apart > 0:
                    whole[:, place + apart, :, :, place, column].copy_(block[:, column].permute(1, 2, 0))
    return whole.view(places * size, places * size)
