"""The stages from a plan to the file's text, each by itself; `pipeline` has them in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from hbpcompiler.arguments import Brought
from hbpcompiler.codegen import emit, naming
from hbpcompiler.compiler.budget import Draft
from hbpcompiler.compiler.cost.decisions import Decisions
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.cost.memory import MemoryModel
from hbpcompiler.compiler.cost.program_cost import ProgramCost
from hbpcompiler.compiler.derive.forward import derive
from hbpcompiler.compiler.match import written_out
from hbpcompiler.compiler.match.made import derived
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.optimise.passes import optimise
from hbpcompiler.compiler.optimise.settings import Settings
from hbpcompiler.compiler.plan import precision, second_phase
from hbpcompiler.compiler.plan.check import check_plan
from hbpcompiler.compiler.plan.pixels import image_weights
from hbpcompiler.compiler.plan.plan import plan, unraced
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.table import header_table, limits_notes, machine_notes
from hbpcompiler.compiler.program.check import BrokenProgramError, Level, check_program
from hbpcompiler.compiler.program.kernels import has_onednn, on_meta
from hbpcompiler.compiler.program.program import Program
from hbpcompiler.compiler.stages import Seconds, check_promise
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.conditions.sizes import Sizes
from hbpcompiler.compiler.tune.race import autotuned
from hbpcompiler.options import Options
from hbpcompiler.quantities import Closing
from hbpcompiler.rule.faults import rules_named
from hbpcompiler.schemes import HESSIAN, SCHEMES
from hbpcompiler.version import __version__


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

    @rules_named()
    def planned(self, resources: Resources) -> Plan:
        """What travels backwards, and how it ends."""
        with self.seconds.stage("plan"):
            found = plan(self.matched, self.closings, self.options, resources, self._has_onednn,
                         self._race if self.options.autotune else unraced)
            check_promise("plan", check_plan(found, self.matched, self.closings))
        return found

    @rules_named()
    def derived(self, planned: Plan) -> Program:
        """The program that the plan's steps write."""
        with self.seconds.stage("derive"):
            return self._derived(planned)

    @rules_named()
    def optimised(self, program: Program, planned: Plan, resources: Resources) -> Program:
        """The same program, as it is printed."""
        with self.seconds.stage("optimise"):
            try:
                self._optimise(program, planned, resources, each=False)
            except Exception:  # a broken program may stop a pass in any way
                self._optimise(self._derived(planned), planned, resources, each=True)
                raise
        return program

    def emitted(self, program: Program, planned: Plan, resources: Resources, decisions: Decisions) -> Draft:
        """The file's text, and what a call will cost."""
        with self.seconds.stage("emit"):
            return self._emitted(program, planned, resources, decisions)

    def _derived(self, planned: Plan) -> Program:
        program = derive(self.matched, planned)
        try:
            check_program(program.graph, Level.DERIVED)
        except BrokenProgramError as error:
            check_promise("derive", [str(error)])
        return program

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
        graph, fields, header = self.matched.graph, self.fields, self._header(planned, resources)
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

    def _header(self, planned: Plan, resources: Resources) -> emit.Header:
        """What stands at the file's head."""
        graph, options = self.matched.graph, self.options
        scheme = [f"Curvature {options.curvature}: {SCHEMES[options.curvature]}."]
        return emit.Header(
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
