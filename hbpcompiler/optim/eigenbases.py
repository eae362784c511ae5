"""EKFAC while a model is trained: averages of second moments in the eigenbases of averaged Kronecker factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiled import Compiled
from hbpcompiler.ekfac.bases import Bases, Decomposed, eigenbases
from hbpcompiler.optim.kinds import EIGENVALUES
from hbpcompiler.optim.programs import Settings, trainable_in
from hbpcompiler.optim.running import Dampings, Factors, RunningCurvature
from hbpcompiler.optim.together import Together


class RunningEigenbases(RunningCurvature):
    """Factors are averaged for the bases alone. When these are found anew, so are the second moments in them, from the
    batch at hand; they are averaged until the bases change again, and enter the inverse with each update."""

    def __init__(self, model: nn.Module, loss: Any, settings: Settings, together: Together) -> None:
        super().__init__(model, loss, settings, together)
        self.bases: dict[str, Bases] = {}
        self.asked: list[str] = []
        """The parameters of the bases: weights, and the biases that are in their blocks."""
        self._with_moments: dict[frozenset[str], Compiled] = {}
        self._moments_alone: dict[frozenset[str], Compiled] = {}

    def _program(self, batch: tuple[Any, ...], step: int) -> Compiled:
        """With the moments, if all that it is about has bases."""
        trainable = trainable_in(self.model)
        if not self.bases:
            return super()._program(batch, step)
        self._follow_dtype()
        if trainable not in self._with_moments:
            quantities = {**self.programs.quantities(batch, step), self.settings.kind.eigenvalues: self.asked}
            self._with_moments[trainable] = self.programs.compiled(quantities)
        return self._with_moments[trainable]

    def _begin_anew(self) -> None:
        self.bases, self.asked = {}, []

    def _follow_dtype(self) -> None:
        """Bases are the model's dtype, which may have changed, or be another than that of a state that was loaded."""
        if self.settings.options.get("curvature_dtype") is None:
            parameters = dict(self.model.named_parameters())
            self.bases = {name: Bases(*(_in_dtype(side, parameters[name].dtype) for side in sides))
                          for name, sides in self.bases.items()}

    def _arguments(self, program: Compiled) -> dict[str, Any]:
        return {"bases": self.bases} if self.settings.kind.eigenvalues in program.quantities else {}

    def _after_update(self, batch: tuple[Any, ...], step: int, dampings: Dampings, anew: bool) -> None:
        if anew:
            factors = {name: Factors(self.averages.means[name, "A"], self.averages.means[name, "B"])
                       for name in self._averaged() if (name, "A") in self.averages.means}
            self.averages.forget(EIGENVALUES)
            self._begin_anew()  # the former bases make room, which the inverse has, too
            self._inverse.drop()
            with self.in_own_precision():
                self.averages.make_symmetric(("A", "B"))
                self.bases = eigenbases(factors, self.together.ranks, None)
            self.asked = sorted({*self.bases, *(self._stored[name].bias for name in self.bases)} - {""})
            self._find_moments(batch, step)
        self.invert(dampings())

    def _find_moments(self, batch: tuple[Any, ...], step: int) -> None:
        """Of this batch, in new bases, from the draws that the update had."""
        names = frozenset(self.asked)
        if not names:
            return
        if names not in self._moments_alone:
            self._moments_alone[names] = self.programs.compiled({self.settings.kind.eigenvalues: self.asked})
        self._enter(self.programs.seen(lambda: self._moments_alone[names], batch, step, self._arguments))

    def _average_value(self, name: str) -> Any:
        basis, moments = self.bases.get(name), self.averages.means.get((name, EIGENVALUES))
        if basis is None or moments is None:
            return super()._average_value(name)
        return Decomposed(basis.A, basis.B, moments)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "asked": self.asked,
                "bases": {name: tuple(basis) for name, basis in self.bases.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        device = next(self.model.parameters()).device
        self.asked = list(state["asked"])
        self.bases = {name: Bases(*(side.to(device) for side in sides)) for name, sides in state["bases"].items()}


def _in_dtype(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Orthonormal columns, in a wider dtype to its own rounding; their signs do not matter."""
    if torch.finfo(dtype).eps >= torch.finfo(vectors.dtype).eps:
        return vectors.to(dtype)
    return torch.linalg.qr(vectors.to(dtype)).Q


def running_curvature(model: nn.Module, loss: Any, settings: Settings, together: Together) -> RunningCurvature:
    """Of the kind that the settings name."""
    return (RunningEigenbases if settings.kind.eigenvalues else RunningCurvature)(model, loss, settings, together)
