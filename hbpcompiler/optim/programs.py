"""The programs that a step runs on its batch: of the gradient alone, and of gradient and curvature."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hbpcompiler.accumulate.sums import LOSS, Key
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiled import compile as compile_model
from hbpcompiler.errors import IndefiniteCurvatureWarning, UnsupportedOpError
from hbpcompiler.guards.ambient import without_autocast
from hbpcompiler.optim.averages import Root
from hbpcompiler.optim.kinds import Kind, embedded, with_factors
from hbpcompiler.optim.together import Part, Together
from hbpcompiler.quantities import OF_LOSS, QUANTITIES
from hbpcompiler.result import Result
from hbpcompiler.system.threads import trainable_of
from hbpcompiler.values import Stored

Gradient = dict[str, Tensor]
"""By parameter name."""
CURVATURE, GRADIENT = "curvature", "grad"
"""The quantities of keys, beside LOSS."""
MEANS_ALSO_OF_SUMS = ("second_moment",)
"""(1/N) sum_n whatever the loss is; its Fisher matrix has N times that if the loss is a sum."""


@dataclass(frozen=True)
class Settings:
    """What stays the same from step to step."""

    kind: Kind
    decay: float
    split: str
    largest_factor: int
    seed: int
    update_every: int
    invert_every: int
    squared: bool = False
    """Whether squares are averaged (of diagonals), not the values themselves."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `hbp.compile`."""
    skipped: frozenset[str] = frozenset()
    """The parameters that have no curvature, by name."""


class Seen(NamedTuple):
    """Of a batch, on all ranks."""

    loss: Tensor
    gradient: Gradient | None
    """None: it is not finite, nor may the rest be."""
    curvature: dict[tuple[str, str], Tensor | Root]
    """What is averaged: by parameter and field."""
    stored: Mapping[str, Stored]


class Programs:
    """Those of one model and loss. One with curvature is for the parameters that are trainable now; there is another
    one for others."""

    def __init__(self, model: nn.Module, loss: Any, settings: Settings, together: Together) -> None:
        self.model, self.loss, self.settings, self.together = model, loss, settings, together
        self.gradient_alone = compile_model(model, loss, ["grad"], **settings.options)
        self._with_curvature: dict[frozenset[str], Compiled] = {}

    def with_curvature(self, batch: tuple[Any, ...], step: int) -> Compiled:
        trainable = trainable_in(self.model)
        if trainable not in self._with_curvature:
            self._with_curvature[trainable] = self.compiled(self.quantities(batch, step))
        return self._with_curvature[trainable]

    def compiled(self, quantities: dict[str, Any]) -> Compiled:
        return compile_model(self.model, self.loss, quantities, joint_bias=True, **self.settings.options)

    def quantities(self, batch: tuple[Any, ...], step: int) -> dict[str, Any]:
        """For `hbp.compile`: gradient and curvature, each for its parameters."""
        kind, skipped = self.settings.kind, self.settings.skipped
        if not kind.others:
            return {"grad": "*", kind.quantity: sorted(trainable_in(self.model) - skipped) if skipped else "*"}
        with without_autocast([next(self.model.parameters()).device.type]):
            stored = self.call(self.gradient_alone, batch, step).grad.stored
        factored = with_factors(stored, self.settings.largest_factor, embedded(self.model)) - skipped
        asked = {kind.quantity: sorted(factored), kind.others: sorted(stored.keys() - factored - skipped)}
        return {"grad": "*"} | {quantity: names for quantity, names in asked.items() if names}

    def call(self, program: Compiled, batch: tuple[Any, ...], step: int, **arguments: Any) -> Result:
        """Each step's draws are its own, so that a run that is resumed draws as one that was not interrupted, and each
        sample's its own, so that several ranks draw as one. UnsupportedOpError for a curvature that may be indefinite,
        so that nothing can be divided by it."""
        seed = self.settings.seed
        own = random.Random(f"{seed}, step {step}, rank {self.together.draws_as}").getrandbits(62)
        with warnings.catch_warnings():
            warnings.simplefilter("error", IndefiniteCurvatureWarning)
            try:
                return self.together.on_samples(self.model, batch, lambda given: program._drawn_by_sample(
                    self.together.keys(seed, step), given, arguments, generator=torch.Generator().manual_seed(own)))
            except IndefiniteCurvatureWarning as warning:
                self._with_curvature.clear()
                raise UnsupportedOpError(f"{warning}. Train with curvature='second_moment', 'kfac_emp', 'diag_h_abs' "
                                         "or 'diag_h_clip', which are positive for every loss") from None

    def seen(self, program: Callable[[], Compiled], batch: tuple[Any, ...], step: int,
             arguments: Callable[[Compiled], dict[str, Any]]) -> Seen:
        """What a program with curvature gives of the batch, all ranks' parts together. Where it does not add up: the
        gradient of the parts, and the curvature of the whole batch, on each rank."""
        kind = self.settings.kind
        if not self.together.several or QUANTITIES[kind.quantity].adds or kind.root:
            return self._seen(program, batch, step, arguments)
        alone = self.gradient(batch, step)
        whole = self._seen(program, batch, step, arguments, whole=True)
        return alone._replace(curvature=whole.curvature, stored=whole.stored)

    def gradient(self, batch: tuple[Any, ...], step: int) -> Seen:
        """With the loss, and no curvature."""
        return self._seen(lambda: self.gradient_alone, batch, step, lambda program: {})

    def _seen(self, program: Callable[[], Compiled], batch: tuple[Any, ...], step: int,
              arguments: Callable[[Compiled], dict[str, Any]], whole: bool = False) -> Seen:
        stored: Mapping[str, Stored] = {}
        reduction = ""

        def compute(given: tuple[Any, ...]) -> tuple[Compiled, dict[Hashable, Part]]:
            nonlocal stored, reduction
            made = program()
            factored = self.settings.kind.others and made is not self.gradient_alone
            kinds = [next(self.model.parameters()).device.type] if factored else []
            with without_autocast(kinds):  # weights that autocast copies meet no inputs, and have no factors
                result = self.call(made, given, step, **arguments(made))
            stored, reduction = result.stored, result.reduction
            return made, self._parts(result)

        if whole:
            found = self.together.on_whole(
                batch, lambda given: {key: part.tensor for key, part in compute(given)[1].items()})
        else:
            found = self.together.averaged(self.model, batch, lambda: compute(batch))
        loss = found.pop(Key(LOSS, "", ""), torch.tensor(float("nan"), device="cpu"))
        gradient: Gradient = {}
        curvature: dict[tuple[str, str], Tensor | Root] = {}
        for key in list(found):
            tensor = found.pop(key)
            if key.quantity == GRADIENT:
                gradient[key.parameter] = tensor
                continue
            if key.quantity in MEANS_ALSO_OF_SUMS and reduction == "sum":
                tensor = tensor * self.together.samples
            is_root = self._is_root(key.quantity) and not self.together.several
            curvature[key.parameter, key.field] = Root(tensor) if is_root else tensor
        return Seen(loss, gradient, curvature, stored)

    def _is_root(self, quantity: str) -> bool:
        return self.settings.kind.root and quantity == self.settings.kind.quantity

    def _parts(self, result: Result) -> dict[Hashable, Part]:
        """Its tensors, and how they add up."""
        parts: dict[Hashable, Part] = {Key(LOSS, "", ""): Part(OF_LOSS, result.loss, "")}
        for quantity in result.quantities:
            hows = QUANTITIES[quantity].adds or (OF_LOSS, OF_LOSS)  # none: nobody adds them up (see `seen`)
            for name, value in result[quantity].items():
                if self._is_root(quantity):
                    matrix = value
                    if self.together.several:  # V V^T adds up over ranks
                        with without_autocast([value.device.type]):
                            matrix = Root(value).whole()
                    parts[Key(quantity, name, "")] = Part(OF_LOSS, matrix, name)
                elif isinstance(value, Tensor):
                    field = self.settings.kind.field_of(quantity)
                    parts[Key(quantity, name, field)] = Part(hows[0], value, name)
                else:
                    for letter, how in zip(("A", "B"), hows, strict=True):
                        if (factor := getattr(value, letter)) is not None:
                            parts[Key(quantity, name, letter)] = Part(how, factor, name)
        return parts


def trainable_in(model: nn.Module) -> frozenset[str]:
    """The parameters that are trainable now, by name."""
    return frozenset(trainable_of(model))
