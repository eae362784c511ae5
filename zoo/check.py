"""One family against autograd: gradients and norms of every parameter, diagonals at random entries, factors of layers.

Nothing of the compiler is used but its public face.
"""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import hbpcompiler as hbp

from .family import SAMPLES, Case, Family

TOLERANCE = 1e-7
"""Of the largest number that is compared, in float64."""
ENTRIES = 8
"""How many entries of the Hessian's diagonal are compared, each of another parameter."""
LAYERS = 3
"""How many layers' Kronecker factors are compared."""
VANISHING = 1e-6
"""Of the largest numbers of all layers: what is smaller in another one is taken for what rounding left of 0."""
STEP = 1e-4
"""By which a parameter's entry is moved for central differences of its gradient."""
AGREES = 1e-6
"""Of the largest number: what rounding leaves of central differences."""
DRAWS = 32
"""Calls over which the trace of a sampled factor is averaged."""
FAR = 6.0
"""Standard errors that an average may be off."""


@dataclass(frozen=True)
class Outcome:
    """What became of one question to one family."""

    status: str
    """"holds", "refused", "wrong" or "crashes"."""
    seconds: float
    text: str = ""


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
    scale = max(least, *(float(expected.abs().max()) for _, _, expected in named)) or 1.0
    for name, found, expected in named:
        gap = float((found - expected).abs().max()) / scale
        assert gap <= TOLERANCE, f"{what} of {name} is {gap:.1e} off"


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
    gradient, because some of torch's backward kernels have a wrong derivative of their own."""
    result = compiled(case, ["diag_h"])
    draw = random.Random(0)
    places, pairs = [], []
    with sdpa_kernel(SDPBackend.MATH):
        slopes = gradients(case, case.inputs, case.target, keep=True)
        for name in draw.sample(sorted(slopes), min(ENTRIES, len(slopes))):
            entry = draw.randrange(slopes[name].numel())
            parameter = trained(case.model)[name]
            slope = slopes[name].flatten()[entry]
            (row,) = torch.autograd.grad(slope, parameter, retain_graph=True, allow_unused=True)
            expected = torch.zeros(()) if row is None else row.flatten()[entry]
            places.append((name, entry))
            pairs.append((name, result.diag_h[name].flatten()[entry], expected.detach()))
    try:
        compare("diag_h", pairs)
        return ""
    except AssertionError as disagreement:
        scale = max(float(expected.abs()) for _, _, expected in pairs)
        for (name, entry), (_, found, _) in zip(places, pairs, strict=True):
            gap = abs(float(found) - by_differences(case, name, entry))
            if gap > AGREES * scale:
                raise AssertionError(f"{disagreement}; {gap / scale:.1e} off central differences") from None
        return f"{disagreement} by torch's double backward, whose own fault it is: central differences agree"


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


def factors(case: Case) -> str:
    """A and B of some linear layers, by the Jacobian of the model's output in the layer's output; of kfac, whose B is
    drawn, A and the average of B's trace."""
    asked = untied(case.model)
    layers = {f"{path}.weight": module for path, module in case.model.named_modules()
              if isinstance(module, nn.Linear) and f"{path}.weight" in asked}
    program = hbp.compile(case.model, case.loss, quantities={"kflr": asked, "kfac": asked})
    result = program(case.inputs, case.target)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def watch(name: str, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen[name].append((given[0], output))
        return output.clone()  # what follows may change it in place

    handles = [module.register_forward_hook(lambda _, given, output, name=name: watch(name, given, output))
               for name, module in layers.items()]
    output = call(case.model, case.inputs)
    for handle in handles:
        handle.remove()
    outputs = [item for item in pytree.tree_leaves(output) if isinstance(item, Tensor) and item.requires_grad]
    flat, hessian = _curvature(case, output, outputs)
    chosen: dict[str, Tensor] = {}
    once = [name for name, uses in seen.items() if len(uses) == 1 and uses[0][0].shape[0] == SAMPLES]
    for name in random.Random(0).sample(sorted(once), min(LAYERS, len(once))):
        ((given, made),) = seen[name]
        rows = [torch.autograd.grad(entry, made, retain_graph=True, allow_unused=True)[0] for entry in flat]
        jacobian = torch.stack([torch.zeros_like(made) if row is None else row for row in rows])
        jacobian = jacobian.reshape(len(rows), SAMPLES, -1, made.shape[-1])  # outputs, samples, positions, features
        expected = torch.einsum("anpi,ab,bnpj->ij", jacobian, hessian, jacobian) / jacobian.shape[2]
        inputs = given.detach().reshape(-1, given.shape[-1])
        compare("A", [(name, result.kflr[name].A, inputs.T @ inputs / SAMPLES)])
        compare("A of kfac", [(name, result.kfac[name].A, result.kflr[name].A)])
        chosen[name] = expected
    if not chosen:
        return ""
    least = VANISHING * max(float(expected.abs().max()) for expected in chosen.values())
    for name, expected in chosen.items():
        compare("B", [(name, result.kflr[name].B, expected)], least)
    of_these = hbp.compile(case.model, case.loss, quantities={"kfac": list(chosen)})
    traces = {name: float(expected.trace()) for name, expected in chosen.items()}
    compare_drawn(lambda: of_these(case.inputs, case.target).kfac, traces, least)
    return ""


def untied(model: nn.Module) -> list[str]:
    """The parameters that have factors whatever they are: not those of several modules, as a vocabulary's."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    return [own[0] for own in names.values() if len(own) == 1]


def compare_drawn(draw: Callable[[], Any], traces: Mapping[str, float], least: float) -> None:
    """The average trace of B of kfac beside that of kflr, which is its expectation."""
    drawn: dict[str, list[float]] = {name: [] for name in traces}
    for _ in range(DRAWS):
        factors = draw()
        for name, found in drawn.items():
            found.append(float(factors[name].B.trace()))
    for name, expected in traces.items():
        found_traces = torch.tensor(drawn[name], dtype=torch.float64)
        error = float(found_traces.std()) / DRAWS**0.5
        gap = abs(float(found_traces.mean()) - expected)
        assert gap <= FAR * error + TOLERANCE * max(abs(expected), least), (
            f"the average trace of B of kfac of {name} is {gap:.1e} off, of {expected:.1e}; standard error {error:.1e}")


def _curvature(case: Case, output: Any, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The outputs side by side, and the loss's Hessian in them."""
    flat = torch.cat([item.flatten() for item in outputs])
    leaf = flat.detach().requires_grad_()
    parts = iter(leaf.split([item.numel() for item in outputs]))
    moved = pytree.tree_map(lambda item: next(parts).view(item.shape) if isinstance(item, Tensor)
                            and item.requires_grad else item, output)
    (slope,) = torch.autograd.grad(case.loss(moved, case.target), leaf, create_graph=True)
    rows = [torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in slope]
    return flat, torch.stack(rows)


QUESTIONS: dict[str, Callable[[Case], str]] = {
    "gradient, norms": first_order, "diag_h": diagonal, "kflr, kfac": factors,
}
"""Each returns a remark, or nothing."""


def ask(family: Family, question: str) -> Outcome:
    """Make the family's model, compile it and compare."""
    start = time.perf_counter()

    def outcome(status: str, text: str = "") -> Outcome:
        return Outcome(status, time.perf_counter() - start, text)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = family.case()
        try:
            with double_precision():
                remark = QUESTIONS[question](case)
        except AssertionError as error:
            if not isinstance(error, hbp.HbpError):
                return outcome("wrong", str(error))
            return outcome("crashes", str(error))
        except hbp.HbpError as error:
            return outcome("refused", str(error))
        except Exception as error:  # whatever is no HbpError is a fault of ours
            return outcome("crashes", f"{type(error).__name__}: {error}")
    return outcome("holds", remark)


def as_record(family: Family, question: str, outcome: Outcome) -> dict[str, Any]:
    return {"family": family.title, "question": question, "asked": date.today().isoformat(), **asdict(outcome)}
