"""Traces of one model that all who compile it share: one export, whatever quantities are asked for, and when.

What a trace holds for is its key: the state of Python that it was made in (see `guards`), with the very tensors that it
found there, the loss, the form of the batch and the rules that it was traced and taken apart with. Programs made from a
shared trace are proven like all others; where proofs are left out, traces are not shared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.ends import Ends
from hbpcompiler.compiler.trace.trace import Traced
from hbpcompiler.rule.registry import Registry
from hbpcompiler.system.threads import Lock

KEPT = 16
"""Traces of one model, of the forms of batches and states of Python that were met last."""
_LOCK = Lock()


@dataclass
class _Made:
    """One trace, and what has been made of it."""

    key: Hashable
    held: tuple[Any, ...]
    """Loss and tensors whose identities are in the key: while they live nothing else has these."""
    own: tuple[Tensor, ...]
    """The model's parameters and buffers."""
    traced: Traced
    apart: dict[Ends, Traced] = field(default_factory=dict)
    """Taken apart for derivatives that begin there."""


class Exports:
    """The traces of one model; alive for as long as something that compiles the model is."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._made: list[_Made] = []

    def forget(self) -> None:
        """All of them: one has turned out to be of another state than its key says."""
        self._made = []

    def of(self, key: Hashable, batch: Batch) -> _Made | None:
        """One that holds for such a batch; the one that was used last stands last."""
        for made in self._made:
            if made.key == key and made.traced.serves(batch):
                self._made = [other for other in self._made if other is not made] + [made]
                return made
        return None

    def behind(self, traced: Traced) -> _Made | None:
        """The one that this came from, if it is still kept."""
        return next((made for made in self._made if made.traced.exported is traced.exported), None)

    def keep(self, key: Hashable, held: tuple[Any, ...], traced: Traced) -> None:
        """A new one; those of tensors that the model no longer has are dropped."""
        own = (*self.model.parameters(), *self.model.buffers())
        made = _Made(key, held, own, replace(traced, batch=()))
        still = [other for other in self._made if _same(other.own, own)]
        self._made = [*still[-(KEPT - 1):], made]


def _same(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


_OF_MODELS: WeakValueDictionary[int, Exports] = WeakValueDictionary()
"""By the model's id, which no other has while its `Exports` are alive."""


def exports_of(model: nn.Module) -> Exports:
    """The model's traces, for the caller to keep."""
    with _LOCK:
        found = _OF_MODELS.get(id(model))
        if found is None:
            found = _OF_MODELS[id(model)] = Exports(model)
        return found


@dataclass(frozen=True)
class Shelf:
    """Where the traces of one model in one state of Python lie."""

    exports: Exports
    state: Hashable
    tensors: tuple[Tensor, ...]
    """Those that the state consists of."""

    def traced(self, loss: Callable[..., Tensor], batch: Batch, registry: Registry,
               make: Callable[[], Traced]) -> Traced:
        """The trace that lies there, or a new one."""
        key = self._key(loss, batch, registry)
        made = self.exports.of(key, batch)
        if made is not None:
            return replace(made.traced, loss=loss, batch=batch.tensors, reused=True)
        traced = make()
        self.exports.keep(key, (loss, registry, *self.tensors), traced)
        return traced

    def apart(self, traced: Traced, make: Callable[[], Traced]) -> Traced:
        """What such a trace was taken apart to, or is now."""
        made = self.exports.behind(traced)
        if made is None:
            return make()
        if traced.ends not in made.apart:
            made.apart[traced.ends] = replace(make(), batch=())
        return replace(made.apart[traced.ends], loss=traced.loss, batch=traced.batch, reused=traced.reused)

    def _key(self, loss: Callable[..., Tensor], batch: Batch, registry: Registry) -> Hashable:
        # Of torch's own losses the state says all; of others only what Python code is seen to reach.
        known = type(loss) if type(loss).__module__.startswith("torch.nn.") else id(loss)
        return self.state, tuple(map(id, self.tensors)), known, batch.form, id(registry)
