"""`monitor.to` a real SummaryWriter and a real, offline run of wandb, where they are installed."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.monitor.networks import batch, chain


def watched(target: Any) -> hbp.Monitor:
    torch.manual_seed(0)
    model, loss = chain().double(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = hbp.Monitor(model, loss, optimizer, "full", 2).to(target)
    for number in range(5):
        x, y = batch(8, number)
        monitor.step(x, y)
        optimizer.step()
    monitor.add(valid_accuracy=0.5)
    return monitor


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    run = watched(writer).run
    writer.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    for name in ("loss", "norm_test", "alpha", "hess_max_ev"):
        steps, values = run.series(name)
        events = found.Scalars(f"hbp/{name}")
        assert [event.step for event in events] == steps
        assert [event.value for event in events] == pytest.approx(values, rel=1e-5)
    assert len(found.Scalars("hbp/grad_norm/0.weight")) == 3
    assert found.Scalars("hbp/valid_accuracy")[0].value == 0.5


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = wandb.init(project="monitor", dir=str(tmp_path))
        run = watched(own).run
        last = dict(own.summary)
        own.finish()
    for name in ("loss", "norm_test", "alpha", "hess_max_ev"):
        assert last[f"hbp/{name}"] == pytest.approx(run.series(name)[1][-1])
    assert last["hbp/valid_accuracy"] == 0.5
    assert {"hbp/grad_norm/0.weight", "hbp/step"} <= set(last)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
