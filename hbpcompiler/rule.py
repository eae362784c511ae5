"""The vocabulary in which derivative rules are written: `Op`, `Rule`, `Contraction` and the kinds of residual.

A rule is a handful of plain torch functions about one operation. Each function takes an `Op`, which carries the
operation's tensors and attributes under their ATen names (`op.input`, `op.weight`, `op.stride`, ...). The compiler
calls the functions with torch.fx proxies, and so writes generated code; the tests call them with real tensors.

Letters, here and in every rule: n sample, k column, p position, i input feature, o output feature, g group.
Shapes: a value z is [N, *z]; cotangent columns at z are [N, K, *z].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import sympy
import torch
from torch import Tensor

from hbpcompiler.op import Op, Shape

# Functions of rules, as the compiler calls them.
Forward = Callable[[Op], Any]
"""op -> output [N, *out], or (output, {name: saved tensor})."""
JacT = Callable[..., Tensor]
"""(op, columns [N, K, *out]) -> columns [N, K, *in]; one of a list of tensors gets its index as a third argument."""


class Structure(Enum):
    """What the planner may exploit of an operation's Jacobian, whatever the operation is."""

    GENERAL = "general"
    """Nothing is known."""
    CONSTANT = "constant"
    """The Jacobian in the differentiated inputs is the same for every sample (a linear map with shared weights)."""
    ELEMENTWISE = "elementwise"
    """Output and input have one shape and the Jacobian is diagonal: the rule gives `derivative`."""
    SELECTION = "selection"
    """Every output copies at most one input (reshape, permutation, padding, max-pooling): coefficients 0 or 1."""


@dataclass(frozen=True)
class Zero:
    """The operation is (piecewise) linear in its differentiated inputs: stated, never assumed."""


@dataclass(frozen=True)
class Diagonal:
    """The residual is diagonal in the one differentiated input.

    `diagonal(op, gradient [N, *out]) -> [N, *in]` (losses: `diagonal(op) -> [N, *in]`).
    """

    diagonal: Callable[..., Tensor]


@dataclass(frozen=True)
class Factor:
    """The residual is F diag(sigma) F^T, the same columns at every differentiated input of the operation.

    `count(op)` is the number K of columns. `factor(op, gradient [N, *out]) -> ({input: [N, K, *in]}, signs)` with
    signs [N, K] in {-1, +1}, or None if all are +1 (losses: `factor(op)`).
    """

    count: Callable[[Op], int]
    factor: Callable[..., tuple[Mapping[str, Tensor], Tensor | None]]


Residual = Zero | Diagonal | Factor
ZERO = Zero()


@dataclass(frozen=True)
class Sliding:
    """An operand made of windows that slide along one axis, row by row.

    The feature (c, a, b) of the operand at position (y, q) is `rows(op)[n, (c, b), y + step * a, q]`, for the places
    a < `window` and y < `height`; c < `outer` counts the features in front of a.
    """

    rows: Callable[[Op], Tensor]
    """[N, features apart from a, height + step * (window - 1), positions in a row]."""
    window: int
    step: int
    height: int
    outer: int


@dataclass(frozen=True)
class Window:
    """Outputs that read a neighbourhood: along each spatial axis, output y reads inputs stride * y - before +
    dilation * a for a < `size`, of all inputs that have samples, [N, channels, *spatial].

    With the attributes `unpadded` the same operation makes some of its outputs of a piece of its input; where that
    reaches beyond the image, `fill` stands there.
    """

    size: Sequence[int]
    stride: Sequence[int]
    dilation: Sequence[int]
    before: Sequence[int]
    unpadded: Mapping[str, Any] = field(default_factory=dict)
    fill: float = 0.0


@dataclass(frozen=True)
class Contraction:
    """A parameter's cotangent as an einsum, which is all that an operation says about a parameter.

    `equation` has the columns first, then (unless the parameter is added, as a bias is) the operand that the parameter
    meets: "nkpo,npi->nkoi". There is at most one summed letter, p, of length 1 or more; without shared positions it is
    absent. The result, [N, K, *letters], reshapes to the parameter's shape.
    """

    equation: str
    columns: Callable[[Op, Tensor], Tensor] = lambda op, columns: columns
    """columns at the output, [N, K, *out] -> the first operand; its entries are entries of the columns or sums of them
    (coefficients 0 and 1, so that squares go the same way)."""
    operand: Callable[[Op], Tensor] | None = None
    """the second operand; it may read saved tensors, which the compiler then slices over samples."""
    summed: Callable[[Op, Tensor], Tensor] | None = None
    """optional: cotangent [N, *out] -> the parameter's cotangent summed over samples, where torch has a kernel that
    beats the einsum (see benchmarks/)."""
    of_sample: Callable[[Op, Tensor], Tensor] | None = None
    """optional: columns [1, K, *out] of a single sample -> [K, *parameter], by such a kernel."""
    flat: bool = False
    """Whether `columns` is the output with its axes behind the first, the channels, flattened to p: "nkop"."""

    sliding: Sliding | None = None
    """optional: how the operand's patches arise from rows."""

    @property
    def letters(self) -> tuple[str, str, str]:
        """The letters of columns, operand ("" if none) and result."""
        left, result = self.equation.split("->")
        first, _, second = left.partition(",")
        return first, second, result


@dataclass(frozen=True)
class Case:
    """One setting that a rule's tests run on: tensors are drawn at random, float64, from the shapes.

    `shapes` lists the tensor arguments by name (a list of shapes for a list of tensors); those in
    `batched` begin with the sample axis.
    """

    shapes: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    batched: Sequence[str] = ("input", "self", "target")
    overload: str = ""
    index: int = 0
    make: Mapping[str, Callable[[Sequence[int]], Tensor]] = field(default_factory=dict)
    """how to draw an argument that is no normal random tensor (class indices, probabilities, running variances)."""
    constant: Sequence[str] = ()
    """tensors that carry no derivatives in this case, though the rule could send columns there."""
    domain: tuple[float, float] = (float("-inf"), float("inf"))
    """ELEMENTWISE: between these limits the operation's derivatives are tested at extreme values too."""


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


# -- small helpers that keep rules short -----------------------------------------------------------------------------


def called(name: str, value: Tensor) -> Tensor:
    """`value`, under this name in the generated file."""
    proxy: Any = value  # what the compiler passes where rules see a tensor
    if isinstance(proxy, torch.fx.Proxy) and not proxy.node.meta.get("hint"):
        proxy.node.meta["hint"] = name
    return value


def computed(rule: Rule | LossRule, op: Op) -> tuple[Any, Mapping[str, Any]]:
    """What the rule's `forward` makes, and what it saves for the backward pass."""
    assert rule.forward is not None
    made = rule.forward(op)
    return made if isinstance(made, tuple) else (made, {})


def operand_symbol(name: str) -> Any:
    """The sympy symbol that stands for a tensor argument in `Rule.expression`."""
    return sympy.Symbol(f"operand_{name}", real=True)


def merge(columns: Tensor) -> Tensor:
    """[N, K, *z] -> [N*K, *z], for torch functions that know one batch axis."""
    return columns.flatten(0, 1)


def split(merged: Tensor, columns: Tensor) -> Tensor:
    """[N*K, *z] -> [N, K, *z], with N and K of `columns`."""
    return merged.unflatten(0, columns.shape[:2])


def elementwise_jac_t(derivative: Callable[[Op], Tensor]) -> JacT:
    """The transposed Jacobian of an elementwise operation: columns times the local derivative."""

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        return columns * derivative(op).unsqueeze(1)

    return jac_t


def vmap_columns(function: Callable[[Tensor], Tensor]) -> JacT:
    """jac_t from a function that maps [B, *out] to [B, *in] for any batch, the same for each sample."""

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        return split(function(merge(columns)), columns)

    return jac_t


__all__ = [
    "ZERO",
    "Case",
    "Contraction",
    "Diagonal",
    "Factor",
    "LossRule",
    "ModuleRule",
    "Op",
    "Rule",
    "Shape",
    "Sliding",
    "Structure",
    "Tensor",
    "Window",
    "called",
    "computed",
    "elementwise_jac_t",
    "merge",
    "operand_symbol",
    "split",
    "torch",
]
