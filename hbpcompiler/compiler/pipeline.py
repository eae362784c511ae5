"""The stages in a row: from a model, a loss and a batch to a loaded program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler import schemes
from hbpcompiler.codegen import emit, load, naming
from hbpcompiler.compiler.budget import Draft, within_budget
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.cost.memory import MemoryModel
from hbpcompiler.compiler.cost.program_cost import ProgramCost
from hbpcompiler.compiler.derive import forward as derive
from hbpcompiler.compiler.match.aten import DECOMPOSITION_ROUNDS, decompositions
from hbpcompiler.compiler.match.endings import overall, refuse_endings
from hbpcompiler.compiler.match.fuse import fuse
from hbpcompiler.compiler.match.match import _needs_pieces, differentiated, match
from hbpcompiler.compiler.match.merged_positions import split_merged
from hbpcompiler.compiler.match.parameter_values import Uses, with_values
from hbpcompiler.compiler.match.samples_first import samples_first
from hbpcompiler.compiler.match.targets import LossCheck, check_targets, loss_checks
from hbpcompiler.compiler.match.tied_values import uses_as_values
from hbpcompiler.compiler.optimise.passes import optimise
from hbpcompiler.compiler.optimise.settings import Settings
from hbpcompiler.compiler.plan import precision
from hbpcompiler.compiler.plan.pixels import image_weights, is_pixel_by_pixel
from hbpcompiler.compiler.plan.table import header_table, machine_notes
from hbpcompiler.compiler.plan.walk import plan
from hbpcompiler.compiler.program import shapes
from hbpcompiler.compiler.program.kernels import has_onednn
from hbpcompiler.compiler.trace import reader as trace
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.containers import Structure
from hbpcompiler.compiler.trace.export import export
from hbpcompiler.compiler.trace.graph import Graph
from hbpcompiler.compiler.tune.measured import measured_machine
from hbpcompiler.compiler.tune.race import autotuned
from hbpcompiler.errors import (
    UsesNotJoinedError,
)
from hbpcompiler.options import Options
from hbpcompiler.quantities import closings_for
from hbpcompiler.rule.registry import AnyRule, Registry
from hbpcompiler.schemes import HESSIAN, SCHEMES
from hbpcompiler.version import __version__


@dataclass
class Built:
    """One program and what it was made from."""

    graph: Graph
    rules: Mapping[str, AnyRule]
    draft: Draft
    path: Path
    program: Any
    constants: Mapping[str, Tensor]
    losses: Sequence[LossCheck]
    structure: Structure
    """How the model's output is built of its tensors."""
    fields: tuple[str, ...]
    """The fields of the program's result that hold them."""
    run: Callable[..., Any]


def build(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, options: Options) -> Built:
    """All stages, from a batch to a loaded program."""
    try:
        return _build(model, loss, batch, options)
    except UsesNotJoinedError as error:
        return _build(model, loss, batch, options, error.parameters)


def _build(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, options: Options,
           as_values: frozenset[str] = frozenset()) -> Built:
    closings = schemes.kept(options.curvature, closings_for(options.quantities))
    graph, rules, constants, structure = trace_and_match(model, loss, batch, options.registry,
                                                         lambda uses: as_values | uses_as_values(uses, closings))
    graph, rules = fuse(graph, rules)
    losses = loss_checks(graph, rules)
    check_targets(losses, graph, batch)
    fields = naming.output_fields(structure)
    resources = Resources(measured_machine(batch.tensors[0].device, graph.dtype))
    name = type(model).__name__
    draft = within_budget(lambda resources: _draft(name, graph, rules, fields, options, resources, batch), resources,
                          options.memory_budget, batch.samples)
    program, path = load.program(draft.code)
    run: Any = program
    if options.backend == "torchscript":
        program = run = torch.jit.script(program)
    elif options.backend == "inductor":
        program = run = torch.compile(program)
    return Built(graph, rules, draft, path, program, constants, losses, structure, fields, run)


def _draft(model: str, graph: Graph, rules: Mapping[str, AnyRule], fields: Sequence[str], options: Options,
           resources: Resources, example: Batch) -> Draft:
    """The stages from the plan to the file's text."""
    planned = plan(graph, rules, options.quantities, options.mc_samples, resources,
                   options.curvature, options.curvature_dtype)
    if options.autotune:
        planned = autotuned(graph, rules, planned, example.samples, example.tensors[0].device)
    if has_onednn(example.tensors[0].device, graph.dtype):
        planned = replace(planned, by_pixels=is_pixel_by_pixel(graph, rules, planned))
    names = naming.value_names(graph)
    derived = derive.derive(graph, rules, planned, overall(graph, rules, set(planned.active)), names)
    batch = {value.name: value for value in graph.batch}
    optimise(derived.graph, Settings(
        arguments=lambda samples: shapes.arguments(derived.graph, batch, graph.state, samples),
        machine=resources.machine, dtype=graph.dtype, curvature_dtype=planned.curvature_dtype,
        by_pixels=planned.by_pixels, images=image_weights(graph, rules)))
    header = emit.Header(
        model=naming.identifier(model),
        quantities=options.quantities,
        versions=f"hbpcompiler {__version__} with torch {torch.__version__.split('+')[0]}",
        table=header_table(graph, planned),
        notes=[f"Curvature {options.curvature}: {SCHEMES[options.curvature]}."] * (options.curvature != HESSIAN),
    )
    header.notes = [*header.notes, *precision.notes(planned.curvature_dtype),
                    *machine_notes(resources.machine, options.autotune)]
    code = emit.emit(derived.graph, header, {name: names[name] for name in batch}, fields)
    return Draft(planned, derived.graph, code, MemoryModel(code, graph),
                 ProgramCost(derived.graph, graph, resources.machine))


def trace_and_match(
    model: nn.Module, loss: Callable[..., Tensor], batch: Batch, registry: Registry,
    as_values: Callable[[Uses], AbstractSet[str]] = lambda uses: frozenset(),
) -> tuple[Graph, dict[str, AnyRule], Mapping[str, Tensor], Structure]:
    """The graph, the rule of each differentiated operation by its name, the constants outside the state_dict, and how
    the model's output is built of the graph's outputs.

    `as_values` names the parameters that must be values though their uses have contractions (see `parameter_values`).
    Raises UnsupportedOpError naming everything that no rule covers and torch's own table cannot decompose.
    """
    program, structure = export(model, loss, batch, registry.modules)
    for _ in range(DECOMPOSITION_ROUNDS):
        graph = trace.read(program, model, batch.layout)
        pieces = [operation for operation in differentiated(graph) if _needs_pieces(operation, registry)]
        table = decompositions(pieces, registry)
        if not table:
            break
        program = program.run_decompositions(table)
    refuse_endings(graph)
    graph, mixing = samples_first(split_merged(graph, registry), registry)
    graph = with_values(graph, registry, as_values) if not mixing else graph
    return graph, match(graph, registry, mixing), trace.constants(program, loss), structure
