"""EKFAC while a model is trained: averages of second moments in the eigenbases of averaged Kronecker factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from hbpcompiler.accumulate.ranks import Ranks
from hbpcompiler.compiled import Compiled
from hbpcompiler.ekfac.bases import Bases, Decomposed, eigenbases
from hbpcompiler.optim.averages import Key
from hbpcompiler.optim.running import RunningCurvature, Settings
from hbpcompiler.result import Result

EIGENVALUES = "eigenvalues"
"""The field of averages that are second moments in the bases."""


class RunningEigenbases(RunningCurvature):
    """Factors are averaged for the bases alone. When these are found anew, so are the second moments in them, from the
    batch at hand; they are averaged until the bases change again, and enter the inverse with each update."""

    def __init__(self, model: nn.Module, loss: Any, settings: Settings) -> None:
        super().__init__(model, loss, settings)
        self.bases: dict[str, Bases] = {}
        self.asked: list[str] = []
        """The parameters of the bases: weights, and the biases that are in their blocks."""
        self._with_moments: dict[frozenset[str], Compiled] = {}
        self._moments_alone: dict[frozenset[str], Compiled] = {}

    def _program(self, batch: tuple[Any, ...], step: int) -> Compiled:
        """With the moments, if all that it is about has bases."""
        trainable = self._trainable_now()
        if not self.bases:
            return super()._program(batch, step)
        if trainable not in self._with_moments:
            quantities = {**self._quantities(batch, step), self.settings.kind.eigenvalues: self.asked}
            self._with_moments[trainable] = self._compiled(quantities)
        return self._with_moments[trainable]

    def _begin_anew(self) -> None:
        self.bases, self.asked = {}, []

    def _arguments(self, program: Compiled) -> dict[str, Any]:
        return {"bases": self.bases} if self.settings.kind.eigenvalues in program.quantities else {}

    def _seen(self, result: Result, samples: int) -> dict[Key, Any]:
        seen, quantity = super()._seen(result, samples), self.settings.kind.eigenvalues
        if quantity in result:
            seen |= {(name, EIGENVALUES): value for name, value in result[quantity].items()}
        return seen

    def _after_update(self, batch: tuple[Any, ...], step: int, dampings: Callable[[], Mapping[str, float]],
                      anew: bool) -> None:
        if anew:
            factors = {name: pair for name, pair in super()._average_values().items()
                       if getattr(pair, "A", None) is not None}
            self.bases = eigenbases(factors, Ranks(None), None)
            self.asked = sorted({*self.bases, *(self._stored[name].bias for name in self.bases)} - {""})
            self.averages.forget(EIGENVALUES)
            self._find_moments(batch, step)
        self.invert(dampings())

    def _find_moments(self, batch: tuple[Any, ...], step: int) -> None:
        """Of this batch, in new bases, from the draws that the update had."""
        names = frozenset(self.asked)
        if not names:
            return
        if names not in self._moments_alone:
            self._moments_alone[names] = self._compiled({self.settings.kind.eigenvalues: self.asked})
        program = self._moments_alone[names]
        try:
            result = program(*batch, generator=self.draws(step), **self._arguments(program))
        except RuntimeError:
            if self.gradient(batch, step)[0].isfinite():
                raise
            return  # the factors' own eigenvalues serve until the next update
        self._enter({(name, EIGENVALUES): value for name, value in result[self.settings.kind.eigenvalues].items()})

    def _average_values(self) -> dict[str, Any]:
        values = super()._average_values()
        for name, basis in self.bases.items():
            moments = self.averages.means.get((name, EIGENVALUES))
            if name in values and moments is not None:
                values[name] = Decomposed(basis.A, basis.B, moments)
        return values

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "asked": self.asked,
                "bases": {name: tuple(basis) for name, basis in self.bases.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        device = next(self.model.parameters()).device
        self.asked = list(state["asked"])
        self.bases = {name: Bases(*(side.to(device) for side in sides)) for name, sides in state["bases"].items()}


def running_curvature(model: nn.Module, loss: Any, settings: Settings) -> RunningCurvature:
    """Of the kind that the settings name."""
    return (RunningEigenbases if settings.kind.eigenvalues else RunningCurvature)(model, loss, settings)
