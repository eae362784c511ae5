"""Operations of ATen that have no rule: why some cannot be differentiated, and how others are tried out.

What torch calls core and has neither a rule nor stands here, nor in `decompositions`, is found by the tests.
"""

from __future__ import annotations

from collections.abc import Mapping

from hbpcompiler.rule import Case

_BACKWARD = "a backward pass, which only autograd inside a model makes; take derivatives outside the model"

REFUSED: Mapping[str, str] = {
    "aten._adaptive_avg_pool2d_backward": _BACKWARD,
    "aten.avg_pool2d_backward": _BACKWARD,
    "aten.convolution_backward": _BACKWARD,
    "aten.embedding_dense_backward": _BACKWARD,
    "aten.max_pool2d_with_indices_backward": _BACKWARD,
    "aten.native_group_norm_backward": _BACKWARD,
    "aten.native_layer_norm_backward": _BACKWARD,
    "aten._embedding_bag": "one row of indices for all bags has no sample axis; nn.EmbeddingBag and F.embedding_bag of "
                           "indices [N, length], without max_norm and scale_grad_by_freq, can be compiled",
    "aten._local_scalar_dense": "a number made of a tensor's values (item()), which a compiled program cannot follow",
    "aten._pdist_forward": "distances between the rows of one matrix, which are samples; torch.cdist has a rule",
    "aten.as_strided": "a view of memory that knows nothing of axes; use slices, select, unfold or reshape",
    "aten.convolution": "one name for all convolutions; F.conv1d, F.conv_transpose1d and so on have rules",
    "aten.masked_scatter": "what a sample gets depends on how many elements the masks of those before it take; use "
                           "torch.where(mask, source, x), with a source of x's shape, or x.scatter",
    "aten.prod.default": "the product over everything mixes the samples; take it over axes after the sample axis",
    "aten.scatter_reduce": "what it keeps depends on all that meets at a place; use scatter, scatter_add or index_add",
}
"""Core operations that cannot be differentiated here, and why, which an error says where a model has one of them; those
with an overload mean that one alone."""

WRONG_DERIVATIVES: Mapping[str, str] = {
    "aten.as_strided_scatter": "torch's own derivative of it is wrong (2.13, 2.14): it goes to the places that are "
                               "written, not to the others; write through slices, select, diagonal or reshape",
}
"""Operations of which no rule is derived, as torch differentiates them wrongly."""

COMPLEX = ("aten._fft_c2r", "aten._fft_r2c")
"""Core operations to and from complex numbers: what lies between real values has one rule, made of torch's
derivatives."""

DECOMPOSED: Mapping[str, Case] = {
    "aten.reflection_pad1d": Case({"self": (2, 3)}, {"padding": [1, 2]}),
    "aten.reflection_pad2d": Case({"self": (1, 3, 3)}, {"padding": [1, 0, 2, 1]}),
    "aten.reflection_pad3d": Case({"self": (1, 2, 2, 3)}, {"padding": [1, 0, 0, 1, 1, 1]}),
    "aten.replication_pad2d": Case({"self": (1, 3, 2)}, {"padding": [1, 0, 2, 1]}),
    "aten.replication_pad3d": Case({"self": (1, 2, 1, 2)}, {"padding": [1, 0, 0, 1, 1, 1]}),
}
"""A use of each core operation that torch's own table takes apart, on which this is tried."""
