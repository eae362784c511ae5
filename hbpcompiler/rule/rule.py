"""`Rule`, `LossRule` and `ModuleRule`: what one file of rules says of its operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule.case import Case
from hbpcompiler.rule.contraction import Contraction
from hbpcompiler.rule.layout import Layout
from hbpcompiler.rule.op import Op, Shape
from hbpcompiler.rule.residual import Diagonal, Factor, Residual, Zero
from hbpcompiler.rule.structure import Structure, Window

# Functions of rules, as the compiler calls them.
Forward = Callable[[Op], Any]
"""op -> output [N, *out], or (output, {name: saved tensor})."""
JacT = Callable[..., Tensor]
"""(op, columns [N, K, *out]) -> columns [N, K, *in]; one of a list of tensors gets its index as a third argument."""


@dataclass(frozen=True)
class Rule:
    """All that the compiler knows about an operation.

    `operations` are ATen names without overload ("aten.linear"). `jac_t` has one function per input that may carry a
    derivative and `residual` must be stated (a function of op where it depends on the use).
    """

    operations: Sequence[str]
    residual: Residual | Callable[[Op], Residual]
    jac_t: Mapping[str, JacT] = field(default_factory=dict)
    params: Callable[[Op], Mapping[str, Contraction]] = lambda op: {}
    """op -> a contraction for each input that may be a parameter (its equation may depend on shapes)."""
    forward: Forward | None = None
    """None: the ATen operation itself is written into the program."""
    structure: Structure | Callable[[Op], Structure] = Structure.GENERAL
    derivative: Callable[[Op], Tensor] | None = None
    """ELEMENTWISE: the local derivative [N, *out]."""
    rows: Callable[[Op], Tensor | None] | None = None
    """CONSTANT, optional: the Jacobian's rows [*out flattened, *in] where they lie in memory already (a weight)."""
    scattered: Callable[[Op], Tensor | None] = lambda op: None
    """SELECTION, optional: for outputs [N, c, *out] that copy each one input of their own channel, which one:
    [N, c, out flattened] of numbers in the flattened input positions; None where there are no channels."""
    window: Callable[[Op], Window | None] = lambda op: None
    """optional: which neighbourhood of its inputs with spatial axes an output reads."""
    layout: Layout | None = None
    """optional: how images had better lie in memory for its kernels."""
    expression: Callable[[Op], Any] | None = None
    """ELEMENTWISE, optional: the operation in sympy, in the symbols `operand_symbol(name)` of its tensors (None at a
    use that has no such form). Operations of one module that act on one value are then taken together (see `fuse`), so
    that it must be true to the value and, derived by sympy, to both derivatives: `check_rule` compares them."""
    increasing: bool = False
    """Whether no result falls when an input that carries derivatives rises (sums, maxima)."""
    convex: bool = False
    """Whether all results are convex in the inputs that carry derivatives. Both let a loss be known as convex."""
    refuse: Callable[[Op], str | None] = lambda op: None
    """why this very use cannot be differentiated, and what to do about it; None if it can."""
    merged: bool = False
    """Whether `forward` and all else count no axis from the front, so that [p*N, *z], a sample axis with positions
    merged into it, may come as [N, p, *z]."""
    without_samples: Callable[[Op], bool] = lambda op: False
    """Whether, at this use, `jac_t` and `params` also serve a result without sample axis, whose columns are
    [N, K, *out] all the same: a function of parameters and constants alone (the embedding of positions)."""
    cases: Sequence[Case] = ()

    def __post_init__(self) -> None:
        if not (callable(self.residual) or isinstance(self.residual, Zero | Diagonal | Factor)):
            raise TypeError(f"rule for {self.operations}: residual must be ZERO, Diagonal(...) or Factor(...)")
        if not callable(self.structure) and (self.structure is Structure.ELEMENTWISE) != (self.derivative is not None):
            raise TypeError(f"rule for {self.operations}: structure ELEMENTWISE and `derivative` go together")

    def residual_of(self, op: Op) -> Residual:
        """The residual of this very use."""
        return self.residual if isinstance(self.residual, Zero | Diagonal | Factor) else self.residual(op)

    def elementwise_in(self, op: Op) -> bool:
        """Whether, at this use, columns cross by one product with `derivative`: only one input carries them."""
        alone = sum(op.varies(name) for name in self.jac_t) == 1 and len(op.varying() or "1") == 1
        return self.structure_of(op) is Structure.ELEMENTWISE and alone

    def structure_of(self, op: Op) -> Structure:
        """The structure of this very use."""
        return self.structure if isinstance(self.structure, Structure) else self.structure(op)


@dataclass(frozen=True)
class LossRule:
    """A scalar loss L of the model's output; in terms of per-sample losses l_n with L = mean_n l_n or sum_n l_n.

    `residual` is the Hessian of l_n in the input. Without `sample`, random-sign combinations of its columns are taken.
    """

    operations: Sequence[str]
    residual: Residual | Callable[[Op], Residual]
    gradient: Callable[[Op], Tensor]
    """grad of l_n, [N, *in]."""
    reduction: Callable[[Op], str]
    """"mean", "sum" or "none"."""
    input: str = "self"
    forward: Forward | None = None
    sample: Callable[[Op, int], Tensor] | None = None
    """(op, M) -> [N, M, *in] columns s with E[sum_m s s^T] = Hessian of l_n."""
    check: Callable[[Op, Tensor], str | None] = lambda op, target: None
    """(op, target) -> what is wrong with this target's values, or None."""
    target_shape: Callable[[Op], Sequence[Shape]] | None = None
    """the target shapes, without the sample axis, that the loss takes for this output; None: it does not say."""
    increasing: bool = False
    """Whether `gradient` is never negative (sums, means)."""
    refuse: Callable[[Op], str | None] = lambda op: None
    positions: int | None = None
    """Where an axis of positions may stand, so that [p*N, *z], samples with positions merged into them, has the loss of
    the positions taken apart: 1, [N, p, *z], if elements count alike; 2, [N, C, p, *z], if axis 1 holds classes."""
    cases: Sequence[Case] = ()

    def residual_of(self, op: Op) -> Residual:
        """The residual of this very use."""
        return self.residual if isinstance(self.residual, Zero | Diagonal | Factor) else self.residual(op)


@dataclass(frozen=True)
class ModuleRule:
    """A module that is traced through an equivalent of its forward, written in operations that have rules.

    For modules whose own forward moves the sample axis, or calls one kernel that cannot be differentiated by rules.
    """

    module: type[torch.nn.Module]
    forward: Callable[..., Any]
    """(module, *its arguments) -> what the module returns."""
    refuse: Callable[[Any], str | None] = lambda module: None
    """why this very module cannot be, and what to do about it; None if it can."""
