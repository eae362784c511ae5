"""Measured figures: calibration with a fake clock, what is kept, what it changes; else nothing depends on them."""

import json
from dataclasses import asdict

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.command.cli import main
from hbpcompiler.compiler.cost.figures import DEFAULT, ONEDNN, Machine
from hbpcompiler.compiler.tune import calibrate
from hbpcompiler.compiler.tune import measured as tuning
from tests.selection import slow

CPU = torch.device("cpu")
OTHER = Machine(4e9, 1e9, 8e9, 2e-5)
SMALL = hbp.Limits(recycled_bytes=2**20)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HBP_CACHE_DIR", str(tmp_path / "cache"))


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 3))


def generate(**options):
    batch = (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    return hbp.compile(convolutions(), quantities=["batch_l2", "diag_ggn"], example_inputs=batch, **options).code


def test_calibration_divides_work_by_the_median_time():
    fast = [0.25, 0.05, 0.02, 1.0, 0.002, 0.5, 0.125]
    times = iter([0.5, 0.1, 0.1, 2.0, 0.01, 1.0, 0.5] + fast * (calibrate.ROUNDS - 1))
    machine = calibrate.calibrate(CPU, timer=lambda run: next(times))
    # 768^3 / 0.25 s, 128 * 48^3 / 0.05 s, 8 * 576 * 48^2 * 9 / 0.02 s, 2^27 / 1 s, 2 ms / 100, 2^26 / 0.5 s
    assert machine == Machine(1.8e9, 2.8e8, 1.3e8, 2e-5, kernel_per_second=4.8e9, fresh_bytes_per_second=1.3e8,
                              linear_per_second=3.6e9)


def test_calibration_loses_patience_with_a_slow_machine():
    measured = []
    calibrate.calibrate(CPU, timer=lambda run: measured.append(run) or 10.0)
    assert len(measured) == 7 * calibrate.FEWEST


@slow("it measures")
def test_calibration_measures_for_real():
    for dtype, onednn in ((torch.float32, True), (torch.float64, False)):
        figures = asdict(calibrate.calibrate(CPU, dtype))
        assert (figures.pop("linear_per_second") > 0) == onednn
        assert all(0 < figure < float("inf") for figure in figures.values())


def test_figures_are_kept_by_device_dtype_and_threads(monkeypatch):
    assert tuning.measured_machine(CPU, torch.float32) == ONEDNN
    path = tuning.remember_machine(CPU, torch.float32, OTHER)
    assert path.stat().st_mode & 0o077 == 0
    assert tuning.measured_machine(CPU, torch.float32) == OTHER
    assert tuning.measured_machine(CPU, torch.float64) == DEFAULT
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert tuning.measured_machine(CPU, torch.float32) == ONEDNN
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert tuning.measured_machine(CPU, torch.float32) == DEFAULT
    monkeypatch.undo()


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"machines": 3}', "figure", "missing"])
def test_a_damaged_file_counts_as_none(damage):
    path = tuning.remember_machine(CPU, torch.float32, OTHER)
    found = json.loads(path.read_text())
    (figures,) = found["machines"].values()
    if damage == "figure":
        figures["bytes_per_second"] = "fast"
    elif damage == "missing":
        del figures["bytes_per_second"]
    path.write_text(json.dumps(found) if damage in ("figure", "missing") else damage)
    assert tuning.measured_machine(CPU, torch.float32) == ONEDNN
    tuning.remember_machine(CPU, torch.float32, OTHER)
    assert tuning.measured_machine(CPU, torch.float32) == OTHER


@slow("it measures")
def test_code_depends_on_the_machine_only_once_it_is_tuned():
    plain = generate()
    assert "hbp tune" not in plain
    tuning.remember_machine(CPU, torch.float64, OTHER)  # another dtype: no matter
    assert generate() == plain
    tuning.remember_machine(CPU, torch.float32, OTHER)
    tuned = generate()
    assert "4e+09 multiply-adds/s, 1e+09 in small products; 8e+09 bytes/s; 2e-05 s per call" in tuned
    assert generate() == tuned
    assert tuning.clear()
    assert not tuning.clear()
    assert generate() == plain


def test_slow_small_products_change_the_routes():
    """Where batches of small products are slow and calls free, single large products win."""
    plain = generate()
    tuning.remember_machine(CPU, torch.float32, Machine(8e10, 1e6, 1.5e10, 1e-9))
    tuned = generate()
    assert "Gram over positions" in plain.split('"""')[1]
    assert "Gram over positions" not in tuned.split('"""')[1]


def test_the_command(monkeypatch):
    monkeypatch.setattr("hbpcompiler.command.tune.calibrate", lambda device, dtype: OTHER)
    monkeypatch.setattr("hbpcompiler.command.tune.measure_limits", lambda device, dtype: SMALL)
    done = CliRunner().invoke(main, ["tune"])
    assert done.exit_code == 0, done.output
    for word in ("multiply adds per second", "4e+09", "8e+10", "float32", "kept in"):
        assert word in done.output
    assert tuning.measured_machine(CPU, torch.float32) == OTHER
    assert tuning.measured_limits(CPU, torch.float32) == SMALL
    assert "half_rows" not in done.output
    shown = CliRunner().invoke(main, ["tune", "--show"]).output
    for word in ("recycled_bytes", "1048576", "16777216", "half_rows", "4e+09"):
        assert word in shown
    assert "forgotten" in CliRunner().invoke(main, ["tune", "--clear"]).output
    assert "nothing" in CliRunner().invoke(main, ["tune", "--clear"]).output
    assert tuning.measured_machine(CPU, torch.float32) == ONEDNN
    assert tuning.measured_limits(CPU, torch.float32) == hbp.Limits()
    done = CliRunner().invoke(main, ["tune", "--device", "abacus"])
    assert done.exit_code == 2
    assert "abacus" in done.output
    assert "Traceback" not in done.output
