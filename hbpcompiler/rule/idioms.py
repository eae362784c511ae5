"""What rules do again and again, as functions that generated code calls by name and defines at its head.

On tensors they run. A rule that calls one with proxies writes the call, as it would write torch.einsum. The text of
each goes into generated files as it stands here: torch and builtins only, types that TorchScript reads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, fx

Function = TypeVar("Function", bound=Callable[..., Any])

IDIOMS: list[Callable[..., Any]] = []
"""All of them."""


@overload
def idiom(function: Function, *, on_meta: Callable[..., Any] | None = None) -> Function: ...


@overload
def idiom(*, on_meta: Callable[..., Any]) -> Callable[[Function], Function]: ...


def idiom(function: Any = None, *, on_meta: Callable[..., Any] | None = None) -> Any:
    """Make a call with proxies a call in the graph that they write.

    `on_meta` makes tensors without memory, of the result's shape, where torch might not.
    """
    if function is None:
        return functools.partial(idiom, on_meta=on_meta)

    @functools.wraps(function)
    def written(*args: Any, **kwargs: Any) -> Any:
        items = [*args, *kwargs.values()]
        proxy = next(proxies(items), None)
        if proxy is not None:
            return proxy.tracer.create_proxy("call_function", written, args, kwargs)
        if on_meta is not None and any(tensor.is_meta for tensor in _tensors(items)):
            return on_meta(*args, **kwargs)
        return function(*args, **kwargs)

    written.on_meta = on_meta  # type: ignore[attr-defined]  # of a function
    IDIOMS.append(written)
    return written


def proxies(items: Sequence[Any]) -> Iterator[fx.Proxy]:
    """Those among the arguments of a call, and in lists of them."""
    for item in items:
        if isinstance(item, fx.Proxy):
            yield item
        elif isinstance(item, list | tuple):
            yield from proxies(item)


def _tensors(items: Sequence[Any]) -> Iterator[Tensor]:
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)


@idiom
def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [N, P, i] by each sample's own numbers [N, o, p]: [N, o, p, i]."""
    first = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    return F.embedding(index + first.reshape(-1, 1, 1), x.flatten(0, 1))


@idiom
def scatter_to(columns: Tensor, index: Tensor, shape: list[int]) -> Tensor:
    """Columns [N, K, *lead, *out] added to zeros [N, K, *lead, *shape] at flat positions [N, *lead, *out].

    The index is expanded over the columns, as the zeros are: nothing is copied.
    """
    axes = len(shape)
    size = 1
    for length in shape:
        size *= length
    values = columns.flatten(-axes) if axes > 1 else columns
    places = (index.flatten(-axes) if axes > 1 else index).unsqueeze(1).expand_as(values)
    zeros = columns.new_zeros(1).expand(list(values.shape[:-1]) + [size])  # noqa: RUF005  # TorchScript has no *
    added = zeros.scatter_add(-1, places, values)
    return added.unflatten(-1, shape) if axes > 1 else added


@idiom
def rows_in_order(x: Tensor) -> Tensor:
    """x, its last axis without gaps in memory, as some kernels want it."""
    return x if x.stride(-1) == 1 else x.contiguous()


@idiom
def attention_scores(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
    """scale Q K^T, -inf where a query comes before a key, if that matters."""
    scores = query * scale @ key.transpose(-1, -2)
    later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, float("-inf")) if causal else scores


@idiom
def fused_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale Q K^T) V of [N, heads, positions, d], and the logarithms of the softmax's denominators.

    On a CPU torch's kernel, which never has all of the softmax in memory.
    """
    if query.is_cpu:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            rows_in_order(query), rows_in_order(key), rows_in_order(value), 0.0, causal, scale=scale)
    scores = attention_scores(query, key, causal, scale)
    return torch.softmax(scores, -1) @ value, scores.logsumexp(-1)


@idiom
def fused_attention_back(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sums: Tensor,
                         causal: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient at query, key and value, of one at the output: torch's kernel, or the softmax made again."""
    if query.is_cpu:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            rows_in_order(gradient), rows_in_order(query), rows_in_order(key), rows_in_order(value), output, log_sums,
            0.0, causal, scale=scale)
    weights = (attention_scores(query, key, causal, scale) - log_sums.unsqueeze(-1)).exp()
    at_weights = gradient @ value.transpose(-1, -2)
    at_scores = weights * (at_weights - (gradient * output).sum(-1, True)) * scale
    return at_scores @ key, at_scores.transpose(-1, -2) @ query, weights.transpose(-1, -2) @ gradient


@idiom
def sums_of_equal(columns: Tensor, index: Tensor) -> Tensor:
    """columns [N, K, p, d] added up over the positions of a sample that have one index [N, p], at the first of them:
    zeros at the others, and where the index is negative."""
    same = index.unsqueeze(1) == index.unsqueeze(2)
    first = same.tril(-1).any(2).logical_not() & (index >= 0)
    return (same & first.unsqueeze(2)).type_as(columns).unsqueeze(1) @ columns


@idiom
def rows_of_products(columns: Tensor, operand: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [N, p] of what columns [N, K, q, rows] and an operand [N, q, d] make, [N, K, rows, d] summed over q:
    [N, K, p, d]. Where the index is negative some row."""
    shape = [columns.shape[0], columns.shape[1], columns.shape[2], index.shape[1]]
    at = index.clamp(min=0).unsqueeze(1).unsqueeze(1).expand(shape)
    return columns.gather(3, at).transpose(2, 3) @ operand.unsqueeze(1)


@idiom
def add_rows_(total: Tensor, index: Tensor, rows: Tensor, least: Optional[float] = None) -> Tensor:  # noqa: UP045  # for TorchScript
    """total[index[n, p]] += rows [N, p, d]; these rows of the total are then no less than `least`. A row whose index is
    negative is zero."""
    at = index.clamp(min=0).flatten()
    total.index_add_(0, at, rows.flatten(0, 1).to(total.dtype))
    if least is not None:
        total.index_copy_(0, at, total.index_select(0, at).clamp(min=least))
    return total


@idiom
def squares_by_index(columns: Tensor, index: Tensor, rows: int, weights: Optional[Tensor] = None) -> Tensor:  # noqa: UP045  # for TorchScript
    """sum over n, k of the squared rows that columns [N, K, p, d] make of a matrix [rows, d], row `index` [N, p] of it
    at position p; `weights` [N, K] of the columns."""
    squares = sums_of_equal(columns, index).square()
    each = squares.sum(1) if weights is None else torch.einsum("nk,nkpd->npd", weights, squares)
    return each.new_zeros(rows, each.shape[2]).index_add_(0, index.clamp(min=0).flatten(), each.flatten(0, 1))


@idiom
def spread_by_index(columns: Tensor, index: Tensor, rows: int) -> Tensor:
    """columns [N, K, p, d] (or [N, K, d]) at the rows `index` [N, p] (or [N]) of matrices [N, K, rows, d]."""
    at = index if index.dim() == 2 else index.unsqueeze(1)
    each = columns if index.dim() == 2 else columns.unsqueeze(2)
    each = each * (at >= 0).unsqueeze(1).unsqueeze(3)
    places = at.clamp(min=0).unsqueeze(1).unsqueeze(3).expand(each.shape)
    return each.new_zeros(each.shape[0], each.shape[1], rows, each.shape[3]).scatter_add(2, places, each)


@idiom
def spread_slice(columns: Tensor, axis: int, length: int, first: Optional[int] = None, last: Optional[int] = None,  # noqa: UP045
                 step: int = 1) -> Tensor:
    """columns at first:last:step of an axis of this length, zeros elsewhere."""
    shape = list(columns.shape)
    shape[axis] = length
    return columns.new_zeros(shape).slice_scatter(columns, axis, first, last, step)


@idiom
def spread_select(columns: Tensor, axis: int, length: int, index: int) -> Tensor:
    """columns at one place of a new axis of this length, zeros elsewhere."""
    shape = list(columns.shape)
    shape.insert(axis, length)
    return columns.new_zeros(shape).select_scatter(columns, axis, index)


@idiom
def passed(columns: Tensor, mask: Tensor) -> Tensor:
    """columns where the mask is not 0, and 0 elsewhere, even for infinity: on a CPU 30 times as fast as torch.where."""
    return torch.ops.aten.threshold_backward(columns, mask.type_as(columns), 0)


@idiom
def passed_(columns: Tensor, mask: Tensor) -> Tensor:
    """columns where the mask is not 0, and 0 elsewhere, even for infinity: written over columns."""
    return torch.ops.aten.threshold_backward(columns, mask.type_as(columns), 0, grad_input=columns)


@idiom
def standardised_back(columns: Tensor, xhat: Tensor, inverse: Tensor, centred: bool,
                      weight: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
    """(h - mean(h) - xhat mean(h * xhat)) * inverse over the last axis, h = columns * weight; if not centred, mean(h)
    is left out."""
    h = columns if weight is None else columns * weight
    along = xhat * (h * xhat).mean(-1, True)
    if not centred:
        return (h - along).mul_(inverse)
    return (h - h.mean(-1, True)).sub_(along).mul_(inverse)


@idiom
def standardised_back_(columns: Tensor, xhat: Tensor, inverse: Tensor, centred: bool,
                       weight: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
    """(h - mean(h) - xhat mean(h * xhat)) * inverse over the last axis, h = columns * weight, written over columns; if
    not centred, mean(h) is left out."""
    h = columns if weight is None else columns.mul_(weight)
    along = xhat * (h * xhat).mean(-1, True)
    if centred:
        h.sub_(h.mean(-1, True))
    return h.sub_(along).mul_(inverse)


@idiom
def rows_of_vectors(vectors: Tensor, index: Tensor) -> Tensor:
    """The rows `index` [N, p] (or [N]) of matrices [F, rows, d]: [N, F, p, d] (or [N, F, d]); zeros where it is
    negative."""
    each = vectors[:, index.clamp(min=0)] * (index >= 0).unsqueeze(-1)
    return each.movedim(0, 1)


@idiom
def products_of_pairs(x: Tensor, twice: bool) -> Tensor:
    """x [..., p, i] -> [..., pairs, i]: products of positions with themselves and with later ones, these `twice`."""
    positions = x.shape[-2]
    parts = [x * x]
    for apart in range(1, positions):
        product = x[..., : positions - apart, :] * x[..., apart:, :]
        parts.append(product * 2 if twice else product)
    return torch.cat(parts, -2)
