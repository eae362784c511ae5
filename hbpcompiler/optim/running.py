"""A model's curvature while it is trained: running averages over some steps' batches, and their damped inverse."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hbpcompiler.compiled import Compiled
from hbpcompiler.compiled import compile as compile_model
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.curvature import Curvature, curvature
from hbpcompiler.errors import IndefiniteCurvatureWarning, InputError, UnsupportedOpError
from hbpcompiler.optim.averages import Averages, Key
from hbpcompiler.optim.kinds import ABSOLUTE, CLIPPED, Kind, embedded, with_factors
from hbpcompiler.result import Result
from hbpcompiler.values import Stored, Values

Gradient = dict[str, Tensor]
"""By parameter name."""
MEANS_ALSO_OF_SUMS = ("second_moment",)
"""(1/N) sum_n whatever the loss is; its Fisher matrix has N times that if the loss is a sum."""


class Factors(NamedTuple):
    """Of a Kronecker product B (x) A."""

    A: Tensor | None
    B: Tensor


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


class RunningCurvature:
    """The averages, and the programs they come from: one of the gradient alone, one of the gradient and curvature.

    The second one is for the parameters that are trainable now; there is another one for others.
    """

    def __init__(self, model: nn.Module, loss: Any, settings: Settings) -> None:
        self.model = model
        self.loss = loss
        self.settings = settings
        self.averages = Averages(settings.decay)
        self.inverse: Curvature | None = None
        self._stored: Mapping[str, Stored] = {}
        self._trainable: frozenset[str] = frozenset()
        """The parameters that were trainable at the last update."""
        self._gradient_alone = compile_model(model, loss, ["grad"], **settings.options)
        self._with_curvature: dict[frozenset[str], Compiled] = {}
        self._buffers: tuple[Any, dict[str, Any]] = (None, {})
        """For what they are, and the curvature of the last batch: the next one's is written over it."""

    # -- a batch -------------------------------------------------------------------------------------------------------

    def advance(self, batch: tuple[Any, ...], step: int, dampings: Callable[[], Mapping[str, float]] | None,
                ) -> tuple[Tensor, Gradient]:
        """Loss and gradient, with the average brought up to date where the step's number says so, and the inverse too
        unless there are no dampings. At once where other parameters are trainable than at the last update."""
        trainable = self._trainable_now()
        new = trainable != self._trainable
        if not new and step % self.settings.update_every:
            return self.gradient(batch, step)
        if new:
            self._begin_anew()
        seen = self._stored
        loss, gradient = self.gradient_and_update(batch, step)
        if dampings is not None and self._stored:
            anew = new or step % self.settings.invert_every == 0
            self._after_update(batch, step, dampings, anew)
        if self._stored is not seen:  # else the batch was not finite, and the next one begins
            self._trainable = trainable
        return loss, gradient

    def _trainable_now(self) -> frozenset[str]:
        return frozenset(name for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def _begin_anew(self) -> None:
        """Other parameters have become trainable, or fewer are."""

    def gradient(self, batch: tuple[Any, ...], step: int) -> tuple[Tensor, Gradient]:
        """Loss and gradient."""
        result = self._gradient_alone(*batch, generator=self.draws(step))
        return result.loss, dict(result.grad)

    def gradient_and_update(self, batch: tuple[Any, ...], step: int) -> tuple[Tensor, Gradient]:
        """The same; the batch's curvature goes into the averages, unless it is not finite."""
        program = self._program(batch, step)
        try:
            result = self._of_convex_loss(program, batch, step)
        except RuntimeError:
            loss, gradient = self.gradient(batch, step)
            if loss.isfinite():
                raise
            return loss, gradient  # no targets can be drawn from outputs that are NaN
        samples = check_batch(self.model, batch).samples if program.reduction == "sum" else 1
        seen = self._seen(result, samples)
        if self._enter(seen):
            self.averages.keep(seen)
            self._stored = result.stored
        return result.loss, dict(result.grad)

    def _enter(self, seen: dict[Key, Tensor]) -> bool:
        """Whether they are finite, and are in the averages now."""
        finite = bool(torch.stack([tensor.sum() for tensor in seen.values()]).isfinite().all()) if seen else True
        if finite:
            self.averages.update(seen)
        return finite

    def _program(self, batch: tuple[Any, ...], step: int) -> Compiled:
        trainable = self._trainable_now()
        if trainable not in self._with_curvature:
            self._with_curvature[trainable] = self._compiled(self._quantities(batch, step))
        return self._with_curvature[trainable]

    def _compiled(self, quantities: dict[str, Any]) -> Compiled:
        return compile_model(self.model, self.loss, quantities, joint_bias=True, **self.settings.options)

    def _of_convex_loss(self, program: Compiled, batch: tuple[Any, ...], step: int) -> Result:
        """What the program returns. UnsupportedOpError if its curvature may be indefinite, so that nothing can be
        divided by it."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", IndefiniteCurvatureWarning)
            try:
                result = program(*batch, generator=self.draws(step), **self._written_over(program),
                                 **self._arguments(program))
                self._keep(program, result)
                return result
            except IndefiniteCurvatureWarning as warning:
                self._with_curvature.clear()
                raise UnsupportedOpError(f"{warning}. Train with curvature='second_moment', 'kfac_emp', 'diag_h_abs' "
                                         "or 'diag_h_clip', which are positive for every loss") from None

    def _written_over(self, program: Compiled) -> dict[str, Any]:
        """Where the program's curvature may go, as arguments of its call: what the averages have is their own."""
        kind, buffers = self._buffers
        return {"into": buffers, "decay": 0.0} if buffers and kind == self._kind_of_buffers(program) else {}

    def _keep(self, program: Compiled, result: Result) -> None:
        if not self.settings.kind.root:  # columns have a row for each sample
            held = {name: result[name] for name in self.settings.kind.quantities if name in result}
            self._buffers = self._kind_of_buffers(program), held

    def _kind_of_buffers(self, program: Compiled) -> Any:
        return id(program), frozenset((parameter.dtype, parameter.device) for parameter in self.model.parameters())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffers": (None, {})}

    def _arguments(self, program: Compiled) -> dict[str, Any]:
        """Of the call of a program with curvature."""
        return {}

    def _quantities(self, batch: tuple[Any, ...], step: int) -> dict[str, Any]:
        kind = self.settings.kind
        if not kind.others:
            return {"grad": "*", kind.quantity: "*"}
        stored = self._gradient_alone(*batch, generator=self.draws(step)).grad.stored
        factored = with_factors(stored, self.settings.largest_factor, embedded(self.model))
        asked = {kind.quantity: sorted(factored), kind.others: sorted(stored.keys() - factored)}
        return {"grad": "*"} | {quantity: names for quantity, names in asked.items() if names}

    def _seen(self, result: Result, samples: int) -> dict[Key, Tensor]:
        """The tensors that are averaged."""
        kind, seen = self.settings.kind, dict[Key, Tensor]()
        for quantity in kind.quantities:
            for name, value in result[quantity].items() if quantity in result else ():
                if kind.root:
                    columns = value.flatten(0, 1).flatten(1)
                    seen[name, ""] = columns.t() @ columns
                elif isinstance(value, Tensor):
                    seen[name, ""] = value * samples if quantity in MEANS_ALSO_OF_SUMS else value
                else:
                    seen |= {(name, letter): factor for letter, factor in (("A", value.A), ("B", value.B))
                             if factor is not None}
        if self.settings.squared:
            return {key: tensor.square() for key, tensor in seen.items()}
        return seen

    def draws(self, step: int) -> torch.Generator:
        """Each step's own, so that a run that is resumed draws as one that was not interrupted."""
        return torch.Generator().manual_seed(random.Random(f"{self.settings.seed}, step {step}").getrandbits(62))

    def mean(self, name: str) -> Tensor:
        """The average of a diagonal, as the kind has its sign. InputError where there is none yet."""
        if (name, "") not in self.averages.means:
            raise InputError("no batch has been seen whose curvature is finite; there is nothing to divide by")
        return self._signed(self.averages.means[name, ""])

    def _after_update(self, batch: tuple[Any, ...], step: int, dampings: Callable[[], Mapping[str, float]],
                      anew: bool) -> None:
        """`anew`: it is time for the inverse."""
        if anew:
            self.invert(dampings())

    # -- the inverse ---------------------------------------------------------------------------------------------------

    def average(self) -> Curvature:
        """The mean as it is now, of the parameters that the last update was about. InputError before the first one."""
        if not self._stored:
            raise InputError("there is no curvature yet: it comes with the next step that updates it")
        return curvature(Values(self._average_values(), "", self._stored))

    def _average_values(self) -> dict[str, Any]:
        """As a result has them, of the averages."""
        values: dict[str, Any] = {}
        for (name, letter), mean in self.averages.means.items():
            if name in self._stored and letter == "":
                values[name] = self._signed(mean)
            elif name in self._stored and letter == "B":
                values[name] = Factors(self.averages.means.get((name, "A")), mean)
        return values

    def invert(self, dampings: Mapping[str, float]) -> None:
        """(average + damping)^-1, kept for the steps that follow."""
        average = self.average()
        self.inverse = average.inverse({name: dampings[name] for name in average.names}, self.settings.split)

    def preconditioned(self, gradient: Gradient) -> Gradient:
        """The inverse times the gradient, {name: [*theta]}."""
        if self.inverse is None:
            raise InputError("no batch has been seen whose curvature is finite; there is nothing to divide by")
        found: Gradient = {}
        for block in self.inverse.blocks:
            asked = [name for name in block.names if name in gradient]
            if asked:
                like, shapes = gradient[asked[0]], dict(zip(block.names, block.place.shapes, strict=True))
                whole = {name: gradient[name] if name in gradient else like.new_zeros(shapes[name])
                         for name in block.names}  # a bias that is frozen, or another optimizer's
                own = block.place.gather({name: part.unsqueeze(0) for name, part in whole.items()})
                product = block.place.scatter(block.product(own.to(block.dtype)))
                found |= {name: product[name].squeeze(0).to(gradient[name].dtype) for name in asked}
        return found

    def _signed(self, mean: Tensor) -> Tensor:
        if self.settings.kind.sign == ABSOLUTE:
            return mean.abs()
        return mean.clamp(min=0) if self.settings.kind.sign == CLIPPED else mean

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.averages.state_dict(), "trainable": sorted(self._trainable),
                "inverse": None if self.inverse is None else self.inverse.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = next(self.model.parameters()).device
        self.averages.load(state["averages"], device)
        self._trainable = frozenset(state["trainable"])
        inverse = state["inverse"]
        self.inverse = None if inverse is None else Curvature.from_state_dict(inverse).to(device)
