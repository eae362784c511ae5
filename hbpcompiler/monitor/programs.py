"""What a monitor has compiled, and what of it a model cannot have: left out, each with the reason, in words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.calls.long_calls import in_words, seconds_of
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiled import compile as compile_model
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.errors import (
    BatchDoesNotFitError,
    CompileError,
    HbpError,
    IndefiniteCurvatureWarning,
    LongCallWarning,
    ModelError,
    UnusedParametersWarning,
)
from hbpcompiler.monitor.table import CONVEX, PAIR, Tracked
from hbpcompiler.operators.passes import Passes
from hbpcompiler.quantities import GRADIENT, LOSS
from hbpcompiler.quantities import QUANTITIES as COMPILED
from hbpcompiler.result import Result

END = ("batch_loss", "project")
"""What the end of a step is asked for."""
GROUP = "all"
LARGER = {"grad_histogram": "grad_histogram_2d"}
"""Of which the first follows from the second."""
BATCH_NORM = "batch norm mixes samples while it trains: all but loss and grad_norm are of the network in eval mode"


def _kinds(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Those together that travel in the same streams; what has more of them, as the whole Hessian has, comes last."""
    found: dict[frozenset[str], list[str]] = {}
    gradient = frozenset({GRADIENT})
    for name in names:
        streams = frozenset(COMPILED[name].streams) - {LOSS}
        found.setdefault(streams or gradient, []).append(name)
    return [tuple(found[streams]) for streams in sorted(found, key=len)]


def _why(error: Exception) -> str:
    if isinstance(error, HbpError | LongCallWarning):
        return in_short(error)
    return f"it failed, which is a fault of this library ({type(error).__name__}: {in_short(error)})"


class Programs:
    """Programs for the quantities that are tracked, made at the first batches."""

    def __init__(self, model: nn.Module, loss: Any, tracked: Mapping[str, Tracked], seed: int) -> None:
        self.model, self.loss, self.seed = model, loss, seed
        self.tracked = dict(tracked)
        self.left_out: dict[str, str] = {}
        """By quantity, why."""
        self.made = 0
        """How many programs there are."""
        self.arguments: dict[str, Any] = {}
        """Of all calls: the edges of histograms."""
        self._compiled: dict[tuple[str, ...], Compiled] = {}
        self._tried = False

    def drop(self, name: str, why: str) -> None:
        """Leaves a quantity out from now on."""
        self.tracked.pop(name, None)
        self.left_out[name] = why

    # -- what is compiled ----------------------------------------------------------------------------------------------

    def needs(self) -> tuple[str, ...]:
        """Of all that is tracked, once each."""
        found = {need: None for tracked in self.tracked.values() for need in tracked.needs}
        return tuple(need for need in found if LARGER.get(need) not in found)

    def run(self, batch: Sequence[Any], directions: Mapping[str, Tensor] | None = None,
            generator: torch.Generator | None = None) -> Result | None:
        """All that is needed of a batch, and the projections onto directions; None if nothing is to be had compiled.

        At the first batch quantities that the model cannot have are left out.
        """
        if not self._tried:
            self._try(batch, generator)
        names = self.needs()
        if directions is not None:
            return self.at_end(batch, directions, generator, names)
        return self._call(names, batch, generator) if names else None

    def at_end(self, batch: Sequence[Any], directions: Mapping[str, Tensor], generator: torch.Generator | None = None,
               others: Sequence[str] = ()) -> Result:
        """l_n and g_n . d, besides others."""
        names = tuple(dict.fromkeys([*others, *END]))
        parameters = dict(self.model.named_parameters())
        with unwarned():
            asked = self._program(names).names_in("directions", *batch)
        given = {name: directions[name] if name in directions else torch.zeros_like(parameters[name])
                 for name in asked}  # those that were frozen have not moved
        return self._call(names, batch, generator, directions={name: way.unsqueeze(0) for name, way in given.items()})

    def gradient(self, batch: Sequence[Any]) -> Result | None:
        """The gradient alone; None for a model that cannot be compiled."""
        try:
            return self._call(("grad",), batch, None)
        except CompileError:
            return None

    def _call(self, names: tuple[str, ...], batch: Sequence[Any], generator: torch.Generator | None,
              **arguments: Any) -> Result:
        asked = {argument for need in names for argument in COMPILED[need].arguments}
        own = {name: value for name, value in self.arguments.items() if name in asked and value is not None}
        with unwarned():
            return self._program(names)(*batch, generator=generator, **own, **arguments)

    def _program(self, names: tuple[str, ...]) -> Compiled:
        if names not in self._compiled:
            self.made += 1
            groups = {GROUP: "*"} if "project" in names else None
            self._compiled[names] = compile_model(self.model, self.loss, names, groups=groups)
        return self._compiled[names]

    def _try(self, batch: Sequence[Any], generator: torch.Generator | None) -> None:
        """All together; if that fails, apart, so that what works is kept."""
        self._tried = True
        names = self.needs()
        if not names:
            return
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                result = self._first(names, batch, generator)
            self._check(result, any(issubclass(one.category, IndefiniteCurvatureWarning) for one in seen))
        except BatchDoesNotFitError:  # the batch's fault says nothing of the model
            self._tried = False
            self._compiled.clear()
            raise
        except Exception as error:  # a fault of the compiler's ends no training
            self._apart(names, batch, generator, error)

    def _first(self, names: tuple[str, ...], batch: Sequence[Any], generator: torch.Generator | None) -> Result:
        """As `_call`, with the warnings of the program. Raises LongCallWarning: no step waits that long."""
        self.made += 1
        compiled = self._compiled[names] = compile_model(self.model, self.loss, names)
        given = check_batch(self.model, batch)
        built = compiled._program(given)[1]
        if built.draft.cost.is_long(given.samples):
            raise LongCallWarning("with it a step that is looked at is predicted to take about "
                                  f"{in_words(seconds_of(built, given.samples))}")
        return compiled(*batch, generator=generator)

    def _check(self, result: Result, indefinite: bool) -> None:
        """Leaves out what has a value but no meaning."""
        for tracked in list(self.tracked.values()):
            if CONVEX in tracked.asks and indefinite:
                self.drop(tracked.name, "the loss is not known to be convex in the model's output, so that its GGN may "
                                        "be negative")
            elif tracked.needs and not result.reduction:
                self.drop(tracked.name, "the loss is neither a mean over samples nor a sum, so that the losses of "
                                        "single samples have no scale")

    def _apart(self, names: tuple[str, ...], batch: Sequence[Any], generator: torch.Generator | None,
               together: Exception) -> None:
        """Kind by kind, and one by one where that fails, too; leaves out what cannot be had."""
        reasons: dict[str, str] = {}
        indefinite = False
        result = None
        waiting = _kinds(names)
        while waiting:
            kind = waiting.pop(0)
            if not waiting and not reasons and len(kind) == 1 and isinstance(together, LongCallWarning):
                reasons[kind[0]] = _why(together)  # all others are short
                break
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                try:
                    result = self._first(kind, batch, generator)
                    indefinite |= any(issubclass(one.category, IndefiniteCurvatureWarning) for one in seen)
                except Exception as error:
                    if len(kind) > 1:
                        waiting = [*((name,) for name in kind), *waiting]
                    else:
                        reasons[kind[0]] = _why(error)
        if not reasons:
            reasons = dict.fromkeys(names[1:], _why(together))  # each kind is possible, not all at once
        for tracked in list(self.tracked.values()):
            missing = [LARGER.get(need, need) if LARGER.get(need) in names else need for need in tracked.needs]
            why = next((reasons[need] for need in missing if need in reasons), None)
            if why is not None:
                self.drop(tracked.name, why)
        if result is not None:
            self._check(result, indefinite)

    @property
    def pairs(self) -> bool:
        """Whether something of a step and the one after it is tracked."""
        return any(PAIR in tracked.asks for tracked in self.tracked.values())

    # -- without a program ---------------------------------------------------------------------------------------------

    def by_autograd(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and gradient by a training step beside the user's: in train mode, buffers stay as they are."""
        names = tuple(name for name, parameter in self.model.named_parameters() if parameter.requires_grad)
        passes = Passes(self.model, self.loss, names, self.seed)

        def finish(run: Any) -> tuple[Tensor, list[Tensor | None]]:
            if not run.loss.requires_grad:
                raise ModelError("no trainable parameter influences the loss: it is detached, made of numbers alone, "
                                 "or computed under torch.no_grad(), and there is no gradient to watch")
            found = torch.autograd.grad(run.loss, list(variables.values()), allow_unused=True)
            return run.loss.detach(), [None if part is None else part.detach() for part in found]

        with passes.careful(), passes.variables() as variables, passes.drawn(step, batch):
            loss, found = passes.run(batch, finish)
        return loss, {name: part for name, part in zip(variables, found, strict=True) if part is not None}


@contextmanager
def unwarned() -> Iterator[None]:
    """What a model's programs warn of is said once, when they are tried."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusedParametersWarning)
        warnings.simplefilter("ignore", IndefiniteCurvatureWarning)
        yield


def in_short(error: BaseException) -> str:
    """Its first lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[:2]) if lines else type(error).__name__)[:300]


def mixing(model: nn.Module) -> list[nn.Module]:
    """Batch norms that normalise by the batch now, and have averages to normalise by instead."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.training and module.running_mean is not None]


@contextmanager
def in_eval(modules: Sequence[nn.Module]) -> Iterator[None]:
    """These modules alone, not what is within them."""
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


@contextmanager
def standing_at(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """With these tensors in the place of the parameters and buffers of these names."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: held[name].data for name in values}
    try:
        for name, value in values.items():
            held[name].data = value
        yield
    finally:
        for name, value in before.items():
            held[name].data = value
