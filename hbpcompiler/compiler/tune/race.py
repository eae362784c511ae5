"""Near ties are run against each other: routes whose predicted costs are close are timed on random tensors.

A race at a parameter runs what the program would run there, on tensors of the example's batch size that lie in memory
as the program's do: the step by itself as a torch.fx module, after the same passes as the program, but not its text,
and no values that the program has from other steps. The winner is remembered in the cache folder (see `tuning`), so
that the same compilation gives the same file again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from hbpcompiler.compiler.derive.carry_out import backward_pass
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.match.operation.stand_ins import StandIns
from hbpcompiler.compiler.optimise.passes import optimise
from hbpcompiler.compiler.optimise.settings import Settings
from hbpcompiler.compiler.plan import precision
from hbpcompiler.compiler.plan.arrivals import ended
from hbpcompiler.compiler.plan.pixels import IMAGE, image_weights
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import Close, Piece, Step, Tied
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.compiler.routes import (
    COLUMNS,
    MATRIX,
    Choice,
    covers,
    excess,
    seconds,
)
from hbpcompiler.compiler.trace.graph import (
    N,
    Operation,
    Value,
    meta,
)
from hbpcompiler.compiler.tune import measured as tuning
from hbpcompiler.compiler.tune.calibrate import Timer, stopwatch
from hbpcompiler.limits import DEFAULT_LIMITS
from hbpcompiler.quantities import IN_BASES, PROJECT
from hbpcompiler.rule import Rule, Structure
from hbpcompiler.rule.composite import graph_module

Signature = list[list[Any]]
OF_ARGUMENTS = frozenset({IN_BASES, PROJECT})
"""Closings that meet vectors or bases of a call's, of which there are none here."""


class Race:
    """Times sets of routes at the plan's parameters."""

    def __init__(self, matched: Matched, plan: Plan, batch: int, device: torch.device,
                 timer: Timer | None = None) -> None:
        self.matched, self.plan, self.batch, self.device = matched, plan, batch, device
        self.timer = timer or stopwatch(device)
        self.images = image_weights(matched.graph, matched.rules) if plan.by_pixels else frozenset()

    def seconds(self, step: Close | Tied, runners: Sequence[Sequence[Choice]],
                rounds: int = DEFAULT_LIMITS.race_rounds) -> list[float]:
        """Median time of each set of routes, measured in turns."""
        programs = [self._program(step, choices) for choices in runners]
        with torch.no_grad():
            for program in programs:
                program()
            times = [[self.timer(program) for program in programs] for _ in range(rounds)]
        return [statistics.median(column) for column in zip(*times, strict=True)]

    def _program(self, step: Close | Tied, choices: Sequence[Choice]) -> Callable[[], Any]:
        """What the backward pass does at this step with these routes, as a function without arguments."""
        writer = Writer()
        given: list[Tensor] = []

        def placeholder(tensor: Tensor) -> Any:
            given.append(tensor)
            return writer.placeholder(f"given_{len(given)}")

        operations = [use.operation for use in step.uses] if isinstance(step, Tied) else [step.operation]
        ops = {operation.name: bind(operation, self._tensors(operation, placeholder), self.matched.active,
                                    number=lambda _, length: int(length.subs(N, self.batch)))
               for operation in operations}
        own, columns, signs = precision.Precision(self.plan.curvature_dtype), {}, {}
        for piece in ended(step):
            for operation in operations:
                given_columns = placeholder(self._columns(operation, piece, own))
                columns[operation.name, piece.name] = own.rounded(given_columns, piece)
        if step.piece is not None and step.piece.signed:
            signs[step.piece.name] = placeholder(self._signs(operations[0], step.piece))
        backward = backward_pass(self.matched, self.plan, writer, ops, self.batch, columns=columns, signs=signs)
        backward.carry_out(replace(step, choices=tuple(choices)))
        closed = [list(closings.values()) for closings in (*backward.closed.values(), *backward.totals.values())]
        writer.graph.output(fx.node.map_aggregate(closed, _node))
        shown = [tensor.to("meta") for tensor in given]
        optimise(writer.graph, Settings(
            arguments=lambda samples: shown, machine=step.site.resources.machine, limits=step.site.resources.limits,
            dtype=self.matched.graph.dtype, curvature_dtype=self.plan.curvature_dtype, by_pixels=self.plan.by_pixels,
            chunk=step.site.resources.limits.typical_batch))
        module = graph_module(writer.graph)
        return lambda: module(*given)

    def _tensors(self, operation: Operation, placeholder: Callable[[Tensor], Any]) -> Callable[[str], Any]:
        make = partial(self._random, operation)
        stand_ins, known = StandIns(operation, self.matched.rules.get(operation.name), make), {}

        def tensors(name: str) -> Any:
            if name not in known:
                known[name] = placeholder(stand_ins(name))
            return known[name]

        return tensors

    def _random(self, operation: Operation, value: Value) -> Tensor:
        """Normal numbers; where integers are wanted zeros, which are indices everywhere."""
        shape = meta(value, self.batch).shape
        if not value.floating:
            return self._laid(torch.zeros(shape, dtype=value.dtype, device=self.device), operation, value)
        return self._laid(torch.randn(shape, device=self.device).to(value.dtype), operation, value)

    def _laid(self, tensor: Tensor, operation: Operation, value: Value) -> Tensor:
        """As the program has it in memory, whose own images and whose weights of images may lie pixel by pixel."""
        if not self.plan.by_pixels or tensor.dim() != IMAGE:
            return tensor
        rule = self.matched.rules.get(operation.name)
        meets_images = isinstance(rule, Rule) and (
            rule.layout is not None or rule.structure_of(self.matched.static(operation)) is not Structure.CONSTANT)
        if value.key in self.images or (value.role == "result" and meets_images):
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _columns(self, operation: Operation, piece: Piece, own: precision.Precision) -> Tensor:
        value = operation.output
        dtype = own.of(piece, value.dtype)
        if piece.form == MATRIX:
            size = math.prod(value.sample_shape)
            return torch.randn(size, size, device=self.device).to(dtype)
        lead = (self.batch, piece.columns) if piece.form == COLUMNS else (self.batch,)
        made = torch.randn(math.prod(lead), *value.sample_shape, device=self.device).to(dtype)
        return self._laid(made, operation, value).unflatten(0, lead)

    def _signs(self, operation: Operation, piece: Piece) -> Tensor:
        signs = torch.randn(self.batch, piece.columns, device=self.device).sign()
        return signs.to(operation.output.dtype)


def autotuned(matched: Matched, plan: Plan, batch: int, device: torch.device, timer: Timer | None = None) -> Plan:
    """The plan with near ties decided by a race, or by the winner of an earlier one."""
    race, known, found = Race(matched, plan, batch, device, timer), tuning.winners(), {}
    rounded = f", columns {plan.curvature_dtype}" if plan.curvature_dtype is not None else ""
    laid = ", pixel by pixel" if plan.by_pixels else ""
    place = f"{tuning.key(device, matched.graph.dtype)}, batch {batch}{rounded}{laid}"

    def decided(step: Close | Tied) -> Close | Tied:
        runners = near_ties(step, batch) if not step.kinds & OF_ARGUMENTS else []
        if len(runners) < 2:
            return step
        key = f"{place}: {_described(step)}"
        signatures = [_signature(choices) for choices in runners]
        winner = known.get(key)
        if winner not in signatures:
            seconds = race.seconds(step, runners, step.site.resources.limits.race_rounds)
            winner = found[key] = signatures[seconds.index(min(seconds))]
        return replace(step, choices=runners[signatures.index(winner)])

    def tuned(step: Step) -> Step:
        if isinstance(step, Tied) or (isinstance(step, Close) and not step.pooled):
            return decided(step)
        # A tail's sites are inside its chunks, whose routes follow from the chunks' size; pooled columns are many zeros
        # at positions that random tensors do not have.
        return step

    with torch.random.fork_rng():  # a race draws its tensors, not the user's
        steps = tuple(tuned(step) for step in plan.steps)
    if found:
        tuning.remember_winners(found)
    return replace(plan, steps=steps)


def near_ties(step: Close | Tied, batch: int, within: float | None = None) -> list[tuple[Choice, ...]]:
    """Sets of routes, cheapest first, that are predicted to take up to `within` times as long as the best.

    None: `Limits.near_tie` times.
    """
    site, limits = step.site, step.site.resources.limits
    within = limits.near_tie if within is None else within
    kinds = step.kinds
    predicted = [(seconds(site, choices, batch), choices)
                 for choices in covers(site, kinds) if not excess(site, choices)]
    predicted = sorted((pair for pair in predicted if pair[0] < float("inf")), key=lambda pair: pair[0])
    return [choices for seconds, choices in predicted if seconds <= within * predicted[0][0]][:limits.racers]


def _node(item: Any) -> Any:
    return item.node if isinstance(item, fx.Proxy) else item


def _signature(choices: Sequence[Choice]) -> Signature:
    return [[type(choice.route).__name__, sorted(choice.kinds)] for choice in choices]


def _described(step: Close | Tied) -> str:
    """All that a race depends on besides the machine and the batch size."""
    site = step.site
    kinds = "+".join(sorted(step.kinds))
    sizes = " ".join(f"{letter}={length}" for letter, length in site.sizes)
    stream = f"{site.columns} {'signed ' if site.signed else ''}{site.form}"
    where = f"{step.operation.target}{' tied' if isinstance(step, Tied) else ''}"
    return f"{where}, {site.equation}, {sizes}, {stream}, {kinds}, memory {site.resources.temporaries}"
