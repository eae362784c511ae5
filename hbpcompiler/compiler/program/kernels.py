"""Functions that a generated file defines for itself if its program calls them: there they stand as they stand here."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hbpcompiler.compiler.program import draws as draws  # its helpers are among IDIOMS
from hbpcompiler.compiler.program import pairs as pairs
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.rule.composite import Composite, EachSample
from hbpcompiler.rule.idioms import IDIOMS, covariance_root, idiom, patches, scatter_to


def onednn_linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:  # noqa: UP045  # for TorchScript
    """F.linear by oneDNN, which multiplies float32 matrices faster than BLAS on many processors."""
    compiling = False if torch.jit.is_scripting() else torch.compiler.is_compiling()  # type: ignore[attr-defined]  # untyped
    if compiling or not (x.is_cpu or x.is_meta) or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if not weight.is_contiguous() and not weight.t().is_contiguous():
        weight = weight.contiguous()  # oneDNN is slow where rows lie apart in memory
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def product_over_pixels(x: Tensor, y: Tensor) -> Tensor:
    """einsum("nop,nip->oi") as a 1 x 1 convolution's weight gradient: reads images pixel by pixel without copies."""
    weight = x.new_empty(1).expand(x.shape[1], y.shape[1], 1, 1)
    _, product, _ = torch.ops.aten.convolution_backward(
        x.unsqueeze(2), y.unsqueeze(2), weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    return product.flatten(1)


@idiom
def weighted(x: Tensor, w: Optional[Tensor]) -> Tensor:  # noqa: UP045
    """x [N, ...] times each sample's weight, if there are some."""
    return x if w is None else x * w.type_as(x).reshape([-1] + [1] * (x.dim() - 1))


@idiom
def root_weights(w: Optional[Tensor]) -> Optional[Tensor]:  # noqa: UP045
    """The weights' roots, if there are weights."""
    return None if w is None else w.double().sqrt()


@idiom
def mean_weights(w: Optional[Tensor]) -> Optional[Tensor]:  # noqa: UP045
    """Weights that are 1 on average, if there are weights: sums over N become weighted averages."""
    return None if w is None else w.double() * (w.shape[0] / w.double().sum())


@idiom
def add_product_(total: Tensor, x: Tensor, y: Tensor, scale: float = 1.0, kept: float = 1.0) -> Tensor:
    """total = kept * total + scale * x @ y.t(); kept = 0 writes over whatever it was."""
    if total.dtype == x.dtype:
        return total.addmm_(x, y.t(), beta=kept, alpha=scale)
    if kept == 0.0:
        total.zero_()
    return total.add_(x @ y.t(), alpha=scale)


@idiom
def onednn_add_product_(total: Tensor, x: Tensor, y: Tensor, scale: float = 1.0, kept: float = 1.0) -> Tensor:
    """`add_product_` by `onednn_linear`."""
    if total.dtype != x.dtype or x.shape[1] == 0:
        return add_product_(total, x, y, scale, kept)
    product = onednn_linear(x, y)
    if kept != 0.0:
        return total.add_(product, alpha=scale)
    total.copy_(product)
    return total if scale == 1.0 else total.mul_(scale)


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
                    kept: float = 1.0) -> Tensor:
    """total = kept * total + sum of x x^T over all axes but one, / over, by oneDNN, in blocks that stay in cache."""
    block = max(64, 1048576 // max(1, total.shape[0]))
    samples = max(1, x.shape[0] if chunk is None else chunk)
    for first in range(0, max(1, x.shape[0]), samples):
        rows = x[first : first + samples].movedim(axis, 0).flatten(1).contiguous()
        for top in range(0, total.shape[0], block):
            onednn_add_product_(total[top : top + block], rows[top : top + block], rows,
                                1.0 / max(1, over), kept if first == 0 else 1.0)
    return total


@idiom
def pixel_gram_to_(total: Tensor, x: Tensor, axis: int, chunk: Optional[int] = None, over: int = 1,  # noqa: UP045
                   kept: float = 1.0) -> Tensor:
    """`gram_to_` of columns [n, k, o, p] of images, as they lie."""
    if kept == 0.0:
        total.zero_()
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
                over: int = 1) -> Tensor:
    """Sum of x x^T over all axes but one, / over, by oneDNN."""
    size = x.shape[axis]
    total = x.new_empty((size, size), dtype=x.dtype if dtype is None else dtype)
    return onednn_gram_to_(total, x, axis, chunk, over, 0.0)


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
                     over: int = 1, kept: float = 1.0) -> Tensor:
    """`add_gram_` by oneDNN."""
    left = rows.contiguous()
    right = left if others is None else others.contiguous()
    for first in range(0, rows.shape[0], block):
        onednn_add_product_(total[first : first + block, first:], left[first : first + block], right[first:],
                            1.0 / max(1, over), kept)
    return total


@idiom
def add_products_of_pairs_(total: Tensor, x: Tensor, z: Optional[Tensor], u: Tensor, numbers: int) -> Tensor:  # noqa: UP045
    """total[n k, m j] += sum over p, q of (x[n, k, p] . z[m, j, q]) (u[n, p] . u[m, q]), `numbers` at a time.

    Without z it is x again, and the total is right on and above the diagonal.
    """
    y = x if z is None else z
    each = x.shape[1]
    samples = max(1, numbers // (each * total.shape[1]))
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
def mirror_(total: Tensor, block: int = 64) -> Tensor:
    """What is below the diagonal becomes what is above it: in strips, so that what is read stays in cache."""
    for first in range(0, total.shape[0], block):
        last = first + block
        total[last:, first:last].copy_(total[first:last, last:].t())
        own = total[first:last, first:last]
        own.copy_(own.triu() + own.triu(1).t())
    return total


@idiom
def half_gram(rows: Tensor, others: Optional[Tensor] = None, block: int = 256, over: int = 1) -> Tensor:  # noqa: UP045
    """rows @ rows.t() / over, or rows @ others.t() where that is symmetric: half of it is made, and mirrored."""
    total = rows.new_empty((rows.shape[0], rows.shape[0]))
    return mirror_(add_gram_(total, rows, others, block, over, 0.0))


@idiom
def onednn_half_gram(rows: Tensor, others: Optional[Tensor] = None, block: int = 256, over: int = 1) -> Tensor:  # noqa: UP045
    """rows @ rows.t() / over, or rows @ others.t() where that is symmetric, half of it made by oneDNN, and mirrored."""
    total = rows.new_empty((rows.shape[0], rows.shape[0]))
    return mirror_(onednn_add_gram_(total, rows, others, block, over, 0.0))


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


@idiom
def added_(total: Tensor, value: Tensor, decay: float, share: float, divisor: int = 1) -> Tensor:
    """total becomes decay * total + share * value / divisor, in its memory; with a decay of 0 whatever it was."""
    if decay == 0.0:
        total.copy_(value)
        if divisor != 1:
            total.div_(divisor)
        return total if share == 1.0 else total.mul_(share)
    if decay != 1.0:
        total.mul_(decay)
    if total.dtype == value.dtype or total.is_cuda or not (total.is_contiguous() and value.is_contiguous()):
        return total.add_(value, alpha=share / divisor)
    # A CPU converts all of a tensor before it adds it; a piece of it stays in the cache.
    own, part = total.view(-1), value.view(-1)
    for start in range(0, own.numel(), 65536):
        own[start : start + 65536].add_(part[start : start + 65536], alpha=share / divisor)
    return total


@idiom
def added_triangle_(total: Tensor, value: Tensor, decay: float, share: float, divisor: int = 1) -> Tensor:
    """The same for the upper triangle of a symmetric matrix, which is half the work; below it there is no sum."""
    if decay != 1.0:
        total.mul_(decay)
    for start in range(0, total.shape[0], 64):
        total[start : start + 64, start:].add_(value[start : start + 64, start:], alpha=share / divisor)
    return total


MAGNITUDES = (-40, 64, 2)
"""Of gradients: bins from 2^-40 on, for 64 octaves, two each."""
PARAMETER_MAGNITUDES = (-16, 24, 1)


def _cells_on_meta(x: Any, edges: Any, low: int, octaves: int, parts: int) -> Any:
    return torch.empty(x.shape, dtype=torch.int64, device=x.device)


@idiom(on_meta=_cells_on_meta)
def histogram_cells(x: Tensor, edges: Optional[Tensor], low: int, octaves: int, parts: int) -> Tensor:  # noqa: UP045
    """The bin of each number: between the edges given, or, without, by sign and magnitude, read off its bits.

    Those are 2 octaves parts + 1 bins: in the middle what is smaller than 2^low, on both sides as many octaves of 1 or
    2 parts each. The outermost bins have what is beyond them, too.
    """
    if edges is not None:
        return torch.bucketize(x, edges[1:-1], right=True)
    if torch.jit.is_scripting():  # type: ignore[attr-defined]  # untyped
        fraction, exponent = torch.frexp(x)  # TorchScript knows no views of another dtype
        half = (fraction.abs() >= 0.75).to(torch.int32) * (parts - 1)
        magnitude = torch.where(x == 0, torch.zeros_like(exponent), (exponent - 1 - low) * parts + half + 1)
        magnitude = torch.where(x.isfinite(), magnitude, torch.full_like(magnitude, octaves * parts))
        negative = x < 0
    else:
        wide = x.dtype == torch.float64
        mantissa, bias, positive = (52, 1023, 9223372036854775807) if wide else (23, 127, 2147483647)
        bits = x.contiguous().view(torch.int64) if wide else x.float().contiguous().view(torch.int32)
        magnitude = ((bits & positive) >> (mantissa + 1 - parts)) - ((bias + low) * parts - 1)
        negative = bits < 0
    magnitude = magnitude.clamp(0, octaves * parts)
    return torch.where(negative, -magnitude, magnitude) + octaves * parts


@idiom
def empty_histogram(x: Tensor, edges: Optional[Tensor], bins: int) -> Tensor:  # noqa: UP045
    """Zeros, for each of the bins between the edges given, or of so many."""
    return torch.zeros(bins if edges is None else edges.shape[0] - 1, dtype=torch.int64, device=x.device)


@idiom
def empty_histogram_2d(x: Tensor, edges: Optional[Tensor], bins: int, row_edges: Optional[Tensor],  # noqa: UP045
                       rows: int) -> Tensor:
    """Zeros, a row for each of the bins between `row_edges`, or of so many."""
    columns = bins if edges is None else edges.shape[0] - 1
    return torch.zeros(rows if row_edges is None else row_edges.shape[0] - 1, columns, dtype=torch.int64,
                       device=x.device)


@idiom(on_meta=lambda counts, cells, rows: counts)
def add_histogram_(counts: Tensor, cells: Tensor, rows: Optional[Tensor]) -> Tensor:  # noqa: UP045
    """Counts [B] of the cells [n, k, *theta]; [R, B] where rows [*theta] say the row that each entry is counted in."""
    if rows is not None:
        cells = cells + rows * counts.shape[-1]
    return counts.add_(torch.bincount(cells.flatten(), minlength=counts.numel()).reshape(counts.shape))


@idiom(on_meta=lambda counts, x, edges, low, octaves, parts: counts)
def count_entries_(counts: Tensor, x: Tensor, edges: Optional[Tensor], low: int, octaves: int, parts: int,  # noqa: UP045
                   ) -> Tensor:
    """Counts [B] of the numbers in `histogram_cells`; by magnitude first in a bin for each leading part of the bits.

    As many at a time as stay in the processor's cache.
    """
    if edges is not None or torch.jit.is_scripting():  # type: ignore[attr-defined]  # untyped
        return add_histogram_(counts, histogram_cells(x, edges, low, octaves, parts), None)
    wide = x.dtype == torch.float64
    shift, half, bias = (53 - parts, 1024 << parts, 1023) if wide else (24 - parts, 128 << parts, 127)
    bits = (x.contiguous().view(torch.int64) if wide else x.float().contiguous().view(torch.int32)).view(-1)
    fine = torch.zeros(2 * half, dtype=torch.int64, device=x.device)
    own = torch.empty(min(bits.shape[0], 131072), dtype=bits.dtype, device=x.device)
    for start in range(0, bits.shape[0], 131072):  # negative numbers come first
        part = bits[start : start + 131072]
        place = torch.bitwise_right_shift(part, shift, out=own[: part.shape[0]]).add_(half)
        fine += torch.bincount(place, minlength=2 * half)
    start, end, middle = (bias + low) * parts, (bias + low + octaves) * parts, octaves * parts
    signs = fine.view(2, half)
    within = signs[:, start:end].clone()
    within[:, -1] += signs[:, end:].sum(1)
    counts[:middle] += within[0].flip(0)
    counts[middle] += signs[:, :start].sum()
    counts[middle + 1 :] += within[1]
    return counts


GRAMS = (gram, onednn_gram, pixel_gram)
MADE_SCALED = frozenset({*GRAMS, half_gram, onednn_half_gram})
"""What can be made over a number, its argument `over`."""
GROWING: dict[Any, Callable[..., Any]] = {gram: gram_to_, onednn_gram: onednn_gram_to_, pixel_gram: pixel_gram_to_}
"""A Gram matrix -> what adds one to a total."""
OF_ONEDNN: dict[Any, Callable[..., Any]] = {gram: onednn_gram, add_gram_: onednn_add_gram_,
                                            half_gram: onednn_half_gram}
"""What oneDNN may do instead."""
BLAS_INSTEAD = """\
if not torch.backends.mkldnn.is_available() or torch.cpu.get_capabilities().get("amx_tile", False):
    {} = {}  # on such processors, Intel's since 2023, BLAS is as fast or faster"""
FALLBACKS: dict[Callable[..., Any], str] = {
    onednn_linear: BLAS_INSTEAD.format("onednn_linear", "F.linear"),
    product_over_pixels: "",
    **dict.fromkeys(IDIOMS, ""),
    onednn_add_product_: BLAS_INSTEAD.format("onednn_add_product_", "add_product_"),
}
"""Helper -> what follows its definition, for builds of torch that cannot run it. Those that others call come first."""


PRODUCTS: frozenset[Any] = frozenset({
    operator.matmul, torch.einsum, onednn_linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d,
    F.conv_transpose2d, F.conv_transpose3d, *MADE_SCALED, torch.ops.aten.convolution_backward})
"""What columns are multiplied by, as programs call it: the results are the largest tensors there are."""
LINEAR: frozenset[Any] = frozenset({patches})
"""Helpers whose result is a linear function of their first argument, sample by sample."""
COLUMNS = (scatter_to, covariance_root)
"""Helpers that make columns, which others may be written over."""
LAID_AS_GIVEN: dict[Any, int] = {torch.ops.aten.convolution_backward: 1}
"""Kernel of torch -> which of its results lies in memory as the parameter does that it is the gradient of."""
RELAYOUTS = frozenset({torch.ops.aten.convolution, torch.ops.aten._convolution, torch.ops.aten.convolution_backward})
"""Kernels of torch that work on copies of what lies channel by channel, in a layout of their own."""
MANY_PRODUCTS = frozenset({torch.ops.aten.bmm})
"""Kernels of torch that multiply many small matrices."""
ONEDNN_LINEAR = "mkldnn._linear_pointwise"
"""The kernel in `onednn_linear`: not in every build of torch, so by its name."""


def composites(graph: fx.Graph) -> dict[str, Composite]:
    """The functions of torch's calls that a program, or a loop in it, mentions, by name and in order."""
    found: dict[str, Composite] = {}
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            found |= composites(node.target.body)
        for item in (node.target, *node.args):
            if isinstance(item, EachSample):
                found.setdefault(item.whole.name, item.whole)
            if isinstance(item, Composite):
                found.setdefault(item.name, item)
    return found


def on_meta(graph: fx.Graph) -> dict[str, Callable[..., Any]]:
    """The helpers of a program that know by themselves what to make of tensors without memory, by name."""
    known = {helper.__name__: helper for helper in IDIOMS if getattr(helper, "on_meta", None) is not None}
    return {**known, **composites(graph)}


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` is more than F.linear there."""
    return device.type == "cpu" and dtype is torch.float32 and torch.backends.mkldnn.is_available()
