"""Random draws of one call that can be repeated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hbpcompiler.errors import InputTypeError
from hbpcompiler.system.threads import TRACING


def seeded(generator: torch.Generator | None, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Draw from torch's global generator, on this device, seeded by `generator`, if there is one, and put it back
    afterwards. Proofs and operators in other threads, which put it elsewhere too, wait for that: by the one lock of
    the compiler, as a first call takes that inside, and an optimizer's step outside."""
    return contextlib.nullcontext() if generator is None else _seeded(generator, device)


@contextlib.contextmanager
def _seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    if not isinstance(generator, torch.Generator):
        raise InputTypeError(f"generator must be a torch.Generator, not {generator!r}")
    seed = int(torch.randint(0, 2**62, (), generator=generator, device=generator.device).item())
    with TRACING, torch.random.fork_rng():
        seed_global(seed, device)
        yield


def seed_global(number: int, device: torch.device) -> None:
    """Of torch's global generators; on the CPU without what torch.manual_seed does for every device there may be."""
    if device.type == "cpu":
        seed_cpu(number)
    else:
        torch.manual_seed(number)


def seed_cpu(number: int) -> None:
    """Of the CPU's generator alone. Where torch has not met a GPU yet, torch.manual_seed writes down for each kind of
    them what the stack looks like, for when it will: a millisecond, and memory for as long as the process lasts."""
    torch.default_generator.manual_seed(number)
