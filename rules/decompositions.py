"""Operations written in others that have rules, where torch's own table leads nowhere or to samples mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Case, Tensor
from hbpcompiler.rule.decomposition import Decomposition

from .shared.loss_terms import reduced

# -- products along an axis: pairs are multiplied, so that nothing is divided and zeros are no exception --------------


def prod(x: Tensor, dim: int, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """The product of all elements by halves."""
    x = x if dtype is None else x.to(dtype)
    while (length := x.shape[dim]) > 1:
        half = length // 2
        pairs = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = torch.cat([pairs, x.narrow(dim, 2 * half, 1)], dim) if length % 2 else pairs
    if x.shape[dim] == 0:
        return torch.ones_like(x.sum(dim, keepdim))
    return x if keepdim else x.squeeze(dim)


def cumprod(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """One product after the other."""
    x = x if dtype is None else x.to(dtype)
    results: list[Tensor] = []
    for i in range(x.shape[dim]):
        part = x.narrow(dim, i, 1)
        results.append(results[-1] * part if results else part)
    return torch.cat(results, dim)


SETTINGS = (((4,), 1), ((3, 2), -2), ((2, 5), 2), ((1,), 1))
PROD = Decomposition(
    ["aten.prod.dim_int"],
    prod,
    [
        Case({"self": shape}, {"dim": dim, "keepdim": keepdim})
        for shape, dim in SETTINGS
        for keepdim in (False, True)
    ],
)
CUMPROD = Decomposition(["aten.cumprod"], cumprod, [Case({"self": shape}, {"dim": dim}) for shape, dim in SETTINGS])

# -- distances between all pairs of rows ------------------------------------------------------------------------------


def cdist(x1: Tensor, x2: Tensor, p: float = 2, compute_mode: int | None = None) -> Tensor:
    """Norms of all differences: no product of matrices, so nothing cancels."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


CDIST = Decomposition(
    ["aten.cdist", "aten._cdist_forward"],
    cdist,
    [Case({"x1": (2, 3), "x2": (4, 3)}, {"p": p}, ("x1", "x2")) for p in (2.0, 1.0, 3.0, float("inf"))],
)

# -- angles ----------------------------------------------------------------------------------------------------------


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """As torch has it: norms below eps count as eps, and are differentiated as what they are."""

    def length(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, 2, dim, keepdim=True)
        return norm + (norm.clamp(min=eps) - norm).detach()

    x1, x2 = torch.broadcast_tensors(x1, x2)
    return (x1 / length(x1) * (x2 / length(x2))).sum(dim)


COSINE_SIMILARITY = Decomposition(
    ["aten.cosine_similarity"],
    cosine_similarity,
    [Case({"x1": (2, 3), "x2": (2, 3)}, {"dim": dim, "eps": eps}, ("x1", "x2"))
     for dim, eps in ((2, 1e-8), (1, 1e-8), (-1, 1.5))],
)

# -- of all numbers: equal ones share the derivative, as torch has it -------------------------------------------------


def largest(x: Tensor) -> Tensor:
    return x.amax(list(range(x.dim())))


def smallest(x: Tensor) -> Tensor:
    return x.amin(list(range(x.dim())))


def median(x: Tensor) -> Tensor:
    """The mean of those that are equal to it, in its derivative; of samples, what is refused in words of its own."""
    if not isinstance(x.shape[0] if x.dim() else 1, int):
        return torch.nanmedian(x)
    value = x.detach().flatten().sort()[0][(x.numel() - 1) // 2]
    equal = x.detach() == value
    mean = torch.where(equal, x, 0.0).sum() / equal.sum()
    return value + (mean - mean.detach())


LARGEST = Decomposition(["aten.max.default"], largest)
SMALLEST = Decomposition(["aten.min.default"], smallest)
MEDIAN = Decomposition(["aten.median.default"], median)

# -- other spellings -------------------------------------------------------------------------------------------------


def variance(x: Tensor, dim: list[int] | None, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    return torch.var(x, dim, correction=1 if unbiased else 0, keepdim=keepdim)


VARIANCE = Decomposition(
    ["aten.var.dim"],
    variance,
    [Case({"self": (2, 3)}, {"dim": [2], "unbiased": unbiased}) for unbiased in (True, False)],
)


def standard_deviation(
    x: Tensor, dim: list[int] | None = None, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    """The norm of what is left without the mean, which has a derivative at 0, as torch's has: the root of the variance
    has none."""
    axes = [axis % x.dim() for axis in dim] if dim else list(range(x.dim()))
    over_samples = 0 in axes and not isinstance(x.shape[0], int)  # of parameters all lengths are numbers
    length = 0 if over_samples else math.prod(x.shape[axis] for axis in axes)
    degrees = length - (1 if correction is None else correction)
    if degrees <= 0:  # over the samples, or of too few numbers: refused where the variance is
        return x.var(dim, correction=correction, keepdim=keepdim).sqrt()
    equal = x.var(axes, correction=0, keepdim=True) == 0  # which a mean that is rounded would hide
    error = torch.where(equal, 0.0, x - x.mean(axes, True))
    return torch.linalg.vector_norm(error, 2, axes, keepdim) * degrees**-0.5


STANDARD_DEVIATION = Decomposition(
    ["aten.std.correction"],
    standard_deviation,
    [
        Case({"self": shape}, {"dim": dim, "correction": correction, "keepdim": keepdim})
        for shape, dim in (((4,), [1]), ((3, 2), [-2]), ((2, 3), [1, 2]))
        for correction, keepdim in ((None, False), (0, True))
    ],
)


def standard_deviation_and_mean(
    x: Tensor, dim: list[int] | None = None, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    return standard_deviation(x, dim, correction, keepdim), x.mean(dim, keepdim)


STANDARD_DEVIATION_AND_MEAN = Decomposition(["aten.std_mean.correction"], standard_deviation_and_mean)


def copy(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    """A whole tensor assigned, x[:] = y."""
    return src.to(self.dtype).expand_as(self).clone(memory_format=torch.contiguous_format)


COPY = Decomposition(
    ["aten.copy"],
    copy,
    [Case({"self": (2, 3), "src": shape}, {}, ("self", "src"), constant=("self",)) for shape in ((1, 3), (2, 3))],
)

# -- where the table's pieces have no word for what an argument says of derivatives alone -----------------------------


def embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    """Rows of which the padding learns nothing."""
    if scale_grad_by_freq:
        raise NotImplementedError("derivatives that count the whole batch's indices are no pieces'")
    rows = weight[indices]
    return rows if padding_idx < 0 else torch.where((indices == padding_idx).unsqueeze(-1), rows.detach(), rows)


EMBEDDING = Decomposition(
    ["aten.embedding"],
    embedding,
    [Case({"weight": (5, 3), "indices": (6,)}, {"padding_idx": padding_idx}, ("indices",),
          make={"indices": lambda shape: torch.randint(5, tuple(shape))}) for padding_idx in (-1, 1)],
)
"""Beside the rule."""

# -- the way back of pooling: each value goes where its maximum was found, channel by channel -------------------------


def max_unpool2d(x: Tensor, indices: Tensor, output_size: list[int]) -> Tensor:
    """Indices count a channel's pixels row by row."""
    flat = x.flatten(-2)
    pixels = output_size[0] * output_size[1]
    empty = torch.zeros_like(flat[..., :1]).expand(*flat.shape[:-1], pixels)
    return empty.scatter(-1, indices.flatten(-2), flat).unflatten(-1, output_size)


def max_unpool3d(x: Tensor, indices: Tensor, output_size: list[int], stride: list[int], padding: list[int]) -> Tensor:
    depth, height, width = output_size
    flat = max_unpool2d(x.flatten(-2), indices.flatten(-2), [depth, height * width])
    return flat.unflatten(-1, (height, width))


def draw_places(shape: Sequence[int]) -> Tensor:
    """Pixels of a result twice as long along each axis, none twice in a channel; the first two axes are no pixels."""
    count = math.prod(shape[2:])
    return torch.rand(*shape[:2], count * 2 ** len(shape[2:])).argsort(-1)[..., :count].reshape(shape)


PLACES: dict[str, Any] = {"batched": ("self", "indices"), "make": {"indices": draw_places}}
MAX_UNPOOL2D = Decomposition(
    ["aten.max_unpool2d"],
    max_unpool2d,
    [Case({"self": (2, 2, 3), "indices": (2, 2, 3)}, {"output_size": [4, 6]}, **PLACES)],
)
VOLUME = {"output_size": [4, 2, 4], "stride": [2, 2, 2], "padding": [0, 0, 0]}
MAX_UNPOOL3D = Decomposition(
    ["aten.max_unpool3d"],
    max_unpool3d,
    [Case({"self": (2, 2, 1, 2), "indices": (2, 2, 1, 2)}, VOLUME, **PLACES)],
)

# -- losses ----------------------------------------------------------------------------------------------------------


def soft_margin_loss(x: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """log(1 + exp(-t x)), convex in x, of targets 1 and -1."""
    return reduced(-F.logsigmoid(target * x), reduction)


SOFT_MARGIN_LOSS = Decomposition(["aten.soft_margin_loss"], soft_margin_loss)
"""Beside a rule of the user's own, if there is one."""


def multilabel_margin_loss(x: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """Targets [N, C] are classes up to the first -1; each should be 1 above every class that is none of them."""
    listed = (target < 0).cumsum(1) == 0
    index = torch.where(listed, target, 0)
    is_target = torch.zeros_like(x).scatter_add(1, index, listed.type_as(x)) > 0
    margins = 1 - x.gather(1, index).unsqueeze(2) + x.unsqueeze(1)
    counted = listed.unsqueeze(2) & ~is_target.unsqueeze(1)
    return reduced((torch.relu(margins) * counted).sum([1, 2]) / x.shape[1], reduction)


MULTILABEL_MARGIN_LOSS = Decomposition(["aten.multilabel_margin_loss"], multilabel_margin_loss)
"""Without cases: torch has no second derivative to compare with. A test has it by hand."""
