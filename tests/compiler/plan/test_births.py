"""What a product's curvature concerns: parameters that both factors depend on, and no others."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.plan.births import Births
from hbpcompiler.compiler.plan.steps import Birth, Close
from hbpcompiler.options import check_options
from hbpcompiler.quantities import RESIDUAL, RESIDUAL_PARTS, closings_for
from hbpcompiler.reference import reference
from tests.agreement import agree
from tests.hand_made import matched, mlp

X, Y = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0, 1])


class Gate(nn.Module):
    """Of `trunk`, if there is one, both factors depend."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk = nn.Linear(3, 3) if trunk else nn.Identity()
        self.up, self.gate, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.trunk(x)
        return self.head(self.up(x) * self.gate(x))


class Scores(nn.Module):
    """A matrix product: of queries and keys, and of weights and values."""

    def __init__(self):
        super().__init__()
        self.into, self.query, self.key, self.head = nn.Linear(1, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.into(x.unsqueeze(-1)))
        return self.head((self.query(h) @ self.key(h).transpose(1, 2) @ h).mean(1))


def planned(model, **options):
    torch.manual_seed(0)
    compiled = hbp.compile(model.double(), quantities=["diag_h", *options.pop("more", [])], **options)
    agree(compiled(X, Y), model, nn.CrossEntropyLoss(), [X], Y, ["diag_h"])
    return list(compiled._current().draft.plan.flat())


def closed(steps, stream=RESIDUAL):
    return {step.parameter.key for step in steps
            if isinstance(step, Close) and step.piece is not None and step.piece.stream == stream}


def born(steps):
    return [step for step in steps if isinstance(step, Birth) and len(step.slots) > 1]


def test_parameters_that_two_arguments_depend_on():
    """hidden's weight and bias are above both of a product's factors, output's weight above one."""
    found = matched(mlp())
    asked = check_options(["diag_h"], "python", None, 1, None)
    births = Births(found, closings_for(asked.quantities), asked, Resources())
    bent, output = (next(each for each in found.graph.operations if each.name == name) for name in ("bent", "output"))
    product = replace(output, tensors={"self": bent.output, "other": output.output})
    assert births._met_twice(product, ["self", "other"]) == found.parameters_above["bent"]
    assert births._met_twice(product, ["other"]) == frozenset()


def test_a_product_of_branches_without_common_parameters_has_no_residual():
    assert not born(planned(Gate(trunk=False)))


def test_a_residual_closes_where_both_branches_come_from():
    assert closed(planned(Gate(trunk=True))) == {"trunk.weight", "trunk.bias"}
    assert closed(planned(Scores())) == {"into.weight", "into.bias"}


def test_where_positive_and_negative_columns_count_by_themselves_all_stay():
    steps = planned(Gate(trunk=True), more=["diag_h_split"])
    assert {"up.weight", "gate.weight", "trunk.weight"} <= closed(steps, RESIDUAL_PARTS)
    assert "trunk.weight" in closed(steps)
    assert not {"up.weight", "gate.weight"} & closed(steps)  # diag_h has columns of its own


class LowRank(nn.Module):
    """A frozen layer and an update, whose second factor begins at zero."""

    def __init__(self, scale):
        super().__init__()
        self.frozen = nn.Linear(3, 2).requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(2, 3)), nn.Parameter(scale * torch.randn(2, 2))

    def forward(self, x):
        return self.frozen(x) + F.linear(x, self.B @ self.A)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5, 0.0])
def test_nothing_cancels_in_a_low_rank_update(scale):
    torch.manual_seed(0)
    model = LowRank(scale)
    expected = reference(copy.deepcopy(model).double(), nn.CrossEntropyLoss(), [X], Y, "diag_h")
    for name, value in hbp.compile(model, quantities=["diag_h"])(X.float(), Y).diag_h.items():
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=3e-6 * largest)


class Towers(nn.Module):
    """Two outputs, with a trunk below both or none."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk = nn.Linear(3, 3) if trunk else nn.Identity()
        self.one, self.other = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        h = torch.tanh(self.trunk(x))
        return self.one(h), self.other(h)


LOSSES = {"dot": lambda o, y: -(o[0] * o[1]).sum(1).mean(),
          "quotient": lambda o, y: (o[0] / (2 + o[1].square())).sum(1).mean(),
          "square": lambda o, y: ((o[0] * o[1]).sum(1) - y).square().mean(),
          "angle": lambda o, y: (torch.atan2(o[0], o[1]) * o[0]).sum(1).mean()}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.filterwarnings("ignore::hbpcompiler.IndefiniteCurvatureWarning")
def test_a_product_in_the_loss_concerns_what_both_factors_depend_on(name, trunk):
    torch.manual_seed(3)
    model, y = Towers(trunk).double(), torch.randn(5, dtype=torch.float64)
    for asked in (["diag_h"], ["diag_ggn", "trace_h"], ["diag_h", "kflr"]):
        agree(hbp.compile(model, LOSSES[name], asked)(X, y), model, LOSSES[name], [X], y,
              [quantity for quantity in asked if quantity != "kflr"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_diagonals_of_two_towers_without_a_trunk_are_exactly_zero(dtype):
    for seed in range(3):
        torch.manual_seed(seed)
        model = Towers(False).to(dtype)
        found = hbp.compile(model, LOSSES["dot"], ["diag_h"])(X.to(dtype), torch.zeros(5, dtype=dtype)).diag_h
        assert all(not value.any() for value in found.values())
