"""A run that is killed while it writes: its log is read meanwhile and afterwards, and gone on with to the same end."""

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.runs import Run, read
from tests.monitor.networks import batch, chain
from tests.selection import slow

MANY = 30
"""Steps that the run is let alone for, at least."""
PATIENCE = 120
"""Seconds in which it has to make them, on a machine that may be busy."""


def train(log: Path, saved: Path, steps: int | None) -> None:
    """From the last state that was saved, to a step or for ever."""
    torch.manual_seed(0)
    model, loss = chain().double(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor = hbp.Monitor(model, loss, optimizer, "full", 2, log)
    if saved.exists():
        state = torch.load(saved, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        monitor.load_state_dict(state["monitor"])
    for step in itertools.count(monitor.steps):
        if step == steps:
            return
        x, y = batch(8, step)
        monitor.observe(x, y)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        if step % 10 == 9:
            new = saved.with_suffix(".new")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "monitor": monitor.state_dict()}, new)
            new.rename(saved)


def last_step(log: Path) -> int:
    """-1 as long as the header is not there, or not whole."""
    try:
        return read(log).last_step
    except hbp.InputError:
        return -1


@slow("7 s: two processes; runs that are read and resumed have tests of their own")
def test_a_killed_run_is_read_and_resumed(tmp_path: Path) -> None:
    log, saved = tmp_path / "run.jsonl", tmp_path / "state.pt"
    code = f"import pathlib, sys; from {__name__} import train; train(*map(pathlib.Path, sys.argv[1:]), None)"
    child = subprocess.Popen([sys.executable, "-c", code, log, saved], cwd=Path(__file__).parents[2])
    end = time.monotonic() + PATIENCE
    try:
        while last_step(log) < MANY:
            assert child.poll() is None, "it ended by itself"
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    killed = read(log)
    assert killed.last_step >= MANY
    steps = killed.last_step + 8
    train(log, saved, steps)
    train(tmp_path / "whole.jsonl", tmp_path / "none.pt", steps)
    run, whole = read(log), read(tmp_path / "whole.jsonl")
    assert len(run.resumed) == 1
    assert not run.problems
    _same(run, whole)


def _same(run: Run, whole: Run) -> None:
    assert [step.step for step in run.steps] == [step.step for step in whole.steps]
    for one, other in zip(run.steps, whole.steps, strict=True):
        assert set(one.values) == set(other.values)
        for name, value in one.values.items():
            if not name.startswith("grad_hist"):
                assert value == pytest.approx(other.values[name], rel=1e-6, abs=1e-9)
