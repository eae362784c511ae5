"""Kronecker factors of small models by brute force, for `verify="full"`."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from hbpcompiler import reference
from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import Comparison, compared, left_out
from hbpcompiler.compiler.prove.own_step import Loss
from hbpcompiler.compiler.prove.twin import Results, twin_program
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.graph import meta
from hbpcompiler.compiler.trace.with_state import loss_at, marking
from hbpcompiler.errors import HbpError

KFRA = "kfra"
Factors = Mapping[str, tuple[Any, Any]]
FACTORS: Mapping[str, tuple[Callable[..., Factors], bool, bool]] = {
    "kfac": (reference.kflr, False, False),
    "kflr": (reference.kflr, False, True),
    "kfac_reduce": (reference.kflr, True, False),
    "kflr_reduce": (reference.kflr, True, True),
    "kfac_emp": (reference.kfac_emp, False, True),
    "kfac_emp_reduce": (reference.kfac_emp, True, True),
    "kfra": (reference.kfra, False, True),
}
"""By quantity: the brute force, whether it sums over positions first, and whether B is drawn by nobody."""
TWINS: Mapping[str, str] = {"kfac": "kflr", "kfac_reduce": "kflr_reduce"}
"""The exact twins whose B stand for those that are drawn."""
MOST_NUMBERS = 20000
"""Numbers in the parameters of a model, and `MOST_OUTPUTS` in its output: the brute force takes a backward pass for
each number of each layer's output."""
MOST_OUTPUTS = 64


def factor_lines(candidate: Candidate, batch: Batch, values: Mapping[str, Mapping[str, Any]], eps: float,
                 random: bool) -> list[Comparison]:
    """The factors of linear layers and convolutions that are used once; of sampled B those of the exact twin."""
    asked = [name for name in FACTORS if name in values]
    if not asked:
        return []
    inputs, keywords, target = batch.layout.build(batch.tensors)
    numbers = sum(parameter.numel() for parameter in candidate.model.parameters())
    outputs = sum(meta(output, batch.samples).numel() for output in candidate.matched.graph.outputs)
    if random or numbers > MOST_NUMBERS or outputs > MOST_OUTPUTS or (inputs and keywords):
        why = "the model is random" if random else "brute force would take too long"
        return [left_out(name, "", why) for name in asked]
    model, calls = copy.deepcopy(candidate.model), Counter[str]()
    marking(candidate.model)(model)
    loss: Callable[..., Any] = _AsItWas(candidate.loss)
    weights = candidate.weights(batch)
    if weights is not None:
        loss = reference.Weighted(loss, weights.numbers)
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: calls.update([path]))
    found, wanted = {}, {}
    left: list[Comparison] = []
    positions = _of_picked_positions(candidate)
    twins = _twins(candidate, batch, asked)
    known: dict[tuple[Any, bool], Factors] = {}
    for quantity in asked:
        brute_force, reduce, exact = FACTORS[quantity]
        if (brute_force, reduce) not in known:
            if quantity == KFRA and (why := _no_chain(candidate)):
                left.append(left_out(KFRA, "", why))
                continue
            alone = partial(brute_force, model, loss, keywords or inputs, target, **{"reduce": True} if reduce else {})
            try:
                passes = 2 if quantity == KFRA else 1
                known[brute_force, reduce] = _used_once(calls, alone, candidate.joint_biases, passes)
            except Exception as error:  # whatever a model does that the brute force is not made for
                left.append(left_out(quantity, "", f"brute force fails: {str(error)[:150]}"))
                continue
        for name, (inputs_factor, factor) in known[brute_force, reduce].items():
            if name not in values[quantity]:
                continue
            if name in positions:
                left.append(left_out(quantity, name, "brute force takes positions that a mask picks for samples"))
                continue
            if inputs_factor is not None:
                found[f"{quantity}.A", name], wanted[f"{quantity}.A", name] = values[quantity][name].A, inputs_factor
            twin = twins.get(TWINS.get(quantity, ""), {}).get(name)
            if exact or twin is not None:
                own = values[quantity][name].B if twin is None else twin["B"]
                found[f"{quantity}.B", name], wanted[f"{quantity}.B", name] = own, factor
    lines = compared(found, wanted, eps, how="two samples")
    lines = [replace(line, how=f"two samples, its exact twin {TWINS[line.quantity.removesuffix('.B')]}")
             if line.quantity.removesuffix(".B") in TWINS else line for line in lines]
    return [*lines, *left]


class _AsItWas:
    """A loss that no call changes."""

    def __init__(self, loss: Loss) -> None:
        self.loss, self.reduction = loss, getattr(loss, "reduction", "mean")

    def __call__(self, output: Any, target: Any) -> Any:
        return loss_at(self.loss, output, target)


def _no_chain(candidate: Candidate) -> str:
    """Why kfra's brute force, which averages at each module of an nn.Sequential, is not for this model; "" if it is."""
    leaves = {path for path, module in candidate.model.named_modules() if not isinstance(module, nn.Sequential)}
    operations = Counter(operation.source.module for operation in candidate.matched.graph.operations
                         if not operation.source.in_loss)
    if not isinstance(candidate.model, nn.Sequential) or any(
            next(candidate.model.get_submodule(path).children(), None) is not None for path in leaves):
        return "brute force is for chains of modules, nn.Sequential"
    if any(operations[path] > 1 for path in leaves):
        return "brute force is for modules of one operation each"
    return ""


def _of_picked_positions(candidate: Candidate) -> set[str]:
    """Keys of parameters that meet rows that a mask of several axes picks: a module has them all in front."""
    return {value.key for operation in candidate.matched.graph.operations if operation.source.picked > 1
            for value in operation.tensors.values() if value.trainable}


def _twins(candidate: Candidate, batch: Batch, asked: Sequence[str]) -> Results:
    """What the exact twins of sampled factors are; nothing where they cannot be planned."""
    names = tuple(TWINS[name] for name in asked if name in TWINS)
    if not names:
        return {}
    try:
        program = twin_program(candidate.matched, candidate.options, names)
        return program(candidate.state, *batch.tensors, **candidate.beside)
    except HbpError:
        return {}


def _used_once(calls: Counter[str], brute_force: Callable[..., Factors], joint: Mapping[str, str],
               passes: int) -> Factors:
    """What modules have that are called once in each of so many forward passes, of some weights together with their
    biases."""
    calls.clear()
    right = dict(brute_force())
    if joint and passes == 1:
        calls.clear()
        right |= {name: pair for name, pair in brute_force(joint=True).items() if name in joint}
    return {name: pair for name, pair in right.items() if calls[name.rpartition(".")[0]] == passes}
