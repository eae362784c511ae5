"""A user's slips: each is said, and costs nothing but itself."""

import warnings

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.command.cli import main
from hbpcompiler.errors import OptionError
from hbpcompiler.monitor import Tracked


@pytest.mark.parametrize("watch", ["observe", "step"])
def test_a_loss_that_is_detached(watch):
    model = nn.Linear(3, 2)
    monitor = hbp.Monitor(model, lambda output, y: nn.functional.cross_entropy(output, y).detach(),
                          torch.optim.SGD(model.parameters(), lr=0.1), every=1)
    with pytest.raises(hbp.errors.ModelError, match="no trainable parameter influences the loss: it is detached"):
        getattr(monitor, watch)(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))


def test_a_batch_that_does_not_fit_costs_no_quantity(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X, y = torch.randn(6, 3).double(), torch.tensor([0, 1, 1, 0, 1, 0])
    monitor = hbp.Monitor(model, nn.CrossEntropyLoss(), optimizer, every=1, log=tmp_path / "run.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.MonitorWarning)
        with pytest.raises(hbp.InputError, match="does not go through"):
            monitor.observe(torch.randn(6, 5).double(), y)
        for _ in range(2):
            monitor.observe(X, y)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), y).backward()
            optimizer.step()
    values = hbp.runs.read(tmp_path / "run.jsonl").steps[-1].values
    assert {"norm_test", "inner_test", "ortho_test", "grad_hist_1d"} <= values.keys()


@pytest.mark.parametrize(("own", "words"), [
    (Tracked("own", ("nil",), float), "'own' needs 'nil', unknown to hbp.compile; its quantities are batch_loss"),
    (Tracked("own", "grad", float), r"needs of 'own' must be a tuple of names, \('grad',\)"),
    (Tracked("loss", (), float), "'loss' is a quantity of the monitor's; give your own another name"),
])
def test_a_quantity_of_ones_own_is_checked_at_once(own, words):
    with pytest.raises(hbp.HbpError, match=words):
        hbp.Monitor(nn.Linear(3, 2), track=["lr", own])


def test_a_page_replaces_no_log(tmp_path):
    model = nn.Linear(3, 2)
    log = tmp_path / "run.jsonl"
    hbp.Monitor(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), track="loss",
                log=log).observe(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    before = log.read_bytes()
    with pytest.raises(hbp.InputError, match="is one of the logs; name another file"):
        hbp.report([log], log)
    assert CliRunner().invoke(main, ["report", str(log), "-o", str(log)]).exit_code == 2
    assert log.read_bytes() == before


def test_a_log_that_is_missing_is_not_watched_once(tmp_path):
    found = CliRunner().invoke(main, ["watch", str(tmp_path / "no.jsonl"), "--once"])
    assert found.exit_code == 2
    assert "no.jsonl" in found.output


def test_numbers_that_are_none(tmp_path):
    """A gradient beyond all numbers has no noise of zero; what is added must be a number."""
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        model.weight[:, 0] = 0
    X = torch.ones(5, 4).double()
    X[0, 0] = 1e160
    monitor = hbp.Monitor(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), track=["cabs", "loss"],
                          every=1, log=tmp_path / "run.jsonl")
    monitor.observe(X, torch.zeros(5, 3).double())
    values = hbp.runs.read(tmp_path / "run.jsonl").steps[0].values
    assert values["loss"] < 10
    assert not values.get("cabs", float("nan")) < float("inf")
    with pytest.raises(hbp.InputError):
        monitor.add(huge=10**400)
    with pytest.raises(hbp.InputError, match="not the state of a monitor"):
        monitor.load_state_dict({"format": monitor.state_dict()["format"]})


def test_an_optimizer_and_a_state_of_another_model():
    model, other = nn.Linear(4, 3), nn.Linear(5, 3)
    with pytest.raises(OptionError, match="none of the model's parameters"):
        hbp.Monitor(model, nn.MSELoss(), torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(OptionError, match="with param_groups"):
        hbp.Monitor(model, nn.MSELoss(), 0.1)
    part = hbp.Monitor(model, nn.MSELoss(), torch.optim.SGD([model.bias, *other.parameters()], lr=0.1), every=1)
    assert part.observe(torch.randn(2, 4), torch.randn(2, 3))
    with pytest.raises(hbp.InputError, match=r"weight is \[3, 4\] in the state, and \[3, 5\] in this model"):
        hbp.Monitor(other, nn.MSELoss()).load_state_dict(part.state_dict())
    again = hbp.Monitor(model, nn.MSELoss())
    again.load_state_dict(part.state_dict())
    assert again.steps == 1


def test_an_optimizer_that_finds_its_own_step_size():
    model, loss = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), nn.CrossEntropyLoss()
    optimizer = hbp.optim.KFAC(model, loss)
    assert optimizer.param_groups[0]["lr"] is None
    monitor = hbp.Monitor(model, loss, optimizer, track=["economy", "cabs"], every=1)
    X, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    with pytest.warns(hbp.MonitorWarning, match="lr=None the optimizer finds the length of each step by itself"):
        monitor.observe(X, y)
    optimizer.step(X, y)
    monitor.observe(X, y)
    assert set(monitor.left_out) == {"lr", "cabs"}
    assert monitor.run.series("alpha")[0] == [0]
    assert monitor.run.by_step[1].values["loss"] < monitor.run.by_step[0].values["loss"]
