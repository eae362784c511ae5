"""What a new program says of itself before it runs: what its results may not be, though nothing in it is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor, nn

from hbpcompiler import schemes
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.match.samples.meetings import meetings_of
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.prove.suspects import hooks
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.errors import IndefiniteCurvatureWarning, LossWarning, MixedSamplesWarning, listing
from hbpcompiler.options import Options
from hbpcompiler.quantities import GGN, QUANTITIES
from hbpcompiler.rule import LossRule, Rule, Structure
from hbpcompiler.rule.registry import AnyRule
from hbpcompiler.system.callers import level_of_caller


def warn_of_hooks(model: nn.Module, loss: Callable[..., Tensor], options: Options) -> None:
    """Without a proof, of what can be seen beforehand to change a gradient behind a program's back."""
    found = hooks(model, loss) if options.verify is False else []
    if found:
        warnings.warn(listing("no program runs backward hooks, and with verify=False nothing says whether they matter:",
                              found), UserWarning, stacklevel=level_of_caller())


def warn_if_indefinite(planned: Plan, loss: Callable[..., Tensor], flat: bool) -> None:
    """Tell the caller of `compile`, or of what it returned, about quantities of a GGN that may be indefinite."""
    names = [name for name in planned.quantities
             if schemes.is_ggn(planned.curvature, QUANTITIES[name]) or GGN in QUANTITIES[name].fields]
    title = getattr(loss, "__name__", type(loss).__name__)
    if flat and names:
        warnings.warn(
            f"the loss {title} is linear in the model's output, or in pieces, so that its GGN is zero, and with it "
            f"{', '.join(names)}; behind a log_softmax of the model, let the model return logits and the loss be "
            "nn.CrossEntropyLoss()", LossWarning, stacklevel=level_of_caller())
    if planned.indefinite and names:
        warnings.warn(
            f"the loss {title} is not known to be convex in the model's output, so that the generalised Gauss-Newton "
            f"matrix may be indefinite, and with it {', '.join(names)} (Kronecker factors B too); a loss function "
            "that has a rule, such as cross_entropy or mse_loss, without negative weights, is known to be convex",
            IndefiniteCurvatureWarning, stacklevel=level_of_caller())


def warn_of_losses(matched: Matched) -> None:
    """Of a loss that hardly is meant behind what made its input, through whatever only moves numbers about."""
    graph, rules = matched.graph, matched.rules
    for operation in matched.ending.reductions:
        rule = rules.get(operation.name)
        if not isinstance(rule, LossRule) or not rule.doubts:
            continue
        maker = graph.makers.get(operation.tensors[rule.input].name)
        while maker is not None and _only_moves(rules.get(maker.name), maker, matched):
            maker = graph.makers.get(next(iter(maker.tensors.values())).name)
        if maker is not None and maker.target in rule.doubts:
            warnings.warn(f"{operation.target} in {operation.source} follows {maker.target} in {maker.source}, and "
                          f"{rule.doubts[maker.target]}", LossWarning, stacklevel=level_of_caller())


def _only_moves(rule: AnyRule | None, maker: Operation, matched: Matched) -> bool:
    return isinstance(rule, Rule) and len(maker.tensors) == 1 and (
        rule.structure_of(static_op(maker, matched.active)) is Structure.SELECTION)


def warn_of_meetings(matched: Matched, options: Options) -> None:
    """Of what lets one sample move the gradients of others, each of which may move by 2 max_norm then."""
    found = meetings_of(matched.graph, matched.active) if "clipped_grad" in options.quantities else []
    if found:
        warnings.warn(listing(
            "samples meet here without a derivative, so that one sample changes the gradients of others: what it does "
            "to clipped_grad is not bounded by max_norm, and noise of that size gives no privacy:", found,
            "Make it of data that are public beforehand, and keep it in a buffer; put batch norm into eval mode, or "
            "use group norm."), MixedSamplesWarning, stacklevel=level_of_caller())
