"""A small batch in float64: does a contestant compute the numbers that plain autograd computes?

Everything here is one sample, one column, one coordinate at a time: slow, and independent of all contestants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .networks import Problem, problem
from .peers import Contestant

TOLERANCE = 1e-8
MC_TOLERANCE = 0.35
MC_SAMPLES = 300
COORDINATES = 4
"""Entries of a Hessian's diagonal that are checked in each parameter."""

EXACT = {"diag_ggn_mc": "diag_ggn", "kfac": "kflr"}
"""Sampled quantities and what they tend to."""

Reference = Mapping[str, tuple[Tensor, ...]]


def sample_gradients(given: Problem) -> list[tuple[Tensor, ...]]:
    """grad l_n, by parameter, for each n."""
    parameters = list(given.model.parameters())
    losses = [given.loss(given.model(given.inputs[n : n + 1]), given.target[n : n + 1]) for n in range(given.size)]
    return [torch.autograd.grad(loss, parameters) for loss in losses]


def loss_columns(logits: Tensor) -> Tensor:
    """[C, C]: rows s with sum_c s s^T = diag(p) - p p^T, the Hessian of cross-entropy for one sample."""
    p = logits.detach().softmax(0)
    return (torch.diag(p) - torch.outer(p, p)).mm(torch.diag(p.rsqrt()))


def first_order(given: Problem, close: Callable[[Tensor], Tensor]) -> Reference:
    names = [name for name, _ in given.model.named_parameters()]
    each = zip(*sample_gradients(given), strict=True)
    return {name: (close(torch.stack(gradients)),) for name, gradients in zip(names, each, strict=True)}


def diag_ggn(given: Problem) -> Reference:
    names, parameters = zip(*given.model.named_parameters(), strict=True)
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    for n in range(given.size):
        output = given.model(given.inputs[n : n + 1])[0]
        for column in loss_columns(output).t():
            pulled = torch.autograd.grad(output, parameters, column, retain_graph=True)
            for total, part in zip(totals, pulled, strict=True):
                total += part.square() / given.size
    return {name: (total,) for name, total in zip(names, totals, strict=True)}


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """[positions, features] of one sample."""
    if isinstance(layer, nn.Conv2d):
        return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0].t()  # type: ignore[arg-type]  # padding: no word here
    return x.reshape(1, -1)


def kflr(given: Problem) -> Reference:
    """A = mean over n of sum over p of u u^T, B = mean over n and p of sum over k of a a^T; a bias's block whole."""
    layers = {name: layer for name, layer in given.model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    factors: dict[str, list[Tensor]] = {}
    for n in range(given.size):
        values: dict[str, tuple[Tensor, Tensor]] = {}
        x = given.inputs[n : n + 1]
        for name, layer in given.model.named_children():
            x, before = layer(x), x
            if name in layers:
                values[name] = before, x
        columns = loss_columns(x[0]).t()
        for name, (before, after) in values.items():
            u = patches(layers[name], before.detach())
            pulled = [torch.autograd.grad(x[0], after, column, retain_graph=True)[0] for column in columns]
            a = torch.stack(pulled).flatten(3) if after.dim() > 2 else torch.stack(pulled).unsqueeze(-1)
            a = a.squeeze(1)  # [k, o, p]
            parts = {f"{name}.weight": [u.t() @ u, torch.einsum("kop,kjp->oj", a, a) / len(u)],
                     f"{name}.bias": [torch.einsum("kop,kjq->oj", a, a)]}  # fmt: skip
            for key, found in parts.items():
                old = factors.get(key, [torch.zeros_like(part) for part in found])
                factors[key] = [total + part / given.size for total, part in zip(old, found, strict=True)]
    return {key: tuple(found) for key, found in factors.items()}


REFERENCES: dict[str, Callable[[Problem], Reference]] = {
    "grad": lambda given: first_order(given, lambda g: g.mean(0)),
    "batch_grad": lambda given: first_order(given, lambda g: g / len(g)),
    "batch_l2": lambda given: first_order(given, lambda g: (g / len(g)).flatten(1).square().sum(1)),
    "second_moment": lambda given: first_order(given, lambda g: g.square().mean(0)),
    "variance": lambda given: first_order(given, lambda g: g.square().mean(0) - g.mean(0).square()),
    "diag_ggn": diag_ggn,
    "kflr": kflr,
}


def hessian_error(given: Problem, found: Reference) -> float:
    """Error of some entries of the Hessian's diagonal against double backward; the largest and a few at random."""
    parameters = dict(given.model.named_parameters())
    with sdpa_kernel(SDPBackend.MATH):  # attention's fused kernels have no second derivative
        loss = given.loss(given.model(given.inputs), given.target)
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    torch.manual_seed(1)
    worst = 0.0
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        (values,) = found[name]
        places = [int(values.abs().argmax()), *torch.randint(parameter.numel(), (COORDINATES - 1,)).tolist()]
        for place in places:
            (row,) = torch.autograd.grad(gradient.flatten()[place], parameter, retain_graph=True)
            error = (row.flatten()[place] - values.flatten()[place]).abs() / values.abs().max()
            worst = max(worst, float(error))
    return worst


def canonical(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A Kronecker pair may share its scale out in any way: here A has norm one."""
    if len(parts) == 1:
        return parts
    norm = parts[0].norm()
    return parts[0] / norm, parts[1] * norm


def difference(found: Reference, expected: Reference, sampled: bool) -> float:
    """The largest error relative to a tensor's largest entry; for a sampled quantity, relative norm over everything."""
    if set(found) != set(expected):
        return math.inf
    pairs = [(f, e) for key in expected for f, e in zip(canonical(found[key]), canonical(expected[key]), strict=True)]
    if any(f.shape != e.shape for f, e in pairs):
        return math.inf
    if sampled:
        squares = sum(float((f - e).square().sum()) for f, e in pairs)
        return math.sqrt(squares / sum(float(e.square().sum()) for _, e in pairs))
    return max(float((f - e).abs().max() / e.abs().max().clamp(min=1e-300)) for f, e in pairs)


class Referee:
    """Keeps the references of a network, so that all contestants of its cells share them."""

    def __init__(self, network: str, size: int) -> None:
        self.given = problem(network, size, torch.float64)
        self.known: dict[str, Reference] = {}

    def error(self, contestant: Contestant, quantity: str, exactly: bool = False) -> tuple[float, float] | None:
        """(error, tolerance), or None where there is no reference (kfra).

        A sampled quantity is compared with what it tends to, from many samples; with `exactly`, the contestant's
        exact version of the quantity stands in for it.
        """
        sampled = quantity in EXACT and not exactly
        exact = EXACT.get(quantity, quantity)
        asked = quantity if sampled else exact
        if exact == "diag_h":
            return hessian_error(self.given, self.values(contestant, asked)), TOLERANCE
        if exact not in REFERENCES:
            return None
        if exact not in self.known:
            self.known[exact] = REFERENCES[exact](self.given)
        error = difference(self.values(contestant, asked), self.known[exact], sampled)
        return error, MC_TOLERANCE if sampled else TOLERANCE

    def values(self, contestant: Contestant, quantity: str) -> Reference:
        run = contestant(self.given, [quantity], MC_SAMPLES if quantity in EXACT else 1)
        assert run is not None
        torch.manual_seed(2)
        return run.read(run.call())[quantity]

    def between(self, one: Contestant, other: Contestant, quantity: str) -> float:
        """Difference of two contestants in a quantity without reference."""
        return difference(self.values(one, quantity), self.values(other, quantity), False)
