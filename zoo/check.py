"""One family against autograd: gradients and norms of every parameter, diagonals at random entries, factors of layers.

Nothing of the compiler is used but its public face.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
    rounding looks like an error, and would hide one."""
    own_to, own_float, own_softmax = Tensor.to, Tensor.float, nn.functional.softmax

    def wide(item: Any) -> Any:
        return torch.float64 if item is torch.float32 else item

    def to(tensor: Tensor, *args: Any, **named: Any) -> Tensor:
        return own_to(tensor, *map(wide, args), **{name: wide(item) for name, item in named.items()})

    def softmax(input: Tensor, *args: Any, **named: Any) -> Tensor:
        return own_softmax(input, *map(wide, args), **{name: wide(item) for name, item in named.items()})

    changed: Any = Tensor
    changed.to, changed.float, nn.functional.softmax = to, Tensor.double, softmax
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


def compare(what: str, pairs: Iterable[tuple[str, Tensor, Tensor]]) -> None:
    """Raise AssertionError naming the worst of (name, found, expected), relative to the largest expected number."""
    named = list(pairs)
    scale = max(float(expected.abs().max()) for _, _, expected in named) or 1.0
    for name, found, expected in named:
        gap = float((found - expected).abs().max()) / scale
        assert gap <= TOLERANCE, f"{what} of {name} is {gap:.1e} off"


def first_order(case: Case) -> None:
    """The gradient, and the norm of each sample's share of it, of every parameter."""
    result = compiled(case, ["grad", "batch_l2"])
    expected = gradients(case, case.inputs, case.target)
    assert set(result.grad) == set(expected), f"other parameters: {sorted(set(result.grad) ^ set(expected))[:5]}"
    compare("grad", ((name, result.grad[name], value) for name, value in expected.items()))
    rows = [share(case, n, list(expected)) for n in range(SAMPLES)]
    norms = {name: torch.stack([row[name].square().sum() for row in rows]) for name in expected}
    compare("batch_l2", ((name, result.batch_l2[name], value) for name, value in norms.items()))


def share(case: Case, n: int, names: list[str]) -> dict[str, Tensor]:
    """The gradient of sample n's share of the loss, in the whole batch: of a batch of one, torch's batch norm (2.14)
    gives a wrong gradient where its input's axes are permuted. The graph is kept: some models (TinyViT) hold on to
    values made of parameters."""
    output = sample_of(call(case.model, case.inputs), n)
    loss, parameters = case.loss(output, case.target[n : n + 1]) / SAMPLES, trained(case.model)
    found = torch.autograd.grad(loss, [parameters[name] for name in names], retain_graph=True)
    return dict(zip(names, found, strict=True))


def diagonal(case: Case) -> None:
    """Random entries of the Hessian's diagonal, by double backward."""
    result = compiled(case, ["diag_h"])
    draw = random.Random(0)
    with sdpa_kernel(SDPBackend.MATH):
        slopes = gradients(case, case.inputs, case.target, keep=True)
        pairs = []
        for name in draw.sample(sorted(slopes), min(ENTRIES, len(slopes))):
            entry = draw.randrange(slopes[name].numel())
            parameter = trained(case.model)[name]
            slope = slopes[name].flatten()[entry]
            (row,) = torch.autograd.grad(slope, parameter, retain_graph=True, allow_unused=True)
            expected = torch.zeros(()) if row is None else row.flatten()[entry]
            pairs.append((name, result.diag_h[name].flatten()[entry], expected))
    compare("diag_h", pairs)


def factors(case: Case) -> None:
    """A and B of some linear layers, by the Jacobian of the model's output in the layer's output."""
    layers = {f"{path}.weight": module for path, module in case.model.named_modules()
              if isinstance(module, nn.Linear) and module.weight.requires_grad}
    result = compiled(case, ["kflr"])
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    handles = [module.register_forward_hook(lambda _, given, output, name=name: seen[name].append((given[0], output)))
               for name, module in layers.items()]
    output = call(case.model, case.inputs)
    for handle in handles:
        handle.remove()
    outputs = [item for item in pytree.tree_leaves(output) if isinstance(item, Tensor) and item.requires_grad]
    flat, hessian = _curvature(case, output, outputs)
    once = [name for name, uses in seen.items() if len(uses) == 1 and uses[0][0].shape[0] == SAMPLES]
    for name in random.Random(0).sample(sorted(once), min(LAYERS, len(once))):
        ((given, made),) = seen[name]
        rows = [torch.autograd.grad(entry, made, retain_graph=True, allow_unused=True)[0] for entry in flat]
        jacobian = torch.stack([torch.zeros_like(made) if row is None else row for row in rows])
        jacobian = jacobian.reshape(len(rows), SAMPLES, -1, made.shape[-1])  # outputs, samples, positions, features
        expected = torch.einsum("anpi,ab,bnpj->ij", jacobian, hessian, jacobian) / jacobian.shape[2]
        inputs = given.detach().reshape(-1, given.shape[-1])
        compare("A", [(name, result.kflr[name].A, inputs.T @ inputs / SAMPLES)])
        compare("B", [(name, result.kflr[name].B, expected)])


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


QUESTIONS: dict[str, Callable[[Case], None]] = {
    "gradient, norms": first_order, "diag_h": diagonal, "kflr": factors,
}


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
                QUESTIONS[question](case)
        except AssertionError as error:
            if not isinstance(error, hbp.HbpError):
                return outcome("wrong", str(error))
            return outcome("crashes", str(error))
        except hbp.HbpError as error:
            return outcome("refused", str(error))
        except Exception as error:  # whatever is no HbpError is a fault of ours
            return outcome("crashes", f"{type(error).__name__}: {error}")
    return outcome("holds")


def as_record(family: Family, question: str, outcome: Outcome) -> dict[str, Any]:
    return {"family": family.title, "question": question, **asdict(outcome)}
