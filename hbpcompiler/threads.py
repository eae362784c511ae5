"""Models that one thread changes for the length of a pass (see `with_state`): others of this library wait.

What the user's own threads do with the same model meanwhile is not in our hands.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

Found = TypeVar("Found")
LONGEST = 600.0
"""Seconds that a thread waits; then it goes on, rather than stand still for ever."""
TRIES = 3

TRACING = threading.RLock()
"""The one lock of the compiler, held while a model is traced or its state is read anew: torch.export is not made for
several threads, and meanwhile puts stand-ins in the place of the model's parameters. Calls whose guards pass do not
take it. Who takes both takes it before `alone`."""
_ENDED = threading.Condition()
_holders: dict[int, Counter[int]] = {}
"""By id of a module: the threads that hold it, and how often."""
_begun = 0
"""Passes that have begun so far."""


@contextmanager
def alone(*models: Any) -> Iterator[None]:
    """No other thread is here meanwhile with any modules among these, or a part of them."""
    global _begun
    own = threading.get_ident()
    held = {id(module) for model in models if isinstance(model, nn.Module) for module in model.modules()}
    with _ENDED:
        _ENDED.wait_for(lambda: not _elsewhere(held, own), LONGEST)
        for each in held:
            _holders.setdefault(each, Counter())[own] += 1
        _begun += 1  # after that: who reads without the lock asks in this order whether anything has begun
    try:
        yield
    finally:
        with _ENDED:
            for each in held:
                _holders[each][own] -= 1
                _holders[each] += Counter()  # without those of no hold
                if not _holders[each]:
                    del _holders[each]
            _ENDED.notify_all()


def undisturbed(model: nn.Module, read: Callable[[], Found]) -> Found:
    """What `read` finds of a model while no other thread is changing it."""
    for _ in range(TRIES):
        before = _begun
        if not _holders or threading.get_ident() in _holders.get(id(model), ()):
            try:
                found = read()
            except Exception:
                if before == _begun:
                    raise
            else:
                if before == _begun:
                    return found
    with TRACING, alone(model):
        return read()


def trainable_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of which derivatives are wanted, by name."""
    return undisturbed(model, lambda: {name: parameter for name, parameter in model.named_parameters()
                                       if parameter.requires_grad})


def _elsewhere(held: Collection[int], own: int) -> bool:
    return any(thread != own for each in held for thread in _holders.get(each, ()))
