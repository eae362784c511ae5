"""What looked-up rows add to the squares of a parameter that is multiplied with as well, on tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from hbpcompiler import quantities as q
from hbpcompiler.compiler.derive.carry_out import HANDLERS
from hbpcompiler.compiler.derive.tied_rows import tied_rows
from hbpcompiler.compiler.plan.steps import TiedRows
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.compiler.routes import ROUTES
from hbpcompiler.compiler.routes.site import TIED_ROWS, Site, Use
from hbpcompiler.compiler.routes.tied_rows import RowsOfBoth
from hbpcompiler.rule import Contraction, Op

EQUATION, NAMES = "nkpd,npv->nkvd", ("output", "places", "multiplied", "operand", "signs")


@pytest.mark.parametrize("signed", [True, False])
def test_rows_complete_the_squares_of_the_other_use(signed):
    """Among the rows equal ones within a sample, and some that learn nothing."""
    torch.manual_seed(0)
    places = torch.tensor([[1, 0, 1, 4], [2, 2, 2, 2], [-1, 3, 3, -1]])
    columns, multiplied = torch.randn(3, 2, 4, 3).double(), torch.randn(3, 2, 2, 5).double()
    operand, signs = torch.randn(3, 2, 3).double(), torch.tensor([[1.0, -1], [1, 1], [-1, 1]]).double()
    own = Site(EQUATION, (("d", 3), ("p", 4), ("q", 2), ("v", 5)), TIED_ROWS, 2, signed, 8, False)
    kinds = frozenset({q.NORM, q.DIAGONAL, q.POSITIVE, *([q.NEGATIVE] if signed else [])})
    (route,) = [route for route in ROUTES if route.applies(own)]
    assert isinstance(route, RowsOfBoth)
    assert route.cost(own, kinds).seconds(3) > 0

    writer = Writer()
    given = {name: writer.placeholder(name) for name in NAMES}
    op = Op(given, {}, dict.fromkeys(NAMES, ()), batched=frozenset(NAMES))
    use = Use(writer, op, Contraction(EQUATION, operand=lambda op: op.operand), given["output"],
              given["signs"] if signed else None, 3)
    writer.graph.output({kind: value.node for kind, value in route.write(own, use, kinds).items()})
    found = fx.GraphModule({}, writer.graph)(columns, places, multiplied, operand, signs)

    one_hot = F.one_hot(places.clamp(min=0), 5).double() * (places >= 0).unsqueeze(-1)
    product = torch.einsum("nkqv,nqd->nkvd", multiplied, operand)
    added = (torch.einsum(EQUATION, columns, one_hot) + product).square() - product.square()
    weights = {q.DIAGONAL: signs, q.POSITIVE: (signs > 0).double(), q.NEGATIVE: (signs < 0).double()}
    torch.testing.assert_close(found[q.NORM], added.flatten(1).sum(1))
    for kind in kinds - {q.NORM}:
        weighted = added * (weights[kind] if signed else torch.ones(3, 2).double()).view(3, 2, 1, 1)
        rows = torch.einsum("npv,npd->vd", one_hot, found[kind])
        torch.testing.assert_close(rows, weighted.sum((0, 1)))


def test_the_step_has_its_own_function():
    assert HANDLERS[TiedRows] is tied_rows
