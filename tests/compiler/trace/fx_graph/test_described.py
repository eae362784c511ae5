"""torch's own ways of putting other tensors in parameters' places work after a call, and later calls are right."""

import weakref

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.fx_graph.described import forget_described
from hbpcompiler.reference import reference

SCALE = torch.ones(4)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last((self.norm(self.first(x)) * SCALE[:, None].to(x)).mean(2))


class Recurrent(nn.Module):
    """torch's own layer has weak references, which it lets go before the change."""

    def __init__(self):
        super().__init__()
        self.inner = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x.mT)[0].mean(1)


@pytest.fixture
def swapping():
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def agrees(model, compiled, x, y):
    found = compiled(x, y).grad
    expected = reference(model, nn.CrossEntropyLoss(), (x,), y, "grad")
    return found.keys() == expected.keys() and all(torch.allclose(found[name], expected[name], rtol=1e-10, atol=1e-14)
                                                   for name in found)


@pytest.mark.parametrize("kind", [Several, Recurrent])
def test_parameters_can_be_swapped_after_a_call(kind, swapping):
    torch.manual_seed(0)
    model = kind().eval()
    x, y = torch.randn(4, 3, 5), torch.tensor([0, 1, 1, 0])
    compiled = hbp.compile(model, quantities=["grad", "diag_ggn"])
    compiled(x, y)
    own = {id(held): held for held in model.parameters()}
    model.double()
    assert {id(held) for held in model.parameters()} == set(own)  # the same objects, other numbers
    assert agrees(model, compiled, x.double(), y)


def test_what_an_export_notes_of_tensors_is_forgotten():
    model = nn.Linear(3, 2)
    program = torch.export.export(model, (torch.randn(4, 3),))
    assert weakref.getweakrefs(model.weight)
    forget_described(program)
    assert not weakref.getweakrefs(model.weight)


def test_nothing_refers_weakly_to_what_is_the_users(swapping):
    torch.manual_seed(0)
    model = Several().eval().double()
    x, y = torch.randn(4, 3, 5).double(), torch.tensor([0, 1, 1, 0])
    compiled = hbp.compile(model, quantities=["grad"])
    compiled(x, y)
    assert not any(map(weakref.getweakrefs, (*model.parameters(), *model.buffers(), SCALE, x, y)))
    model.load_state_dict({name: held + 1 for name, held in model.state_dict().items()})
    assert agrees(model, compiled, x, y)
    torch.utils.swap_tensors(model.last.weight, nn.Parameter(torch.randn(2, 4).double()))
    assert agrees(model, compiled, x, y)
