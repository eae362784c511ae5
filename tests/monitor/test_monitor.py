"""A monitor beside training: nothing of the user's changes; what it leaves out; logs, targets, schedules."""

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.monitor import logarithmic, pairs
from hbpcompiler.monitor.programs import BATCH_NORM
from hbpcompiler.monitor.schedules import Schedule
from hbpcompiler.reference import reference
from hbpcompiler.report.contents import contents
from hbpcompiler.report.tracks import tracks_of
from hbpcompiler.runs import read
from tests.monitor.networks import batch, chain
from tests.selection import few, slow


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


def trained_both_ways(lr: float, every: int, steps: int, clip: float | None = None,
                      ) -> list[tuple[hbp.Monitor, nn.Module]]:
    """The same training by `step`, which is gradient and statistics in one, and by `observe` beside autograd."""
    both = []
    for one_pass in (True, False):
        torch.manual_seed(0)
        model, loss = chain().double(), nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        monitor = hbp.Monitor(model, loss, optimizer, ["alpha"], every)
        for number in range(steps):
            x, y = batch(8, number)
            if one_pass:
                monitor.step(x, y)
            else:
                monitor.observe(x, y)
                optimizer.zero_grad()
                loss(model(x), y).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        both.append((monitor, model))
    return both


def test_gradients_that_a_user_clips_in_place_change_no_alpha() -> None:
    found = [monitor.run.series("alpha")[1] for monitor, _ in trained_both_ways(5.0, 1, 3, clip=0.05)]
    assert len(found[0]) == 2
    assert found[0] == pytest.approx(found[1], rel=1e-8)


def test_schedules() -> None:
    def clock() -> float:
        raise AssertionError("only a share of the time asks for the time")

    assert [step for step in range(40) if Schedule(16).due(step, clock)] == [0, 16, 32]
    assert [step for step in range(30) if logarithmic(3)(step)] == [0, 1, 2, 5, 10, 22]
    assert [step for step in range(9) if Schedule(lambda step: step in (2, 3)).due(step, clock)] == [2, 3]
    assert Schedule("logarithmic").due(1, clock)
    for wrong in (0, -1, True, "5", "0%", "120%", 1.5, None):
        with pytest.raises(hbp.HbpError, match="every must be"):
            Schedule(wrong)
    for wrong in ("ekonomy", [], [3], 3):
        with pytest.raises(hbp.HbpError, match="track"):
            hbp.Monitor(chain(), None, None, wrong)
    for wrong, meant in (("ekonomy", "economy"), (["HessMaxEV"], "hess_max_ev"), (["GradHist1d"], "grad_hist_1d")):
        with pytest.raises(hbp.OptionError, match=rf"is unknown \(is it {meant}\?\); name sets"):
            hbp.Monitor(chain(), None, None, wrong)


def test_a_share_of_the_time_is_kept_with_what_steps_behind_a_look_are_slower() -> None:
    """Making programs does not count, nor does a pause of the user's, which is no training step."""
    share, now, monitors, counted = Schedule("5%"), 0.0, 0.0, 0.0
    behind = idle_until = asked = 0
    for step in range(10_000):
        due = step >= idle_until and share.due(step, lambda: now)
        asked += step >= idle_until
        idle_until = idle_until if due or step < idle_until else share.next_due(step)
        if due:
            took = 30.0 if step == 0 else 0.3
            now += took
            share.took(lambda: now, True, step == 0)
            monitors += took if step else 0.0
            behind = 5
        slower = 0.02 if behind else 0.0
        behind -= bool(behind)
        now += 0.1 + slower + (500.0 if step == 4000 else 0.0)
        monitors += slower
        counted += 500.0 if step == 4000 else 0.0
    assert share.share is not None
    assert share.share.spent == pytest.approx(monitors, rel=0.02)
    assert 0.045 < monitors / (now - 30) < 0.0505
    assert monitors / (now - 30 - counted) > 0.05  # a pause is time, too, which may be made use of
    assert asked < 2000  # the clock


def test_next_steps_that_may_be_due() -> None:
    for every in (1, 3, logarithmic(3), lambda step: step in (2, 3)):
        schedule, idle_until, found = Schedule(every), 0, []
        for step in range(40):
            if step >= idle_until:
                if schedule.due(step, float):
                    found.append(step)
                else:
                    idle_until = schedule.next_due(step)
                    assert idle_until > step
        assert found == [step for step in range(40) if Schedule(every).due(step, float)]


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
    assert monitor.steps == 16
    with pytest.raises(TypeError):
        monitor.observe(*batch(5, 0))


@slow("a second or more; shorter ones of its kind stay")
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
    both = trained_both_ways(0.3, 2, 4)
    for monitor, _ in both:
        made = set(monitor._programs._compiled)
        assert ("grad",) not in made
        assert len(made) == 2  # of steps that are due, and of those after them
    one, other = (monitor.run.series("alpha")[1] for monitor, _ in both)
    assert len(one) == 2
    assert one == pytest.approx(other, rel=1e-9)
    for value, expected in zip(both[0][1].parameters(), both[1][1].parameters(), strict=True):
        torch.testing.assert_close(value, expected)


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
        assert pending.alpha is not None
        way = pairs.moved(pending, dict(model.named_parameters()))
        multiple = pairs.multiple_of_gradient(pending.alpha, pending.parameters, way)
        assert (multiple is not None) == along
        if multiple is not None:
            each = reference(model, loss, [x.float()], y, "batch_grad")
            slopes = sum((8 * each[name].double() * part).flatten(1).sum(1) for name, part in way.items())
            torch.testing.assert_close(multiple * pending.alpha.slopes, slopes, rtol=0, atol=2e-3 * slopes.abs().max())
    model[0].weight.data[0, 0] += 1e-6  # no rounding
    way = pairs.moved(pending, dict(model.named_parameters()))
    assert pairs.multiple_of_gradient(pending.alpha, pending.parameters, way) is None


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


@slow("a second or more; shorter ones of its kind stay")
@few(1, "further cases of one kind")
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_no_gradients_of_single_samples_are_kept(optimizer: type[torch.optim.Optimizer]) -> None:
    """Not within a step, where N x D numbers would be by far the most, and not between steps: the batch, 3 D."""
    torch.manual_seed(0)
    model, loss, samples = nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 3)), nn.CrossEntropyLoss(), 256
    x, y = torch.randn(samples, 300), torch.randint(3, (samples,))
    own = optimizer(model.parameters(), lr=0.01)
    monitor = hbp.Monitor(model, loss, own, "full", 1)
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    for step in range(4):
        if step < 2:  # which makes the programs
            monitor.observe(x, y)
        else:
            with Meter() as meter:
                monitor.observe(x, y)
            assert meter.peak < samples * whole / 4
            assert meter.held < 4 * whole + 4 * x.numel()
        own.zero_grad()
        loss(model(x), y).backward()
        own.step()
    assert not monitor.left_out
    assert {"alpha", "norm_test", "grad_hist_2d", "tic_diag", "hess_max_ev"} <= set(monitor.run.by_step[2].values)
