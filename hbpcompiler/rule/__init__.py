"""The vocabulary in which derivative rules are written: `Op`, `Rule`, `Contraction` and the kinds of residual.

A rule is a handful of plain torch functions about one operation. Each function takes an `Op`, which carries the
operation's tensors and attributes under their ATen names (`op.input`, `op.weight`, `op.stride`, ...). The compiler
calls the functions with torch.fx proxies, and so writes generated code; the tests call them with real tensors.

Letters, here and in every rule: n sample, k column, p position, i input feature, o output feature, g group.
Shapes: a value z is [N, *z]; cotangent columns at z are [N, K, *z].

What must be said of an operation, and what may be:

    operations, residual    its ATen names, and its second derivative: ZERO, Diagonal(...) or Factor(...)
    jac_t                   columns at the result -> columns at each input (or `derivative`, of what is elementwise)
    params                  a `Contraction`, an einsum, for each input that may be a parameter
    forward                 the result, and what the backward pass wants saved; else torch's operation itself
    cases                   settings on which `hbpcompiler.testing.check_rule` compares all of this with autograd

That suffices. The rest lets the planner do better, and is never an operation's name:

    structure, derivative   what the Jacobian is like: constant, elementwise, a selection (of known places: `Selection`)
    backward                jac_t for one column, where torch has a kernel for it
    window                  the neighbourhood that an output reads (`Window`)
    expression, order       the operation in sympy; or, for what has no such form, that it rises, falls or is convex
    merged                  whether samples may come as [N, p, *z]
    refuse                  why this very use has no derivative, and what to write in its place

A `LossRule` says the same of a loss: its gradient, residual and reduction per sample, how its curvature is sampled, and
what targets it takes. `ModuleRule` and `Decomposition` write a module, or an operation, in operations that have rules.
"""

import torch
from torch import Tensor

from hbpcompiler.rule.case import Case
from hbpcompiler.rule.contraction import Contraction
from hbpcompiler.rule.crossing import masked, times_slope
from hbpcompiler.rule.derivatives import bend_of, passing_of, pulled_back, residual_columns, slope_of, vjp
from hbpcompiler.rule.helpers import called, computed, merge, operand_symbol, otherwise_called, split, vmap_columns
from hbpcompiler.rule.idioms import (
    fused_attention,
    fused_attention_back,
    passed,
    scatter_to,
    spread_select,
    spread_slice,
    standardised_back,
)
from hbpcompiler.rule.layout import Layout
from hbpcompiler.rule.op import Op, Shape
from hbpcompiler.rule.pooling import (
    adaptive_avg_pool2d_back,
    adaptive_avg_pool3d_back,
    avg_pool2d_back,
    avg_pool3d_back,
)
from hbpcompiler.rule.probabilities import (
    counted_labels,
    covariance_root,
    not_negative,
    sampled_columns,
    softmax_as_laid,
)
from hbpcompiler.rule.recurrences import (
    first_state,
    gru_steps,
    gru_steps_back,
    lstm_steps,
    lstm_steps_back,
    rnn_steps,
    rnn_steps_back,
    shifted,
)
from hbpcompiler.rule.residual import PIECES, ZERO, Diagonal, Factor, Noise, Pieces, Residual, Zero
from hbpcompiler.rule.rule import (
    NO_DERIVATIVE,
    Forward,
    JacT,
    LossRule,
    ModuleRule,
    Rule,
    elementwise_jac_t,
    flat,
)
from hbpcompiler.rule.structure import Selection, Structure
from hbpcompiler.rule.window import Window, flat_positions, pad_axes, patches

__all__ = [
    "NO_DERIVATIVE",
    "PIECES",
    "ZERO",
    "Case",
    "Contraction",
    "Diagonal",
    "Factor",
    "Forward",
    "JacT",
    "Layout",
    "LossRule",
    "ModuleRule",
    "Noise",
    "Op",
    "Pieces",
    "Residual",
    "Rule",
    "Selection",
    "Shape",
    "Structure",
    "Tensor",
    "Window",
    "Zero",
    "adaptive_avg_pool2d_back",
    "adaptive_avg_pool3d_back",
    "avg_pool2d_back",
    "avg_pool3d_back",
    "bend_of",
    "called",
    "computed",
    "counted_labels",
    "covariance_root",
    "elementwise_jac_t",
    "first_state",
    "flat",
    "flat_positions",
    "fused_attention",
    "fused_attention_back",
    "gru_steps",
    "gru_steps_back",
    "lstm_steps",
    "lstm_steps_back",
    "masked",
    "merge",
    "not_negative",
    "operand_symbol",
    "otherwise_called",
    "pad_axes",
    "passed",
    "passing_of",
    "patches",
    "pulled_back",
    "residual_columns",
    "rnn_steps",
    "rnn_steps_back",
    "sampled_columns",
    "scatter_to",
    "shifted",
    "slope_of",
    "softmax_as_laid",
    "split",
    "spread_select",
    "spread_slice",
    "standardised_back",
    "times_slope",
    "torch",
    "vjp",
    "vmap_columns",
]
