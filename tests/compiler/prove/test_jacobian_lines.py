"""The lines of a proof that are about the Jacobian."""

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.jacobian import jacobian_lines
from hbpcompiler.compiler.prove.own_step import own_step
from hbpcompiler.compiler.trace.batch import batch_of


def test_a_changed_number_is_found_and_rounding_is_not():
    torch.manual_seed(0)
    model, X, y = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double(), torch.randn(4, 3).double(), \
        torch.tensor([0, 1, 1, 0])
    compiled = hbp.compile(model, quantities=["jacobian"])
    values = dict(compiled(X, y).jacobian)
    batch = batch_of((X, y))

    def lines(values):
        def own(of, run):
            return own_step(model, nn.CrossEntropyLoss(), batch, Draws.now(X.device), None, of=of)

        matched = compiled._current().matched
        return {line.parameter: line.agrees for line in jacobian_lines(matched, values, 4, own, 2.0**-52)}

    assert lines(values) == dict.fromkeys(values, True)
    assert lines({name: value * (1 + 1e-14) for name, value in values.items()}) == dict.fromkeys(values, True)
    for name, value in values.items():
        wrong = value.clone()
        wrong.view(-1)[-1] += 1e-3
        assert lines({**values, name: wrong}) == {other: other != name for other in values}
