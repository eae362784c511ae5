"""Weights that another thread changes while a program is compared with the model's own step."""

import threading

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.calls import programs
from hbpcompiler.compiler.prove import trials
from hbpcompiler.system.threads import _elsewhere


def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    return model, nn.CrossEntropyLoss(), torch.randn(8, 3).double(), torch.randint(2, (8,))


def moving(monkeypatch, model, times, place=programs):
    """As a loop of the user's own does, so many times between a program's run and the model's own step."""
    own, calls = place.prove, []

    def prove(*arguments, **named):
        calls.append(1)
        if len(calls) <= times:
            for parameter in model.parameters():
                parameter.data.mul_(1.5)  # no version says so
        return own(*arguments, **named)

    monkeypatch.setattr(place, "prove", prove)
    return calls


def test_weights_that_move_for_a_while(monkeypatch):
    """The call's numbers, and its draws, are those at the weights that stayed."""
    model, loss, X, y = task()
    calls = moving(monkeypatch, model, 2)
    compiled = hbp.compile(model, loss, quantities=["grad", "diag_ggn_mc"])
    torch.manual_seed(1)
    found, after = compiled(X, y), torch.get_rng_state()
    assert len(calls) == 3
    torch.manual_seed(1)
    again = compiled(X, y)
    assert torch.equal(torch.get_rng_state(), after)
    right = loss(model(X), y)
    torch.testing.assert_close(found.loss, right.detach())
    for own, gradient in zip(found.grad.values(), torch.autograd.grad(right, list(model.parameters())), strict=True):
        torch.testing.assert_close(own, gradient)
    torch.testing.assert_close(found.diag_ggn_mc, again.diag_ggn_mc)


def test_weights_that_go_on_moving(monkeypatch):
    model, loss, X, y = task()
    calls = moving(monkeypatch, model, 100)
    compiled = hbp.compile(model, loss, quantities=["grad"])
    with pytest.raises(hbp.ProofError, match="another thread trains the model") as raised:
        compiled(X, y)
    assert "fault" not in str(raised.value)
    assert len(calls) == trials.TRIES
    monkeypatch.undo()
    assert compiled(X, y).grad.keys() == dict(model.named_parameters()).keys()


def test_a_table_of_weights_that_move(monkeypatch):
    model, loss, X, y = task()
    compiled = hbp.compile(model, loss, quantities=["grad"])
    assert compiled.verify(X, y).agrees
    run = type(compiled)._run

    def moved(self, *arguments, **named):
        found = run(self, *arguments, **named)
        model[0].weight.data.mul_(1.1)
        return found

    monkeypatch.setattr(type(compiled), "_run", moved)
    table = compiled.verify(X, y)
    assert not table.agrees
    assert "another thread trains the model" in str(table)


def test_a_wrong_program_is_not_tried_again(monkeypatch):
    model, loss, X, y = task()
    calls = moving(monkeypatch, model, 0)
    run = programs.Programs._run

    def wrong(self, *arguments, **named):
        found = run(self, *arguments, **named)
        return found._replace(loss=found.loss * 2)

    monkeypatch.setattr(programs.Programs, "_run", wrong)
    with pytest.raises(hbp.ProofError, match="does not compute what the model itself does"):
        hbp.compile(model, loss, quantities=["grad"])(X, y)
    assert len(calls) == 1


def test_our_own_threads_wait(monkeypatch):
    """From a program's first run to the end of its proof the model is held."""
    model, loss, X, y = task()
    held = []

    def look(function):
        def looked(*arguments, **named):
            thread = threading.Thread(target=lambda: held.append(_elsewhere({id(model)}, threading.get_ident())))
            thread.start()
            thread.join(60)
            return function(*arguments, **named)

        return looked

    monkeypatch.setattr(programs, "prove", look(programs.prove))
    monkeypatch.setattr(programs.Programs, "_run", look(programs.Programs._run))
    hbp.compile(model, loss, quantities=["grad"])(X, y)
    assert len(held) >= 2
    assert all(held)


def test_an_optimizer_steps_meanwhile():
    model, loss, X, y = task()
    optimizer, stop = hbp.optim.KFAC(model, loss), threading.Event()
    optimizer.step(X, y)

    def steps():
        while not stop.is_set():
            optimizer.step(X, y)

    thread = threading.Thread(target=steps, daemon=True)
    thread.start()
    try:
        for quantity in ("grad", "diag_h", "diag_ggn", "batch_l2"):
            hbp.compile(model, loss, quantities=[quantity])(X, y)
    finally:
        stop.set()
        thread.join(60)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float64, torch.complex64])
def test_marks(dtype):
    """Of every dtype and layout, of no entries too, and of NaN."""
    tensor = torch.zeros(3, 4).to(dtype)
    for each in (tensor, tensor.T, tensor[:, 1], tensor[0, 0], tensor.expand(2, 3, 4), tensor[:0], tensor.conj()):
        assert trials._mark(each) == trials._mark(each)
    before = trials._mark(tensor.T)
    tensor[1, 2] = 1
    assert trials._mark(tensor.T) != before
    if dtype.is_floating_point:
        tensor[0] = float("nan")
        assert trials._mark(tensor) == trials._mark(tensor)
