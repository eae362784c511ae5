"""The stages in a row: from a model, a loss and a batch to a loaded program.

    trace     torch.export; a graph of values and operations                      Traced
    match     samples in front, a rule for each operation, how the loss ends      Matched
    plan      what travels backwards, in which form, by which routes it ends      Plan
    derive    the rules and routes write the program as an fx graph               Program
    optimise  passes over that graph, in one list
    emit      the text of the file, and what it will cost                         Draft
    load      the file is imported

What a stage returns does not change afterwards. Behind each its promise is checked (`check_*`, linear in its size), so
that a fault is found where it was made. Two loops go back: uses of a tied parameter that cannot be joined are matched
again as uses of a value, and a memory budget drafts plans until one keeps to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from hbpcompiler import schemes
from hbpcompiler.arguments import Brought
from hbpcompiler.codegen import emit, naming
from hbpcompiler.compiler.budget import Draft, within_budget
from hbpcompiler.compiler.built import Built, loaded
from hbpcompiler.compiler.cost.decisions import Decisions, written_down
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.cost.memory import MemoryModel
from hbpcompiler.compiler.cost.program_cost import ProgramCost
from hbpcompiler.compiler.derive.forward import derive
from hbpcompiler.compiler.match import derived, written_out
from hbpcompiler.compiler.match.check import check_matched
from hbpcompiler.compiler.match.endings import refuse_losses, refuse_scale
from hbpcompiler.compiler.match.match import match, taken_apart
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.targets import LossCheck, check_target_dtypes, check_targets, loss_checks
from hbpcompiler.compiler.optimise.passes import optimise
from hbpcompiler.compiler.optimise.settings import Settings
from hbpcompiler.compiler.plan import precision, second_phase
from hbpcompiler.compiler.plan.check import check_plan
from hbpcompiler.compiler.plan.pixels import image_weights
from hbpcompiler.compiler.plan.plan import plan, unraced
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.table import header_table, limits_notes, machine_notes
from hbpcompiler.compiler.program.check import BrokenProgramError
from hbpcompiler.compiler.program.kernels import has_onednn, on_meta
from hbpcompiler.compiler.program.program import Program
from hbpcompiler.compiler.stages import Seconds, check_promise
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.check import check_graph
from hbpcompiler.compiler.trace.checks import FirstRun
from hbpcompiler.compiler.trace.ends import Ends
from hbpcompiler.compiler.trace.exports import Shelf
from hbpcompiler.compiler.trace.sizes import Sizes
from hbpcompiler.compiler.trace.trace import Traced, trace
from hbpcompiler.compiler.trace.values import Answers
from hbpcompiler.compiler.tune.measured import limits_for, measured_machine
from hbpcompiler.compiler.tune.race import autotuned
from hbpcompiler.errors import HbpError, InputError, NothingChosenError, OptionError, UsesNotJoinedError
from hbpcompiler.limits import Limits
from hbpcompiler.options import Options
from hbpcompiler.quantities import GROUP, OUTPUT, QUANTITIES, RESIDUAL, RESIDUAL_MC, Closing, Closings
from hbpcompiler.rule.faults import rules_named
from hbpcompiler.schemes import HESSIAN, SCHEMES
from hbpcompiler.version import __version__

Places = Callable[[Mapping[str, Tensor]], Mapping[str, int]]
"""Where in Python's state tensors lie that a trace has found there."""


def first_program(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, options: Options, run: FirstRun,
                  places: Places, brought: Brought = Brought(),  # noqa: B008  # a constant
                  shelf: Shelf | None = None) -> Built:
    """All stages, once model and loss have been tried on rows of the batch; planned for calls that bring this.

    `shelf` is where traces lie that may be shared; None: this program gets one of its own.

    Raises BatchDoesNotFitError where they failed on these rows, if no later check has a better word for it.
    """
    try:
        built = build(model, loss, batch, options, run.answers, places, brought, shelf)
    except InputError:
        raise
    except HbpError as error:
        raise run.complaint or error from error
    if run.complaint is not None:
        raise run.complaint
    return built


def build(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, options: Options,
          answers: Answers | None = None, places: Places = lambda constants: {},
          brought: Brought = Brought(), shelf: Shelf | None = None) -> Built:  # noqa: B008  # a constant
    """All stages, from a batch to a loaded program. `places` says where constants lie in Python's state."""
    seconds = Seconds()
    traced = traced_for(model, loss, batch, options, seconds, answers, shelf)
    fields = naming.output_fields(traced.returned)
    matched, losses, draft, as_values = _drafted(traced, fields, batch, options, seconds, brought)
    with seconds.stage("load"):
        program, path = loaded(draft.code, options.backend)
    constants = traced.constants
    return Built(matched, draft, path, program, constants, places(constants), losses, traced.returned, fields, program,
                 seconds, traced.sizes, options.backend, as_values,
                 proven={True, False} if options.verify is False else set(), reused=traced.reused)


@rules_named()
def traced_for(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, options: Options, seconds: Seconds,
               answers: Answers | None, shelf: Shelf | None) -> Traced:
    """The model's trace for a batch, in pieces that there are rules for; from the shelf, if it lies there."""
    registry = options.registry

    def exported() -> Traced:
        return trace(model, loss, batch, registry.modules, answers)

    with seconds.stage("export"):
        streams = {stream for name in options.quantities for stream in QUANTITIES[name].streams}
        ends = Ends(loss=streams != {OUTPUT}, output=OUTPUT in streams,
                    inside=bool(streams & {RESIDUAL, RESIDUAL_MC}))
        whole = exported() if shelf is None else shelf.traced(loss, batch, registry, exported)
        whole = replace(whole, ends=ends)

    def apart() -> Traced:
        return taken_apart(whole, registry)

    with seconds.stage("trace"):
        traced = apart() if shelf is None else shelf.apart(whole, apart)
        check_promise("trace", check_graph(traced.graph))
    return traced


@rules_named()
def _drafted(traced: Traced, fields: Sequence[str], batch: Batch, options: Options,
             seconds: Seconds, brought: Brought) -> tuple[Matched, list[LossCheck], Draft, frozenset[str]]:
    """Match and what follows; once more with those tied parameters as values whose uses the plan could not join."""
    closings = closings_for(options)
    device, dtype = batch.tensors[0].device, traced.graph.dtype
    limits = limits_for(options.limits, device, dtype)
    resources = Resources(measured_machine(device, dtype), limits)
    as_values: frozenset[str] = frozenset()
    if batch.samples:
        check_target_dtypes(traced.graph, batch)
    while True:
        with seconds.stage("match"):
            matched = matched_for(traced, options, as_values, limits)
            _check_chosen(matched, options)
        refuse_scale(matched.ending, options.quantities)
        refuse_losses(matched.ending, matched.rules, options.quantities)
        losses = loss_checks(matched)
        check_targets(losses, matched.graph, batch)
        drafting = Drafting(traced.model, matched, closings, fields, options, batch, seconds, brought, traced.sizes)
        try:
            draft = within_budget(drafting.draft, resources, options.memory_budget, batch.samples, device)
            return matched, losses, draft, as_values
        except UsesNotJoinedError as error:
            if error.parameters <= as_values:
                raise
            as_values |= error.parameters


def closings_for(options: Options) -> frozenset[Closing]:
    """What the quantities need at parameters."""
    return Closings(options.quantities, options.chosen, partial(schemes.kept, options.curvature))


@rules_named()
def matched_for(traced: Traced, options: Options, as_values: frozenset[str], limits: Limits) -> Matched:
    """A traced model, matched."""
    matched = match(traced, options.registry, closings_for(options), as_values, naming.value_names, limits,
                    options.backend != "torchscript")
    check_promise("match", check_matched(matched))
    return matched


def _check_chosen(matched: Matched, options: Options) -> None:
    """OptionError for quantities whose patterns choose none of the parameters that they could be had for."""
    keys = [value.key for value in matched.trainable]
    empty = [name for name in options.quantities if not any(options.chosen.asks(name, key) for key in keys)]
    # What does not reach the loss is left out of results, whole groups too; that is warned of.
    groups = {options.chosen.group_of(key) for key in (*keys, *matched.unused)}
    idle = [name for name, _ in options.chosen.groups if name not in groups]
    if idle and any(QUANTITIES[name].per == GROUP for name in options.quantities):
        raise OptionError(f"no trainable parameter is in these groups: {', '.join(map(repr, idle))}; there are "
                          f"{', '.join((*keys, *matched.unused))}")
    if empty:
        raise NothingChosenError("no trainable parameter that reaches the loss is chosen for "
                                 f"{', '.join(empty)}; there are {', '.join(keys)}", empty)


@dataclass(frozen=True)
class Drafting:
    """The stages from the plan to the file's text."""

    model: nn.Module
    matched: Matched
    closings: frozenset[Closing]
    fields: Sequence[str]
    options: Options
    batch: Batch
    seconds: Seconds
    brought: Brought
    sizes: Sizes

    def draft(self, resources: Resources) -> Draft:
        with written_down() as decisions:
            program, planned = self.program(resources)
        with self.seconds.stage("emit"):
            return self._emitted(program, planned, resources, decisions)

    @rules_named()
    def program(self, resources: Resources) -> tuple[Program, Plan]:
        """Planned, derived and optimised."""
        planned = self.planned(resources)
        with self.seconds.stage("derive"):
            program = derive(self.matched, planned)
        with self.seconds.stage("optimise"):
            try:
                self._optimise(program, planned, resources, each=False)
            except Exception:  # a broken program may stop a pass in any way
                self._optimise(derive(self.matched, planned), planned, resources, each=True)
                raise
        return program, planned

    def planned(self, resources: Resources) -> Plan:
        """The plan."""
        with self.seconds.stage("plan"):
            found = plan(self.matched, self.closings, self.options, resources, self._has_onednn,
                         self._race if self.options.autotune else unraced)
            check_promise("plan", check_plan(found, self.matched, self.closings))
        return found

    @property
    def _has_onednn(self) -> bool:
        return has_onednn(self.batch.tensors[0].device, self.matched.graph.dtype)

    def _race(self, planned: Plan) -> Plan:
        return autotuned(self.matched, planned, self.batch.samples, self.batch.tensors[0].device)

    def _optimise(self, program: Program, planned: Plan, resources: Resources, each: bool) -> None:
        """Looked at behind each pass, or behind the last: that takes a third of the time, but does not say which."""
        graph = self.matched.graph
        settings = Settings(
            arguments=program.stand_ins, machine=resources.machine, limits=resources.limits, dtype=graph.dtype,
            curvature_dtype=planned.curvature_dtype, by_pixels=planned.by_pixels,
            images=image_weights(graph, self.matched.rules), chunk=resources.limits.typical_batch)
        try:
            optimise(program.graph, settings, each=each)
        except BrokenProgramError as error:
            check_promise("optimise", [str(error)])

    def _emitted(self, program: Program, planned: Plan, resources: Resources, decisions: Decisions) -> Draft:
        graph, options, fields = self.matched.graph, self.options, self.fields
        scheme = [f"Curvature {options.curvature}: {SCHEMES[options.curvature]}."]
        header = emit.Header(
            model=naming.identifier(type(self.model).__name__),
            quantities=options.quantities,
            versions=f"hbpcompiler {__version__} with torch {torch.__version__.split('+')[0]}",
            table=header_table(graph, planned, resources.limits),
            notes=[*(scheme if options.curvature != HESSIAN else []), *options.chosen.notes(), *planned.joint.notes(),
                   *second_phase.notes(planned), *precision.notes(planned.curvature_dtype),
                   *machine_notes(resources.machine, options.autotune), *limits_notes(resources.limits),
                   *naming.short_form_notes(graph), *derived.notes(self.matched.rules, graph.makers),
                   *written_out.notes(graph)],
            modules={path: type(module).__name__ for path, module in self.model.named_modules()},
            sizes=self.sizes,
        )
        inputs = {value.name: self.matched.names[value.name] for value in graph.batch}

        def written(graph: fx.Graph, *more: str) -> str:
            head = replace(header, notes=[*header.notes, *more])
            return emit.emit(graph, head, inputs, fields, limits=resources.limits)  # not self: that holds the batch

        code = written(program.graph)
        memory = MemoryModel(code, graph, resources.limits.allowance, program.graph, on_meta(program.graph),
                             self.brought)
        return Draft(planned, program.graph, code, memory,
                     ProgramCost(program.graph, graph, resources.machine, resources.limits), written, decisions,
                     resources)
