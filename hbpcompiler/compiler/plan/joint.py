"""Weight and bias of one layer as one Kronecker block: A of the operand with a one behind its features (`joint_bias`).

With columns a at an operation's output and what its weight meets there, u, the weight's cotangent is a u^T. A parameter
whose cotangent is a, summed over positions, meets a one where the weight meets u: both together have a [u, 1]^T. What
says so is the contractions that the rule declares, not what the parameters are called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.parameters.tied_values import KRONECKER
from hbpcompiler.compiler.routes import Site
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.quantities import EIGEN, IN_BASES, INPUT_FACTOR, REDUCED_INPUT_FACTOR, Closing, closings_of
from hbpcompiler.rule import Contraction, Op, Rule, called

OF_OPERAND = frozenset({EIGEN, IN_BASES, INPUT_FACTOR, REDUCED_INPUT_FACTOR})
"""Closings that a one behind the operand's features changes: B is the same."""
LISTED = 12
"""Parameters that a note names."""


@dataclass(frozen=True)
class Joint:
    """Which parameters share a Kronecker block."""

    biases: Mapping[str, str] = field(default_factory=dict)
    """By the weight's key, that of the bias that is in its block."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """By the key of a parameter that has a block of its own, why."""

    def in_another(self, key: str) -> bool:
        """Whether the parameter has no factors of its own, but is in its weight's block."""
        return key in self.biases.values()

    def own(self, key: str, kinds: frozenset[str]) -> frozenset[str]:
        """The closings, of these, that are the parameter's own."""
        return kinds - KRONECKER if self.in_another(key) else kinds

    def notes(self) -> list[str]:
        """What the head of the file, and `explain`, say about it."""
        pairs = [f"{bias} with {weight}" for weight, bias in self.biases.items()]
        found = [f"joint_bias: the factors of a weight are of its bias too, as its last input feature: "
                 f"{_listed(pairs)}."] if pairs else []
        reasons: dict[str, list[str]] = {}
        for key, reason in self.apart.items():
            reasons.setdefault(reason, []).append(key)
        found += [f"joint_bias: {_listed(keys)} by {'itself' if len(keys) == 1 else 'themselves'}: {reason}."
                  for reason, keys in reasons.items()]
        return found


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def joint_blocks(matched: Matched, closings: Collection[Closing]) -> Joint:
    """The weights and biases that meet in one operation and nowhere else, where both are asked for the same factors."""
    asked = {value.key: factors for value in matched.trainable if (factors := _factors(closings, value.key))}
    uses = Counter(value.key for operation in matched.graph.operations if operation.name in matched.active
                   for value in operation.tensors.values() if value.key in asked)
    biases: dict[str, str] = {}
    apart: dict[str, str] = {}
    for operation in matched.graph.operations:
        rule = matched.rules.get(operation.name)
        if operation.name not in matched.active or not isinstance(rule, Rule):
            continue
        op = matched.static(operation)
        own = {slot: contraction for slot, contraction in rule.params(op).items()
               if slot in operation.tensors and operation.tensors[slot].key in asked}
        for slot, contraction in own.items():
            weight = operation.tensors[slot]
            if not _features(contraction):
                apart.setdefault(weight.key, "it meets no input features where a weight meets some")
                continue
            found = _partner(operation, op, slot, own)
            reason = _reason(weight, found, uses, asked, operation)
            if found is not None and not reason:
                biases[weight.key] = found.key
            else:
                apart[weight.key] = reason
                apart |= {} if found is None else {found.key: reason}
    paired = {*biases, *biases.values()}
    return Joint(biases, {key: reason for key, reason in apart.items() if key not in paired})


def _factors(closings: Collection[Closing], key: str) -> frozenset[Closing]:
    return frozenset(closing for closing in closings_of(closings, key) if closing.kind in KRONECKER)


def _features(contraction: Contraction) -> str:
    """Letters of the parameter that only the operand has."""
    left, right, result = contraction.letters
    return "".join(letter for letter in result if letter in right and letter not in left)


def _partner(operation: Operation, op: Op, slot: str, own: Mapping[str, Contraction]) -> Value | None:
    """The parameter that meets ones where the one at `slot` meets its operand."""
    for other, contraction in own.items():
        if other != slot and contraction.operand is None and _same_columns(own[slot], contraction, op):
            return operation.tensors[other]
    return None


def _reason(weight: Value, bias: Value | None, uses: Mapping[str, int],
            asked: Mapping[str, frozenset[Closing]], operation: Operation) -> str:
    """Why they are not one block of the operation where they meet, if they are not."""
    if bias is None:
        return "no bias that is trained, and asked for factors, is added to its product"
    for value in (weight, bias):
        if uses[value.key] > 1:
            return f"{value.key} is used {uses[value.key]} times"
    if asked[weight.key] != asked[bias.key]:
        return "different factors are asked for weight and bias"
    if operation.source.picked:
        return "a mask picks the rows of their layer, and a one behind each would be of the others, too"
    return ""


def _same_columns(weight: Contraction, bias: Contraction, op: Op) -> bool:
    """Whether the bias's cotangent is the weight's columns summed over positions: seen on numbers that all differ."""
    left, _, result = weight.letters
    own, _, theta = bias.letters
    if len(_features(weight)) != 1 or set(own) - set(theta) - {"p"}:
        return False
    shape = op.shape("output")
    columns = torch.arange(torch.Size(shape).numel(), dtype=torch.float64, device="cpu").reshape(1, 1, *shape)
    try:
        one, other = weight.columns(op, columns), bias.columns(op, columns)
    except (RuntimeError, NotImplementedError):  # it reads tensors, of which only shapes are known here
        return False
    kept = "".join(letter for letter in result if letter in left)
    if _positions(left, one) != _positions(own, other):  # A would be of positions that the bias does not meet
        return False
    return torch.equal(torch.einsum(f"{left}->{kept}", one).flatten(),
                       torch.einsum(f"{own}->{theta}", other).flatten())


def _positions(letters: str, columns: Tensor) -> int:
    return columns.shape[letters.index("p")] if "p" in letters else 1


# -- what the weight's contraction becomes --------------------------------------------------------------------------


@dataclass(frozen=True)
class WithOne(Contraction):
    """A contraction whose operand has an entry that is one whatever the input is."""

    linear: ClassVar[bool] = False


def with_one(contraction: Contraction) -> Contraction:
    """The weight's contraction with a one behind the features of its operand; a bias is one more input feature."""
    _, right, _ = contraction.letters
    behind = len(right) - 1 - right.index(_features(contraction))

    def operand(op: Op) -> Tensor:
        assert contraction.operand is not None
        return called("with_one", F.pad(contraction.operand(op), (*[0, 0] * behind, 0, 1), value=1.0))

    return WithOne(contraction.equation, contraction.columns, operand)


def site_with_one(site: Site) -> Site:
    """The site of `with_one`."""
    sizes = tuple((letter, length + (letter == site.features)) for letter, length in site.sizes)
    return replace(site.without_kernels(sizes=sizes), formed=True)
