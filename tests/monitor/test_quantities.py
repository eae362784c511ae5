"""Every quantity of a monitor against loops over samples, in float64; and what must not depend on the loss's scale."""

import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.monitor import pairs
from hbpcompiler.monitor.histograms import magnitude_edges
from hbpcompiler.monitor.seen import TINY
from hbpcompiler.reference import reference
from tests.monitor.networks import NETWORKS, alpha_by_hand, batch, chain, flat, hessian, per_sample
from tests.selection import few, slow

N = 6
CASES = [(name, reduction) for name in NETWORKS for reduction in ("mean", "sum")]


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    return NETWORKS[name]().double()


def tracking(model: nn.Module, loss: nn.Module, optimizer: object, track: object = "all", **options: object,
             ) -> hbp.Monitor:
    monitor = hbp.Monitor(model, loss, optimizer, track, 1, **options)
    monitor._watching.sharpness.tolerance = 1e-10
    return monitor


def train_step(model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor,
               y: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss(model(x), y).backward()
    optimizer.step()


def close(found: float, expected: float, tolerance: float = 1e-8) -> None:
    assert found == pytest.approx(float(expected), rel=tolerance, abs=1e-12)


@few(1, "other optimizers")
@pytest.mark.parametrize(("name", "reduction"), CASES)
def test_every_quantity_is_what_a_loop_gives(name: str, reduction: str) -> None:
    model, loss = made(name), nn.CrossEntropyLoss(reduction=reduction)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3 if reduction == "mean" else 0.05)
    monitor = tracking(model, loss, optimizer)
    (x, y), (x2, y2) = batch(N, 0), batch(N, 1)
    names, start = [key for key, _ in model.named_parameters()], flat(model)
    sizes = [value.numel() for value in model.parameters()]
    losses, each = per_sample(model, x, y)
    matrix, ggn = hessian(model, loss, x, y), reference(model, loss, [x], y, "diag_ggn")
    monitor.observe(x, y)
    train_step(model, loss, optimizer, x, y)
    way = flat(model) - start
    after, each_after = per_sample(model, x2, y2)
    monitor.observe(x2, y2)
    run = monitor.run
    found = run.by_step[0].values
    assert not monitor.left_out
    assert set(found) == set(hbp.monitor.ALL)

    total = N if reduction == "sum" else 1
    mean, second = each.mean(0), each.square().mean(0)
    variance = second - mean.square()
    squared = mean @ mean
    close(found["loss"], losses.sum() if reduction == "sum" else losses.mean())
    assert found["lr"] == optimizer.param_groups[0]["lr"]
    for quantity, vector in [("grad_norm", mean * total), ("update_size", way), ("parameter_norm", start)]:
        for key, part in zip(names, vector.split(sizes), strict=True):
            close(found[quantity][key], part.norm())
    assert set(found["distance"].values()) == {0.0}
    for key, part in zip(names, way.split(sizes), strict=True):
        close(run.by_step[1].values["distance"][key], part.norm())

    noise = each - mean
    along = noise @ mean / squared.sqrt()
    close(found["norm_test"] ** 2, noise.square().sum() / (N * (N - 1) * squared))
    close(found["inner_test"] ** 2, along.square().sum() / (N * (N - 1) * squared))
    across = noise - along[:, None] * mean / squared.sqrt()
    close(found["ortho_test"] ** 2, across.square().sum() / (N * (N - 1) * squared))
    close(found["norm_test"] ** 2, found["inner_test"] ** 2 + found["ortho_test"] ** 2)

    close(found["mean_gsnr"], (mean.square() / (variance + TINY * variance.mean())).mean())
    unbiased = variance * N / (N - 1)
    close(found["early_stopping"], 1 - N * (mean.square() / (unbiased + TINY * unbiased.mean())).mean())
    rate = found["lr"] * total  # of the mean loss
    close(found["cabs"], rate * variance.sum() / losses.mean())

    diagonal = torch.cat([ggn[key].flatten() for key in names]) / total
    close(found["tic_diag"], (second / (diagonal + TINY * diagonal.mean())).sum(), 1e-6)
    close(found["tic_trace"], second.sum() / diagonal.sum())
    for key, part in zip(names, matrix.diagonal().split(sizes), strict=True):
        assert found["hess_trace"][key] == pytest.approx(float(part.sum()), rel=1e-6, abs=1e-6)
    close(found["hess_max_ev"], torch.linalg.eigvalsh(matrix)[-1], 1e-6)

    close(found["alpha"], alpha_by_hand((losses, after), (each @ way, each_after @ way), way.norm()), 1e-6)
    _check_magnitudes(found, each, dict(zip(names, each.split(sizes, 1), strict=True)), model)


def _check_magnitudes(found: dict, each: torch.Tensor, parts: dict, model: nn.Module) -> None:
    """No entry lies on an edge, so numpy's bins are the same."""
    one = found["grad_hist_1d"]
    limited = each.flatten().clamp(one["edges"][0], one["edges"][-1]).numpy()
    assert one["counts"] == numpy.histogram(limited, one["edges"])[0].tolist()
    assert sum(one["counts"]) == each.numel()
    assert set(one["edges"]) <= set(magnitude_edges(-40, 64, 2))
    own = {"": (each, torch.cat([value.detach().flatten() for value in model.parameters()]))}
    assert set(found["grad_hist_2d"]) == {"", *parts}
    two = found["grad_hist_2d"][""]
    assert numpy.array(two["counts"]).sum() == own[""][0].numel()
    assert [sum(row) for row in two["counts"]] == one["counts"]
    assert numpy.array(two["counts"]).shape == tuple(len(edges) - 1 for edges in two["edges"])


def test_histograms_between_given_edges_are_numpys() -> None:
    model, (x, y) = made("chain"), batch(N, 0)
    edges, own = torch.linspace(-0.05, 0.05, 12).double(), torch.linspace(-0.3, 0.3, 6).double()
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    monitor = tracking(model, nn.CrossEntropyLoss(), None, ["grad_hist_1d", "grad_hist_2d"],
                       gradient_edges=edges, parameter_edges=own)
    monitor.observe(x, y)
    found = monitor.run.by_step[0].values
    _, each = per_sample(model, x, y)

    def clipped(values: torch.Tensor, limits: torch.Tensor) -> numpy.ndarray:
        return values.flatten().clamp(float(limits[0]), float(limits[-1])).numpy()

    assert found["grad_hist_1d"]["counts"] == numpy.histogram(clipped(each, edges), edges)[0].tolist()
    for name, part in zip(start, each.split([value.numel() for value in start.values()], 1), strict=True):
        columns = start[name].flatten().expand(N, -1)
        expected = numpy.histogram2d(clipped(part, edges), clipped(columns, own), [edges, own])[0]
        assert found["grad_hist_2d"][name]["counts"] == expected.astype(int).tolist()


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.factor * F.cross_entropy(output, target)


def test_a_multiple_of_the_loss_changes_no_test_no_alpha_and_no_ratio() -> None:
    seen = []
    for factor in (1.0, 1e4):
        model, loss = made("chain"), Scaled(factor)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3 / factor)
        monitor = tracking(model, loss, optimizer, ["norm_test", "inner_test", "ortho_test", "mean_gsnr", "cabs",
                                                    "early_stopping", "alpha"])
        monitor.observe(*batch(N, 0))
        train_step(model, loss, optimizer, *batch(N, 0))
        monitor.observe(*batch(N, 1))
        seen.append(monitor.run.by_step[0].values)
    assert len(seen[0]) == 7
    for name, value in seen[0].items():
        close(seen[1][name], value)


def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    own = list(model.parameters())
    return {"adam": torch.optim.Adam(own, lr=0.05), "momentum": torch.optim.SGD(own, lr=0.3, momentum=0.9,
                                                                                 weight_decay=0.1),
            "groups": torch.optim.SGD([{"params": own[:1], "lr": 0.5}, {"params": own[1:], "lr": 0.1}])}


@slow("optimizers whole")
def test_alpha_of_any_optimizer_is_that_of_saved_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("adam", "momentum", "groups"):
        model, loss = made("chain"), nn.CrossEntropyLoss()
        optimizer = optimizers(model)[name]
        train_step(model, loss, optimizer, *batch(N, 7))
        monitor = tracking(model, loss, optimizer, ["alpha", "lr"])
        start, (losses, each) = flat(model), per_sample(model, *batch(N, 0))
        monitor.observe(*batch(N, 0))
        train_step(model, loss, optimizer, *batch(N, 0))
        way, (after, each_after) = flat(model) - start, per_sample(model, *batch(N, 1))
        values = flat(model)
        monitor.observe(*batch(N, 1))
        assert torch.equal(values, flat(model))
        expected = alpha_by_hand((losses, after), (each @ way, each_after @ way), way.norm())
        close(monitor.run.by_step[0].values["alpha"], expected, 1e-6)
    assert monitor.run.by_step[0].values["lr"] == {"group 0": 0.5, "group 1": 0.1}


@slow("many steps")
def test_alpha_is_exact_on_a_quadratic_by_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, _), generator = batch(N, 0), torch.Generator().manual_seed(5)
    target = torch.randn(N, 3, dtype=torch.float64, generator=generator)
    for again in (False, True):
        if again:
            monkeypatch.setattr(pairs, "multiple_of_gradient", lambda begun, before, way: None)
        for rate in (0.05, 0.6, 2.5):
            torch.manual_seed(3)
            model, loss = nn.Linear(4, 3).double(), nn.MSELoss()
            optimizer = torch.optim.SGD(model.parameters(), lr=rate)
            monitor = tracking(model, loss, optimizer, ["alpha"])
            gradient = torch.cat([part.flatten() for part in torch.autograd.grad(
                loss(model(x), target), list(model.parameters()))])
            bend = gradient @ hessian(model, loss, x, target) @ gradient
            monitor.observe(x, target)
            train_step(model, loss, optimizer, x, target)
            monitor.observe(x, target)
            close(monitor.run.by_step[0].values["alpha"], rate * bend / (gradient @ gradient) - 1, 1e-6)


def test_alpha_where_there_is_no_minimum_no_step_or_one_sample() -> None:
    from hbpcompiler.monitor.parabola import End, alpha

    def end(loss: float, slope: float) -> End:
        return End(torch.full((3,), loss), torch.full((3,), slope))

    close(alpha(end(1.0, -1.0), end(0.0, -1.0)) or 0.0, -1.0)  # a line, to rounding
    assert alpha(end(1.0, -1.0), end(-1.0, -3.0)) == -1  # bent downwards
    assert alpha(end(math.nan, -1.0), end(0.0, -1.0)) is None
    close(alpha(End(torch.ones(1), -torch.ones(1)), End(torch.ones(1) / 2, torch.zeros(1))) or 0.0, 0.0)
    model = chain().double()
    noise = ["norm_test", "inner_test", "ortho_test", "mean_gsnr", "cabs", "early_stopping"]
    monitor = tracking(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), ["alpha", *noise])
    monitor.observe(*batch(1, 0))
    monitor.observe(*batch(1, 0))
    assert monitor.run.by_step[0].values == {"alpha": -1.0}
