"""A model's curvature while it is trained: running averages over some steps' batches, and their damped inverse."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import Tensor, nn

from hbpcompiler.compiled import Compiled
from hbpcompiler.curvature import Block, Curvature, curvature
from hbpcompiler.errors import InputError, listing
from hbpcompiler.guards.ambient import without_autocast
from hbpcompiler.optim.averages import Averages, Root
from hbpcompiler.optim.inverse import Inverse
from hbpcompiler.optim.kinds import ABSOLUTE, CLIPPED
from hbpcompiler.optim.products import times
from hbpcompiler.optim.programs import Gradient, Programs, Seen, Settings, trainable_in
from hbpcompiler.optim.together import Together, all_finite
from hbpcompiler.values import Stored, Values

Dampings = Callable[[], Mapping[str, float]]
"""By parameter, as they are when they are asked for."""
NOTHING_SEEN = "no batch has been seen whose curvature is finite; there is nothing to divide by"


class Factors(NamedTuple):
    """Of a Kronecker product B (x) A."""

    A: Tensor | None
    B: Tensor


class RunningCurvature:
    """The averages, the programs they come from, and the inverse."""

    def __init__(self, model: nn.Module, loss: Any, settings: Settings, together: Together) -> None:
        self.model = model
        self.settings = settings
        self.together = together
        self.programs = Programs(model, loss, settings, together)
        self.averages = Averages(settings.decay, settings.squared)
        self._inverse = Inverse(settings.split, together)
        self._stored: Mapping[str, Stored] = {}
        self._trainable: frozenset[str] = frozenset()
        """The parameters that were trainable at the last update, but for those that are skipped."""

    # -- a batch -------------------------------------------------------------------------------------------------------

    def advance(self, batch: tuple[Any, ...], step: int, dampings: Dampings | None) -> tuple[Tensor, Gradient | None]:
        """Loss and gradient, with the average brought up to date where the step's number says so, and the inverse too
        unless there are no dampings. At once where other parameters are trainable than at the last update.

        The gradient is None where loss or gradient is not finite; then nothing else has changed.
        """
        trainable = trainable_in(self.model) - self.settings.skipped
        new = (trainable != self._trainable or self._inverse.lost
               or bool(self._of_other_shapes(self._inverse.blocks.values())))
        if not new and step % self.settings.update_every:
            return self.gradient(batch, step)
        if new:
            self._begin_anew()
        seen = self._checked(self.programs.seen(lambda: self._program(batch, step), batch, step, self._arguments))
        if seen.gradient is None:
            return seen.loss, None
        entered = list(seen.curvature)
        if self._enter(seen):
            self.averages.keep(entered)
            self._stored = seen.stored
        if dampings is not None and self._stored:
            anew = new or step % self.settings.invert_every == 0
            self._after_update(batch, step, dampings, anew)
        self._trainable = trainable
        return seen.loss, seen.gradient

    def gradient(self, batch: tuple[Any, ...], step: int) -> tuple[Tensor, Gradient | None]:
        """Loss and gradient; None if not all is finite."""
        seen = self._checked(self.programs.gradient(batch, step))
        return seen.loss, seen.gradient

    def _checked(self, seen: Seen) -> Seen:
        if seen.gradient is not None and not all_finite([seen.loss, *seen.gradient.values()]):
            return seen._replace(gradient=None)
        return seen

    def _enter(self, seen: Seen) -> bool:
        """Whether the curvature is finite, and in the averages now; it is no longer in `seen`."""
        finite = all_finite(value.trace() if isinstance(value, Root) else value for value in seen.curvature.values())
        if finite:
            with self.in_own_precision():
                self.averages.update(seen.curvature)
        seen.curvature.clear()
        return finite

    def _begin_anew(self) -> None:
        """Other parameters have become trainable, or fewer are."""

    def _program(self, batch: tuple[Any, ...], step: int) -> Compiled:
        return self.programs.with_curvature(batch, step)

    def _arguments(self, program: Compiled) -> dict[str, Any]:
        """Of the call of a program with curvature."""
        return {}

    def _after_update(self, batch: tuple[Any, ...], step: int, dampings: Dampings, anew: bool) -> None:
        """`anew`: it is time for the inverse."""
        if anew:
            self.invert(dampings())

    # -- the average -------------------------------------------------------------------------------------------------

    def mean(self, name: str) -> Tensor:
        """The average of a diagonal, as the kind has its sign. InputError where there is none yet."""
        if (name, "") not in self.averages.means:
            raise InputError(NOTHING_SEEN)
        return self._signed(self.averages.means[name, ""])

    def average(self) -> Curvature:
        """The mean as it is now, of the parameters that the last update was about. InputError before the first one."""
        if not self._stored:
            raise InputError("there is no curvature yet: it comes with the next step that updates it")
        return self._average_of(self._averaged())

    def _average_of(self, names: Iterable[str]) -> Curvature:
        rounded = {name: own._replace(dtype=self.averages.narrowest_of(name, own.dtype))
                   for name, own in self._stored.items()}
        return curvature(Values({name: self._average_value(name) for name in names}, "", rounded))

    def _averaged(self) -> list[str]:
        """The parameters that have a mean; biases that are in a weight's block have none of their own."""
        return list(dict.fromkeys(name for name, letter in self.averages.means
                                  if name in self._stored and letter in ("", "B")))

    def _average_value(self, name: str) -> Any:
        """As a result has it, of the averages."""
        mean = self.averages.means.get((name, ""))
        if mean is not None:
            return self._signed(mean)
        return Factors(self.averages.means.get((name, "A")), self.averages.means[name, "B"])

    def joined(self) -> list[tuple[str, str]]:
        """Weights, and the biases that are in their blocks."""
        return [(name, own.bias) for name, own in self._stored.items()
                if own.bias and (name, "A") in self.averages.means]

    def _signed(self, mean: Tensor) -> Tensor:
        if self.settings.kind.sign == ABSOLUTE:
            return mean.abs()
        return mean.clamp(min=0) if self.settings.kind.sign == CLIPPED else mean

    # -- the inverse ---------------------------------------------------------------------------------------------------

    def invert(self, dampings: Mapping[str, float]) -> None:
        """(average + damping)^-1, kept for the steps that follow."""
        with self.in_own_precision():
            self.averages.make_symmetric(("A", "B"))
            self._inverse.find(self._averaged(), lambda name: self._average_of([name]).blocks[0], dampings)

    def preconditioned(self, gradient: Gradient) -> Gradient:
        """The inverse times the gradient, {name: [*theta]}."""
        if self._inverse.lost or not self._inverse.blocks:
            raise InputError(NOTHING_SEEN)
        found: Gradient = {}
        for block in self._inverse.blocks.values():
            asked = [name for name in block.names if name in gradient]
            if asked:
                like, shapes = gradient[asked[0]], dict(zip(block.names, block.place.shapes, strict=True))
                whole = {name: gradient[name] if name in gradient else like.new_zeros(shapes[name])
                         for name in block.names}  # a bias that is frozen, or another optimizer's
                own = block.place.gather({name: part.unsqueeze(0) for name, part in whole.items()})
                with self.in_own_precision():
                    product = block.place.scatter(block.product(own.to(block.dtype), times))
                found |= {name: product[name].squeeze(0).to(gradient[name].dtype) for name in asked}
        return found

    def in_own_precision(self) -> AbstractContextManager[None]:
        """A step's linear algebra is not the model's, whose products autocast makes in half precision."""
        return without_autocast([next(self.model.parameters()).device.type])

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        inverse = None if self._inverse.lost else self._inverse.curvature
        return {"averages": self.averages.state_dict(), "trainable": sorted(self._trainable),
                "inverse": None if inverse is None else inverse.state_dict()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """InputError for a state of parameters of other shapes."""
        if wrong := self._of_other_shapes(self._blocks_of(state)):
            raise InputError(listing("this is the state of a model of other shapes:", wrong))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """One that has been checked."""
        device, blocks = next(self.model.parameters()).device, self._blocks_of(state)
        self.averages.load(state["averages"], device)
        self._trainable = frozenset(state["trainable"])
        self._inverse.blocks = {block.names: copy.deepcopy(block) for block in blocks}  # it will be written over
        self._inverse.lost = False

    def _blocks_of(self, state: Mapping[str, Any]) -> Iterable[Block]:
        """The inverse's, on the model's device."""
        device, inverse = next(self.model.parameters()).device, state["inverse"]
        return () if inverse is None else Curvature.from_state_dict(inverse).to(device).blocks

    def _of_other_shapes(self, blocks: Iterable[Block]) -> list[str]:
        """What is said of the parameters that have other shapes in these blocks than in the model."""
        shapes = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        pairs = [pair for block in blocks for pair in zip(block.names, block.place.shapes, strict=True)]
        return [f"{name} is {list(shapes[name])} here and {list(shape)} there" for name, shape in pairs
                if name in shapes and shapes[name] != tuple(shape)]
