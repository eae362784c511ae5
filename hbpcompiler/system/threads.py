"""Models that one thread changes for the length of a pass (see `with_state`): others of this library wait.

What the user's own threads do with the same model meanwhile is not in our hands. In the child of a fork nobody waits
for threads that it does not have; a model that one of these was changing stays half changed there, and is refused.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn, overrides

from hbpcompiler.errors import ModelError

Found = TypeVar("Found")
LONGEST = 600.0
"""Seconds that a thread waits; then it goes on, rather than stand still for ever."""
TRIES = 3
REMEMBERED = 256
"""Passes that have begun last, of which it is known what they hold."""
_number_of_modes: Callable[[], int] = getattr(torch._C, "_len_torch_function_stack", lambda: 0)


class Lock:
    """One that its thread may take again, and that forks do not leave locked. A copy is another one."""

    every: ClassVar[weakref.WeakSet[Lock]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner, self._depth = 0, 0
        self.every.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()

    def forked(self) -> None:
        """In a child, where only the thread that forked goes on: it holds what it held, and nobody else anything."""
        own = self._depth if self._owner == threading.get_ident() else 0
        self._lock, self._depth = threading.RLock(), own
        for _ in range(own):
            self._lock.acquire()


TRACING = Lock()
"""The one lock of the compiler, held while a model is traced or its state is read anew: torch.export is not made for
several threads, and meanwhile puts stand-ins in the place of the model's parameters. Calls whose guards pass do not
take it. Who takes both takes it before `alone`."""
_here = threading.local()
_ENDED = threading.Condition()
_holders: dict[int, Counter[int]] = {}
"""By id of a module: the threads that hold it, and how often."""
_held: dict[int, nn.Module] = {}
"""These modules."""
_traced: list[tuple[int, dict[int, nn.Module]]] = []
"""Modules that a thread has begun to trace."""
_begun = 0
"""Passes that have begun so far."""
_last: deque[tuple[int, Collection[int]]] = deque(maxlen=REMEMBERED)
"""The threads of the last of them, and what they hold."""
_torn: dict[int, nn.Module] = {}
"""Modules that have been left half changed: threads that are not in this process were about to put them back."""


@contextmanager
def followed() -> Iterator[None]:
    """Meanwhile this thread runs the user's code to see what it does, with stand-ins for what it computes on."""
    before = is_followed()
    _here.followed = True
    try:
        yield
    finally:
        _here.followed = before


def is_followed() -> bool:
    """Whether this thread is within `followed`."""
    return getattr(_here, "followed", False)


@contextmanager
def alone(*models: Any) -> Iterator[None]:
    """No other thread is here meanwhile with any modules among these, or a part of them."""
    global _begun
    own, modules = threading.get_ident(), _modules_of(*models)
    _refuse_torn(modules)
    with _ENDED:
        _ENDED.wait_for(lambda: not _elsewhere(modules, own), LONGEST)
        for each in modules:
            _holders.setdefault(each, Counter())[own] += 1
        _held.update(modules)
        _last.append((own, frozenset(modules)))  # their ids: it keeps no model alive
        _begun += 1  # after that: who reads without the lock asks in this order whether anything has begun
    try:
        yield
    finally:
        with _ENDED:
            for each in modules:
                _holders[each][own] -= 1
                _holders[each] += Counter()  # without those of no hold
                if not _holders[each]:
                    del _holders[each], _held[each]
            _ENDED.notify_all()


@contextmanager
def traced(model: nn.Module) -> Iterator[None]:
    """With TRACING: calls of ready programs of this model go on meanwhile, but for those in the child of a fork."""
    entry = threading.get_ident(), _modules_of(model)
    _refuse_torn(entry[1])
    _traced.append(entry)
    try:
        yield
    finally:
        _traced.pop()


def undisturbed(model: nn.Module, read: Callable[[], Found]) -> Found:
    """What `read` finds of a model while no other thread is changing it."""
    own = threading.get_ident()
    for _ in range(TRIES):
        before = _begun
        if _holders or _torn:
            _wait_for(model)
        try:
            found = read()
        except Exception:
            if before == _begun or not _came(before, model, own):
                raise
        else:
            if before == _begun or not _came(before, model, own):
                return found
    with TRACING, alone(model):
        return read()


def trainable_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of which derivatives are wanted, by name."""
    return undisturbed(model, lambda: {name: parameter for name, parameter in model.named_parameters()
                                       if parameter.requires_grad})


def _wait_for(model: nn.Module) -> None:
    """Until no other thread holds a part of this model; others' models are no matter."""
    own, modules = threading.get_ident(), _modules_of(model)
    _refuse_torn(modules)
    with _ENDED:
        _ENDED.wait_for(lambda: not _elsewhere(modules, own), LONGEST)


def _came(before: int, model: nn.Module, own: int) -> bool:
    """Whether another thread may have begun a pass of a part of this model since so many passes had begun."""
    modules = _modules_of(model).keys()
    with _ENDED:
        new = _begun - before
        return new > len(_last) or any(thread != own and not modules.isdisjoint(held)
                                       for thread, held in list(_last)[len(_last) - new:])


def _modules_of(*models: Any) -> dict[int, nn.Module]:
    return {id(module): module for model in models if isinstance(model, nn.Module) for module in model.modules()}


def _elsewhere(held: Collection[int], own: int) -> bool:
    return any(thread != own for each in held for thread in _holders.get(each, ()))


def _refuse_torn(modules: Collection[int]) -> None:
    if _torn and any(each in _torn for each in modules):
        raise ModelError("this process was forked while another thread was in the middle of a pass of this model, "
                         "which holds other numbers meanwhile, and in this process nobody puts its own back: fork "
                         "while no other thread compiles or multiplies with the model, or build it anew here and "
                         "load its state")


def _after_fork() -> None:
    """In the child: locks that other threads held would never be free again."""
    global _ENDED
    own, _ENDED = threading.get_ident(), threading.Condition()
    for lock in Lock.every:
        lock.forked()
    _torn.update((each, _held[each]) for each, threads in _holders.items() if set(threads) - {own} and each in _held)
    for thread, modules in _traced:
        _torn.update(modules if thread != own else {})
    _traced[:] = [entry for entry in _traced if entry[0] == own]
    for each, threads in list(_holders.items()):
        _holders[each] = Counter({own: threads[own]}) + Counter()
        if not _holders[each]:
            del _holders[each]
            _held.pop(each, None)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)


def function_modes() -> tuple[type, ...]:
    """The kinds of the user's torch.overrides.TorchFunctionMode in force in this thread. A program runs within them as
    the model does, and one that is changed in another way is refused by its proof, which each state has for itself."""
    if not _number_of_modes():
        return ()
    kinds = map(type, overrides._get_current_function_mode_stack())
    return tuple(kind for kind in kinds if kind.__module__.partition(".")[0] not in ("torch", "hbpcompiler"))
