"""A small model taken through the first stages, for tests of one stage."""

from torch import Tensor, nn

from hbpcompiler import schemes
from hbpcompiler.codegen.naming import value_names
from hbpcompiler.compiler.match.in_pieces import taken_apart
from hbpcompiler.compiler.match.match import match
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.plan import plan
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.trace import Traced, trace
from hbpcompiler.options import Options, check_options
from hbpcompiler.quantities import Closing, closings_for


def options(*quantities: str) -> Options:
    return check_options(list(quantities), "python", None, 1, None)


def closings(*quantities: str) -> frozenset[Closing]:
    return schemes.kept("hessian", closings_for(options(*quantities).quantities))


def traced(model: nn.Module, *batch: Tensor, loss: nn.Module | None = None) -> Traced:
    asked = options("grad")
    found = trace(model, loss or nn.CrossEntropyLoss(), batch_of(batch), asked.registry.modules)
    return taken_apart(found, asked.registry)


def matched(model: nn.Module, *batch: Tensor, quantities: tuple[str, ...] = ("grad",),
            loss: nn.Module | None = None) -> Matched:
    registry = options(*quantities).registry
    return match(traced(model, *batch, loss=loss), registry, closings(*quantities), frozenset(), value_names)


def planned(found: Matched, *quantities: str) -> Plan:
    return plan(found, closings(*quantities), options(*quantities))
