"""The benchmark of second-order diagonals: its double backward against brute force, and a small run."""

import re

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from tests.selection import slow

pytest.importorskip("benchmarks")  # the tests also run where only the wheel is

from benchmarks import second_order, second_order_entries
from benchmarks.networks import Problem
from benchmarks.second_order_networks import GPT, NETWORKS, ViT, given
from hbpcompiler.reference import reference


def small(name: str, batch: int) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.LayerNorm(3), nn.Linear(3, 2))
    return Problem(model, nn.CrossEntropyLoss(), torch.randn(batch, 2, 2), torch.arange(batch) % 2)


@slow("a script that no user's program calls")
def test_entries_by_double_backward():
    problem = small("", 3)
    entries = second_order_entries.drawn(problem, 100)
    exact = second_order_entries.doubled(problem)
    for quantity, of in (("diag_h", second_order_entries.of_hessian), ("diag_ggn", second_order_entries.of_ggn)):
        found = of(problem, entries)
        expected = reference(exact.model, exact.loss, [exact.inputs], exact.target, quantity)
        assert second_order_entries.error(expected, found, entries) < 1e-10
        assert second_order_entries.error({name: 2 * value for name, value in expected.items()}, found,
                                          entries) == pytest.approx(1)
    estimate = second_order_entries.hutchinson(problem, 3000)
    diagonal = reference(exact.model, exact.loss, [exact.inputs], exact.target, "diag_h")
    assert second_order_entries.error(estimate, {name: value.flatten()[entries[name]].tolist()
                                                 for name, value in diagonal.items()}, entries) < 0.2


def test_the_networks_have_their_sizes():
    assert sum(parameter.numel() for parameter in NETWORKS["resnet18-silu"]().parameters()) == 11_173_962
    for model, name in ((ViT(8, 2, 1), "vit"), (GPT(8, 2, 1), "gpt")):
        problem = given(name, 2)
        assert problem.loss(model(problem.inputs), problem.target).isfinite()


@slow("8 s of a script that no user's program calls")
def test_a_small_run(monkeypatch: pytest.MonkeyPatch):
    """What is predicted to take longer than the limit is not run."""
    monkeypatch.setattr(second_order, "given", small)
    threads = ["--threads", str(torch.get_num_threads())]
    done = CliRunner().invoke(second_order.main, [
        "--networks", "small", "--quantities", "diag_ggn,diag_h,diag_h_mc_all:2", "--batch", "3", "--rounds", "1",
        "--no-memory", *threads])
    assert done.exit_code == 0, done.output
    off = [float(number) for number in re.findall(r"entries off by (\S+)", done.output)]
    assert len(off) == 2
    assert max(off) < 1e-5
    assert "diag_h_mc_all:2: predicted" in done.output
    assert "Hutchinson's" in done.output
    done = CliRunner().invoke(second_order.main, ["--networks", "small", "--quantities", "diag_h", "--limit", "0",
                                                  "--rounds", "1", *threads])
    assert done.exit_code == 0, done.output
    assert done.output.rstrip().endswith("; not run")
