"""`hbp.compile` and what it returns: programs made at the first batch and kept per shape, dtype, device and mode."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from hbpcompiler import schemes
from hbpcompiler.arguments import (
    DRAW_KEYS,
    SAMPLE_WEIGHTS,
    Call,
    arguments_for,
    check_arguments,
    check_fit,
    rows_of,
    without_weights,
)
from hbpcompiler.block_product import block_diagonal, block_product, meetings
from hbpcompiler.clipping import FLAT
from hbpcompiler.compiler.budget import check_fits
from hbpcompiler.compiler.match.endings import check_weighable
from hbpcompiler.compiler.match.targets import check_targets
from hbpcompiler.compiler.pipeline import Built, first_program
from hbpcompiler.compiler.plan.steps import Plan
from hbpcompiler.compiler.program.shapes import asked, stand_ins
from hbpcompiler.compiler.prove.candidate import Candidate, can_weigh
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.prove import check, prove
from hbpcompiler.compiler.prove.suspects import hooks
from hbpcompiler.compiler.prove.verification import Verification
from hbpcompiler.compiler.stages import FIRST_RUN, PROVE
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_batch, check_runs
from hbpcompiler.compiler.trace.reader import loss_tensors
from hbpcompiler.empty import UNKNOWN, result_of_none
from hbpcompiler.errors import (
    CompileError,
    IndefiniteCurvatureWarning,
    InputError,
    ProofError,
    UnusedParametersWarning,
    listing,
)
from hbpcompiler.explain import explain
from hbpcompiler.guards import TRACING, Guards, State
from hbpcompiler.guards.ambient import without_autocast
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from hbpcompiler.options import FULL, Options, check_example, check_model, check_options, check_patterns
from hbpcompiler.quantities import QUANTITIES
from hbpcompiler.result import Result
from hbpcompiler.schemes import HESSIAN
from hbpcompiler.seeded import seeded
from hbpcompiler.wrappers import unwrapped


class Compiled:
    """A model compiled for some quantities. Call it with a batch: `result = compiled(X, y)`.

    The model's parameters and buffers are read live at each call and never changed. A program is traced at the first
    batch (or at once from `example_inputs`), serves every batch size, and is kept per input shape, dtype, device and
    state of Python: modes, plain attributes, hooks, functions, autocast (see `guards`); of more than 64
    (`Limits.kept_programs`) those that were used last. Several threads may compile and call at once.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], options: Options,
                 given: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self.loss = loss
        self.options = options
        self._given = given or {}
        self._guards = Guards(model, loss)
        self._needs_arguments = any(argument.default is None
                                    for argument in arguments_for(options.quantities, options.clipping))
        self._unused: set[str] = set()
        self._last: tuple[State, Built] | None = None
        self._uses = itertools.count(1)

    def also(self, *quantities: str) -> Compiled:
        """The same model, loss and options for these quantities of all parameters too."""
        asked = self._given["quantities"]
        more = {**asked, **dict.fromkeys(quantities, "*")} if isinstance(asked, Mapping) else [*asked, *quantities]
        return _again(self.model, self.loss, {**self._given, "quantities": more})

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy.deepcopy: made again from model, loss and options, without programs."""
        return _again, (self.model, self.loss, dict(self._given))

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities, in the table's order."""
        return self.options.quantities

    def __call__(self, *batch: Any, generator: torch.Generator | None = None, **arguments: Any) -> Result:
        """Run the program on (X, y); on (X1, X2, ..., y) or ((X1, X2), y) for a model of several inputs, or on
        ({"name": X, ...}, y) with the arguments of its forward by name. y may be a tuple or dict of tensors.

        `generator` makes all random draws of this call (mc_samples, dropout) reproducible; without it they come from
        torch's global generator. `arguments` are what the quantities take beside the batch (docs/call-arguments.md):
        with `sample_weights`, w [N], every quantity is that of sum_n w_n l_n (over N for a mean loss); clipped_grad
        takes `max_norm`, a positive number (per parameter also a dict of them by name). Raises InputError for a batch,
        or an argument, that does not fit, before anything is computed.
        """
        given = check_batch(self.model, batch)
        return self._called(given, self._beside(arguments, given), generator)

    def _called(self, given: Batch, beside: Mapping[str, Any], generator: torch.Generator | None = None,
                keys: Callable[[Batch], Tensor] | None = None) -> Result:
        """A call with a batch and arguments that are checked.

        With `keys`, which gives a batch's, [N] int64, random draws are the samples' own (see `program.by_sample`).
        """
        state, built = self._program(given)
        check_fit(beside, asked(built.draft.graph))
        check_targets(built.losses, built.matched.graph, given)
        if beside.get(SAMPLE_WEIGHTS) is not None:
            check_weighable(built.matched.ending, built.matched.rules)
        check_fits(built.draft, self.options.memory_budget, given.samples, given.tensors[0].device,
                   self.options.limits or DEFAULT_LIMITS)
        if keys is not None and built.draws and given.samples:
            self._prepare(given)
            beside = {**beside, DRAW_KEYS: keys(given)}
        with seeded(generator):
            first = given.samples > 0 and not built.is_proven(given.samples)
            run = self._first_run if first else self._run
            raw = run(state, built, given, beside)
        output = built.structure.build([getattr(raw, name) for name in built.fields])
        plan = built.draft.plan
        return Result(raw, output, self.quantities, self.model, meetings(plan), plan.joint.biases, built.stored,
                      _reduction(built))

    def _drawn_by_sample(self, keys: Callable[[Batch], Tensor], batch: Sequence[Any],
                         arguments: Mapping[str, Any]) -> Result:
        """A call whose random draws follow from its samples' keys; a program that draws nothing asks for none."""
        given = check_batch(self.model, batch)
        return self._called(given, self._beside(arguments, given), keys=keys)

    def block_product(self, result: Result, name: str, vectors: Tensor) -> Tensor:
        """The block of parameter `name` times one vector, [*theta], or many, [*batch, *theta].

        `result` is what a call with the quantity "block" returned. The block is that of the Hessian of L in this one
        parameter, or of what `curvature` put in its place. For each vector, time and memory are those of one pass
        of the N samples' columns through the layer: nothing of size N K times the parameter is made. Raises InputError
        without that quantity, for an unknown name, and for vectors of another shape or dtype.
        """
        if not isinstance(result, Result) or not result.is_of(self.model):
            raise InputError("block_product takes a result that this compiled model returned")
        return block_product(result, name, vectors)

    def _program(self, batch: Batch) -> tuple[State, Built]:
        """The program for this batch in Python's present state, and that state."""
        state = self._guards.current()
        built = _serving(state, batch)
        if built is None:
            with TRACING:
                state, built = self._make(batch)
        built.used = next(self._uses)
        self._last = state, built
        return self._last

    def _make(self, batch: Batch) -> tuple[State, Built]:
        """Trace and build, unless another thread has just done so."""
        state = self._guards.current()
        built = _serving(state, batch)
        if built is None:
            check_model(self.model, self.loss)
            state, run = self._guards.probed(lambda: check_runs(self.model, self.loss, batch))
            try:
                built = first_program(self.model, self.loss, batch, self.options, run, state.places)
            finally:
                state.put_back()
            self._guards.add(state, batch.form, built, (self.options.limits or DEFAULT_LIMITS).kept_programs)
            self._warn_of_unused(built.matched.unused, "loss" if built.matched.graph.has_loss_streams else "output")
            _warn_if_indefinite(built.draft.plan, self.loss)
            _warn_of_hooks(self)
        return state, built

    def _beside(self, given: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
        """A call's arguments, checked."""
        if not given and not self._needs_arguments:
            return {}
        own, options = dict(self.model.named_parameters()), self.options
        clipped = tuple(name for name, parameter in own.items()
                        if parameter.requires_grad and options.chosen.asks("clipped_grad", name))
        dtype = next(parameter.dtype for parameter in own.values() if parameter.requires_grad)
        return check_arguments(given, Call(batch.samples, batch.tensors[0].device, self.quantities,
                                           {name: parameter.shape for name, parameter in own.items()},
                                           options.clipping, clipped, dtype))

    def _run(self, state: State, built: Built, batch: Batch, beside: Mapping[str, Any]) -> Any:
        """What the program returns; of what is `beside` the batch, the part of these samples."""
        casts = without_autocast(self._guards.device_types) if state.autocast else contextlib.nullcontext()
        tensors = self._tensors(state, built)
        with torch.no_grad(), casts:
            if not batch.samples:
                kind = built.matched.ending.kind if built.matched.graph.has_loss_streams else UNKNOWN
                return result_of_none(built.run, tensors, batch, kind, beside)
            run = built.by_sample[0] if DRAW_KEYS in beside else built.run
            return run(tensors, *batch.tensors, **rows_of(beside, batch.samples))

    def _first_run(self, state: State, built: Built, batch: Batch, beside: Mapping[str, Any]) -> Any:
        """What the program returns, if it agrees with the model's own training step (see `prove`); or ProofError.

        That step knows no weights of samples; the proof gives it those of the call, unless nothing is left of them or
        the outputs do not show the samples apart: then the proof is of a run without them.
        """
        draws, weighs = Draws.now(batch.tensors[0].device), can_weigh(built.matched, beside.get(SAMPLE_WEIGHTS))
        plain = beside if weighs else without_weights(beside)
        with built.seconds.first(FIRST_RUN):
            raw = self._run(state, built, batch, beside)
        candidate, full = self._candidate(state, built, plain), self.options.verify == FULL
        proven = raw if len(plain) == len(beside) else None
        try:
            with TRACING, built.seconds.first(PROVE):
                check(prove(candidate, batch, draws, proven, full), candidate, batch, draws)
        except ProofError:
            if not built.proven:
                self._guards.drop(state, batch.form, built)
                self._last = None
            raise
        finally:
            state.put_back()
        built.proven.add(batch.samples == 1)
        return raw

    def _prepare(self, batch: Batch) -> None:
        """A proven program for batches like this one."""
        state, built = self._program(batch)
        if batch.samples and not built.is_proven(batch.samples):
            with drawing(Draws.now(batch.tensors[0].device)):
                beside = stand_ins(built.draft.graph, batch.samples, dict(self.model.named_parameters()))
                self._first_run(state, built, batch, beside)

    def _candidate(self, state: State, built: Built, beside: Mapping[str, Any] = MappingProxyType({})) -> Candidate:
        return Candidate(self.model, self.loss, self.options, built.matched, built.fields,
                         lambda batch, **other: self._run(state, built, batch, {**beside, **other}),
                         self._tensors(state, built), built.sizes,
                         built.draft.plan.joint.biases,
                         lambda name, kept, entries: block_diagonal(meetings(built.draft.plan)[name], kept, entries),
                         beside, built.stored)

    def verify(self, *batch: Any, full: bool = True, **arguments: Any) -> Verification:
        """Run the program on a batch beside the model's own forward, loss and backward: the table of errors.

        Loss, outputs and gradient are compared; with `full` the other quantities too, on the batch's first two samples.
        Nothing changes, no random generator either. A difference is in the table (see `agrees`) and raises nothing;
        raised is what a call raises for a batch that does not fit, and ProofError where the model's own step fails.
        """
        given = check_batch(self.model, batch)
        beside = self._beside(arguments, given)
        state, built = self._program(given)
        check_fit(beside, asked(built.draft.graph))
        weights = beside.get(SAMPLE_WEIGHTS)
        if weights is not None:
            check_weighable(built.matched.ending, built.matched.rules)
            if not can_weigh(built.matched, weights):
                raise InputError("verify weighs the model's own training step where its outputs show the samples "
                                 "apart, and this one's do not, or the weights of the first two are zero: leave "
                                 "sample_weights out")
        check_targets(built.losses, built.matched.graph, given)
        try:
            with TRACING:
                candidate, draws = self._candidate(state, built, beside), Draws.now(given.tensors[0].device)
                return prove(candidate, given, draws, full=full)
        finally:
            state.put_back()

    def _warn_of_unused(self, names: Sequence[str], end: str) -> None:
        new = [name for name in names if name not in self._unused]
        self._unused.update(new)
        if new:
            warnings.warn(f"these trainable parameters do not influence the {end}: {', '.join(new)}. They are left out "
                          "of the results, as torch leaves their grad None, and to_parameters() leaves them alone",
                          UnusedParametersWarning, stacklevel=5)

    def _tensors(self, state: State, built: Built) -> dict[str, Tensor]:
        """All that the program reads but the batch, live."""
        if id(built) not in state.arguments:
            own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            held = {name: state.tensor(place).detach() for name, place in built.places.items()}
            state.arguments[id(built)] = {**own, **built.constants, **loss_tensors(self.loss), **held}
        return state.arguments[id(built)]

    def _current(self) -> Built:
        return self._program_used()[1]

    def _program_used(self) -> tuple[State, Built]:
        if self._last is None:
            raise CompileError("there is no program yet: it is made at the first batch. Call compiled(X, y), or pass "
                               "example_inputs=(X, y) to hbp.compile")
        return self._last

    @property
    def code(self) -> str:
        """The generated file's text (of the program used last)."""
        return self._current().draft.code

    @property
    def path(self) -> Path:
        """The file that the program was loaded from."""
        return self._current().path

    @property
    def program(self) -> Any:
        """The loaded `Program`: `program(state, X, y)`, a module that the chosen backend has prepared."""
        return self._current().program

    @property
    def reduction(self) -> str:
        """Of the loss: "mean", L = (1/N) sum_n l_n; "sum", L = sum_n l_n; "" if it is neither: l_n has no scale."""
        return _reduction(self._current())

    @property
    def graph(self) -> nx.DiGraph:
        """The traced model and loss as a networkx graph."""
        return self._current().matched.graph.network()

    @property
    def state(self) -> dict[str, Tensor]:
        """The first argument of `program`: parameters, buffers and the loss's own tensors by name."""
        state, built = self._program_used()
        return self._tensors(state, built)

    def save(self, path: str | Path) -> Path:
        """Write the generated file; it needs only torch."""
        target = Path(path)
        target.write_text(self.code, encoding="utf-8")
        return target

    def explain(self, batch_size: int = 64) -> str:
        """The plan as tables: what travels, in which form; what is saved; per parameter the routes, rejected ones too.

        Costs are polynomials in N, predicted times and memory are for this batch size. A last line says how long each
        stage of compilation took.
        """
        built = self._current()
        return explain(built.matched, built.draft, batch_size, built.seconds)

    def predicted_seconds(self, batch_size: int) -> float:
        """The time of a call with so many samples, by the planner's model of cost (see `program_cost`)."""
        return sum(self._current().draft.cost.seconds(batch_size).values())

    def predicted_memory(self, batch_size: int) -> int:
        """Bytes that a call with so many samples allocates at most at once, results included (see `memory`)."""
        return self._current().draft.memory.peak(batch_size)

    def __repr__(self) -> str:
        return (f"Compiled({type(self.model).__name__}, quantities={list(self.quantities)}, "
                f"backend={self.options.backend!r}, programs={len(self._guards)})")


def _reduction(built: Built) -> str:
    """See `Compiled.reduction`."""
    ending = built.matched.ending
    return ending.kind if ending.definite else ""


def _serving(state: State, batch: Batch) -> Built | None:
    """The program for batches of this form and size, if there is one yet."""
    made: list[Built] = state.programs.get(batch.form, [])
    return next((built for built in made if built.sizes.include(batch.samples)), None)


def _warn_of_hooks(compiled: Compiled) -> None:
    """Without a proof, of what can be seen beforehand to change a gradient behind a program's back."""
    found = hooks(compiled.model, compiled.loss) if compiled.options.verify is False else []
    if found:
        warnings.warn(listing("no program runs backward hooks, and with verify=False nothing says whether they matter:",
                              found), UserWarning, stacklevel=5)


def _warn_if_indefinite(planned: Plan, loss: Callable[..., Tensor]) -> None:
    """Tell the caller of `compile`, or of what it returned, about quantities of a GGN that may be indefinite."""
    names = [name for name in planned.quantities if schemes.is_ggn(planned.curvature, QUANTITIES[name])]
    if planned.indefinite and names:
        title = getattr(loss, "__name__", type(loss).__name__)
        warnings.warn(
            f"the loss {title} is not known to be convex in the model's output, so that the generalised Gauss-Newton "
            f"matrix may be indefinite, and with it {', '.join(names)} (Kronecker factors B too); a loss function "
            "that has a rule, such as cross_entropy or mse_loss, is known to be convex", IndefiniteCurvatureWarning,
            stacklevel=5)


def _again(model: nn.Module, loss: Callable[..., Tensor], given: Mapping[str, Any]) -> Compiled:
    return compile(model, loss, **given)


def compile(  # the public name is the design's
    model: nn.Module,
    loss: Callable[..., Tensor] | None = None,
    quantities: Sequence[str] | Mapping[str, str | Sequence[str]] = (),
    *,
    example_inputs: Sequence[Any] | None = None,
    backend: str = "python",
    memory_budget: int | str | None = None,
    mc_samples: int = 1,
    curvature: str = HESSIAN,
    curvature_dtype: torch.dtype | None = None,
    autotune: bool = False,
    rules: Sequence[str | Path] | None = None,
    limits: Limits | None = None,
    verify: bool | str = True,
    joint_bias: bool = False,
    groups: Mapping[str, str | Sequence[str]] | None = None,
    clipping: str = FLAT,
) -> Compiled:
    """Compile a model and a loss into a program for the quantities asked for.

    Args:
        model: any torch.nn.Module that torch.export can trace. DataParallel, DistributedDataParallel and what
            torch.compile returned are taken off; names in results are those of the model inside.
        loss: a module or function of (output, target) returning one number; nn.CrossEntropyLoss() by default.
        quantities: names from docs/quantities.md; or a dict from names to shell patterns of the parameters that they
            are for, {"kfac": ["layer1.*", "head.weight"], "grad": "*"}.
        example_inputs: (X, y), or what else a call takes, to trace at once.
        backend: "python", "torchscript" or "inductor".
        memory_budget: bytes, or "2GiB": the most that a call may allocate, results included; larger batches are
            refused. None: most of what the machine, or the device, has free when a large call is made.
        mc_samples: random columns per sample, for the sampled quantities.
        curvature: what the quantities of the Hessian mean by it: "hessian", exact; "ggn", without the operations'
            residuals; "pch_abs" or "pch_clip", with their negative eigenvalues turned positive or dropped (Dangel,
            Harmeling, Hennig 2020; see `schemes` for operations that are not elementwise).
        curvature_dtype: torch.bfloat16, say, for the columns of curvature alone (see `precision`); None: the model's.
        autotune: time routes that are predicted to be about as fast as the best, once, on random tensors of the first
            batch's size.
        rules: paths of rule files of your own.
        limits: the thresholds to plan by (`Limits`, each with its reason); None: those that `hbp tune` measured on this
            machine, or the default ones.
        verify: compare each new program with the model's own forward and backward on its first batch, and keep it only
            if loss, outputs and gradient agree to rounding; "full": the other quantities too, on two samples.
        joint_bias: whether the Kronecker factors of a weight [out, in] are also of the bias of its layer, with A
            [in + 1, in + 1] of the inputs with a one behind them. The bias has none of its own then;
            `Result.joint_biases` says which these are.
        groups: for quantities by group (`gram`, `cross`): a dict from names of your choice to the names of their
            parameters, or shell patterns of some; None: one group, "all", of all of them.
        clipping: how clipped_grad weighs a sample by the norm of its gradient: "flat", by the norm over all parameters;
            "automatic", the same without a threshold; "opacus", flat as Opacus rounds it; "per_parameter", at each
            parameter by itself (see `clipping`).

    Raises:
        CompileError: (OptionError, ModelError, UnsupportedOpError, RuleError) before anything is computed.
    """
    loss = nn.CrossEntropyLoss() if loss is None else loss
    model = unwrapped(model)
    check_model(model, loss)
    options = check_options(quantities, backend, memory_budget, mc_samples, rules, curvature, autotune,
                            curvature_dtype, limits, verify, joint_bias, groups, clipping)
    given = {"quantities": quantities, "backend": backend, "memory_budget": memory_budget, "mc_samples": mc_samples,
             "curvature": curvature, "curvature_dtype": curvature_dtype, "autotune": autotune, "rules": rules,
             "limits": limits, "verify": verify, "joint_bias": joint_bias,
             "groups": groups, "clipping": clipping}
    check_patterns(model, options.chosen)
    compiled = Compiled(model, loss, options, given)
    if example_inputs is not None:
        compiled._prepare(check_batch(model, check_example(example_inputs)))
    return compiled
