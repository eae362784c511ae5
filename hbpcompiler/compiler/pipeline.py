"""The stages in a row: from a model, a loss and a batch to a loaded program.

    trace     torch.export; a graph of values and operations                      Traced
    match     samples in front, a rule for each operation, how the loss ends      Matched
    plan      what travels backwards, in which form, by which routes it ends      Plan
    derive    the rules and routes write the program as an fx graph               Program
    optimise  passes over that graph, in one list
    emit      the text of the file, and what it will cost                         Draft
    load      the file is imported

`drafted` is the middle of it, line by line. What a stage returns does not change afterwards. Behind trace, match, plan,
derive and the last pass its promise is checked (`check_*`, linear in its size), so that a fault is found where it was
made; of a program that a pass has broken, behind each pass. What emit has written is looked at by load, which has
Python read it, and what is loaded by `prove`, which runs it. Two loops go back: uses of a tied parameter that cannot be
joined are matched again as uses of a value, and a memory budget drafts plans until one keeps to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from hbpcompiler import schemes
from hbpcompiler.arguments import Brought
from hbpcompiler.codegen import naming
from hbpcompiler.compiler.budget import Draft, within_budget
from hbpcompiler.compiler.built import Built, loaded
from hbpcompiler.compiler.cost.decisions import written_down
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.drafting import Drafting
from hbpcompiler.compiler.match.check import check_matched
from hbpcompiler.compiler.match.in_pieces import taken_apart
from hbpcompiler.compiler.match.losses.endings import refuse_losses, refuse_scale
from hbpcompiler.compiler.match.losses.targets import LossCheck, check_target_dtypes, check_targets, loss_checks
from hbpcompiler.compiler.match.match import match
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.stages import Seconds, check_promise
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.check import check_graph
from hbpcompiler.compiler.trace.checks import FirstRun
from hbpcompiler.compiler.trace.conditions.values import Answers
from hbpcompiler.compiler.trace.ends import Ends
from hbpcompiler.compiler.trace.exports import Shelf
from hbpcompiler.compiler.trace.trace import Traced, trace
from hbpcompiler.compiler.tune.measured import limits_for, measured_machine
from hbpcompiler.errors import (
    HbpError,
    InputError,
    NothingChosenError,
    OptionError,
    UnsupportedOpError,
    UsesNotJoinedError,
    listing,
)
from hbpcompiler.limits import Limits
from hbpcompiler.options import Options
from hbpcompiler.quantities import GROUP, OUTPUT, QUANTITIES, RESIDUAL, RESIDUAL_MC, Closing, Closings
from hbpcompiler.rule.faults import rules_named

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
    matched, losses, draft, as_values = _matched_and_drafted(traced, fields, batch, options, seconds, brought)
    with seconds.stage("load"):
        program, path = loaded(draft.code, options.backend)
    constants = traced.constants
    # One sample of a batch lies in several ways at once, and a trace is of more: that is looked at in any case.
    without_proof = {False} if traced.asked.order else {True, False}
    return Built(matched, draft, path, program, constants, places(constants), losses, traced.returned, fields, program,
                 seconds, traced.sizes, traced.asked, traced.orders, options.backend, as_values,
                 proven=without_proof if options.verify is False else set(), reused=traced.reused)


def drafted(stages: Drafting, resources: Resources) -> Draft:
    """What is matched, from the plan to the file's text."""
    with written_down() as decisions:
        planned = stages.planned(resources)
        derived = stages.derived(planned)
        program = stages.optimised(derived, planned, resources)
    return stages.emitted(program, planned, resources, decisions)


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
        if refused := whole.asked.refused(batch.layout.labels, batch.tensors):
            raise InputError(refused)

    def apart() -> Traced:
        return taken_apart(whole, registry)

    with seconds.stage("trace"):
        traced = apart() if shelf is None else shelf.apart(whole, apart)
        check_promise("trace", check_graph(traced.graph))
    return traced


@rules_named()
def _matched_and_drafted(traced: Traced, fields: Sequence[str], batch: Batch, options: Options, seconds: Seconds,
                         brought: Brought) -> tuple[Matched, list[LossCheck], Draft, frozenset[str]]:
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
        stages = Drafting(traced.model, matched, closings, fields, options, batch, seconds, brought, traced.sizes)
        try:
            draft = within_budget(partial(drafted, stages), resources, options.memory_budget, batch.samples, device)
            return matched, losses, draft, as_values
        except UsesNotJoinedError as error:
            if error.parameters <= as_values:
                raise
            as_values |= error.parameters
        except (ArithmeticError, AssertionError, RuntimeError) as error:
            if isinstance(error, HbpError) or not (empty := without_entries(matched)):
                raise
            raise UnsupportedOpError(listing(
                f"There is no program for {', '.join(options.quantities)} where an axis that is not the samples' has "
                "the length 0:", empty, "Leave such layers and batches out; what flows through them is zero. Their "
                "'grad' can be had.")) from error


def without_entries(matched: Matched) -> list[str]:
    """The places of what derivatives reach that has no entries in any sample."""
    return list(dict.fromkeys(
        f"{each.target} in {each.source}, of shape {list(each.output.shape)}" for each in matched.graph.operations
        if each.name in matched.active and any(length == 0 for length in each.output.shape)))


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
