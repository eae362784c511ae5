"""What stages know of torch's own operations that no rule says: how traces write, what kernels do with memory.

Of users' operations they know what rules and torch's schemas say.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

aten = torch.ops.aten

# -- what is written into a graph -------------------------------------------------------------------------------------

RESHAPE = aten.reshape
DETACH = aten.detach.default
CLONE = aten.clone.default

# -- what torch writes into traces ------------------------------------------------------------------------------------

COPIES: dict[Any, Any] = {aten.lift_fresh_copy.default: CLONE}
"""Copy that only a trace makes -> an operation that a program may call."""
PUT_BACK: dict[Any, Any] = {
    aten.select.int: aten.select_scatter.default,
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
}
"""View -> the operation that puts the view's new value into what it was taken from."""
OF_VIEW: dict[Any, Any] = {puts: view for view, puts in PUT_BACK.items()}
WRITTEN_OUT = frozenset({aten.native_batch_norm.default})
"""What torch takes apart though its schema does not say so: it changes its statistics."""
MISREAD = aten.nll_loss.default
"""Of reduction="none" torch's table of decompositions reads the number as another argument's."""
VIEWS = frozenset({aten.view, aten._unsafe_view})
"""Views that a graph without copies cannot always have: where memory lies otherwise, they are a copy."""
WITH_COPIES: dict[Any, Any] = {aten.view.default: aten.reshape, aten._unsafe_view.default: aten.reshape}
"""What takes the place of those of a shape: a later batch may lie otherwise than the one that was traced."""
READ_IN_ORDER = frozenset({aten.view_as_complex.default, aten.view.dtype, aten.as_strided.default,
                           aten.as_strided_copy.default, aten.as_strided_scatter.default})
"""What takes numbers that lie side by side in memory for one, or finds numbers by where they lie: programs make no
copies that a model asked for only to have numbers in order, and later batches may lie otherwise than the first."""
SCATTER, CAST = aten.scatter.src, aten._to_copy.default
"""By what torch.vmap puts values into places, and makes a tensor of a number."""

# -- what torch's kernels do ------------------------------------------------------------------------------------------

CONVOLUTION_BACKWARD = aten.convolution_backward
LAID_AS_GIVEN: dict[Any, int] = {CONVOLUTION_BACKWARD: 1}
"""Kernel -> which of its results lies in memory as the parameter does that it is the gradient of."""
RELAYOUTS = frozenset({aten.convolution, aten._convolution, CONVOLUTION_BACKWARD})
"""Kernels that work on copies of what lies channel by channel, in a layout of their own."""
MANY_PRODUCTS = frozenset({aten.bmm})
"""Kernels that multiply many small matrices."""
DRAWN_APART = frozenset({aten.exponential, aten.exponential_, aten.geometric, aten.geometric_, aten.log_normal,
                         aten.log_normal_, aten.cauchy, aten.cauchy_})
"""Kernels that draw otherwise than the operations which a graph has for them."""

# -- what a mask picks ------------------------------------------------------------------------------------------------

PICKS = frozenset({aten.index.Tensor, aten.masked_select.default, aten.index_select.default})
"""(values, mask or places of its true elements) -> rows, of which only values say how many."""
TRUE_PLACES = frozenset({aten.nonzero.default, aten.argwhere.default, aten.nonzero_numpy.default, aten.where.default})
"""mask -> the places of its true elements: a table with a column for each of the mask's axes, or a list of these."""
PUTS: dict[Any, bool] = {aten.index_put.default: False, aten.masked_scatter.default: False,
                         aten.index_copy.default: False, aten.index_add.default: True}
"""(values, mask or places, rows) -> the values with these rows in place -> whether they are added."""
BROADCASTS = frozenset({aten.index_put.default})
"""Those that put one number in the place of several."""
SUMS: dict[Any, bool] = {aten.sum.default: False, aten.sum.dim_IntList: False, aten.mean.default: True,
                         aten.mean.dim: True}
"""Sum -> whether it is a mean."""
OF_LABELS = frozenset({aten.cross_entropy_loss.default, aten.nll_loss_nd.default, aten.nll_loss.default})
"""Losses of (rows, labels), of which one label counts for nothing."""
LAST_AXES = frozenset({aten.linear.default, aten.matmul.default, aten.layer_norm.default, aten.embedding.default,
                       aten.broadcast_tensors.default})
"""What they do along the last axes is the same however many are in front."""
FLATTENS = frozenset({aten.view.default, aten.reshape.default, aten.flatten.using_ints})
SHOWS = frozenset({*FLATTENS, aten.select.int, aten.squeeze.dim, aten.squeeze.dims})
"""[1, *z] -> [*z]."""
RESHAPES = frozenset({*FLATTENS, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims})
"""What leaves numbers in their order."""
ARITHMETIC: dict[Any, Any] = {operator.mul: aten.mul.Tensor, operator.add: aten.add.Tensor,
                              operator.sub: aten.sub.Tensor, operator.truediv: aten.div.Tensor,
                              torch.sym_max: aten.clamp.default}
"""Of numbers -> of tensors."""
SIZE, COLUMN, WHERE, WHERE_OR_NUMBER, SUM, SUM_ALONG, PRODUCT, RATIO, TOTAL = (
    aten.sym_size.int, aten.select.int, aten.where.self, aten.where.ScalarOther, aten.sum.default, aten.sum.dim_IntList,
    aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor)
AT_LEAST, BELOW, BOTH, CLASS, ROWS = (
    aten.clamp.default, aten.lt.Scalar, aten.logical_and.default, aten.gather.default, aten.index.Tensor)
IN_ORDER = frozenset({aten.arange.default, aten.arange.start, aten.arange.start_step})
"""0, 1, 2, ... up to a number."""
COPYING = frozenset({aten.clone.default, aten.detach.default, aten.contiguous.default, aten.alias.default,
                     aten.to.dtype, aten._to_copy.default})
TURNING = frozenset({aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.mT.default})
SLICE, UNBIND = aten.slice.Tensor, aten.unbind.int
SPLITS = frozenset({aten.split.Tensor, aten.split_with_sizes.default})
LONGER, FLATTEN, VIEW, EXPAND, MOVE_AXIS, PERMUTE = (
    aten.unsqueeze.default, aten.flatten.using_ints, aten.view.default, aten.expand.default, aten.movedim.int,
    aten.permute.default)
NOT, ANY_TRUE = aten.logical_not.default, aten.any.default
RUNNING_SUM, SAME, DIFFERS, ANY, INVERSE = (
    aten.cumsum.default, aten.eq.Tensor, aten.ne.Scalar, aten.any.dims, aten.reciprocal.default)

# -- what does the same with each row ----------------------------------------------------------------------------------

_AXES: dict[int, list[str]] = {
    1: ["one_hot", "index", "embedding", "isin", "bucketize", "isfinite", "isclose", "__or__", "__and__", "__xor__",
        "true_divide", "floor_divide", "hardswish", "log_sigmoid", "log_sigmoid_forward", "special_digamma",
        "special_ndtr", "special_polygamma", "detach", "to", "_to_copy", "contiguous", "alias", "type_as", "copy",
        "lift_fresh_copy", "fill", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones",
        "new_full", "new_empty", "expand", "expand_as", "view", "_unsafe_view", "reshape", "flatten", "squeeze",
        "repeat", "tile", "einsum", "searchsorted", "broadcast_tensors", "column_stack", "complex", "real", "imag",
        "view_as_real", "view_as_complex", "constant_pad_nd", "pad", "layer_norm", "native_layer_norm",
        "rms_norm", "_fused_rms_norm", "dropout", "alpha_dropout", "feature_dropout", "native_dropout"],
    2: ["inner", "linear", "matmul", "mm", "addmm", "group_norm", "native_group_norm", "prelu", "_prelu_kernel",
        "bilinear", "batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "pairwise_distance"],
    3: ["bmm", "baddbmm", "scaled_dot_product_attention", "tril", "triu", "cdist", "_cdist_forward", "matrix_exp",
        "conv1d", "conv_transpose1d", "avg_pool1d", "max_pool1d", "max_pool1d_with_indices", "adaptive_avg_pool1d",
        "adaptive_max_pool1d", "reflection_pad1d", "replication_pad1d", "upsample_linear1d", "upsample_nearest1d",
        "col2im", "convolution", "channel_shuffle"],
    4: ["conv2d", "conv_transpose2d", "avg_pool2d", "max_pool2d", "max_pool2d_with_indices", "adaptive_avg_pool2d",
        "adaptive_max_pool2d", "reflection_pad2d", "replication_pad2d", "upsample_bilinear2d", "upsample_nearest2d",
        "upsample_bicubic2d", "pixel_shuffle", "pixel_unshuffle", "im2col", "grid_sampler"],
    5: ["conv3d", "conv_transpose3d", "avg_pool3d", "max_pool3d", "adaptive_avg_pool3d", "reflection_pad3d",
        "replication_pad3d"],
}
OF_ROWS: dict[Any, int] = {getattr(aten, name): axes for axes, names in _AXES.items() for name in names}
"""Operations that work row by row where all rows have so many axes, the first counted, though they name none."""
NOT_OF_ROWS: dict[Any, frozenset[str]] = {
    aten.linear: frozenset({"weight"}), aten.embedding: frozenset({"weight"}), aten.mm: frozenset({"mat2"}),
    aten.addmm: frozenset({"mat2"}), aten.inner: frozenset({"other"}), aten.isin: frozenset({"test_elements"}),
    aten.bucketize: frozenset({"boundaries"}), aten.searchsorted: frozenset({"sorted_sequence"}),
    aten.tensordot: frozenset({"other", "dims_other"})}
"""Arguments in which rows would meet each other, or that are not of rows."""
PLACES_OF_EACH = frozenset({aten.gather, aten.scatter, aten.scatter_add, aten.scatter_reduce})
"""What picks or puts in each row what this row's own index says."""
EINSUM, TILE = aten.einsum, aten.tile
MOVES, NORMS, PADS, BATCH_NORMS, SERIES, PRODUCTS_OF_MATRICES = (
    frozenset({aten.movedim, aten.moveaxis}), frozenset({aten.layer_norm, aten.native_layer_norm, aten.rms_norm}),
    frozenset({aten.pad, aten.constant_pad_nd}),
    frozenset({aten.batch_norm, aten._native_batch_norm_legit_no_training, aten._batch_norm_no_update}),
    frozenset({aten.ctc_loss, aten._ctc_loss}), frozenset({aten.matmul}))

# -- what stands where a mask picks nothing ----------------------------------------------------------------------------

WEIGHED = frozenset({
    aten.linear, aten.matmul, aten.mm, aten.bmm, aten.addmm, aten.einsum, aten.bilinear, aten.convolution, aten.conv1d,
    aten.conv2d, aten.conv3d, aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d})
"""Where a value meets a weight, of which A is a sum of u u^T."""
INDICES, PADDING = frozenset({"indices", "index", "target"}), "padding_idx"
"""Names of arguments whose whole numbers are places, and of the place that learns nothing."""
NAMES_CLASSES = frozenset({aten.one_hot})
"""Operations that take whole numbers for places, whatever the argument's name is, and raise where there is no such."""
DIVISOR: dict[Any, str] = {aten.div: "other", aten.true_divide: "other", aten.floor_divide: "other",
                           aten.remainder: "other", aten.fmod: "other", aten.addcdiv: "tensor2"}
"""By division, the argument that is not to be zero."""
POWERS = frozenset({aten.pow, aten.float_power})
SOMEWHERE_INFINITE: dict[Any, float] = {
    **dict.fromkeys([
        aten.sqrt, aten.rsqrt, aten.log, aten.log2, aten.log10, aten.log1p, aten.reciprocal, aten.acos, aten.asin,
        aten.atanh, aten.atan2, aten.hypot, aten.logit, aten.erfinv, aten.digamma, aten.lgamma, aten.polygamma,
        aten.xlogy, aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax, aten.logsumexp, aten.norm,
        aten.linalg_vector_norm, aten.binary_cross_entropy], 0.5),
    aten.acosh: 2.0}
"""Operations whose values or slopes are infinite, or none, for some numbers -> a number at which they are not."""
DEVIATIONS: dict[Any, Any] = {aten.std.default: aten.var.default, aten.std.dim: aten.var.dim,
                              aten.std.correction: aten.var.correction}
"""Roots, which have no slope in a row of equal numbers -> of what."""
ROOT = aten.sqrt.default

# -- what a mask that is all false leaves ------------------------------------------------------------------------------

ADDITIONS: dict[Any, bool] = {aten.add.Tensor: True, aten.add.Scalar: True, aten.sub.Tensor: False,
                              aten.sub.Scalar: False}
"""Sum or difference -> whether it is that of its second argument where the first is zero."""
BOTH_TRUE = frozenset({aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor})
ONE_TRUE = frozenset({aten.logical_or.default, aten.bitwise_or.Tensor, aten.__or__.Tensor})
TRUE_OF_AXES = frozenset({aten.any.dim, aten.any.dims, aten.all.dim, aten.all.dims})
SIDE_BY_SIDE = frozenset({aten.stack.default, aten.cat.default})
FILLS = frozenset({aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_scatter.default})
"""(values, mask, others) -> the values, with others where the mask is true."""
SCATTERS = frozenset({aten.scatter.src, aten.scatter.value, aten.scatter_add.default, aten.scatter_reduce.two})
"""(values, axis, places, others) -> the values with these in place."""
MAY_BE_INFINITE = frozenset({
    aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.reciprocal.default, aten.rsqrt.default,
    aten.sqrt.default, aten.log.default, aten.log2.default, aten.log10.default, aten.pow.Tensor_Scalar,
    aten.pow.Tensor_Tensor, aten.pow.Scalar, aten.remainder.Scalar, aten.remainder.Tensor, operator.truediv,
    operator.floordiv, operator.mod, operator.pow})
"""Themselves or their slopes, where an argument is zero."""
PRODUCTS = frozenset({aten.mul.Tensor, aten.mul.Scalar})
KEEPS_NUMBERS = frozenset({*COPYING, *TURNING, *FLATTENS, aten.select.int, aten.slice.Tensor, aten.expand.default,
                           aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims})
"""What is the same number everywhere where its first argument is."""
KEEPS_ZERO = frozenset({*KEEPS_NUMBERS, *SUMS, *TRUE_OF_AXES, aten.neg.default, aten.square.default, aten.abs.default,
                        aten.relu.default, aten.tanh.default})
"""What is zero everywhere where its first argument is."""
PARTS: dict[Any, bool] = {aten.max.default: False, aten.amax.default: False, aten.mean.default: True}
"""Number that all elements make -> whether it is their mean, not the largest."""
ANY_OF_ALL, ALL_OF_ALL, ITEMS, INVERSES, NUMBER_OF_TRUE = (
    frozenset({aten.any.default}), frozenset({aten.all.default}),
    frozenset({aten.item.default, aten._local_scalar_dense.default}),
    frozenset({aten.logical_not.default, aten.bitwise_not.default}),
    frozenset({aten.sum.default, aten.count_nonzero.default}))
COMPARED: dict[Any, Any] = {aten.gt.Scalar: operator.gt, aten.ge.Scalar: operator.ge, aten.lt.Scalar: operator.lt,
                            aten.le.Scalar: operator.le, aten.eq.Scalar: operator.eq, aten.ne.Scalar: operator.ne}
"""Comparison with a number -> of Python's."""
ZEROS = frozenset({aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default})

# -- how operations are written ---------------------------------------------------------------------------------------

OPERATORS: dict[Any, Any] = {
    aten.gt: operator.gt, aten.ge: operator.ge, aten.lt: operator.lt, aten.le: operator.le, aten.eq: operator.eq,
    aten.ne: operator.ne, aten.add: operator.add, aten.sub: operator.sub, aten.mul: operator.mul,
    aten.div: operator.truediv, aten.remainder: operator.mod, aten.pow: operator.pow, aten.matmul: operator.matmul,
    aten.neg: operator.neg, aten.bitwise_not: operator.invert, aten.bitwise_and: operator.and_,
    aten.bitwise_or: operator.or_,
}
"""Operation -> the operator of Python that tensors have for it."""

# -- what asks for NaN ------------------------------------------------------------------------------------------------

ASKS_FOR_NAN = frozenset({aten.isnan, aten.isfinite, aten.nan_to_num})
COMPARES = frozenset({aten.eq, aten.ne, aten.gt, aten.ge, aten.lt, aten.le})
"""Of NaN nothing but `ne` is true."""
