"""Second phases in the plan: where columns are weighed, what is kept, and which way is taken when."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import UNLIMITED
from hbpcompiler.compiler.plan.phases import AGAIN, KEPT, SumEach, Weigh, Weights
from hbpcompiler.compiler.plan.pieces import Piece
from hbpcompiler.compiler.plan.second_phase import notes, totals_of, with_second_phase
from hbpcompiler.compiler.plan.steps import Close, Pull
from hbpcompiler.compiler.routes import COLUMNS
from hbpcompiler.quantities import CLIPPED, EACH, GRADIENT, NORM, SUM
from tests import stages
from tests.clipped import AGAIN_LIMITS, FORMED_LIMITS, KEPT_LIMITS
from tests.compiler.derive.carried import planned as by_hand
from tests.selection import slow

X, Y = torch.randn(3, 4), torch.tensor([0, 1, 2])


def planned(limits, *others, model=None, x=X, **options):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    compiled = hbp.compile(model, quantities=["clipped_grad", *others], limits=limits, example_inputs=(x, Y), **options)
    return compiled._current().draft.plan, compiled


def names(steps):
    return [(type(step).__name__, getattr(step, "piece", None) and step.piece.name) for step in steps]


def second(plan):
    start = next(number for number, step in enumerate(plan.steps) if isinstance(step, Weights))
    return plan.steps[start + 1 :]


def test_kept_columns_are_weighed_at_each_operation_with_parameters():
    plan, _ = planned(KEPT_LIMITS)
    assert (plan.second.way, plan.second.formed) == (KEPT, ())
    assert names(second(plan)) == [("Weigh", "g"), ("Close", "C"), ("Close", "C")] * 3
    assert plan.second.kept_bytes == 4 * (3 + 6 + 5)
    assert Piece("C", CLIPPED, COLUMNS, 1, False) in {step.into for step in plan.steps if isinstance(step, Weigh)}


def test_weighted_seeds_go_all_the_way_back():
    plan, _ = planned(AGAIN_LIMITS)
    assert plan.second.way == AGAIN
    first, *rest = second(plan)
    assert isinstance(first, Weigh)
    assert first.value.name == plan.steps[0].operation.tensors["self"].name
    assert not any(isinstance(step, Weigh) for step in rest)
    assert [type(step) for step in rest].count(Pull) == len(plan.second.repeated) == 4
    assert {step.piece.stream for step in rest} == {CLIPPED}


def test_per_sample_gradients_are_summed_where_they_are_formed():
    plan, _ = planned(FORMED_LIMITS)
    assert all(isinstance(step, SumEach) for step in second(plan))
    assert all(step.kinds == {EACH, NORM} for step in plan.closings())
    asked, _ = planned(KEPT_LIMITS, "batch_grad")
    assert len(asked.second.formed) == 6


def test_parameters_clipped_by_themselves_keep_nothing():
    """Each is closed again as soon as its norms are there, before the columns go on."""
    plan, _ = planned(AGAIN_LIMITS, clipping="per_parameter")
    assert plan.second.at_once
    found = [name for name, _ in names(plan.steps)]
    start = found.index("Close")
    assert found[start : start + 8] == ["Close", "Weights", "Weigh", "Close"] * 2
    assert [total.group for total in plan.sums] == ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]


@slow("one budget of many")
def test_a_memory_budget_sends_seeds_back_again():
    """Images, whose gradients at the convolutions would be most of the memory."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 3)).double()
    x = torch.randn(3, 1, 48, 48, dtype=torch.float64)
    _, kept = planned(KEPT_LIMITS, model=model, x=x)
    _, again = planned(AGAIN_LIMITS, model=model, x=x)
    most, least = kept.predicted_memory(3), again.predicted_memory(3)
    assert most > 1.2 * least
    budget = (most + least) // 2
    plan, compiled = planned(KEPT_LIMITS, model=model, x=x, memory_budget=budget)
    assert plan.second.way == AGAIN
    assert compiled.predicted_memory(3) <= budget
    plan, _ = planned(KEPT_LIMITS, model=model, x=x, memory_budget=2 * most)
    assert plan.second.way == KEPT


def test_only_chosen_parameters_are_in_the_total():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    compiled = hbp.compile(model, quantities={"clipped_grad": "2.*", "grad": "*"}, example_inputs=(X, Y))
    plan = compiled._current().draft.plan
    (total,) = plan.sums
    assert (total.group, total.parameters, total.closing) == ("all", ("2.weight", "2.bias"), (GRADIENT, NORM))
    assert {step.parameter.key for step in plan.closings() if isinstance(step, Close) and NORM in step.kinds} == {
        "2.weight", "2.bias"}


def test_without_clipping_nothing_is_added():
    model = nn.Linear(4, 3)
    found = stages.matched(model, X, Y)
    assert totals_of(found, stages.options("grad", "batch_l2")) == ()
    steps = stages.planned(found, "grad").steps
    assert with_second_phase(steps, (), stages.closings("grad"), found, UNLIMITED).steps == list(steps)
    assert notes(by_hand("grad")) == []


@pytest.mark.parametrize(("limits", "said"), [
    (KEPT_LIMITS, "kept at the parameters"), (AGAIN_LIMITS, "go back a second time"),
    (FORMED_LIMITS, "per-sample gradients of 6 parameters are formed")])
def test_the_file_and_explain_say_which_way(limits, said):
    plan, compiled = planned(limits)
    text = " ".join(compiled.explain().split())
    assert said in " ".join(compiled.code.split())
    assert said in text
    table = text.partition("How columns come to the second phase")[2]
    assert bool(table) == bool(plan.second.kept_bytes)
    if table:
        assert ("again │ chosen" in table) == (plan.second.way == AGAIN)
        assert ("kept │ chosen" in table) == (plan.second.way == KEPT)
    assert compiled.code.count(f"  {SUM}  ") == 6


def test_a_second_phase_stands_behind_the_block_that_completes_the_norms():
    plan, _ = planned(KEPT_LIMITS, "diag_ggn", "kflr")
    start = next(number for number, step in enumerate(plan.steps) if isinstance(step, Weights))
    before, behind = plan.steps[start - 1], [step for step in plan.steps[start:] if isinstance(step, Close)]
    assert isinstance(before, Close)
    assert {step.piece.stream for step in behind} == {CLIPPED}
