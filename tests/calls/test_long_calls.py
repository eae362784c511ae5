"""Calls that are predicted to take long say so before they start, and show how far they are."""

from __future__ import annotations

import io
import warnings
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.calls.long_calls import in_words, reporting
from hbpcompiler.compiler.cost.quick import seconds_at_most
from hbpcompiler.compiler.cost.rounds import rounds_of
from tests.selection import slow

EVERY = hbp.Limits(announced_seconds=0.0, few_columns=0, spatial_bytes=2**12, recycled_bytes=2**12, vector_bytes=2**10)
"""Every call is long, and goes in chunks."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.Conv2d(3, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(12, 6), nn.Softmax(1), nn.Linear(6, 3)).double()


def batch(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 1, 12, 12, dtype=torch.double), torch.arange(samples) % 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_long_calls_are_announced_once_before_they_start_and_report(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = hbp.compile(network(), quantities=["grad", "diag_h"], limits=EVERY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.LongCallWarning)
        with pytest.raises(hbp.LongCallWarning) as raised:
            compiled(*batch(5))
    assert not compiled._current().proven  # nothing has run
    text = str(raised.value)
    for part in ("grad, diag_h of Sequential, N=5", "one sample: ", "diag_h_mc, sampled, in place of diag_h: ",
                 "images of half the height and width: "):
        assert part in text
    slow = hbp.compile(network(), quantities=["grad", "diag_h"], limits=replace(EVERY, remade_seconds=0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.LongCallWarning)
        with pytest.raises(hbp.LongCallWarning, match="one sample: ") as raised:
            slow(*batch(7))
    assert "in place of" not in str(raised.value)  # making it took longer than the call will
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        shown = compiled(*(first := batch(5)))
        compiled(*batch(6))
        compiled(*batch(6))
    assert sum(one.category is hbp.LongCallWarning for one in seen) == 1  # of six samples; of five it was said
    assert "hbpcompiler: 100%" in terminal.getvalue()
    names = type(compiled.program).forward.__globals__
    assert "range" not in names
    monkeypatch.undo()
    cost = compiled._current().draft.cost
    loops = rounds_of(compiled._current().draft.memory, 5, cost.machine, cost.limits)
    assert any(loop.inside for loop in loops.inside)  # columns within samples
    assert loops.each == pytest.approx(compiled.predicted_seconds(5), rel=0.2)
    shares: list[float] = []
    with reporting(compiled._current(), 5, shares.append):
        quiet = compiled(*first)
    assert len(shares) > 10
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.2
    assert 0.8 < shares[-1] <= 1
    assert all(torch.equal(shown.diag_h[name], quiet.diag_h[name]) for name in quiet.diag_h)
    with pytest.raises(KeyboardInterrupt), reporting(compiled._current(), 5, _interrupt):
        compiled(*first)
    assert "range" not in names


def _interrupt(share: float) -> None:
    raise KeyboardInterrupt


def test_of_calls_that_begin_at_once_one_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one counts its rounds, another has begun: it keeps its `range`, and ends in peace."""
    limits = hbp.Limits(few_columns=0, spatial_bytes=2**12)
    compiled = hbp.compile(network(), quantities=["diag_h"], limits=limits, verify=False)
    compiled(*batch(5))
    built = compiled._current()
    names = type(compiled.program).forward.__globals__
    first: list[float] = []
    second: list[float] = []
    with ExitStack() as other:
        def counted(*given: Any) -> Any:
            monkeypatch.undo()
            other.enter_context(reporting(built, 5, first.append))
            return rounds_of(*given)

        monkeypatch.setattr("hbpcompiler.calls.long_calls.rounds_of", counted)
        with reporting(built, 5, second.append):
            compiled(*batch(5))
        assert "range" in names
    assert "range" not in names
    assert first
    assert not second


class Log:
    """What some put in stderr's place."""

    def write(self, text: str) -> None:
        pass


CLOSED = io.StringIO()
CLOSED.close()


@pytest.mark.parametrize("stderr", [None, CLOSED, Log()], ids=["none", "closed", "log"])
def test_a_process_without_stderr(monkeypatch: pytest.MonkeyPatch, stderr: Any) -> None:
    """As one that runs in the background, or has closed it, or writes a log."""
    X, y = torch.randn(4, 3), torch.arange(4) % 2
    monkeypatch.setattr("sys.stderr", stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.LongCallWarning)
        compiled = hbp.compile(nn.Linear(3, 2), quantities=["grad"], limits=EVERY)
        gradient = compiled(X, y).grad["bias"]
    total = hbp.accumulate(compiled, [(X, y)])
    monkeypatch.undo()
    assert torch.allclose(total.grad["bias"], gradient.double())


@slow("a second or more; shorter ones of its kind stay")
def test_short_calls_say_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = hbp.compile(network(), quantities=["diag_h", "kflr"], verify=False)
    monkeypatch.setattr("sys.stderr", Terminal())
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.LongCallWarning)
        compiled(*batch(5))
    cost = compiled._current().draft.cost
    assert not cost._known  # shapes alone have said that it is short
    for samples in (1, 5, 64):
        predicted = compiled.predicted_seconds(samples)
        assert predicted < seconds_at_most(cost.program, samples, cost.machine) < 1000 * predicted


def test_a_monitor_leaves_out_what_no_step_can_wait_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(2, 16), nn.Conv2d(16, 16, 3, 2), nn.Sigmoid(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    monitor = hbp.Monitor(model, track=("grad_norm", "hess_trace"), every=1)
    with pytest.warns(hbp.MonitorWarning, match="hess_trace: with it .* predicted to take about 5"):
        monitor.observe(torch.randn(64, 1, 40, 40), torch.arange(64) % 3)
    assert list(monitor.left_out) == ["hess_trace"]


def test_times_in_words() -> None:
    assert [in_words(seconds) for seconds in (0.0123, 1.0, 45, 200, 900, 5000, 12345, 5e5)] == [
        "0.012 s", "1.0 s", "45 s", "3.3 minutes", "15 minutes", "83 minutes", "3.4 hours", "5.8 days"]
