"""Stage 3, plan: what travels backwards, in which form, and by which routes it ends at the parameters.

One walk over the graph decides it for the batch as a whole. The rewrites that follow take the steps to where fewer
numbers are in memory at once. `derive` carries out the result, `explain` prints it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hbpcompiler import schemes
from hbpcompiler.compiler.cost.figures import UNLIMITED, Resources
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.arrivals import live
from hbpcompiler.compiler.plan.large_factors import check_factors
from hbpcompiler.compiler.plan.local import Local, without_local
from hbpcompiler.compiler.plan.pixels import is_pixel_by_pixel
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.pooled import with_pooled_columns
from hbpcompiler.compiler.plan.sample_chunks import with_sample_chunks
from hbpcompiler.compiler.plan.second_phase import totals_of, with_second_phase
from hbpcompiler.compiler.plan.seeds import with_seeds_by_position
from hbpcompiler.compiler.plan.tails import with_tails
from hbpcompiler.compiler.plan.tied import join_uses
from hbpcompiler.compiler.plan.walk import Walk
from hbpcompiler.options import Options
from hbpcompiler.quantities import Closing, Closings
from hbpcompiler.rule import Factor, Rule
from hbpcompiler.rule.bilinear import parameters_met


def unraced(plan: Plan) -> Plan:
    """The plan as it was predicted, no route timed."""
    return plan


def plan(matched: Matched, closings: frozenset[Closing], options: Options, resources: Resources = UNLIMITED,
         pixels: bool = False, race: Callable[[Plan], Plan] = unraced) -> Plan:
    """The final plan for these closings.

    `race` decides near ties among its routes, as images lie in it; `pixels`: whether the machine is faster on images
    whose channels lie side by side. Raises UnsupportedOpError for what cannot be had, and UsesNotJoinedError, see
    `tied`.
    """
    if isinstance(closings, Closings) and schemes.is_signed(options.curvature) and _has_units(matched):
        closings = closings.with_parts_apart()
    check_factors(matched, closings, options.quantities, resources.limits.full_block_rows)
    walk = Walk(matched, closings, options, resources)
    steps = live(join_uses(walk.run(), closings))
    steps, pools = with_pooled_columns(steps, matched.rules, matched.static)
    local = Local(matched.rules, matched.static, walk.itemsize, resources)
    steps = with_tails(steps, walk.itemsize, resources, pools, local)
    pools = without_local(pools, steps)
    steps = with_sample_chunks(steps, walk.dtype.itemsize, resources)
    steps = with_seeds_by_position(steps, matched.rules, matched.static, walk.dtype.itemsize, resources)
    totals = totals_of(matched, options)
    whole = with_second_phase(steps, totals, closings, matched, resources)
    first = Plan(options.quantities, options.mc_samples, tuple(whole.steps), pools, options.curvature, walk.indefinite,
                 walk.precision.dtype, options.chosen, walk.joint, sums=totals, clipping=options.clipping,
                 second=whole.phase)

    def by_pixels(planned: Plan) -> bool:
        limits = resources.limits
        return pixels and is_pixel_by_pixel(matched.graph, matched.rules, planned, limits.typical_batch, limits)

    return raced(replace(first, by_pixels=by_pixels(first)), race, by_pixels)


def _has_units(matched: Matched) -> bool:
    """Whether an operation's residual has columns in units of what they meet, which are no eigenvectors."""
    for operation in matched.graph.operations:
        rule = matched.rules.get(operation.name)
        if operation.name in matched.active and isinstance(rule, Rule) and not operation.source.in_loss:
            op = matched.static(operation)
            residual = rule.residual_of(op)
            if (isinstance(residual, Factor) and residual.own is not None) or parameters_met(rule, op):
                return True
    return False


def raced(planned: Plan, race: Callable[[Plan], Plan], by_pixels: Callable[[Plan], bool]) -> Plan:
    """With near ties decided, between routes as the program has them, images laid out in one way; the other way, and
    all raced again in it, where a winner does not read what lies pixel by pixel."""
    found = race(planned)
    if found.by_pixels and not by_pixels(found):
        return race(replace(planned, by_pixels=False))
    return found
