"""A monitor beside other loops, optimizers, networks and losses: training ends in the same bits, and all is seen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.monitor.networks import batch, chain
from tests.selection import few

TRACK = ["economy", "tic_diag", "mean_gsnr", "hess_max_ev"]
Look = Callable[..., object]


class Sequences(nn.Module):
    """Words to classes, one for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.memory, self.head = nn.Embedding(7, 3), nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.memory(self.words(words))[0]).transpose(1, 2)


class TwoInputs(nn.Module):
    """Named, one of them by a layer that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.sigmoid(self.left(left)) * self.right(right)


def two_losses(output: Tensor, target: Tensor) -> Tensor:
    """Of two kinds in one."""
    return F.binary_cross_entropy_with_logits(output, target) + 0.1 * F.mse_loss(output, target)


def closures(model: nn.Module, loss: Any, look: Look | None) -> Any:
    """An optimizer that asks for the loss as often as it likes."""
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    for number in range(3):
        x, y = batch(6, number)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            found = loss(model(x), y)
            found.backward()
            return found

        if look is not None:
            look(optimizer, x, y)
        optimizer.step(closure)


def scaled(model: nn.Module, loss: Any, look: Look | None) -> Any:
    """Half precision, a scaled loss, clipped gradients, a schedule of step sizes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    rates = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    device = next(model.parameters()).device.type
    scaler = torch.amp.GradScaler(device, init_scale=8.0)
    for number in range(3):
        x, y = batch(6, number)
        if look is not None:
            look(optimizer, x.float(), y)
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            found = loss(model(x.float()), y)
        scaler.scale(found).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        rates.step()


def by_positions(model: nn.Module, loss: Any, look: Look | None) -> Any:
    """A network that torch.compile has wrapped, a mean over positions of which some do not count."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, nesterov=True, momentum=0.9)
    wrapped = torch.compile(model, backend="eager")
    for number in range(3):
        drawn = torch.Generator().manual_seed(number)
        words, classes = torch.randint(7, (6, 4), generator=drawn), torch.randint(5, (6, 4), generator=drawn)
        classes[:, -1] = -100
        if look is not None:
            look(optimizer, words, classes)
        optimizer.zero_grad()
        loss(wrapped(words), classes).backward()
        optimizer.step()


def by_name(model: nn.Module, loss: Any, look: Look | None) -> Any:
    optimizer = torch.optim.Adagrad([value for value in model.parameters() if value.requires_grad], lr=0.1)
    for number in range(3):
        (left, _), (right, _) = batch(6, number), batch(6, number + 9)
        target = (left[:, :3] > 0).double()
        if look is not None:
            look(optimizer, {"left": left, "right": right}, target)
        optimizer.zero_grad()
        loss(model(left=left, right=right), target).backward()
        optimizer.step()


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Callable[..., Any]]] = {
    "closures": (lambda: chain().double(), nn.CrossEntropyLoss(), closures),
    "scaled": (chain, nn.CrossEntropyLoss(label_smoothing=0.1), scaled),
    "positions": (lambda: Sequences().double(), nn.CrossEntropyLoss(), by_positions),
    "names": (lambda: TwoInputs().double(), two_losses, by_name)}


@few(1, "other loops")
@pytest.mark.parametrize("name", list(CASES))
def test_beside_other_loops(name: str) -> None:
    make, loss, train = CASES[name]
    ends, monitors, norms = [], [], []
    for watched in (False, True):
        torch.manual_seed(0)
        model = make()

        def look(optimizer: torch.optim.Optimizer, *given: Any, model: nn.Module = model) -> None:
            if not monitors:
                monitors.append(hbp.Monitor(model, loss, optimizer, TRACK, 1))
            monitors[0].observe(*given)
            inputs = list(given[0].values()) if isinstance(given[0], dict) else list(given[:-1])
            norms.append(norm_test(reference(model, loss, inputs, given[-1], "batch_grad")))

        train(model, loss, look if watched else None)
        ends.append([*(value.detach() for value in model.parameters()), torch.rand(2)])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    monitor = monitors[0]
    assert not monitor.left_out
    steps, tests = monitor.run.series("norm_test")
    assert steps == [0, 1, 2]
    assert tests == pytest.approx(norms, rel=1e-4 if name == "scaled" else 1e-8)
    assert monitor.run.series("alpha")[0] == [0, 1]


def norm_test(each: dict[str, Tensor]) -> float:
    """Of g_n / N by parameter."""
    rows = len(next(iter(each.values())))
    gradients = rows * torch.cat([part.flatten(1) for part in each.values()], 1).double()
    mean = gradients.mean(0)
    noise = (gradients - mean).square().sum() / (rows * (rows - 1))
    return float((noise / mean.square().sum()).sqrt())
