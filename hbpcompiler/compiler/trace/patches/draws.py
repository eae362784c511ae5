"""Draws that torch makes in ways that no rule follows: written as others that draw the same numbers, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.trace.patches.replaced import replaced

NO_GAMMA = ("numbers of a gamma distribution, which those of Beta, Dirichlet, Chi2 and StudentT are made of, have no "
            "derivative here by what they are drawn around; detach that (rsample() of Gamma(a.detach(), b)), or draw "
            "normal numbers, as in mean + std * torch.randn_like(mean)")
NO_DIRICHLET = ("numbers of Beta and Dirichlet distributions cannot be drawn in a program; draw them outside and pass "
                "them in, or draw torch._standard_gamma(a.detach()) and divide by its sum")
NO_BINOMIAL = ("numbers of a binomial distribution cannot be drawn in a program; for few trials add up "
               "torch.bernoulli(p.expand(trials, *p.shape)), or draw them outside and pass them in")
NO_VON_MISES = ("numbers of a von Mises distribution are drawn until they fit, which no program does; draw them "
                "outside and pass them in")
NO_TRUNCATED = ("trunc_normal_ draws in a way that depends on values; write torch.erfinv(torch.empty_like(x).uniform_("
                "-p, p)) * std * 2 ** 0.5 with p = math.erf(bound / 2 ** 0.5), or draw it once and keep it in a buffer")
_bernoulli_in_place: Callable[..., Tensor] = Tensor.bernoulli_
_standard_gamma: Callable[..., Tensor] = torch._standard_gamma


def _bernoulli(tensor: Tensor, p: Any = 0.5, **named: Any) -> Tensor:
    """In place of bernoulli_(), of which a trace knows numbers as probabilities, and no tensors."""
    if not isinstance(p, Tensor):
        return _bernoulli_in_place(tensor, p, **named)
    return tensor.copy_(torch.bernoulli(p.detach().expand(tensor.shape), **named))


def _integers_like(tensor: Tensor, *limits: int, low: int = 0, high: int | None = None,
                   dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
    """In place of randint_like(tensor, high) and (tensor, low, high)."""
    bounds = [*limits] if high is None else [*limits, high]
    first, last = (low, bounds[0]) if len(bounds) == 1 else bounds
    return torch.randint(first, last, tensor.shape, device=device or tensor.device).to(dtype or tensor.dtype)


def _gamma(concentration: Tensor, *given: Any, **named: Any) -> Tensor:
    if torch.is_grad_enabled() and concentration.requires_grad:
        raise NotImplementedError(NO_GAMMA)
    return _standard_gamma(concentration, *given, **named)


def _refused(text: str) -> Callable[..., Any]:
    def refuse(*given: Any, **named: Any) -> Any:
        raise NotImplementedError(text)

    return refuse


@contextmanager
def draws_in_sight() -> Iterator[None]:
    """Meanwhile these are in the place of torch's own."""
    instead: list[tuple[Any, str, Callable[..., Any]]] = [
        (Tensor, "bernoulli_", _bernoulli), (torch, "randint_like", _integers_like), (torch, "_standard_gamma", _gamma),
        (torch, "_sample_dirichlet", _refused(NO_DIRICHLET)), (torch, "binomial", _refused(NO_BINOMIAL)),
        (torch.distributions.VonMises, "sample", _refused(NO_VON_MISES)),
        (nn.init, "trunc_normal_", _refused(NO_TRUNCATED))]
    with ExitStack() as stack:
        for owner, name, function in instead:
            stack.enter_context(replaced(owner, name, function))
        yield
