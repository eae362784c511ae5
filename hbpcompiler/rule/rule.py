"""`Rule`, `LossRule` and `ModuleRule`: what one file of rules says of its operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hbpcompiler.rule.case import Case
from hbpcompiler.rule.contraction import Contraction
from hbpcompiler.rule.crossing import times_slope
from hbpcompiler.rule.fields import (
    check_by_argument,
    check_cases,
    check_functions,
    check_kind,
    check_module,
    check_operations,
)
from hbpcompiler.rule.layout import Layout
from hbpcompiler.rule.op import Op, first_tensor
from hbpcompiler.rule.residual import Diagonal, Factor, Residual, Zero
from hbpcompiler.rule.structure import Selection, Structure
from hbpcompiler.rule.window import Window

# Functions of rules, as the compiler calls them.
Forward = Callable[[Op], Any]
"""op -> output [N, *out], or (output, {name: saved tensor})."""
JacT = Callable[..., Tensor]
"""(op, columns [N, K, *out]) -> columns [N, K, *in]; one of a list of tensors gets its index as a third argument."""
Backward = Callable[[Op, Tensor], Tensor]
"""(op, cotangent [N, *out]) -> cotangent [N, *in]."""
Order = Literal["increasing", "decreasing", "convex", "concave"]
NO_DERIVATIVE: Mapping[str, JacT] = MappingProxyType({})
"""The `jac_t` of what counts as a constant (detach): parameters above have no gradient at all."""


def flat(op: Op) -> Tensor:
    """The `derivative` of what is flat everywhere (round): torch's gradient is zero."""
    return torch.full_like(op.self, 0)


@dataclass(frozen=True)
class Stated:
    """What a rule and a rule of a loss say in the same words.

    `operations` are ATen names without overload ("aten.linear"), and `residual` must be stated (a function of op where
    it depends on the use).
    """

    operations: Sequence[str]
    residual: Residual | Callable[[Op], Residual]
    _: KW_ONLY
    forward: Forward | None = None
    """None: the ATen operation itself is written into the program."""
    formula: str | Callable[[Op], str] = ""
    """A line, or a function of op that returns it, that stands above the operation's part of a backward pass. What
    columns S become at the inputs, "S W"; and what is born where it is curved: "p * (S - <S, p>);  residual: diag(p) -
    p p^T". Of x, S, g and y. May be left out where `derivative` says all. Of a loss: l_n of an output x and a target y,
    "(x - y)^2"."""
    order: tuple[Order, ...] = ()
    """By which a loss may be known as convex: "increasing", if no result falls when an input that carries derivatives
    rises (sums, maxima), "decreasing", if none rises, "convex" or "concave", if all results are so in these inputs. An
    `expression` says it by itself. Of a loss: "increasing", if `gradient` is never negative (sums, means),
    "decreasing", if it is never positive: for every target that `check` lets pass."""
    refuse: Callable[[Op], str | None] = lambda op: None
    """why this very use cannot be differentiated, and what to do about it; None if it can."""
    cases: Sequence[Case] = ()

    def __post_init__(self) -> None:
        check_operations(type(self).__name__, self.operations)
        kind = self._kind
        if not callable(self.residual):
            check_kind(kind, "residual", self.residual, Zero | Diagonal | Factor,
                       "ZERO, PIECES, Diagonal(...) or Factor(...), or a function of op that returns one")
        check_functions(kind, self, ["refuse"], ["forward"])
        if not callable(self.formula):
            check_kind(kind, "formula", self.formula, str, "a line of text, or a function of op that returns one")
        check_cases(kind, self.cases, Case)
        if not isinstance(self.order, tuple) or not set(self.order) <= set(get_args(Order)):
            raise TypeError(f"{kind}: order must be some of {get_args(Order)} in a tuple, not {self.order!r}")

    @property
    def _kind(self) -> str:
        """How the rule is called in errors."""
        return f"rule for {', '.join(self.operations)}"

    def formula_of(self, op: Op) -> str:
        """What stands above this very use."""
        return self.formula(op) if callable(self.formula) else self.formula

    def residual_of(self, op: Op) -> Residual:
        """The residual of this very use."""
        return self.residual if isinstance(self.residual, Zero | Diagonal | Factor) else self.residual(op)


@dataclass(frozen=True)
class Rule(Stated):
    """All that the compiler knows about an operation.

    `jac_t` has one function per input that may carry a derivative (left out where `derivative` says it of the
    operation's first tensor; NO_DERIVATIVE if none does).
    """

    jac_t: Mapping[str, JacT] = field(default_factory=dict)
    backward: Mapping[str, Backward] = field(default_factory=dict)
    """optional: what `jac_t` does, for inputs where torch has a kernel that does it faster for one column per sample,
    as its own backward pass has (see benchmarks/)."""
    params: Callable[[Op], Mapping[str, Contraction]] = lambda op: {}
    """op -> a contraction for each input that may be a parameter (its equation may depend on shapes)."""
    structure: Structure | Selection | Callable[[Op], Structure | Selection] = Structure.GENERAL
    derivative: Callable[[Op], Tensor] | None = None
    """ELEMENTWISE: the local derivative [N, *out]; `flat` if it is zero everywhere."""
    window: Callable[[Op], Window | None] = lambda op: None
    """optional: which neighbourhood of its inputs with spatial axes an output reads."""
    layout: Layout | None = None
    """optional: how images had better lie in memory for its kernels."""
    expression: Callable[[Op], Any] | None = None
    """ELEMENTWISE, optional: the operation in sympy, in the symbols `operand_symbol(name)` of its tensors (None at a
    use that has no such form). Operations of one module that act on one value are then taken together (see `fuse`), so
    that it must be true to the value and, derived by sympy, to both derivatives: `check_rule` compares them."""
    merged: bool = False
    """Whether `forward` and all else count no axis from the front, so that [p*N, *z], a sample axis with positions
    merged into it, may come as [N, p, *z]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self._kind
        check_by_argument(kind, self, ["jac_t", "backward"])
        check_functions(kind, self, ["params", "window"], ["derivative", "expression"])
        if not callable(self.structure):
            check_kind(kind, "structure", self.structure, Structure | Selection,
                       "one of Structure, a Selection, or a function of op")
        check_kind(kind, "layout", self.layout, Layout | None, "one of Layout, or None")
        check_kind(kind, "merged", self.merged, bool, "True or False")
        if not callable(self.structure) and (self.structure is Structure.ELEMENTWISE) != (self.derivative is not None):
            raise TypeError(f"rule for {self.operations}: structure ELEMENTWISE and `derivative` go together")
        if not self.jac_t and self.derivative is not None:
            name = first_tensor(self.operations[0])
            if name is None:
                raise TypeError(f"rule for {self.operations}: torch knows no such operation yet, so give `jac_t` too")
            object.__setattr__(self, "jac_t", {name: elementwise_jac_t(self.derivative)})

    def elementwise_in(self, op: Op) -> bool:
        """Whether, at this use, columns cross by one product with `derivative`: only one input carries them."""
        alone = sum(op.varies(name) for name in self.jac_t) == 1 and len(op.varying() or "1") == 1
        return self.structure_of(op) is Structure.ELEMENTWISE and alone

    def structure_of(self, op: Op) -> Structure:
        """The structure of this very use."""
        structure = self._structure(op)
        return Structure.SELECTION if isinstance(structure, Selection) else structure

    def selected(self, op: Op) -> Tensor | None:
        """Which input each output copies (see `Selection`), where that is known."""
        structure = self._structure(op)
        return structure.index(op) if isinstance(structure, Selection) else None

    def _structure(self, op: Op) -> Structure | Selection:
        return self.structure if isinstance(self.structure, Structure | Selection) else self.structure(op)


def elementwise_jac_t(derivative: Callable[[Op], Tensor]) -> JacT:
    """The transposed Jacobian of an elementwise operation: columns times the local derivative."""

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        return times_slope(columns, derivative(op))

    return jac_t


@dataclass(frozen=True)
class LossRule(Stated):
    """A scalar loss L of the model's output; in terms of per-sample losses l_n with L = mean_n l_n or sum_n l_n.

    `residual` is the Hessian of l_n in the input. Without `sample`, random-sign combinations of its columns are taken.
    """

    gradient: Callable[[Op], Tensor]
    """grad of l_n, [N, *in]."""
    reduction: Callable[[Op], str]
    """"mean", "sum" or "none"."""
    each: Callable[[Op], Tensor] | None = None
    """l_n, [N]; for batch_loss, and for calls with sample_weights. None: neither is possible."""
    sample: Callable[[Op, int], Tensor] | None = None
    """(op, M) -> [N, M, *in] columns s with E[sum_m s s^T] = Hessian of l_n."""
    check: Callable[[Op, Tensor], str | None] = lambda op, target: None
    """(op, target) -> what is wrong with this target ("has shape ...", or a sentence about its values), or None. It is
    the target as it came, which may have another shape than the loss reads, `op.shape("target")`."""
    terms: Callable[[Op, Tensor], int | None] | None = None
    """(op, target) -> over how many terms a mean goes, where the target decides that; None if more than it decides. A
    rule without it means over all elements. The target is as for `check`."""
    doubts: Mapping[str, str] = field(default_factory=dict)
    """By an operation that may have made its input, "aten.sigmoid", why this loss hardly is meant behind it, and what
    to do: a warning."""
    positions: int | None = None
    """Where an axis of positions may stand, so that [p*N, *z], samples with positions merged into them, has the loss of
    the positions taken apart: 1, [N, p, *z], if elements count alike; 2, [N, C, p, *z], if axis 1 holds classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self._kind
        if isinstance(self.reduction, str):
            raise TypeError(f"{kind}: reduction must be a function of op, lambda op: {self.reduction!r}")
        check_functions(kind, self, ["gradient", "reduction", "check"], ["each", "sample", "terms"])
        if not {"convex", "concave"}.isdisjoint(self.order):
            raise TypeError(f"{kind}: a LossRule's order is that of slopes, 'increasing' or 'decreasing'; 'convex' and "
                            "'concave' are for a Rule")
        if not isinstance(self.doubts, Mapping) or not all(
                isinstance(text, str) for text in (*self.doubts, *self.doubts.values())):
            raise TypeError(f"{kind}: doubts must be a dict, {{'aten.sigmoid': 'why not behind it'}}, "
                            f"not {self.doubts!r}")
        if self.positions not in (None, 1, 2):
            raise TypeError(f"{kind}: positions must be 1, 2 or None, not {self.positions!r}")

    @property
    def input(self) -> str:
        """The argument that is the model's output: the operation's first tensor."""
        return first_tensor(self.operations[0]) or "self"


@dataclass(frozen=True)
class ModuleRule:
    """A module that is traced through an equivalent of its forward, written in operations that have rules.

    For modules whose own forward moves the sample axis, or calls one kernel that cannot be differentiated by rules.
    """

    module: type[torch.nn.Module]
    forward: Callable[..., Any]
    """(module, *its arguments) -> what the module returns. NotImplementedError(why, and what to write instead) refuses
    these arguments."""
    refuse: Callable[[Any], str | None] = lambda module: None
    """why this very module cannot be, and what to do about it; None if it can."""

    def __post_init__(self) -> None:
        check_module(self.module)
        check_functions(f"ModuleRule of {self.module.__name__}", self, ["forward", "refuse"])
