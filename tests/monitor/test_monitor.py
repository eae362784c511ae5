"""A monitor beside training: nothing of the user's changes; what it leaves out; logs, targets, schedules."""

import copy
import json
import math
import pickle
import resource
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.monitor import Tracked, logarithmic, pairs
from hbpcompiler.monitor.programs import BATCH_NORM
from hbpcompiler.monitor.schedules import Schedule
from hbpcompiler.reference import reference
from hbpcompiler.report.contents import contents
from hbpcompiler.report.tracks import tracks_of
from hbpcompiler.runs import read
from tests.monitor.networks import batch, chain


def noisy() -> nn.Module:
    """With batch norm and dropout, in train mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def trained(observe: bool, track: str, steps: int = 4) -> tuple[list[Tensor], Tensor, hbp.Monitor | None]:
    model, loss = noisy(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor = hbp.Monitor(model, loss, optimizer, track, 2) if observe else None
    torch.manual_seed(1)
    for number in range(steps):
        x, y = batch(8, number)
        if monitor is not None:
            monitor.observe(x.float(), y)
        loss(model(x.float()), y).backward()  # gradients accumulate over two steps
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    kept = [value.detach() for value in (*model.parameters(), *model.buffers())]
    return [*kept, *(value.grad for value in model.parameters() if value.grad is not None)], torch.rand(3), monitor


@pytest.mark.filterwarnings("ignore::hbpcompiler.MonitorWarning")
def test_training_with_and_without_a_monitor_ends_in_the_same_bits() -> None:
    plain, drawn, _ = trained(False, "")
    watched, drawn_too, monitor = trained(True, "all")
    assert len(plain) == len(watched)
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert torch.equal(drawn, drawn_too)
    assert monitor is not None
    assert monitor.run.header["notes"] == [BATCH_NORM]
    assert set(monitor.left_out) == {"cabs"}
    assert [step.step for step in monitor.run.steps] == [0, 2]
    first = monitor.run.by_step[0].values
    assert {"norm_test", "hess_trace", "hess_max_ev", "tic_diag", "update_size", "alpha"} <= set(first)


def test_loss_and_gradient_beside_batch_norm_are_those_of_train_mode() -> None:
    model, loss, (x, y) = noisy(), nn.CrossEntropyLoss(), batch(8, 0)
    model[3].p = 0.0
    monitor = hbp.Monitor(model, loss, None, ["loss", "grad_norm", "norm_test"], 1)
    monitor.observe(x.float(), y)
    whole = loss(model(x.float()), y)
    whole.backward()
    found = monitor.run.by_step[0].values
    assert found["loss"] == pytest.approx(whole.item())
    for name, value in model.named_parameters():
        assert found["grad_norm"][name] == pytest.approx(value.grad.norm().item(), rel=1e-5, abs=1e-6)
    assert all(module.training for module in model.modules())


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x - x.mean(0)


def test_what_a_model_cannot_have_is_left_out_and_named_once(tmp_path: Path) -> None:
    model, (x, y) = Mixing().double(), batch(5, 0)
    path = tmp_path / "run.jsonl"
    monitor = hbp.Monitor(model, F.cross_entropy, None, "full", 1, path)
    with pytest.warns(hbp.MonitorWarning, match="norm_test") as warned:
        monitor.observe(x, y)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    monitor.observe(x, y)
    assert {"norm_test", "alpha", "grad_hist_1d", "tic_diag", "hess_trace", "lr"} <= set(monitor.left_out)
    run = read(path)
    assert run.header["left_out"] == monitor.left_out
    loss = F.cross_entropy(model(x), y)
    assert run.series("loss")[1] == pytest.approx([loss.item()] * 2)
    assert set(run.by_step[0].values) == {"loss", "grad_norm", "parameter_norm", "distance", "update_size",
                                          "hess_max_ev"}


def concave(output: Tensor, target: Tensor) -> Tensor:
    return (output.tanh() - F.one_hot(target, 3)).square().mean()


def test_curvature_that_may_be_negative_is_left_out() -> None:
    monitor = hbp.Monitor(chain().double(), concave, None, ["tic_diag", "hess_trace", "norm_test"], 1)
    with pytest.warns(hbp.MonitorWarning, match="convex"):
        monitor.observe(*batch(5, 0))
    assert set(monitor.left_out) == {"tic_diag"}
    assert set(monitor.run.by_step[0].values) == {"hess_trace", "norm_test"}


def test_one_pass_for_gradient_and_statistics() -> None:
    for make, exact in ((chain, False), (noisy, True)):
        torch.manual_seed(0)
        model = make()
        monitor = hbp.Monitor(model, None, None, ["norm_test", "grad_norm", "alpha"], 2)
        for number in range(3):
            x, y = batch(8, number)
            torch.manual_seed(9)
            found = monitor.step(x.float(), y)
            torch.manual_seed(9)
            own = {name: value.grad.clone() for name, value in model.named_parameters()}
            model.zero_grad()
            whole = F.cross_entropy(model(x.float()), y)
            whole.backward()
            assert exact or found.item() == pytest.approx(whole.item(), rel=1e-5)
            for name, value in model.named_parameters():
                assert own[name] == pytest.approx(value.grad, rel=1e-4, abs=1e-6)
                value.data -= 0.1 * value.grad
        assert [step.step for step in monitor.run.steps] == [0, 2]
        assert "alpha" in monitor.run.by_step[0].values


def test_gradients_that_a_user_clips_in_place_change_no_alpha() -> None:
    found = []
    for one_pass in (True, False):
        torch.manual_seed(0)
        model, loss = chain().double(), nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
        monitor = hbp.Monitor(model, loss, optimizer, ["alpha"], 1)
        for number in range(3):
            x, y = batch(8, number)
            if one_pass:
                monitor.step(x, y)
            else:
                monitor.observe(x, y)
                optimizer.zero_grad()
                loss(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
        found.append(monitor.run.series("alpha")[1])
    assert len(found[0]) == 2
    assert found[0] == pytest.approx(found[1], rel=1e-8)


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


def test_schedules() -> None:
    assert [step for step in range(40) if Schedule(16).due(step, 0.0)] == [0, 16, 32]
    assert [step for step in range(30) if logarithmic(3)(step)] == [0, 1, 2, 5, 10, 22]
    assert [step for step in range(9) if Schedule(lambda step: step in (2, 3)).due(step, 0.0)] == [2, 3]
    assert Schedule("logarithmic").due(1, 0.0)
    share, tracked, elapsed = Schedule("5%"), 0, 0.0
    for step in range(10_000):
        due = share.due(step, elapsed)
        tracked += due
        share.took(0.3 if due else 0.0, due, step == 0)
        elapsed += 0.1 + 0.3 * due
    assert 0.04 < 0.3 * tracked / elapsed <= 0.0505
    for wrong in (0, -1, True, "5", "0%", "120%", 1.5, None):
        with pytest.raises(hbp.HbpError, match="every must be"):
            Schedule(wrong)
    for wrong in ("ekonomy", [], [3], 3):
        with pytest.raises(hbp.HbpError, match="track"):
            hbp.Monitor(chain(), None, None, wrong)


def test_a_step_that_is_not_due_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain().double()
    monitor = hbp.Monitor(model, None, None, "business", 16)
    with pytest.warns(hbp.MonitorWarning, match="lr"):
        monitor.observe(*batch(5, 0))
    with torch.no_grad():
        model[0].weight += 1
    assert not monitor.observe(*batch(5, 0))
    monkeypatch.setattr(hbp.Monitor, "_look", None)
    for _ in range(14):
        assert not monitor.observe("no batch at all")
    with pytest.raises(TypeError):
        monitor.observe(*batch(5, 0))


def test_parameters_that_are_thawed_and_copies_of_a_monitor() -> None:
    model, loss = chain().double(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model[0].requires_grad_(False)
    monitor = hbp.Monitor(model, loss, optimizer, ["alpha", "distance", "update_size"], 1)
    for number in range(4):
        model[0].requires_grad_(number >= 2)
        monitor.observe(*batch(5, number))
        optimizer.zero_grad()
        loss(model(batch(5, number)[0]), batch(5, number)[1]).backward()
        optimizer.step()
    assert not monitor.left_out
    assert monitor.run.series("alpha")[0] == [0, 1, 2]
    assert set(monitor.run.by_step[1].values["distance"]) == {"2.weight", "2.bias"}
    assert monitor.run.by_step[3].values["distance"]["0.weight"] > 0
    for other in (copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))):
        other.observe(*batch(5, 0))
        assert other.run.last_step == 4
    assert monitor.run.last_step == 3


def test_a_fault_of_the_compiler_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is left out, and the rest goes on."""
    from hbpcompiler.monitor import programs

    made = programs.compile_model

    def faulty(model: nn.Module, loss: object, quantities: tuple[str, ...], **options: object) -> object:
        if "grad_histogram" in quantities:
            raise KeyError("0.weight")
        return made(model, loss, quantities, **options)

    monkeypatch.setattr(programs, "compile_model", faulty)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    monitor = hbp.Monitor(model, nn.CrossEntropyLoss(), None, track=["loss", "norm_test", "grad_hist_1d"], every=1)
    with pytest.warns(hbp.MonitorWarning, match="grad_hist_1d: it failed, which is a fault of this library .KeyError"):
        monitor.observe(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    assert set(monitor.run.by_step[0].values) == {"loss", "norm_test"}


def test_where_alpha_ends_and_gradients_are_asked_for_there_is_one_pass() -> None:
    found = []
    for one_pass in (True, False):
        torch.manual_seed(0)
        model, loss = chain().double(), nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        monitor = hbp.Monitor(model, loss, optimizer, ["alpha"], 2)
        for number in range(4):
            x, y = batch(8, number)
            if one_pass:
                monitor.step(x, y)
            else:
                monitor.observe(x, y)
                optimizer.zero_grad()
                loss(model(x), y).backward()
            optimizer.step()
        made = set(monitor._programs._compiled)
        assert ("grad",) not in made
        assert len(made) == 2  # of steps that are due, and of those after them
        found.append([monitor.run.series("alpha")[1], *(value.detach() for value in model.parameters())])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other)


def test_steps_that_are_rounded_are_along_the_gradient_all_the_same() -> None:
    """In single precision parameters lose digits of a step that is small beside them."""
    torch.manual_seed(0)
    model, loss = chain(), nn.CrossEntropyLoss()
    for rate, along in ((1e-3, True), (1e-5, True), (1e-7, False)):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        monitor = hbp.Monitor(model, loss, optimizer, ["alpha"], 1)
        x, y = batch(8, 0)
        monitor.observe(x.float(), y)
        optimizer.zero_grad()
        loss(model(x.float()), y).backward()
        optimizer.step()
        pending = monitor._watching.pending
        assert pending is not None
        way = pairs.moved(pending, dict(model.named_parameters()))
        multiple = pairs.multiple_of_gradient(pending, way)
        assert (multiple is not None) == along
        if multiple is not None:
            each = reference(model, loss, [x.float()], y, "batch_grad")
            slopes = sum((8 * each[name].double() * part).flatten(1).sum(1) for name, part in way.items())
            torch.testing.assert_close(multiple * pending.seen.slopes, slopes, rtol=0, atol=2e-3 * slopes.abs().max())
    model[0].weight.data[0, 0] += 1e-6  # no rounding
    assert pairs.multiple_of_gradient(pending, pairs.moved(pending, dict(model.named_parameters()))) is None


def test_names_that_are_tracked_and_what_is_no_number_are_refused() -> None:
    monitor = hbp.Monitor(chain().double(), None, None, ["loss", "alpha"], numpy.int64(4))
    assert monitor._schedule.text == "every 4 steps"
    with pytest.raises(hbp.InputError, match=r"loss is what the monitor itself tracks.*\n.*accuracy must be a number"):
        monitor.add(loss=0.5, accuracy="high", rate=numpy.float32(0.5))
    assert not monitor.run.header
    monitor.add(rate=numpy.float32(0.5), grad_norm=torch.tensor(2.0))
    assert monitor.run.scalars[0].values == {"rate": 0.5, "grad_norm": 2.0}


def test_all_is_seen_under_inference_mode_and_without_gradients() -> None:
    model, loss = chain().double(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for surrounding in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        monitor = hbp.Monitor(model, loss, optimizer, "full", 1)
        with surrounding():
            x, y = batch(5, 0)
            monitor.observe(x, y)
        assert not monitor.left_out
        seen.append(monitor.run.by_step[0].values)
    assert seen[0] == seen[1] == seen[2]
    assert "hess_max_ev" in seen[0]


def test_a_run_resumed_without_its_state_has_no_distances(tmp_path: Path) -> None:
    """Which would be those from somewhere on the way."""
    path, model, loss = tmp_path / "run.jsonl", chain().double(), nn.CrossEntropyLoss()
    hbp.Monitor(model, loss, None, ["loss", "distance"], 16, path).observe(*batch(5, 0))
    again = hbp.Monitor(model, loss, None, ["loss", "distance"], 1, path)
    with pytest.warns(hbp.MonitorWarning, match="distance: the log is gone on with behind its last tracked step"):
        again.observe(*batch(5, 0))
    run = read(path)
    assert set(run.by_step[1].values) == {"loss"}
    assert set(run.header["left_out"]) == {"distance"}


def test_gradients_that_are_not_finite_are_counted_in_the_outermost_bins(tmp_path: Path) -> None:
    """And are seen: in the numbers, and in the words of a report."""
    path, model, (x, y) = tmp_path / "run.jsonl", chain().double(), batch(5, 0)
    x[2, 1] = math.nan
    monitor = hbp.Monitor(model, None, None, ["grad_norm", "grad_hist_1d", "grad_hist_2d", "norm_test"], 1, path,
                          gradient_edges=[-1.0, -0.1, 0.0, 0.1, 1.0])
    plain = hbp.Monitor(model, None, None, ["grad_hist_1d"], 1)
    monitor.observe(x, y)
    plain.observe(x, y)
    entries = 5 * sum(value.numel() for value in model.parameters())
    lost = entries // 5  # of one sample, whose output is not finite
    between, by_magnitude = monitor.run.by_step[0].values, plain.run.by_step[0].values["grad_hist_1d"]["counts"]
    assert sum(between["grad_hist_1d"]["counts"]) == sum(by_magnitude) == entries
    assert between["grad_hist_1d"]["counts"][0] + between["grad_hist_1d"]["counts"][-1] >= lost
    assert lost in (by_magnitude[0], by_magnitude[-1])  # of the same sign, all of them
    assert sum(map(sum, between["grad_hist_2d"][""]["counts"])) == entries
    assert math.isnan(between["grad_norm"]["0.weight"])
    cards = [card for cards in contents(tracks_of([read(path)])).columns.values() for card in cards]
    said = {card.instrument.key: card.drawn[0].verdicts[0].text for card in cards}
    assert said["grad_hist_1d"] == "gradients are not finite at step 0: such entries lie in the outermost bins"
    assert "no value is finite" in said["grad_norm"]


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
