"""Each test graph without any one of its rules, by pieces or by torch's own derivatives: the same numbers."""

import warnings

import pytest
from torch import nn

import hbpcompiler as hbp
from hbpcompiler import options
from hbpcompiler.reference import reference
from hbpcompiler.rule.registry import builtin
from tests.agreement import close
from tests.compiler.match.made.taken_away import without
from tests.graph_models import MODELS, made
from tests.selection import few

QUANTITIES = ("variance", "diag_ggn", "diag_h")


def rules_met(compiled):
    """The names of the rules that a program was made by."""
    rules, found = builtin().rules, set()
    for operation in compiled._current().matched.graph.operations:
        names = {operation.target, f"{operation.target}.{operation.overload or 'default'}"}
        found |= names & rules.keys()
    return sorted(found)


@few(2, "a minute of all graphs; every rule is taken away by itself in test_taken_away")
@pytest.mark.parametrize("name", MODELS)
def test_a_graph_without_any_one_of_its_rules(name, monkeypatch):
    model, X, y = made(name)
    numbers = {quantity: reference(model, nn.CrossEntropyLoss(), [X], y, quantity)
               for quantity in (*QUANTITIES, "second_moment")}
    compiled = hbp.compile(model, quantities=QUANTITIES, verify=False)
    compiled(X, y)
    met = rules_met(compiled)
    assert "aten.cross_entropy_loss" in met
    assert len(met) > 2
    for rule in met:
        monkeypatch.setattr(options, "with_rules", lambda paths, rule=rule: without(rule))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
            result = hbp.compile(model, quantities=QUANTITIES, verify=False)(X, y)
        for quantity in QUANTITIES:
            scales = numbers["second_moment" if quantity == "variance" else quantity]
            for key, value in numbers[quantity].items():
                close(result[quantity][key], value, f"{quantity} of {key} without {rule}", scales[key])
