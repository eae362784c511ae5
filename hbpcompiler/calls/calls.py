"""One call of a compiled model: the batch and its arguments checked, the program found, proven and run."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.arguments import (
    DRAW_KEYS,
    Call,
    arguments_for,
    brought_by,
    check_arguments,
    check_fit,
    of_reached,
)
from hbpcompiler.block_product import meetings
from hbpcompiler.calls.into import Adds, Read, added_to, with_tensors
from hbpcompiler.calls.long_calls import announce
from hbpcompiler.calls.programs import Programs
from hbpcompiler.compiler.budget import check_fits
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.match.losses.endings import check_weighable
from hbpcompiler.compiler.match.losses.targets import check_targets
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.limits import DEFAULT_LIMITS
from hbpcompiler.options import Options
from hbpcompiler.result import Result
from hbpcompiler.system.seeded import seeded


class Calls(Programs, ABC):
    """Runs the programs of one model on batches."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], options: Options) -> None:
        super().__init__(model, loss, options)
        self._needs_arguments = any(argument.default is None
                                    for argument in arguments_for(options.quantities, options.clipping))

    @abstractmethod
    def _with(self, **changes: Any) -> Calls:
        """The same model and loss, and options but for these; kept, as its programs are."""

    def _called(self, given: Batch, beside: Mapping[str, Any], generator: torch.Generator | None = None,
                keys: Callable[[Batch], Tensor] | None = None, into: Adds | None = None) -> Result:
        """A call with a batch and arguments that are checked (see `_ran`)."""
        built, raw = self._ran(given, beside, generator, keys, into)
        output = built.structure.build([getattr(raw, name) for name in built.fields])
        plan = built.draft.plan
        return Result(raw, output, self.options.quantities, self.model, meetings(plan), plan.joint.biases, built.stored,
                      reduction_of(built))

    def _ran(self, given: Batch, beside: Mapping[str, Any], generator: torch.Generator | None = None,
             keys: Callable[[Batch], Tensor] | None = None, into: Adds | None = None) -> tuple[Built, Any]:
        """The program that such a call runs, and what it returned.

        With `keys`, which gives a batch's, [N] int64, random draws are the samples' own (see `program.by_sample`), and
        a program is proven before it adds, so that it adds the same whether it has run before or not.
        """
        brought = brought_by(beside)
        state, built = self._program(given, brought)
        beside = of_reached(beside, built.matched.unused)
        check_fit(beside, built.asks)
        check_targets(built.losses, built.matched.graph, given)
        if brought.weights:
            check_weighable(built.matched.ending, built.matched.rules)
        check_fits(built.draft.memory.of(brought), self.options.memory_budget, given.samples,
                   given.tensors[0].device, self.options.limits or DEFAULT_LIMITS)
        self._announce(built, given)
        tensors = None if into is None else into.fitting(built, given.tensors[0], Read(
            self._tensors(state, built), given.tensors, beside))
        if keys is not None and given.samples and (built.draws or built.reused or into is not None):
            self._prepare(given)
            state, built = self._program(given, brought)  # another, where a shared trace was out of date
        if keys is not None and given.samples and built.draws:
            beside = {**beside, DRAW_KEYS: keys(given)}
        with seeded(generator, given.tensors[0].device):
            first = given.samples > 0 and not built.is_proven(given.samples)
            if first or not given.samples:  # nothing of the caller's changes before the program is proven
                if first:
                    built, raw = self._first_proven_run(state, built, given, beside, brought)
                else:
                    raw = self._run(state, built, given, beside)
                if tensors is not None:
                    with torch.no_grad():
                        added_to(raw, tensors)
            else:
                raw = self._run(state, built, given, beside, into=tensors)
        if tensors is not None:
            raw = with_tensors(raw, tensors)
        return built, raw

    def _drawn_by_sample(self, keys: Callable[[Batch], Tensor], batch: Sequence[Any],
                         arguments: Mapping[str, Any], into: Adds | None = None,
                         generator: torch.Generator | None = None) -> Result:
        """A call whose random draws follow from its samples' keys; a program that draws nothing asks for none. What
        belongs to no sample is drawn from the generator, or torch's global one."""
        given = check_batch(self.model, batch)
        return self._called(given, self._beside(arguments, given), generator, keys, into)

    def _announce(self, built: Built, batch: Batch) -> None:
        def other(quantities: Sequence[str], batch: Batch) -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = self if tuple(quantities) == self.options.quantities else self._with(quantities=list(quantities))
                last = made._last
                cost = made._program(batch)[1].draft.cost
                made._last = last
            return sum(cost.seconds(batch.samples).values())

        announce(built, batch, type(self.model).__name__, other)

    def _beside(self, given: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
        """A call's arguments, checked."""
        if not given and not self._needs_arguments:
            return {}
        own, options = dict(self.model.named_parameters()), self.options
        clipped = tuple(name for name, parameter in own.items()
                        if parameter.requires_grad and options.chosen.asks("clipped_grad", name))
        dtype = next(parameter.dtype for parameter in own.values() if parameter.requires_grad)
        return check_arguments(given, Call(batch.samples, batch.tensors[0].device, self.options.quantities,
                                           {name: parameter.shape for name, parameter in own.items()},
                                           options.clipping, clipped, dtype))


def reduction_of(built: Built) -> str:
    """See `Compiled.reduction`."""
    ending = built.matched.ending
    return ending.kind if ending.definite else ""
