"""No rule is no refusal: with its rule taken away, every operation keeps the contract by torch's own derivatives."""

from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler import options
from hbpcompiler.compiler.match import in_pieces
from hbpcompiler.compiler.match.made.probe import NotDerivableError
from hbpcompiler.reference import reference, relative_error
from hbpcompiler.rule import ZERO, Rule
from hbpcompiler.rule.derived import DerivedRule
from hbpcompiler.rule.registry import builtin
from hbpcompiler.testing import check_case
from hbpcompiler.testing.layer import FRAME, CaseLayer
from hbpcompiler.testing.setting import SAMPLES, Setting
from tests.compiler.match.made.taken_away import derived_rule_of, without
from tests.selection import cases, few

SIZE = 40
"""Of these numbers in the tensors of a case, at most: brute force takes a backward pass for each."""


def numbers(shape):
    return sum(map(numbers, shape)) if isinstance(shape, list) else prod(shape)


def _random(rule, operation, case):
    return torch.Tag.nondeterministic_seeded in Setting(rule, operation, case).overload.tags


def _lists_of_tensors(case):
    return any(isinstance(part, torch.Tensor) for item in case.attributes.values() if isinstance(item, list)
               for part in item)


QUANTITIES = ("grad", "batch_grad", "variance", "diag_ggn", "diag_h")
USES = [(operation, rule, case) for operation, rule in builtin() if isinstance(rule, Rule) for case in rule.cases
        if sum(map(numbers, case.shapes.values())) <= SIZE and not _lists_of_tensors(case) and not case.numbering]
"""Not those that number the samples, which one sample alone has no use for."""
FIRST = list({operation: (operation, rule, case) for operation, rule, case in reversed(USES)}.values())[::-1]
NOT_DERIVED = {
    "aten.detach": "takes it for a constant", "aten.zeros_like": "takes it for a constant",
    "aten.ones_like": "takes it for a constant", "aten.full_like": "takes it for a constant",
    "aten.view.dtype": "takes it for a constant",
    "aten._native_batch_norm_legit": "changes its arguments",
    "aten.squeeze": "on one sample alone",  # whose axis of length one goes too
}
RENAMED = {"aten.native_batch_norm", "aten.to.dtype_layout", "aten.to.dtype"}
"""What has another name once it is exported, or is not there, as a cast to the dtype that there is."""
ONCE = {"aten.hardsigmoid"}
"""What torch differentiates once only."""


def check_derived(operation, rule, case):
    reason = NOT_DERIVED.get(operation, "")
    if _random(rule, operation, case):
        reason = "draws random numbers"
    if reason:
        with pytest.raises(NotDerivableError, match=reason):
            derived_rule_of(rule, operation, case)
        return
    derived = derived_rule_of(rule, operation, case)
    assert isinstance(derived, DerivedRule)
    if operation in ONCE:
        op = Setting(derived, operation, case).op()
        with pytest.raises(hbp.UnsupportedOpError, match=r"no second derivative.*ask for first-order quantities"):
            derived.residual_of(op).count(op)
        derived = replace(derived, residual=ZERO)  # of a piecewise linear operation
    check_case(derived, operation, case)


@few(3, "further cases of one kind")
@pytest.mark.parametrize("use", cases(FIRST, FIRST[::6], "others are differentiated as well"), ids=lambda use: use[0])
def test_a_derived_rule_keeps_the_contract(use):
    check_derived(*use)


class Framed(nn.Module):
    """A case of a rule between layers and activations."""

    def __init__(self, layer):
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(2, 2), layer, nn.Linear(layer.width, 2)

    def forward(self, x, *extras):
        return self.head(torch.tanh(self.layer(torch.tanh(self.stem(x)), *extras)))


IN_NETWORKS = [(name, rule, case) for name, rule, case in FIRST
               if name not in {*NOT_DERIVED, *ONCE, *FRAME, *RENAMED} and not _random(rule, name, case)]


@pytest.mark.parametrize("use", cases(IN_NETWORKS[::12], IN_NETWORKS[::70], "one compile each"), ids=lambda use: use[0])
def test_a_network_without_the_rule(use, monkeypatch):
    name, rule, case = use
    torch.manual_seed(0)
    layer = CaseLayer(rule, name, case, 2)
    model = Framed(layer).double()
    inputs = [torch.randn(SAMPLES, 2, dtype=torch.float64), *layer.extras]
    y = torch.tensor([0, 1, 1])
    monkeypatch.setattr(options, "with_rules", lambda paths: without(name))
    monkeypatch.setattr(in_pieces, "decompositions", lambda *given: {})  # or torch's table has it in pieces
    compiled = hbp.compile(model, quantities=QUANTITIES)
    result = compiled(*inputs, y)
    assert "No rule, so that torch differentiates them" in compiled.code
    for quantity in QUANTITIES:
        for key, expected in reference(model, nn.CrossEntropyLoss(), inputs, y, quantity).items():
            if key not in result[quantity]:
                assert not expected.any(), f"{quantity} of {key}, which does not reach the loss"
                continue
            assert relative_error(result[quantity][key], expected) < 1e-9, f"{quantity} of {key}"
