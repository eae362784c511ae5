"""How a loss ends: in sums and means over the batch, and in a sum of multiples of those.

L = sum_i c_i L_i, each L_i a sum or a mean. The c_i are found by sending the number 1 back through the rules of what
follows the reductions. Whether L is a mean, L = (1/N) sum_n l_n, or a sum follows from what it does, not from how it
is spelled (see `growth`): a part that stays the same when the batch is laid twice is a mean, one that doubles is a sum.
If any part is a mean, L is one. In a mean a summed L_i enters l_n times N, in a sum a mean L_i divided by N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import sympy
from torch import Tensor

from hbpcompiler.compiler.match.losses.growth import NEAR, growths
from hbpcompiler.compiler.match.matched import Ending
from hbpcompiler.compiler.match.operation.bind import bind, is_curved, static_op
from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.match.signs import never_negative
from hbpcompiler.compiler.trace.graph import Graph, N, Operation, Value
from hbpcompiler.errors import InputError, UnsupportedOpError, listing
from hbpcompiler.quantities import LOSS, QUANTITIES
from hbpcompiler.rule import LossRule, Op, Rule
from hbpcompiler.rule.registry import AnyRule, Registry
from hbpcompiler.rules.shared import written


def unknown(name: str, signs: AbstractSet[str] = frozenset()) -> sympy.Symbol:
    """A number that is known when the program runs, the value of this name: of two of them nothing is known together.

    Those among `signs` are not negative; and not zero, if something is divided by them.
    """
    return sympy.Symbol(f"value of {name}", **({"positive": True} if name in signs else {"real": True}))


def with_whole_reductions(graph: Graph, registry: Registry) -> Graph:
    """The graph in which a mean or sum over axes that are all, the samples' among them, is one over everything."""
    operations = []
    for operation in graph.operations:
        rule = registry.find(operation.target, operation.overload)
        reduces = not operation.output.shape and any(value.of_batch for value in operation.tensors.values())
        # Of all axes it is what the loss may end in, if that has a rule of its own: aten.mean.dim is aten.mean then.
        ends = isinstance(rule, Rule) and isinstance(registry.find(operation.target, ""), LossRule)
        if reduces and operation.name in graph.active and ends:
            operation = replace(operation, overload="",
                                attributes={"dtype": operation.attributes.get("dtype")})
        operations.append(operation)
    return replace(graph, operations=operations)


def without_reductions_of_numbers(graph: Graph) -> Graph:
    """The graph in which the sum or mean of one number is that number: loss.mean() of a loss that is one already."""
    operations = []
    for operation in graph.operations:
        value, dtype = operation.tensors.get("self"), operation.attributes.get("dtype")
        if operation.target in (written.SUM, written.MEAN) and value is not None and not value.shape and (
                dtype in (None, value.dtype)):
            operation = write(written.WITHOUT_ONES, {"self": value}, operation.output, operation.source)
        operations.append(operation)
    return replace(graph, operations=operations)


def with_sums_of_products(graph: Graph) -> Graph:
    """The graph in which an inner product of two vectors of samples is a sum over them, ones(N) @ l or l @ weights."""
    operations: list[Operation] = []
    for operation in graph.operations:
        vectors = list(operation.tensors.values())
        of_samples = all(value.of_batch and len(value.shape) == 1 and not value.dtype.is_complex for value in vectors)
        if operation.target in written.INNER_PRODUCTS and operation.name in graph.active and of_samples:
            one, other = vectors
            each = Value(f"{operation.name}_each", one.shape, operation.output.dtype, "result")
            operations.append(write(written.multiple(written.PRODUCT), {"self": one, "other": other}, each,
                                    operation.source))
            operation = write(written.reduced(written.SUM), {"self": each}, operation.output, operation.source)
        operations.append(operation)
    return replace(graph, operations=operations)


def ending_of(graph: Graph, rules: Mapping[str, AnyRule], state: Mapping[str, Tensor]) -> Ending:
    """How this graph's loss ends, its multiples as numbers or as expressions in N and in unknown numbers. `state` has
    the tensors of the graph's state by key."""
    reductions, tail = graph.ending
    signs = never_negative(graph)

    def of_unknowns(operation: Operation) -> Op:
        return _of_unknowns(operation, graph.active, signs)

    grown = growths(graph, rules, lambda op_of: slopes(graph, rules, op_of), state)
    slope = slopes(graph, rules, of_unknowns)
    say = [operation for operation in reductions if slope[operation.name] != 0] or reductions  # 0 times a sum does not
    kind, definite, mixed = _overall({operation.name: grown[operation.name] for operation in say},
                                     [_reduction(operation, rules, graph) for operation in say])
    found = multiples(graph, rules, of_unknowns, N, kind)
    plain = {name: _as_number(multiple) for name, multiple in found.items()}
    return Ending(tuple(reductions), tuple(tail), kind, definite, plain, mixed)


def refuse_scale(ending: Ending, quantities: Sequence[str]) -> None:
    """Raise UnsupportedOpError for quantities that need the scale of l_n, if the loss is neither a mean nor a sum."""
    names = [name for name in quantities if QUANTITIES[name].of_each_loss]
    if names and not ending.definite:
        needing = [name for name, quantity in QUANTITIES.items() if quantity.of_each_loss]
        places = [f"{operation.target} in {operation.source}" for operation in (*ending.reductions, *ending.tail)]
        raise UnsupportedOpError(listing(
            f"The loss is neither a mean over the samples nor a sum, so that l_n has no scale for {', '.join(names)}: "
            "laid twice, a batch has neither the same loss nor twice the loss.", places,
            "Divide by the number of samples, or by none. Quantities that need the scale are "
            f"{', '.join(needing)}; the others do not depend on it."))


def _overall(grown: Mapping[str, float | None], spelled: Sequence[str]) -> tuple[str, bool, bool]:
    """"mean" or "sum", whether each part is one of them (if one is neither, as spelled), and whether both are there."""
    powers = [None if power is None else round(power) for power in grown.values()
              if power is None or abs(power - round(power)) < NEAR]
    if len(powers) == len(grown) and set(powers) <= {0, 1}:
        return "mean" if 0 in powers else "sum", True, len(set(powers)) > 1
    return "mean" if "mean" in spelled else "sum", False, False


def _as_number(multiple: Any) -> Any:
    """A float where sympy knows it: N / N is 1."""
    known = sympy.sympify(multiple)
    return float(known) if known.is_number else multiple


def _reduction(operation: Operation, rules: Mapping[str, AnyRule], graph: Graph) -> str:
    rule = rules[operation.name]
    assert isinstance(rule, LossRule)
    return rule.reduction(static_op(operation, graph.active))


def slopes(graph: Graph, rules: Mapping[str, AnyRule], op_of: Callable[[Operation], Op],
           one: Any = 1.0) -> dict[str, Any]:
    """By the name of each reduction, what it is multiplied by in the loss; `one` is sent back."""
    reductions, tail = graph.ending
    found: dict[str, Any] = {graph.loss.name: one}
    for operation in reversed(tail):
        rule = rules[operation.name]
        assert isinstance(rule, Rule)
        for slot, value in operation.tensors.items():
            if value.name in graph.active:
                part = rule.jac_t[slot](op_of(operation), found[operation.name])
                found[value.name] = found[value.name] + part if value.name in found else part
    return {operation.name: found[operation.name] for operation in reductions}


def multiples(graph: Graph, rules: Mapping[str, AnyRule], op_of: Callable[[Operation], Op], batch: Any,
              kind: str, one: Any = 1.0) -> dict[str, Any]:
    """By the name of each reduction, what its l_n is multiplied by in the l_n of a loss of this kind; `batch` stands
    for N."""
    found = {}
    for name, slope in slopes(graph, rules, op_of, one).items():
        own = _reduction(graph.makers[name], rules, graph)
        found[name] = slope if own == kind else slope * batch if kind == "mean" else slope / batch
    return found


def adds_nothing(graph: Graph, rules: Mapping[str, AnyRule]) -> bool:
    """Whether it is plain that the loss is a sum of multiples of its reductions and no number more."""
    return not adding_numbers(graph, rules)


def adding_numbers(graph: Graph, rules: Mapping[str, AnyRule]) -> list[Operation]:
    """The operations behind its reductions that may make the loss more than a sum of multiples of these."""
    reductions, tail = graph.ending
    zeros, found = {operation.name for operation in reductions}, list[Operation]()
    for operation in tail:
        rule = rules[operation.name]
        held = {slot: unknown(value.name) for slot, value in operation.tensors.items()}
        held["output"] = unknown(operation.name)
        held |= {slot: sympy.S.Zero for slot, value in operation.tensors.items() if value.name in zeros}
        try:
            assert isinstance(rule, Rule)
            assert rule.forward is not None
            more = sympy.sympify(rule.forward(bind(operation, held.__getitem__, graph.active))) != 0
        except Exception:  # the rule needs tensors: nothing is plain
            more = True
        if more:
            found.append(operation)
        zeros.add(operation.name)
    return found


def without_losses(ending: Ending, rules: Mapping[str, AnyRule]) -> list[str]:
    """Where the loss ends in an operation whose rule does not say l_n (`LossRule.each`)."""
    found = []
    for operation in ending.reductions:
        rule = rules[operation.name]
        if not isinstance(rule, LossRule) or rule.each is None:
            found.append(f"{operation.target} in {operation.source}")
    return found


def check_weighable(ending: Ending, rules: Mapping[str, AnyRule]) -> None:
    """Raise InputError where samples are to have weights, and a rule does not say their losses."""
    places = without_losses(ending, rules)
    if places:
        raise InputError(listing("sample_weights weigh the losses l_n, and the rule of these does not say them:",
                                 places, "Give the LossRule `each`, op -> l_n [N]."))


def refuse_losses(ending: Ending, rules: Mapping[str, AnyRule], quantities: Sequence[str]) -> None:
    """Raise UnsupportedOpError for quantities made of l_n itself, if a rule does not say it."""
    names = [name for name in quantities if any(closing.stream == LOSS for closing in QUANTITIES[name].needs)]
    places = without_losses(ending, rules)
    if names and places:
        raise UnsupportedOpError(listing(f"There is no l_n for {', '.join(names)}; the rule of these does not say it:",
                                         places, "Give the LossRule `each`, op -> l_n [N]."))


def _of_unknowns(operation: Operation, active: AbstractSet[str], signs: AbstractSet[str] = frozenset()) -> Op:
    held = {slot: unknown(value.name, signs) for slot, value in operation.tensors.items()}
    return bind(operation, {**held, "output": unknown(operation.name, signs)}.__getitem__, active)


def sign_of(multiple: Any) -> int | None:
    """1 or -1; None where it is unknown."""
    expression = sympy.sympify(multiple)
    return 1 if expression.is_positive else -1 if expression.is_negative else None


def tail_refusals(operation: Operation, rule: AnyRule, active: AbstractSet[str]) -> list[str]:
    """After the reductions only multiples and sums: anything curved would mix the samples."""
    where = f"{operation.target} in {operation.source}"
    op = _of_unknowns(operation, active)
    curved = not isinstance(rule, Rule) or is_curved(rule, op)
    if isinstance(rule, Rule) and not operation.output.shape and not curved:
        try:
            for slot, value in operation.tensors.items():
                if value.name in active:
                    rule.jac_t[slot](op, 1.0)
            return []
        except (KeyError, AttributeError, TypeError):
            pass  # it needs more than the numbers that multiply
    if curved:
        return [f"{where}: a curved function of the whole batch's loss mixes the samples; only sums and multiples of "
                "means and sums over the batch are possible"]
    return [f"{where}: after a mean or sum over the batch only sums and multiples of such numbers are possible; reduce "
            "the axes of each sample first, as in l.sum(1).mean(), and add losses up, as in a + b"]


def refuse_endings(graph: Graph) -> None:
    """Raise UnsupportedOpError where the model makes the loss's number, or the loss adds a function of the parameters
    alone, which is no sample's."""
    active = graph.active
    made = {operation.name for operation in graph.operations}
    found: list[tuple[Operation, Value]] = []
    reductions, tail = graph.ending
    inside = [str(operation.source) for operation in reductions if not operation.source.in_loss]
    if inside:
        raise UnsupportedOpError(listing(
            "The model itself reduces the batch to one number:", inside,
            "Return what the loss is made of, such as logits, and pass the loss to hbp.compile as a function of "
            "(output, target). A model of transformers does so without labels among its inputs: give them as the "
            "target, and compute the loss of output.logits."))
    for operation in tail:
        found += [(operation, value) for value in operation.tensors.values()
                  if value.name in active and value.name not in made]
    if found:
        raise UnsupportedOpError(listing(
            "The loss cannot be compiled:",
            [f"{operation.target} in {operation.source}: it reads parameter '{value.key}' alone, without any sample"
             for operation, value in found],
            "A penalty has no share for each sample. Leave it out of the loss and add its derivatives to the result: "
            "for c * w.square().sum() that is 2 * c * w to grad and 2 * c to the diagonals of the curvature. "
            "Parameters that weigh losses, as s in exp(-s) * l.mean() + s, may be returned for each sample, "
            "s.expand(len(x), -1), and weigh l_n: (exp(-s) * l + s).mean()."))
