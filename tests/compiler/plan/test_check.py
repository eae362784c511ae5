"""What `check_plan` finds wrong with a plan."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.plan.check import check_plan
from hbpcompiler.compiler.plan.plan import plan as plan_of
from hbpcompiler.compiler.plan.steps import Close, Pull, Seed, Tail
from hbpcompiler.compiler.stages import check_promise
from hbpcompiler.errors import InternalError
from hbpcompiler.limits import Limits
from hbpcompiler.quantities import GRADIENT
from tests.stages import closings, matched, options, planned

ASKED = ("grad", "batch_l2", "diag_ggn", "kfac", "diag_h")


@pytest.fixture(scope="module")
def found():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return matched(model, torch.randn(3, 3), torch.tensor([0, 1, 1]), quantities=ASKED)


@pytest.fixture(scope="module")
def plan(found):
    return planned(found, *ASKED)


def findings(plan, found):
    return list(check_plan(plan, found, closings(*ASKED)))


def test_a_plan_is_right(plan, found):
    assert findings(plan, found) == []


def test_a_piece_that_never_arrives_is_found(plan, found):
    lost = next(step for step in plan.steps if isinstance(step, Pull) and step.piece.stream == GRADIENT)
    broken = replace(plan, steps=tuple(step for step in plan.steps if step is not lost))
    with pytest.raises(InternalError, match=r"behind plan \(after export, trace, match\).*nothing has brought it"):
        check_promise("plan", check_plan(broken, found, closings(*ASKED)))


def test_a_piece_that_arrives_too_late_is_found(plan, found):
    seed = next(step for step in plan.steps if isinstance(step, Seed))
    broken = replace(plan, steps=(*plan.steps, seed))
    assert any("which was read before" in finding for finding in findings(broken, found))


def test_a_closing_that_is_missing_is_found(plan, found):
    close = next(step for step in plan.steps if isinstance(step, Close) and step.piece and
                 step.piece.stream == GRADIENT)
    broken = replace(plan, steps=tuple(step for step in plan.steps if step is not close))
    missing = findings(broken, found)
    assert missing
    assert all(finding.startswith(f"parameter {close.parameter.key!r} has no ") for finding in missing)


def test_a_closing_made_twice_is_found(plan, found):
    close = next(step for step in plan.steps if isinstance(step, Close))
    broken = replace(plan, steps=(*plan.steps, close))
    assert all(finding.endswith("2 times") for finding in findings(broken, found))
    assert findings(broken, found)


def test_a_tail_that_reads_what_is_outside_is_found(plan, found):
    close = [step for step in plan.steps if isinstance(step, Close) and step.piece][-1]
    other = next(operation.output for operation in found.graph.operations if operation.output is not
                 close.operation.output)
    tail = Tail(close.piece, (other,), (close,), 1, 1)
    broken = replace(plan, steps=tuple(tail if step is close else step for step in plan.steps))
    assert any("a Close reads piece" in finding for finding in findings(broken, found))


def test_a_tail_that_leaves_out_a_second_start_is_found():
    """Of columns that an operation bears at both its inputs a tail must be given all that its steps go on with."""

    class Angle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.a(x)  # of which both depend, and so have columns
            return self.head(torch.atan2(h, self.b(h)))

    own = matched(Angle(), torch.randn(3, 3), torch.tensor([0, 1, 1]), quantities=ASKED)
    limits = Limits(few_columns=0, spatial_bytes=0, recycled_bytes=1, vector_bytes=0, vector_chunk_bytes=1)
    whole = plan_of(own, closings(*ASKED), options(*ASKED), Resources(limits=limits))
    assert findings(whole, own) == []
    (tail,) = [step for step in whole.steps if isinstance(step, Tail) and len(step.values) == 2]
    less = replace(tail, values=tail.values[:1])
    found = findings(replace(whole, steps=tuple(less if step is tail else step for step in whole.steps)), own)
    assert any("leaves out what was brought to" in finding for finding in found)


def test_pooled_columns_without_a_pool_are_found(plan, found):
    close = next(step for step in plan.steps if isinstance(step, Close) and step.piece)
    broken = replace(plan, steps=tuple(replace(step, pooled=True) if step is close else step for step in plan.steps))
    assert [f for f in findings(broken, found) if "is closed pooled" in f]


def test_a_pool_that_no_closing_reads_is_found(plan, found):
    pull = next(step for step in plan.steps if isinstance(step, Pull))
    place = (pull.operation.tensors[pull.slot].name, pull.piece.name)
    broken = replace(plan, pools={place: pull.operation})
    piece = pull.piece.name
    assert findings(broken, found) == [f"columns of piece {piece} are kept pooled, and no closing takes them so"]
