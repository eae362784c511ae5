"""Measured thresholds: a fake clock's are found, kept, and decide; damaged and older files count for what is sound."""

import json

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.steps import Tail
from hbpcompiler.compiler.tune import measured as tuning
from hbpcompiler.compiler.tune import thresholds
from hbpcompiler.compiler.tune.thresholds import first_faster, last_cached, last_recycled, measure_limits
from hbpcompiler.limits import MEASURED, ON_GPU
from tests.selection import slow

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HBP_CACHE_DIR", str(tmp_path / "cache"))


def clock(recycled=2**22, cached=2**20, rows=192):
    """Seconds of a machine with these thresholds."""

    def timer(work):
        slow = {"new": work.size > recycled, "squares": work.size > cached, "product by oneDNN": work.size < rows}
        return work.size * work.times * (3.0 if slow.get(work.name) else 0.9 if "oneDNN" in work.name else 1.0)

    return timer


@slow("a second or more; shorter ones of its kind stay")
def test_thresholds_of_a_fake_machine_are_found():
    found = measure_limits(CPU, timer=clock())
    assert found == hbp.Limits(recycled_bytes=2**22, cache_bytes=2**20, onednn_multiply_adds=192**3)
    assert set(found.changed()) == set(MEASURED)
    assert measure_limits(CPU, torch.float64, clock()).onednn_multiply_adds == hbp.Limits().onednn_multiply_adds
    assert measure_limits(CPU, timer=clock(rows=10**6)).onednn_multiply_adds == hbp.Limits().onednn_multiply_adds
    assert measure_limits(torch.device("cuda")) == ON_GPU  # whose allocator keeps what it has


def test_thresholds_of_lists():
    assert last_recycled({1: 1.0, 2: 9.0, 4: 1.2, 8: 2.0, 16: 3.0}) == 4
    assert last_recycled({4: 1.0, 8: 1.1}) == 8
    assert last_recycled({4: 2.0, 8: 2.0}) == 2
    assert last_cached({1: 3.0, 2: 10.0, 4: 5.0, 8: 4.0}) == 4
    assert first_faster({1: 0.5, 2: 2.0, 4: 0.9, 8: 0.8}) == 4
    assert first_faster({1: 0.5, 2: 1.0}) is None


@slow("it measures")
def test_it_measures_for_real(monkeypatch):
    found = measure_limits(CPU)
    assert 2**19 <= found.recycled_bytes <= 2**27
    assert 2**18 <= found.cache_bytes <= 2**26


def test_a_slow_machine_is_measured_no_longer_than_needed():
    count = []
    measure_limits(CPU, torch.float64, lambda work: count.append(work) or 10.0)
    assert len(count) == thresholds.FEWEST * (2 * len(thresholds.FILLED) + len(thresholds.SQUARED))


def compiled(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    batch = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    return hbp.compile(model, quantities=["diag_ggn"], example_inputs=batch, **options)


def tails(program):
    return [step for step in program._current().draft.plan.steps if isinstance(step, Tail)]


@slow("limits that are handed in are tested")
def test_the_measured_limit_decides():
    plain = compiled()
    assert not tails(plain)
    assert "Limits" not in plain.code
    tuning.remember_limits(CPU, torch.float64, measure_limits(CPU, timer=clock(recycled=2**20)))  # of another dtype
    assert compiled().code == plain.code
    tuning.remember_limits(CPU, torch.float32, measure_limits(CPU, timer=clock(recycled=2**20)))
    tuned = compiled()
    assert tails(tuned)  # 64 samples of 9 columns of 8 x 8 x 8 numbers are 1.1 MiB, more than what is recycled
    assert "recycled_bytes 1048576" in tuned.code
    assert compiled(limits=hbp.Limits()).code == plain.code  # what is handed in goes before
    tuning.clear()
    assert compiled().code == plain.code


def test_only_what_is_sound_in_the_file_counts():
    path = tuning.remember_limits(CPU, torch.float32, hbp.Limits(cache_bytes=2**20, recycled_bytes=2**23))
    kept = json.loads(path.read_text())
    (limits,) = kept["limits"].values()
    assert limits.keys() == set(MEASURED)
    limits |= {"cache_bytes": "large", "half_rows": 3, "of_a_later_version": 4}
    path.write_text(json.dumps(kept))
    assert tuning.measured_limits(CPU, torch.float32) == hbp.Limits(recycled_bytes=2**23)
    path.write_text(json.dumps({**kept, "limits": [1]}))
    assert tuning.measured_limits(CPU, torch.float32) == hbp.Limits()


def test_what_an_older_version_measured_still_counts():
    machine = tuning.default_machine(CPU, torch.float32)
    path = tuning.remember_machine(CPU, torch.float32, machine)
    kept = json.loads(path.read_text())
    (figures,) = kept["machines"].values()
    figures |= {"cache_bytes": 2**21, "bytes_per_second": 2e10}
    path.write_text(json.dumps(kept))
    assert tuning.measured_machine(CPU, torch.float32).bytes_per_second == 2e10


@pytest.mark.parametrize("wrong", [{"cache_bytes": -1}, {"half_blocks": 0}, {"recycled_bytes": 0.5},
                                   {"allowance": "much"}, {"budget_shares": ()}, {"typical_batch": True},
                                   {"route_times": (("one product",),)}, {"pooled_time": float("nan")}], ids=str)
def test_impossible_limits_are_refused_by_name(wrong):
    with pytest.raises(hbp.CompileError, match=next(iter(wrong))):
        hbp.Limits(**wrong)


def test_limits_must_be_limits():
    with pytest.raises(TypeError, match="limits must be"):
        hbp.compile(nn.Linear(2, 2), quantities=["grad"], limits={"cache_bytes": 1})
