"""Programs for any length: when a second length arrives, or the user names the axes, one program for all is tried."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from hbpcompiler.codegen.conditions import between_lengths
from hbpcompiler.compiler.any_length import Program, beyond, for_any_length
from hbpcompiler.compiler.at_length import At, ModelAt, model_at, stages_at
from hbpcompiler.compiler.budget import check_fits
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.lengths.axes import Axes, between, declared
from hbpcompiler.compiler.lengths.walk import LengthsDifferError
from hbpcompiler.compiler.plan.table import _polynomial
from hbpcompiler.compiler.program.shapes import stand_ins
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_runs
from hbpcompiler.compiler.trace.exports import Shelf
from hbpcompiler.errors import HbpError, InputError, LengthsWarning, ProofError
from hbpcompiler.guards import Guards, State
from hbpcompiler.limits import DEFAULT_LIMITS
from hbpcompiler.options import Options
from hbpcompiler.system.callers import level_of_caller

ATTEMPTS = 2
"""So often one program is tried in vain for the same axes, from another first length each time; and so many are kept
for them in one state of Python."""
Made = TypeVar("Made", bound=ModelAt)


class _BatchFailsError(LengthsDifferError):
    """The batch at hand does not go through the model, or does not fit the loss: that says nothing of lengths."""


class Owner(Protocol):
    """Whose programs they are (see `Programs`)."""

    model: nn.Module
    loss: Callable[..., Tensor]
    options: Options
    _guards: Guards

    def _shelf(self, state: State) -> Shelf | None:
        ...

    def _first_run(self, state: State, built: Built, batch: Batch, beside: Mapping[str, Any]) -> Any:
        ...


class Lengths:
    """Those of one owner."""

    def __init__(self, programs: Owner) -> None:
        self.programs = programs
        self.reasons: dict[Any, str] = {}
        """Why there is no program for any length, by the form of the batches."""
        self._attempts: dict[Any, int] = {}

    def known(self, state: State, batch: Batch) -> Built | None:
        """The program that serves this batch's length and has served it before."""
        for program, length in self._programs(state, batch):
            built = program.by_length.get(length)
            if built is not None and built.sizes.include(batch.samples) and self._needs_no_proof(built, batch) and (
                    self._is_compared(program, length)):
                return built
        return None

    def _is_compared(self, program: Program, length: int) -> bool:
        """Whether what the model does at a length was seen. A proof shows it; without proofs a trace has to."""
        return self.programs.options.verify is not False or length in program.compared

    def _needs_no_proof(self, built: Built, batch: Batch) -> bool:
        return self.programs.options.verify is False or not batch.samples or built.is_proven(batch.samples)

    def serving(self, state: State, batch: Batch) -> Built | None:
        """A program for any length that serves this one, a new one perhaps; None: it needs a program of its own."""
        options = self.programs.options
        if options.dynamic is False or options.autotune:
            return None
        for program, length in self._programs(state, batch):
            if program.serves(length, batch.samples) or self._extended(state, program, batch, length):
                return self._proven(state, program, batch, length)
        if options.dynamic:
            return None  # it was tried when there was one length
        for form, made in list(state.programs.items()):
            axes = between(form, batch.form) if isinstance(form, tuple) and len(form) == 2 else None
            if axes is None or isinstance(made[0], Program) or made[-1].asked.lines:
                continue
            if isinstance(axes, str):
                self.reasons.setdefault(form, axes)
                continue
            found, own = self._tried(state, made[-1], form, batch, axes), axes.length(batch)
            if found is not None and own is not None and found.serves(own, batch.samples):
                return self._proven(state, found, batch, own)
        return None

    def declared(self, state: State, built: Built, batch: Batch) -> Built:
        """The program for any length of the axes that the user names, once there is one for this; or that one."""
        options = self.programs.options
        if not options.dynamic or options.autotune or built.asked.lines:
            return built
        axes = declared(dict(options.dynamic), batch)
        if axes.form(batch) in state.programs:
            return built  # it does not serve this length
        program = self._tried(state, built, batch.form, batch, axes)
        length = axes.length(batch)
        assert length is not None
        found = None if program is None else self._proven(state, program, batch, length)
        return built if found is None else found

    def told(self, state: State, built: Built) -> str:
        """The program's text, with the lengths that it serves where these are several."""
        program = self._of(state, built)
        if program is None:
            return built.draft.code
        length = program.axes.of[0]
        return between_lengths(built.draft.code, length.tensor, length.axis, program.lowest, program.highest)

    def _of(self, state: State, built: Built) -> Program | None:
        """The program for any length that this is, at one of them."""
        made = [program for several in list(state.programs.values()) for program in several]
        return next((program for program in made if isinstance(program, Program)
                     and any(own is built for own in program.by_length.values())), None)

    def in_words(self, state: State, built: Built) -> list[str]:
        """What `explain` says of lengths."""
        if (program := self._of(state, built)) is not None:
            adds, traffic = map(_polynomial, program.costs())
            return [f"One program for every length: {program.in_words()}.",
                    f"A call makes {adds} multiply-adds and moves {traffic} bytes."]
        return [f"There is no program for every length: {reason}." for reason in dict.fromkeys(self.reasons.values())]

    # -- trying ------------------------------------------------------------------------------------------------------

    def _programs(self, state: State, batch: Batch) -> list[tuple[Program, int]]:
        """The programs for any length that are for batches of this form, each with the batch's length."""
        found = []
        for form, made in list(state.programs.items()):
            for program in made if isinstance(form, tuple) and form[:1] == ("any length",) else []:
                length = program.axes.length(batch) if program.axes.form(batch) == form else None
                if length is not None:
                    found.append((program, length))
        return found

    def _stages(self, first: Built, batch: Batch, axes: Axes, length: int) -> At:
        """At another length, with a batch made of this one."""
        return self._made(stages_at, first, batch, axes, length)

    def _made(self, stages: Callable[..., Made], first: Built, batch: Batch, axes: Axes, length: int) -> Made:
        """What some stages make at a length of this model."""
        owner, other = self.programs, axes.at(batch, length)
        try:
            state, run = owner._guards.probed(lambda: check_runs(owner.model, owner.loss, other))
        except HbpError as error:
            if length == axes.length(batch):
                raise _BatchFailsError from error
            raise LengthsDifferError(f"a batch of length {length} does not go through: "
                                     f"{str(error).splitlines()[0]}") from error
        try:
            return stages(owner.model, owner.loss, other, owner.options, run.answers, state.places,
                          owner._shelf(state), first, length)
        finally:
            state.put_back()

    def _tried(self, state: State, first: Built, form: Any, batch: Batch, axes: Axes) -> Program | None:
        """One program from the first's, put in its place among the programs; None, and a reason, if there is none."""
        owner, key, length = self.programs, axes.form(batch), axes.length(batch)
        sample = _length_of(form, axes)
        if length is None or self._attempts.get(key, 0) + len(state.programs.get(key, [])) >= ATTEMPTS:
            return None
        try:
            program = for_any_length(first, axes.at(batch, sample), axes, length,
                                     lambda other: self._stages(first, batch, axes, other),
                                     owner.options.verify is False)
        except _BatchFailsError:
            return None
        except LengthsDifferError as error:
            self._attempts[key] = self._attempts.get(key, 0) + 1
            self._refuse(key, str(error))
            return None
        self.reasons.pop(key, None)
        owner._guards.drop(state, form, first)
        owner._guards.add(state, key, program, (owner.options.limits or DEFAULT_LIMITS).kept_programs)
        return program

    def _extended(self, state: State, program: Program, batch: Batch, length: int) -> bool:
        """Whether the stages make the same program at a length outside of those that it serves."""
        low, high = min(length, program.lowest), max(length, program.highest)
        if any(low <= other <= high for other in program.impossible) or not program.whole.sizes.include(batch.samples):
            return False
        reason = "positions that are none are dropped"
        for other in beyond(program, length):
            try:
                program.check(self._stages(program.first, batch, program.axes, other))
                return program.serves(length, batch.samples)
            except _BatchFailsError:
                return False
            except LengthsDifferError as error:
                reason = str(error)
        program.impossible.append(length)
        self.reasons[program.axes.form(batch)] = f"a length of {length} needs a program of its own: {reason}"
        return False

    def _proven(self, state: State, program: Program, batch: Batch, length: int) -> Built | None:
        """The program at a length, compared with the model's own step there; None if it must not be used there."""
        owner, built = self.programs, program.built(length)
        options = owner.options
        try:
            check_fits(built.draft.memory, options.memory_budget, batch.samples, batch.tensors[0].device,
                       options.limits or DEFAULT_LIMITS)
        except InputError:  # planned for this length it may need less
            return None
        if not self._is_compared(program, length) and batch.samples:
            try:
                program.check_model(self._made(model_at, program.first, batch, program.axes, length))
            except LengthsDifferError as error:
                self.reasons[program.axes.form(batch)] = f"a length of {length} needs a program of its own: {error}"
                return None
        if self._needs_no_proof(built, batch):
            return built
        try:
            with drawing(Draws.now(batch.tensors[0].device)):
                beside = stand_ins(built.draft.graph, batch.samples, dict(owner.model.named_parameters()))
                owner._first_run(state, built, batch, beside)
        except ProofError as error:
            key = program.axes.form(batch)
            owner._guards.drop(state, key, program)
            self._attempts[key] = ATTEMPTS
            self._refuse(key, f"at a length of {length} it does not compute what the model does: "
                         f"{str(error).splitlines()[0]}")
            return None
        return built

    def _refuse(self, key: Any, reason: str) -> None:
        new = key not in self.reasons
        self.reasons[key] = reason
        if new:
            warnings.warn(f"each length gets a program of its own: {reason}. With compile(..., dynamic=False) none for "
                          "all is looked for", LengthsWarning, stacklevel=level_of_caller())


def _length_of(form: Any, axes: Axes) -> int:
    """T of batches of this form."""
    place = axes.of[0]
    length: int = form[1][place.tensor][0][place.axis - 1]
    return length
