"""`hbp accumulate`: totals in a file, gone on from where an interrupted run has left it."""

import sys

import pytest
import torch
from click.testing import CliRunner

import hbpcompiler as hbp
from hbpcompiler.command.cli import main

MODULE = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(4, 3)
batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(5)]


def loader():
    return iter(batches)


class Loss(nn.CrossEntropyLoss):
    pass


def summed(output, target):
    return nn.functional.cross_entropy(output, target, reduction="sum")


def count(batch):
    return len(batch[1])


dataset = torch.utils.data.TensorDataset(*batches[0])


def named():
    return [{"a": X, "b": y} for X, y in batches]


def prepare(batch):
    return batch["a"], batch["b"]


def indices(batch):
    return torch.arange(len(batch["b"]))


def interrupted():
    yield batches[0]
    raise KeyboardInterrupt
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    (tmp_path / "accumulated_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    arguments = ["accumulate", "accumulated_nets:model", "-q", "grad, kflr", "-o", "totals.pt"]
    yield lambda *more, data="accumulated_nets:loader": CliRunner().invoke(main, [*arguments, "--data", data, *more])
    sys.modules.pop("accumulated_nets", None)


def test_totals_are_written_and_gone_on_from(call, tmp_path):
    done = call("--max-batches", "2")
    assert done.exit_code == 0, done.output
    assert "totals.pt: grad, kflr of 16 samples, loss " in done.output
    assert "--resume" in call().output
    done = call("--resume")
    assert "of 40 samples" in done.output
    nets = sys.modules["accumulated_nets"]
    total = hbp.Total.load(tmp_path / "totals.pt", nets.model)
    whole = hbp.compile(nets.model, None, ["grad"])(*map(torch.cat, zip(*nets.batches, strict=True)))
    torch.testing.assert_close(total.grad["weight"].float(), whole.grad["weight"])


def test_losses_and_counts(call, tmp_path):
    assert call("--loss", "accumulated_nets:Loss").exit_code == 0
    (tmp_path / "totals.pt").unlink()
    done = call("--loss", "accumulated_nets:summed", "--count", "accumulated_nets:count")
    assert done.exit_code == 0, done.output
    nets = sys.modules["accumulated_nets"]
    total = hbp.Total.load(tmp_path / "totals.pt", nets.model)
    whole = hbp.compile(nets.model, None, ["grad"])(*map(torch.cat, zip(*nets.batches, strict=True)))
    torch.testing.assert_close(total.loss.float(), whole.loss)


@pytest.mark.parametrize(("more", "text"), [
    (["--resume"], "no totals.pt to go on from"),
    (["--loss", "accumulated_nets:nothing"], "has no 'nothing'"),
    (["--loss", "accumulated_nets:sumed"], "has no 'sumed' (is it summed?)"),
    (["--loss", "accumulated_nets:spec"], "has no 'spec'\n"),  # __spec__ is no suggestion
    (["-q", "batch_grad"], "do not add up"),
    (["--loss", "mse"], "'mse' must read PKG.MODULE:LOSS, for example torch.nn:MSELoss"),
    (["--data", "loader"], "'loader' must read PKG.MODULE:LOADER, for example mypackage.data:loader"),
    (["--count", "count"], "'count' must read PKG.MODULE:COUNT, for example mypackage.data:count"),
])
def test_wrong_arguments(call, more, text):
    done = call(*more)
    assert done.exit_code == 2
    assert text in done.output


def test_a_loader_that_is_none(call):
    assert "must return an iterable of batches" in call(data="accumulated_nets:Loss").output


def test_an_interrupted_run_says_where_its_totals_are(call):
    done = call(data="accumulated_nets:interrupted")
    assert done.exit_code == 1
    assert "the totals so far are in totals.pt; --resume goes on" in done.output
    assert "of 40 samples" in call("--resume").output


def test_batches_are_prepared(call):
    assert "prepare=" in call(data="accumulated_nets:named").output
    done = call("--prepare", "accumulated_nets:prepare", "--indices", "accumulated_nets:indices",
                data="accumulated_nets:named")
    assert "of 40 samples" in done.output, done.output


def test_a_data_set_is_no_loader(call):
    assert "DataLoader(dataset, batch_size=128)" in call(data="accumulated_nets:dataset").output
