"""What a monitor writes: values of one's own, targets, resumed logs, a full disk."""

import json
import resource
import threading
import time
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.monitor import Tracked
from hbpcompiler.runs import read
from tests.monitor.networks import batch, chain


def test_values_of_ones_own_are_numbers_or_left_out_and_names_may_be_anything(tmp_path: Path) -> None:
    own = [Tracked("numpy", (), lambda seen: {"one": numpy.float32(0.5), "two": numpy.int64(2)}),
           Tracked("list", (), lambda seen: [torch.tensor(1), 2.0]), Tracked("text", (), lambda seen: "0.5"),
           Tracked("complex", (), lambda seen: torch.tensor(1j))]
    path = tmp_path / "run.jsonl"
    monitor = hbp.Monitor(chain().double(), None, None, own, 1, path, name="no character: \udcff")
    with pytest.warns(hbp.MonitorWarning, match="text: TypeError: its value is a str"):
        monitor.observe(*batch(5, 0))
    assert set(monitor.left_out) == {"text", "complex"}
    run = read(path)
    assert run.by_step[0].values == {"numpy": {"one": 0.5, "two": 2}, "list": [1, 2.0]}
    assert run.name == "no character: ?"


def test_a_quantity_of_ones_own_targets_and_scalars(tmp_path: Path) -> None:
    largest = Tracked("largest", ("batch_l2",), lambda seen: seen.squared_norms.max().sqrt())
    broken = Tracked("broken", (), lambda seen: 1 / 0)
    model, seen, run = chain().double(), [], _Run()
    monitor = hbp.Monitor(model, None, None, ["loss", "grad_hist_1d", largest, broken], 1, tmp_path / "run.jsonl")
    monitor.to(lambda step, values: seen.append((step, set(values)))).to(run).to(_Writer(run))
    with pytest.warns(hbp.MonitorWarning, match="broken: ZeroDivisionError"):
        monitor.observe(*batch(5, 0))
    monitor.add(valid_accuracy=0.5)
    assert seen == [(0, {"loss", "grad_hist_1d", "largest"}), (0, {"valid_accuracy"})]
    assert set(run.values) == {"hbp/step", "hbp/loss", "hbp/largest", "hbp/valid_accuracy"}
    assert monitor.run.series("largest")[1][0] > 0
    assert read(tmp_path / "run.jsonl").series("valid_accuracy") == ([0], [0.5])
    assert monitor.run.series("broken") == ([], [])  # asked for
    with pytest.raises(hbp.InputError, match=r"no 'valid_acuracy'; did you mean 'valid_accuracy'\? It has loss, "):
        monitor.run.series("valid_acuracy")
    monitor.to(lambda step, values: 1 / 0)
    with pytest.warns(hbp.MonitorWarning, match="no more values"):
        monitor.observe(*batch(5, 0))
    monitor.observe(*batch(5, 0))
    with pytest.raises(hbp.HbpError, match="SummaryWriter"):
        monitor.to(3)


class _Run:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log(self, values: dict[str, float]) -> None:
        self.values |= values


class _Writer:
    def __init__(self, run: _Run) -> None:
        self.run = run

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert self.run.values[name] == value
        assert step == 0


def test_a_run_is_resumed_by_adding_to_its_log(tmp_path: Path) -> None:
    path, model, loss = tmp_path / "run.jsonl", chain().double(), nn.CrossEntropyLoss()
    track = ["loss", "distance", "hess_max_ev"]
    monitor = hbp.Monitor(model, loss, None, track, 2, path)
    for _ in range(3):
        monitor.observe(*batch(5, 0))
    state = monitor.state_dict()
    with torch.no_grad():
        model[0].weight += 1
    monitor.observe(*batch(5, 0))
    monitor.observe(*batch(5, 0))
    text = path.read_text()
    path.write_text(text[:-5])  # killed while it wrote
    again = hbp.Monitor(model, loss, None, track, 2, path)
    assert again.steps == 3
    again.load_state_dict(state)
    again.observe(*batch(5, 0))
    again.observe(*batch(5, 0))
    run = read(path)
    assert [step.step for step in run.steps] == [0, 2, 4]
    assert run.by_step[4].values["distance"]["0.weight"] == pytest.approx(20**0.5)
    assert [line["step"] for line in run.resumed] == [3]
    assert run.steps[-1].time >= run.steps[0].time
    for line in path.read_text().splitlines():
        json.loads(line)
    with pytest.raises(hbp.InputError, match="another model"):
        hbp.Monitor(nn.Linear(4, 3), loss, None, track, 2, path)


def test_names_that_are_tracked_and_what_is_no_number_are_refused() -> None:
    monitor = hbp.Monitor(chain().double(), None, None, ["loss", "alpha"], numpy.int64(4))
    assert monitor._schedule.text == "every 4 steps"
    with pytest.raises(hbp.InputError, match=r"loss is what the monitor itself tracks.*\n.*accuracy must be a number"):
        monitor.add(loss=0.5, accuracy="high", rate=numpy.float32(0.5))
    assert not monitor.run.header
    monitor.add(rate=numpy.float32(0.5), grad_norm=torch.tensor(2.0))
    assert monitor.run.scalars[0].values == {"rate": 0.5, "grad_norm": 2.0}


def test_a_run_resumed_without_its_state_has_no_distances(tmp_path: Path) -> None:
    """Which would be those from somewhere on the way."""
    path, model, loss = tmp_path / "run.jsonl", chain().double(), nn.CrossEntropyLoss()
    hbp.Monitor(model, loss, None, ["loss", "distance"], 16, path).observe(*batch(5, 0))
    again = hbp.Monitor(model, loss, None, ["loss", "distance"], 1, path)
    with (pytest.warns(hbp.MonitorWarning, match="distance: the log is gone on with behind its last tracked step"),
          pytest.warns(hbp.LogWarning, match=r"run.jsonl holds a run already: .*behind its step 0, as one run")):
        again.observe(*batch(5, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.observe(*batch(5, 1))
    run = read(path)
    assert set(run.by_step[1].values) == {"loss"}
    assert set(run.header["left_out"]) == {"distance"}


def test_parameters_themselves_are_tracked_by_name_alone() -> None:
    model = chain().double()
    monitor = hbp.Monitor(model, None, None, "parameters", 1)
    monitor.observe(*batch(5, 0))
    found = monitor.run.by_step[0].values["parameters"]
    assert found == {name: value.tolist() for name, value in model.named_parameters()}
    assert set(hbp.monitor.QUANTITIES) - set(hbp.monitor.ALL) == {"parameters"}


def test_a_full_disk_ends_no_training(tmp_path: Path) -> None:
    path, model, loss = tmp_path / "run.jsonl", chain().double(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = hbp.Monitor(model, loss, optimizer, ["loss", "norm_test"], 1, path)

    def step(number: int) -> None:
        x, y = batch(5, number)
        monitor.observe(x, y)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    step(0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.warns(hbp.LogWarning, match="Training goes on"):
            step(1)
        step(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.step for each in read(path).steps] == [0]
    step(3)
    assert read(path).series("loss") == ([0, 1, 2, 3], pytest.approx(monitor.run.series("loss")[1], rel=1e-8))


@pytest.mark.parametrize("way", ["observe", "step"])
def test_two_threads_lose_no_step(way: str) -> None:
    model = chain().double()
    monitor = hbp.Monitor(model, None, torch.optim.SGD(model.parameters(), lr=0.1), ["loss", "alpha"], 1)
    monitor.to(lambda step, values: time.sleep(0.01))  # the other thread comes meanwhile
    seen = batch(5, 0)

    def look() -> None:
        for _ in range(3):
            getattr(monitor, way)(*seen)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.steps == 6
    assert sorted(monitor.run.by_step) == [*range(6)]
