"""What stages know of torch's own operations that no rule says: how traces write, what kernels do with memory.

Of users' operations they know what rules and torch's schemas say.
"""

from __future__ import annotations

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
WRITTEN_OUT = frozenset({aten.native_batch_norm.default})
"""What torch takes apart though its schema does not say so: it changes its statistics."""
MISREAD = aten.nll_loss.default
"""Of reduction="none" torch's table of decompositions reads the number as another argument's."""
VIEWS = frozenset({aten.view, aten._unsafe_view})
"""Views that a graph without copies cannot always have: where memory lies otherwise, they are a copy."""
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
