"""The programs of one model: made at the first batch of each kind, proven at their first run, kept and run."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hbpcompiler.arguments import (
    DRAW_KEYS,
    SAMPLE_WEIGHTS,
    Brought,
    rows_of,
    without_weights,
)
from hbpcompiler.block_product import block_diagonal, meetings
from hbpcompiler.calls.doubts import warn_if_indefinite, warn_of_hooks, warn_of_losses, warn_of_meetings
from hbpcompiler.calls.empty import UNKNOWN, result_of_none
from hbpcompiler.calls.into import Into
from hbpcompiler.calls.lengths import Lengths
from hbpcompiler.calls.long_calls import shown
from hbpcompiler.compiler.built import Built, beside_exports, directly
from hbpcompiler.compiler.pipeline import first_program
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import Birth
from hbpcompiler.compiler.program.shapes import stand_ins
from hbpcompiler.compiler.prove.candidate import Candidate, can_weigh
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.prove import prove
from hbpcompiler.compiler.prove.refused import check
from hbpcompiler.compiler.prove.trials import trials
from hbpcompiler.compiler.stages import FIRST_RUN, PROVE, rare_collections
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_runs, complaint_of
from hbpcompiler.compiler.trace.exports import Shelf, exports_of
from hbpcompiler.compiler.trace.fx_graph.reader import loss_tensors
from hbpcompiler.errors import (
    CompileError,
    InputError,
    ProofError,
    UnusedParametersWarning,
)
from hbpcompiler.guards import TRACING, Guards, State
from hbpcompiler.guards.ambient import without_autocast
from hbpcompiler.guards.queues import queues_noted
from hbpcompiler.limits import DEFAULT_LIMITS
from hbpcompiler.options import FULL, Options, check_model
from hbpcompiler.system.callers import level_of_caller
from hbpcompiler.system.threads import alone, traced, undisturbed

NEGATIVE = "weights of the loss are negative"
"""What a program says (see `rule.idioms`)."""
OF_NEGATIVE = ("a weight or a target probability of the loss is negative in this batch, and was not in the batch that "
               "this program was made for, which takes the roots of these: compile anew with a batch that has some, "
               "hbp.compile(..., example_inputs=batch), and the program serves weights of both signs. Of binary "
               "cross-entropy that goes for exact quantities: sampled ones, diag_ggn_mc and kfac, take roots anyway")


class Programs:
    """Programs for one model, loss and choice of options, by shapes, dtypes, device and Python's state."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], options: Options) -> None:
        self.model = model
        self.loss = loss
        self.options = options
        self._guards = Guards(model, loss)
        self._exports = exports_of(model)
        self._unused: set[str] = set()
        self._last: tuple[State, Built] | None = None
        self._uses = itertools.count(1)
        self._lengths = Lengths(self)

    def _program(self, batch: Batch, brought: Brought = Brought()) -> tuple[State, Built]:  # noqa: B008  # a constant
        """The program for this batch in Python's present state, and that state; a new one is planned for `brought`."""
        state = self._state_now()
        built = _serving(state, batch) or self._lengths.known(state, batch)
        if built is None:
            with TRACING, rare_collections(), queues_noted():
                state, built = self._make(batch, brought)
        built.used = next(self._uses)
        self._last = state, built
        return self._last

    def _state_now(self) -> State:
        """Python's state, as far as the model and the loss read it."""
        return undisturbed(self.model, self._guards.current)

    def _make(self, batch: Batch, brought: Brought) -> tuple[State, Built]:
        """Trace and build, unless another thread has just done so."""
        state = self._state_now()
        built = _serving(state, batch) or self._lengths.serving(state, batch)
        if built is None:
            undisturbed(self.model, lambda: check_model(self.model, self.loss))
            state, run = self._guards.probed(lambda: check_runs(self.model, self.loss, batch))
            try:
                with traced(self.model):
                    built = first_program(self.model, self.loss, batch, self.options, run, state.places, brought,
                                          self._shelf(state))
            finally:
                state.put_back()
            self._guards.add(state, batch.form, built, (self.options.limits or DEFAULT_LIMITS).kept_programs)
            if built.matched.graph.has_loss_streams:
                run.warn()
                warn_of_losses(built.matched)
            self._warn_of_unused(built.matched.unused, "loss" if built.matched.graph.has_loss_streams else "output")
            warn_if_indefinite(built.draft.plan, self.loss,
                               built.matched.graph.has_loss_streams and built.matched.has_flat_loss)
            warn_of_hooks(self.model, self.loss, self.options)
            warn_of_meetings(built.matched, self.options)
            built = self._lengths.declared(state, built, batch)
        return state, built

    def _shelf(self, state: State) -> Shelf | None:
        """Where traces of this state lie, the other programs' of this model too. Without proofs nothing would show that
        one is out of date, in a way that guards do not see."""
        if self.options.verify is False:
            return None
        return Shelf(self._exports, state.of_traces, state.tensors)

    def _run(self, state: State, built: Built, batch: Batch, beside: Mapping[str, Any],
             tensors: Mapping[str, Tensor] | None = None, into: Into | None = None) -> Any:
        """What the program returns; of what is `beside` the batch, the part of these samples. With `into` the program
        is one that adds."""
        casts = without_autocast(self._guards.device_types) if state.autocast else contextlib.nullcontext()
        tensors = self._tensors(state, built) if tensors is None else tensors
        with torch.no_grad(), casts, beside_exports(built.backend):
            if not batch.samples:
                kind = built.matched.ending.kind if built.matched.graph.has_loss_streams else UNKNOWN
                return result_of_none(built.run, tensors, batch, kind, beside)
            run = built.by_sample[0] if DRAW_KEYS in beside else built.run
            if into is not None:
                run = built.that_adds(into.tensors, into.same, into.triangles, DRAW_KEYS in beside)
                beside = {**beside, **into.arguments()}
            with shown(built, batch.samples) if run is built.run else contextlib.nullcontext():
                try:
                    return directly(run, built.backend)(tensors, *batch.tensors, **rows_of(beside, batch.samples))
                except ZeroDivisionError as error:  # no tensor raises it: x.shape[0] - 1 of one sample, say
                    raise InputError(
                        f"the model or the loss divides by a number that it makes of the batch's size, and that is 0 "
                        f"for {batch.samples} samples: leave out batches of this size, or bound the number, as in "
                        "max(x.shape[0] - 1, 1)") from error
                except (IndexError, RuntimeError, torch.jit.Error) as error:
                    # LinAlgError, too, of which TorchScript makes a plain one, as it makes its own of what is raised.
                    if NEGATIVE in str(error):
                        raise InputError(OF_NEGATIVE) from error
                    if "linalg.eigh" not in str(error):
                        self._raise_in_words_of_the_model(error, batch)
                    raise InputError("torch.linalg.eigh finds no eigenvectors of a matrix in this program, for ekfac a "
                                     "Kronecker factor: it has entries that are NaN or infinite, or of too different "
                                     "sizes; look at the inputs and the loss") from error

    def _first_run(self, state: State, built: Built, batch: Batch, beside: Mapping[str, Any]) -> Any:
        """What the program returns, if it agrees with the model's own training step (see `prove`); or ProofError.

        That step knows no weights of samples; the proof gives it those of the call, unless nothing is left of them or
        the outputs do not show the samples apart: then the proof is of a run without them.
        """
        batch = built.as_asked(batch)
        weights = beside.get(SAMPLE_WEIGHTS)
        as_called = weights is None or can_weigh(built.matched, weights)
        candidate = self._candidate(state, built, beside if as_called else without_weights(beside))
        try:
            # Else a step in another thread may come between.
            with self._undone(state), TRACING, alone(self.model, self.loss):
                raw = self._proven(built, batch, candidate, lambda: self._run(state, built, batch, beside), as_called)
        except ProofError:
            if not built.proven:
                self._guards.drop(state, batch.form, built)
                self._last = None
            raise
        built.proven.add(batch.samples == 1)
        return raw

    @contextlib.contextmanager
    def _undone(self, state: State) -> Iterator[None]:
        """Meanwhile the model may run; what that does to Python's state is undone."""
        with queues_noted():
            try:
                yield
            finally:
                state.put_back()

    def _proven(self, built: Built, batch: Batch, candidate: Candidate, run: Callable[[], Any], as_called: bool) -> Any:
        draws, full = Draws.now(batch.tensors[0].device), self.options.verify == FULL
        for trial in trials(candidate, batch):
            draws.restore()
            with built.seconds.first(FIRST_RUN):
                raw = run()
            try:
                with built.seconds.first(PROVE):
                    check(prove(candidate, batch, draws, raw if as_called else None, full), candidate, batch, draws)
                return raw
            except ProofError as error:
                failure = trial.told(error)
        raise failure

    def _first_proven_run(self, state: State, built: Built, batch: Batch, beside: Mapping[str, Any],
                          brought: Brought = Brought()) -> tuple[Built, Any]:  # noqa: B008  # a constant
        """The same, and the program: one of a trace of its own where that of a shared one is not what the model does.
        """
        draws = Draws.now(batch.tensors[0].device)
        try:
            try:
                return built, self._first_run(state, built, batch, beside)
            except ProofError:
                if not built.reused or built.proven:
                    raise
            draws.restore()
            state, built = self._anew(state, built, batch, brought)
            return built, self._first_run(state, built, batch, beside)
        except Exception:
            draws.restore()  # a refused call has drawn nothing
            raise

    def _anew(self, state: State, built: Built, batch: Batch, brought: Brought) -> tuple[State, Built]:
        """The program of a trace of its own, where that of a shared one is out of date."""
        self._exports.forget()
        self._guards.drop(state, batch.form, built)
        self._last = None
        return self._program(batch, brought)

    def _prepare(self, batch: Batch) -> None:
        """A proven program for batches like this one."""
        state, built = self._program(batch)
        if batch.samples and not built.is_proven(batch.samples):
            self._announce(built, batch)
            with drawing(Draws.now(batch.tensors[0].device)):
                beside = stand_ins(built.draft.graph, batch.samples, dict(self.model.named_parameters()))
                self._first_proven_run(state, built, batch, beside)

    def _announce(self, built: Built, batch: Batch) -> None:
        """Says before a long call how long it is predicted to take."""

    def _candidate(self, state: State, built: Built, beside: Mapping[str, Any] = MappingProxyType({})) -> Candidate:
        def run(batch: Batch, tensors: Mapping[str, Tensor] | None = None, **other: Any) -> Any:
            return self._run(state, built, batch, {**beside, **other}, tensors)

        return Candidate(self.model, self.loss, self.options, built.matched, built.fields, run,
                         self._tensors(state, built), built.sizes,
                         built.draft.plan.joint.biases,
                         lambda name, kept, entries: block_diagonal(meetings(built.draft.plan)[name], kept, entries),
                         beside, built.stored, _may_cancel(built.draft.plan),
                         draws_alike=built.reused and not built.proven)

    def _warn_of_unused(self, names: Sequence[str], end: str) -> None:
        new = [name for name in names if name not in self._unused]
        self._unused.update(new)
        if new:
            warnings.warn(f"these trainable parameters do not influence the {end}: {', '.join(new)}. They are left out "
                          "of the results, as torch leaves their grad None, and to_parameters() leaves them alone",
                          UnusedParametersWarning, stacklevel=level_of_caller())

    def _raise_in_words_of_the_model(self, error: Exception, batch: Batch) -> NoReturn:
        """A program stops where the model or the loss does, at a label that is no class, say: then it is these that say
        what is wrong, and where. Memory that is missing, and faults of the program, are said as they are."""
        if not isinstance(error, torch.OutOfMemoryError):
            _, complaint = self._guards.probed(lambda: complaint_of(self.model, self.loss, batch))
            if complaint is not None:
                raise complaint from error
        raise error

    def _tensors(self, state: State, built: Built) -> dict[str, Tensor]:
        """All that the program reads but the batch, live."""
        known, _ = state.arguments.get(id(built), (None, None))
        if known is not built:
            own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            # Themselves: what detach() gives would keep the memory that `tensor.data = other` replaces.
            held = {name: state.tensor(place) for name, place in built.places.items()}
            state.arguments[id(built)] = built, {**own, **built.constants, **loss_tensors(self.loss), **held}
        return state.arguments[id(built)][1]

    def _current(self) -> Built:
        return self._program_used()[1]

    def _program_used(self) -> tuple[State, Built]:
        if self._last is None:
            raise CompileError("there is no program yet: it is made at the first batch. Call compiled(X, y), or pass "
                               "example_inputs=(X, y) to hbp.compile")
        return self._last


def _may_cancel(planned: Plan) -> bool:
    """Whether curvature is born where two values meet: 2 u v is (u + v)^2 - (u - v)^2, divided by 2."""
    return any(isinstance(step, Birth) and len(step.slots) > 1 for step in planned.flat())


def _serving(state: State, batch: Batch) -> Built | None:
    """The program for batches of this form and size, if there is one yet."""
    made: list[Built] = state.programs.get(batch.form, [])
    return next((built for built in made if built.serves(batch)), None)
