"""One family against autograd: gradients and norms of every parameter, diagonals at random entries.

Nothing of the compiler is used but its public face.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import hbpcompiler as hbp

from .family import SAMPLES, Case

PIECE = 2**24
"""Numbers that are compared at once: a factor of 25088 features has five GB."""
TOLERANCE = 1e-7
"""Of the largest number that is compared, in float64."""
ENTRIES = 8
"""How many entries of the Hessian's diagonal are compared, each of another parameter."""
STEP = 1e-5
"""By which a parameter's entry is moved for central differences of its gradient; larger steps meet kinks."""
LONGEST = 25.0
"""Seconds of a call that is waited for, by the planner's prediction: for two threads and single precision."""
AGREES = 1e-6
"""Of the largest number: what rounding leaves of central differences."""


class TooLongError(Exception):
    """A call that is predicted to take longer than anybody waits."""


@contextmanager
def double_precision() -> Iterator[None]:
    """Meanwhile what a model casts to single precision (norms, softmax, rotary positions) is in double precision: its
    rounding looks like an error, and would hide one. Not what torch casts itself, in its own Python code."""
    own_to, own_float, own_softmax = Tensor.to, Tensor.float, nn.functional.softmax

    def wide(item: Any, caller: FrameType) -> Any:
        by_torch = str(caller.f_globals.get("__name__", "")).startswith("torch.")
        return torch.float64 if item is torch.float32 and not by_torch else item

    def to(tensor: Tensor, *args: Any, **named: Any) -> Tensor:
        caller = sys._getframe(1)
        widened = {name: wide(item, caller) for name, item in named.items()}
        return own_to(tensor, *[wide(item, caller) for item in args], **widened)

    def single(tensor: Tensor) -> Tensor:
        return own_to(tensor, wide(torch.float32, sys._getframe(1)))

    def softmax(input: Tensor, *args: Any, **named: Any) -> Tensor:
        caller = sys._getframe(1)
        widened = {name: wide(item, caller) for name, item in named.items()}
        return own_softmax(input, *[wide(item, caller) for item in args], **widened)

    changed: Any = Tensor
    changed.to, changed.float, nn.functional.softmax = to, single, softmax
    try:
        yield
    finally:
        changed.to, changed.float, nn.functional.softmax = own_to, own_float, own_softmax


def call(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def sample_of(batch: Any, n: int) -> Any:
    """Sample n alone, as a batch of one."""
    return pytree.tree_map(lambda item: item[n : n + 1] if isinstance(item, Tensor) else item, batch)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(case: Case, inputs: Any, target: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
    """By autograd; parameters that the loss does not depend on are left out."""
    parameters = trained(case.model)
    loss = case.loss(call(case.model, inputs), target)
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, create_graph=keep,
                                allow_unused=True)
    return {name: value for name, value in zip(parameters, found, strict=True) if value is not None}


def compiled(case: Case, quantities: list[str]) -> Any:
    return hbp.compile(case.model, case.loss, quantities=quantities)(case.inputs, case.target)


def compare(what: str, pairs: Iterable[tuple[str, Tensor, Tensor]], least: float = 0.0) -> None:
    """Raise AssertionError naming the worst of (name, found, expected), relative to the largest expected number, or to
    `least` if that is larger."""
    named = list(pairs)
    scale = max(least, *(_largest(expected) for _, _, expected in named)) or 1.0
    for name, found, expected in named:
        pairs_of_rows = zip(found.flatten().split(PIECE), expected.flatten().split(PIECE), strict=True)
        gap = max((_largest(one - other) for one, other in pairs_of_rows), default=0.0) / scale
        assert gap <= TOLERANCE, f"{what} of {name} is {gap:.1e} off"


def _largest(numbers: Tensor) -> float:
    return float(torch.linalg.vector_norm(numbers, torch.inf)) if numbers.numel() else 0.0


def first_order(case: Case) -> str:
    """The gradient, and the norm of each sample's share of it, of every parameter."""
    result = compiled(case, ["grad", "batch_l2"])
    expected = gradients(case, case.inputs, case.target)
    assert set(result.grad) == set(expected), f"other parameters: {sorted(set(result.grad) ^ set(expected))[:5]}"
    compare("grad", ((name, result.grad[name], value) for name, value in expected.items()))
    rows = [share(case, n, list(expected)) for n in range(SAMPLES)]
    norms = {name: torch.stack([row[name].square().sum() for row in rows]) for name in expected}
    compare("batch_l2", ((name, result.batch_l2[name], value) for name, value in norms.items()))
    return ""


def share(case: Case, n: int, names: list[str]) -> dict[str, Tensor]:
    """The gradient of sample n's share of the loss, in the whole batch: of a batch of one, torch's batch norm (2.14)
    gives a wrong gradient where its input's axes are permuted. The graph is kept: some models (TinyViT) hold on to
    values made of parameters."""
    output = sample_of(call(case.model, case.inputs), n)
    loss, parameters = case.loss(output, case.target[n : n + 1]) / SAMPLES, trained(case.model)
    found = torch.autograd.grad(loss, [parameters[name] for name in names], retain_graph=True)
    return dict(zip(names, found, strict=True))


def diagonal(case: Case) -> str:
    """Random entries of the Hessian's diagonal, by double backward; where that disagrees, by central differences of the
    gradient, because some of torch's backward kernels have a wrong derivative of their own. Without the proof, which is
    of the gradient (another question's) and takes another call."""
    work = hbp.compile(case.model, case.loss, quantities=["diag_h"], verify=False,
                       example_inputs=[case.inputs, case.target])
    seconds = work.predicted_seconds(SAMPLES)
    if seconds > LONGEST:
        raise TooLongError(f"predicted to take {seconds:.0f} s in single precision on two threads")
    result = work(case.inputs, case.target)
    names = list(gradients(case, case.inputs, case.target))
    draw = random.Random(0)
    places = [(name, draw.randrange(trained(case.model)[name].numel()))
              for name in draw.sample(sorted(names), min(ENTRIES, len(names)))]
    try:
        expected = by_double_backward(case, places)
        compare("diag_h", ((name, result.diag_h[name].flatten()[entry], value)
                           for (name, entry), value in zip(places, expected, strict=True)))
        return ""
    except (AssertionError, RuntimeError) as fault:
        if isinstance(fault, RuntimeError) and "is not implemented" not in str(fault):
            raise
        return against_differences(case, result.diag_h, places, fault)


def by_double_backward(case: Case, places: list[tuple[str, int]]) -> list[Tensor]:
    """Entries of the Hessian's diagonal. RuntimeError where torch has no derivative of a derivative."""
    found = []
    with sdpa_kernel(SDPBackend.MATH):
        slopes = gradients(case, case.inputs, case.target, keep=True)
        for name, entry in places:
            parameter = trained(case.model)[name]
            slope = slopes[name].flatten()[entry]
            (row,) = torch.autograd.grad(slope, parameter, retain_graph=True, allow_unused=True)
            found.append(torch.zeros(()) if row is None else row.flatten()[entry].detach())
    return found


def against_differences(case: Case, diagonals: Any, places: list[tuple[str, int]], fault: Exception) -> str:
    """A remark where central differences of the gradient agree although double backward, or torch's lack of one, is at
    fault; AssertionError where they do not."""
    expected = [by_differences(case, name, entry) for name, entry in places]
    scale = max(map(abs, expected))
    for (name, entry), value in zip(places, expected, strict=True):
        gap = abs(float(diagonals[name].flatten()[entry]) - value)
        if gap > AGREES * scale:
            raise AssertionError(f"{fault}; {gap / scale:.1e} off central differences of {name}") from None
    return f"{fault}: by torch's double backward, whose own fault it is; central differences agree"


def by_differences(case: Case, name: str, entry: int) -> float:
    """One entry of the Hessian's diagonal, from gradients alone (Richardson's extrapolation of two steps)."""
    place = trained(case.model)[name].data.view(-1)
    before = float(place[entry])

    def slope(by: float) -> float:
        place[entry] = before + by
        return float(gradients(case, case.inputs, case.target)[name].flatten()[entry])

    try:
        coarse, fine = ((slope(step) - slope(-step)) / (2 * step) for step in (STEP, STEP / 2))
    finally:
        place[entry] = before
    return (4 * fine - coarse) / 3
