"""Stage 2, match: each operation gets its rule; what none covers is decomposed, what remains is reported at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from hbpcompiler.compiler.match.fuse import fuse
from hbpcompiler.compiler.match.idle_operands import without_idle_operands
from hbpcompiler.compiler.match.in_pieces import is_complex
from hbpcompiler.compiler.match.losses.diagonals import with_diagonals_of_products
from hbpcompiler.compiler.match.losses.endings import (
    ending_of,
    refuse_endings,
    tail_refusals,
    with_sums_of_products,
    with_whole_reductions,
    without_reductions_of_numbers,
)
from hbpcompiler.compiler.match.losses.joined_endings import with_joined_endings
from hbpcompiler.compiler.match.losses.linear_endings import with_linear_endings
from hbpcompiler.compiler.match.made.derived import Deriving
from hbpcompiler.compiler.match.made.loss_ends import with_derived_end
from hbpcompiler.compiler.match.made.probe import WITHOUT_SAMPLES
from hbpcompiler.compiler.match.made.tried_out import refuse_misfits
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.match.operation.examples import Examples
from hbpcompiler.compiler.match.parameters.batched_weights import with_axes_for_weights
from hbpcompiler.compiler.match.parameters.cross_terms import with_cross_terms
from hbpcompiler.compiler.match.parameters.linear_layers import with_linear_layers
from hbpcompiler.compiler.match.parameters.parameter_values import Uses, rule_of, serves_without_samples, with_values
from hbpcompiler.compiler.match.parameters.tied_values import uses_as_values
from hbpcompiler.compiler.match.promotions import with_promotions
from hbpcompiler.compiler.match.reach import refuse_unreached, with_stops
from hbpcompiler.compiler.match.samples.batch_numbers import refuse_numbers
from hbpcompiler.compiler.match.samples.merged_positions import positions, split_merged
from hbpcompiler.compiler.match.samples.sample_numbers import with_sample_numbers
from hbpcompiler.compiler.match.samples.sample_wise import misplaced
from hbpcompiler.compiler.match.samples.samples_first import samples_first
from hbpcompiler.compiler.match.samples.shown_end import with_shown_end
from hbpcompiler.compiler.match.samples.unknown_lengths import refuse_unknown_lengths
from hbpcompiler.compiler.match.squared_norms import with_sums_of_squares
from hbpcompiler.compiler.trace.graph import Graph, N, Operation
from hbpcompiler.compiler.trace.trace import Traced
from hbpcompiler.errors import UnsupportedOpError, listing
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from hbpcompiler.quantities import Closing
from hbpcompiler.rule import LossRule
from hbpcompiler.rule.derived import DerivedRule
from hbpcompiler.rule.registry import AnyRule, Registry

WITHOUT_PYTHON = "TorchScript cannot run torch.func; the backend 'python' can"
NO_SHARES = ("the loss must end in a mean or a sum over the batch, or in a loss function with a rule; what picks among "
             "the samples, as a maximum or a median does, or compares them is no sum of their shares: the gradient of "
             "such a loss is loss.backward(), and hbp.operator has its GGN and its Hessian on one batch")


def match(traced: Traced, registry: Registry, closings: frozenset[Closing], as_values: frozenset[str],
          names: Callable[[Graph], Mapping[str, str]], limits: Limits = DEFAULT_LIMITS, derive: bool = True) -> Matched:
    """The graph in the form that derivatives are written for, a rule for each operation, and what follows from both.

    `as_values` are parameters that must be values though their uses have contractions (see `parameter_values`);
    `names` says how generated code calls a graph's values; without `derive` no rules are made of torch's derivatives
    (see `derived`). Raises UnsupportedOpError naming everything that no rule covers, ModelError if no trainable
    parameter reaches the loss.
    """
    deriving = Deriving(registry, Examples(traced.batch, traced.state), limits.derived_columns) if derive else None
    graph, rules = with_rules(traced.graph, registry, lambda uses: as_values | uses_as_values(uses, closings), deriving)
    refuse_misfits(graph, rules, registry, closings)
    graph, rules = fuse(graph, rules, limits.fused_operations)
    return Matched(graph, rules, graph.active, ending_of(graph, rules, traced.state), names(graph))


def with_rules(graph: Graph, registry: Registry, as_values: Callable[[Uses], AbstractSet[str]] = lambda uses: set(),
               deriving: Deriving | None = None) -> tuple[Graph, dict[str, AnyRule]]:
    """The graph with its samples in front and some parameters as values, and the rule of each operation by its name.

    `deriving` makes the rules that the registry has not; None: they are reported missing.
    """
    graph = with_axes_for_weights(with_linear_layers(without_reductions_of_numbers(graph)))
    graph = with_stops(with_promotions(without_idle_operands(graph)), registry)
    graph = with_sums_of_squares(with_diagonals_of_products(graph))
    graph = with_linear_endings(with_joined_endings(graph), registry)
    graph = with_whole_reductions(with_sums_of_products(graph), registry)
    refuse_unreached(graph, registry)
    refuse_endings(graph)
    refuse_unknown_lengths(graph)
    graph, mixing = samples_first(split_merged(with_sample_numbers(graph), registry), registry)
    graph = with_stops(with_shown_end(with_sample_numbers(graph), registry), registry)
    if not mixing:
        if deriving is not None:
            graph, registry = with_derived_end(deriving.run(graph), deriving), deriving.registry
        valued = with_values(graph, registry, as_values)
        apart = with_cross_terms(graph, valued, registry)
        graph = valued if apart is graph else with_values(apart, registry, as_values)
        graph = graph if deriving is None else deriving.run(graph)  # by then there may be other pieces
    return graph, rules_of(graph, registry, mixing, None if deriving is None else deriving.reasons)


def rules_of(graph: Graph, registry: Registry, mixing: Sequence[str] = (),
             reasons: Mapping[str, str] | None = None) -> dict[str, AnyRule]:
    """Operation name -> rule, or one error that lists all that is missing or refused, and where it is.

    `mixing` is what `samples_first` found; what follows from it is not listed again. `reasons` says why no rule could
    be derived, by the operation's name.
    """
    active = graph.active
    reductions, tail = graph.ending
    rules: dict[str, AnyRule] = {}
    findings = list(mixing)
    missing: list[str] = []
    for operation in graph.operations:
        rule = rule_of(operation, registry)
        is_loss = operation in reductions
        if operation.name not in active and not (rule is not None and not is_loss):
            continue
        if operation.name in active and is_complex(operation) and not isinstance(rule, DerivedRule):
            findings.append(_complex(operation, reasons))
            continue
        if rule is None and (words := registry.refusal(operation.target, operation.overload)) is not None:
            findings.append(f"{operation.target} in {operation.source}: {words}")
        elif rule is None and is_loss and len(operation.tensors) == 1:
            findings.append(f"{operation.target} in {operation.source}: {NO_SHARES}")
        elif rule is None:
            findings.append(_no_rule(operation, reasons))
            if WITHOUT_SAMPLES not in findings[-1]:  # no rule file would help
                missing.append(operation.source.whole or operation.target)
        elif is_loss and not isinstance(rule, LossRule):
            findings.append(f"{operation.target} in {operation.source}: {NO_SHARES}")
        elif not is_loss and isinstance(rule, LossRule):
            rule = _not_the_end(operation, findings, operation.name in active)
        if rule is None:
            continue
        if operation in tail:
            findings += tail_refusals(operation, rule, active)
        elif operation.name in active and not (mixing and _without_samples_in_front(operation)):
            findings += _refusals(operation, rule, active)
        rules[operation.name] = rule
    if findings:
        raise UnsupportedOpError(listing("The model cannot be compiled:", findings, _advice(missing)))
    return rules


def _complex(operation: Operation, reasons: Mapping[str, str] | None) -> str:
    no_way = (reasons or {}).get(operation.name, "it leads to no real number that torch could differentiate")
    return (f"{operation.target} in {operation.source}: its result or an input is complex, and rules are about real "
            f"numbers; none can be made of torch's derivatives: {no_way}")


def _no_rule(operation: Operation, reasons: Mapping[str, str] | None) -> str:
    name = operation.source.whole or operation.target
    pieces = "" if name == operation.target else f" (torch takes it apart into {operation.target})"
    why = WITHOUT_PYTHON if reasons is None else reasons.get(operation.name)
    if why == WITHOUT_SAMPLES:
        return f"{name} in {operation.source}: {why}"
    made = f", and none can be made of torch's derivatives: {why}" if why else ""
    return f"{name} in {operation.source}: no rule{pieces}{made}"


def _advice(missing: Sequence[str]) -> str:
    """What to do about operations without a rule."""
    if not missing:
        return ""
    names = sorted({name.rpartition(".")[2] for name in missing})
    return ("Write one rule file for each, for example " + ", ".join(f"rules/{name}.py" for name in names)
            + ", and pass its path: hbp.compile(..., rules=[path]). docs/rules.md shows how; `hbp rules` lists what "
            "there is.")


def _without_samples_in_front(operation: Operation) -> bool:
    return not operation.output.batched or any(map(misplaced, operation.tensors.values()))


def _not_the_end(operation: Operation, findings: list[str], active: bool) -> AnyRule | None:
    if active:
        findings.append(f"{operation.target} in {operation.source}: it reduces the whole batch to one number, which "
                        "must be the last thing the loss does, but for sums and multiples of such numbers; per-sample "
                        "quantities do not exist otherwise")
    return None


def _refusals(operation: Operation, rule: AnyRule, active: AbstractSet[str]) -> list[str]:
    """Why this use of a rule is impossible, if it is."""
    where = f"{operation.target} in {operation.source}"
    op = static_op(operation, active)
    findings = []
    if (reason := refuse_numbers(operation, rule, active) or rule.refuse(op)) is not None:
        findings.append(f"{where}: {reason}")
        return findings
    if isinstance(rule, LossRule):
        reduction = rule.reduction(op)
        if reduction == "none":
            findings.append(f"{where}: reduction='none' gives no single loss; use 'mean' or 'sum'")
        elif reduction not in ("mean", "sum"):
            findings.append(f"{where}: the rule's reduction says {reduction!r}, and must say 'mean', 'sum' or 'none'")
        if any(value.name in active for slot, value in operation.tensors.items() if slot != rule.input):
            findings.append(f"{where}: its rule knows derivatives in '{rule.input}' alone, but another argument "
                            "depends on trainable parameters, and it cannot be taken apart; write the loss out, or "
                            "detach that argument")
        return findings
    if positions(operation.output) > 1:
        findings.append(f"{where}: a result of shape {list(operation.output.shape)} has positions merged into the "
                        "sample axis, and not everything on its way can take them apart again; keep them in an axis of "
                        "their own, as in x.reshape(x.shape[0], -1, x.shape[-1])")
    elif not operation.output.batched and not serves_without_samples(rule, op):
        findings.append(f"{where}: a value of shape {list(operation.output.shape)} that depends on parameters but has "
                        "no sample axis is not supported yet")
    params = rule.params(op)
    for slot, value in operation.tensors.items():
        if value.name not in active:
            continue
        if value.role == "parameter":
            if slot not in params:
                findings.append(f"{where}: the rule has no contraction for parameter '{value.key}' as '{slot}'")
        elif slot.split(".")[0] not in rule.jac_t and (value.batched or slot not in params):
            findings.append(f"{where}: the rule has no transposed Jacobian for '{slot}'")
    if any(length != 0 and N in getattr(length, "free_symbols", ()) for length in operation.output.shape[1:]):
        findings.append(f"{where}: a result of shape {list(operation.output.shape)} has the batch inside another axis")
    return findings
