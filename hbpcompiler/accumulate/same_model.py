"""Whether the model and the loss are at each batch what they were for the batches before: a total is of one model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hbpcompiler.accumulate.checkpoint import Header, changed, frozen_of, modes_of
from hbpcompiler.accumulate.settings import settings_of
from hbpcompiler.compiled import Compiled
from hbpcompiler.errors import InputError, listing
from hbpcompiler.guards import State
from hbpcompiler.system.checksums import Checksums


class SameModel:
    """What it was at first."""

    def __init__(self, compiled: Compiled, header: Header) -> None:
        self._compiled, self._model, self._header = compiled, compiled.model, header
        self._settings = settings_of(compiled.model, compiled.loss)
        self._surroundings: tuple[Any, ...] = ()
        """Autocast, say, at the first batch: a loader may turn it on for all of them."""
        self._modes, self._frozen = modes_of(self._model), frozen_of(self._model)
        self._modules = tuple(self._model.modules())
        self._training = [module.training for module in self._modules]
        self._own = Checksums(self._own_now())
        self._state = compiled._state_now()
        self._beside = Checksums(self._beside_of(self._state))
        self._own_numbers, self._beside_numbers = self._own.now(), self._beside.now()

    def check(self) -> None:
        """InputError where what reads the data, or anybody else, has changed it."""
        if [module.training for module in self._modules] != self._training:
            raise InputError(f"the model's modes are now {modes_of(self._model)}, and were {self._modes} "
                             "for the batches before. A total is of one mode: what switches it, as an evaluation "
                             "between batches does, has to switch it back before it gives the next one")
        state = self._compiled._state_now()
        self._check_numbers(state)
        self._surroundings = self._surroundings or state.surroundings
        if state is self._state:
            return
        if (now := frozen_of(self._model)) != self._frozen:
            raise InputError(f"other parameters are frozen now ({now or 'none'}) than for the batches before "
                             f"({self._frozen or 'none'}). A total is of one choice: freeze them before")
        if (state.key, state.surroundings) != (self._state.key, self._surroundings):
            self.check_settings()
            raise InputError("what the model or the loss reads beside their tensors (attributes, globals, what "
                             "functions hold), or torch.autocast, is no longer what it was for the batches before. A "
                             "total is of one model: change it before, or keep what counts batches out of the forward "
                             "and the loss")

    def check_settings(self) -> None:
        """InputError that names what computes otherwise."""
        if self._settings != (now := settings_of(self._model, self._compiled.loss)):
            raise InputError(listing("What the model or the loss holds or reads is no longer what it was for the "
                                     "batches before, whether or not it makes a difference:",
                                     changed(now, self._settings),
                                     "A total is of one model: change it before, and keep counts elsewhere."))

    def called(self) -> None:
        """A batch's program has run: a first call reads more of Python's state than the walk before it had."""
        self._state = self._compiled._state_now()

    def _check_numbers(self, state: State) -> None:
        if state is not self._state:
            self._own = Checksums(self._own_now())
            self._beside = Checksums(self._beside_of(state))
        if self._own.now() != self._own_numbers:
            raise InputError(_others("the model's parameters or buffers"))
        if self._beside.now() != self._beside_numbers:
            raise InputError(_others("tensors of the loss, or that it or the model reads elsewhere,"))

    def _own_now(self) -> tuple[Tensor, ...]:
        return (*self._model.parameters(), *self._model.buffers())

    def _beside_of(self, state: State) -> tuple[Tensor, ...]:
        """Tensors of the loss, and of attributes and globals, in the order in which they are met."""
        own = {id(tensor) for tensor in self._own.tensors}
        return tuple(tensor for tensor in state.tensors if id(tensor) not in own)


def _others(what: str) -> str:
    return (f"{what} are no longer what they were for the batches before. A total is of one model: train it before, or "
            "give accumulate a copy of it")
