"""The stages in a row: torch.export runs once, each stage is timed, the race and the plan are final."""

import gc
import re

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler import drafting, pipeline
from hbpcompiler.compiler.built import KEPT_ADDING
from hbpcompiler.compiler.stages import ALLOCATIONS, FIRST_RUN, PROVE, STAGES, Seconds, rare_collections
from hbpcompiler.errors import InternalError
from tests.agreement import agree, close


def test_uses_that_cannot_be_joined_are_matched_again_without_another_export(monkeypatch):
    """Of a squared error the last use meets a diagonal, the first columns: joined they cannot be."""
    traces, trace = [], pipeline.trace

    def counted(*arguments):
        traces.append(arguments)
        return trace(*arguments)

    monkeypatch.setattr(pipeline, "trace", counted)
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer).double()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    compiled = hbp.compile(model, nn.MSELoss(), ["grad", "diag_ggn"])
    result = compiled(X, y)
    assert "0.weight" in {value.key for value in compiled._current().matched.graph.state}
    assert "parameter.each_sample" in {made.target for made in compiled._current().matched.graph.operations}
    assert len(traces) == 1
    agree(result, model, nn.MSELoss(), [X], y, ("grad", "diag_ggn"))


def test_a_program_that_derive_has_broken_is_noticed_behind_derive(monkeypatch):
    def broken(*given):
        program = derive(*given)
        (last,) = [node for node in program.graph.nodes if node.op == "output"]
        with program.graph.inserting_before(next(iter(program.graph.nodes))):
            program.graph.call_function(torch.neg, (last.all_input_nodes[0],))  # before it is made
        return program

    derive = drafting.derive
    monkeypatch.setattr(drafting, "derive", broken)
    compiled = hbp.compile(nn.Linear(2, 2), quantities=["grad"])
    with pytest.raises(InternalError, match="behind derive"):
        compiled(torch.randn(3, 2), torch.tensor([0, 1, 1]))


def test_explain_says_how_long_each_stage_took():
    compiled = hbp.compile(nn.Linear(2, 2), quantities=["grad"])
    batch = torch.randn(3, 2), torch.tensor([0, 1, 1])
    compiled(*batch)
    compiled(*batch)
    seconds = compiled._current().seconds
    assert list(seconds.of) == [*STAGES, FIRST_RUN, PROVE]
    assert all(value > 0 for value in seconds.of.values())
    line = compiled.explain().splitlines()[-1]
    shown = re.fullmatch(r"Compiled in (\S+) s \((.*)\)\.", line)
    assert shown, line
    assert [part.split(" ")[0] for part in shown[2].split(", ")][:3] == ["export", "trace", "match"]
    assert float(shown[1]) == pytest.approx(sum(seconds.of.values()), abs=0.006)


def test_collections_are_rarer_only_while_stages_run():
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_threshold()[0] >= max(before[0], ALLOCATIONS)
    assert gc.get_threshold() == before
    gc.set_threshold(0)  # switched off
    try:
        with rare_collections():
            assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)


def test_seconds_of_a_stage_that_runs_twice_add_up():
    seconds = Seconds()
    for _ in range(2):
        with seconds.stage("plan"):
            pass
        before = seconds.of["plan"]
    assert list(seconds.of) == ["plan"]
    assert before > 0
    with seconds.first("plan"):
        pass
    assert seconds.of["plan"] == before


def test_programs_that_add_are_made_once_and_few_are_kept():
    compiled = hbp.compile(nn.Linear(2, 2), quantities=["grad", "batch_l2"], verify=False)
    X, y = torch.randn(3, 2), torch.tensor([0, 1, 1])
    before = {"grad": {name: value.clone() for name, value in compiled(X, y).grad.items()}}
    built_first = compiled._current()
    slots = list(built_first.slots)
    made = [built_first.that_adds([slot], {}, frozenset(), by_sample=False) for slot in slots[:2]]
    assert made[0] is built_first.that_adds(slots[:1], {}, frozenset(), by_sample=False)
    assert len(built_first._adding) == 2 <= KEPT_ADDING
    compiled(X, y, into=before)
    for name, value in compiled(X, y).grad.items():
        close(before["grad"][name], 2 * value, name)


class OverPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)).sum(1))


EMPTY = {"no positions": (OverPositions, (4, 0, 4)),
         "no width": (lambda: nn.Sequential(nn.Linear(4, 0), nn.Tanh(), nn.Linear(0, 3)), (4, 4))}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", EMPTY)
def test_axes_without_entries(name):
    """They have torch's gradient; other quantities are right, or refused by name."""
    made, shape = EMPTY[name]
    model, X, y = made().double(), torch.randn(shape).double(), torch.randint(3, (4,))
    loss = nn.functional.cross_entropy(model(X), y)
    loss.backward()
    found = hbp.compile(model, quantities=["grad"])(X, y)
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(dict(found.grad), {key: value.grad for key, value in model.named_parameters()})
    for quantity in ("batch_l2", "diag_ggn", "batch_dot", "kfac_emp"):
        try:
            found = hbp.compile(model, quantities=[quantity])(X, y)[quantity]
        except hbp.UnsupportedOpError:
            with pytest.raises(hbp.UnsupportedOpError, match="length 0:"):
                hbp.compile(model, quantities=[quantity])(X, y)
            continue
        assert all(torch.isfinite(value).all() for value in found.values() if isinstance(value, torch.Tensor))
